"""The interactive program's words, and files of prompts."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from generation.infill import BlankFiller
from generation.interactive import InteractiveSession, open_samples_file
from generation.prompts import fill_records, format_result, read_prompts, write_results
from generation.sampling import DecodingSettings
from tests.helpers.small_models import TINY_COMMAND_IDS, WordTokenizer, random_model

SETTINGS = DecodingSettings(max_length=4, top_k=1)


@pytest.fixture(scope="module")
def filler() -> BlankFiller:
    return BlankFiller(random_model(), WordTokenizer(TINY_COMMAND_IDS, num_tokens=58))


def type_lines(filler: BlankFiller, lines: list[str], *, seq_length: int = 20) -> tuple[list[str], str]:
    """Type ``lines`` and then end the input; return the prompts shown and the samples file."""
    left, asked, samples = list(lines), [], io.StringIO()

    def read_line(text: str) -> str:
        asked.append(text)
        if not left:
            raise EOFError
        return left.pop(0)

    session = InteractiveSession(
        filler, settings=SETTINGS, seq_length=seq_length, seed=1, samples=samples, read_line=read_line
    )
    session.run()
    return asked, samples.getvalue()


def test_texts(filler: BlankFiller, capsys: pytest.CaptureFixture):
    asked, file = type_lines(filler, ["", "w1 [MASK] w2", "stop", "w3"])
    [result] = filler.fill(["w1 [MASK] w2"], settings=SETTINGS)
    lines = capsys.readouterr().out.split("\n")
    assert asked == ["\nContext prompt (stop to exit) >>> "] * 3
    assert lines[0] == "Prompt should not be empty!"
    assert lines[2].startswith("Taken time ")
    assert lines[3:6] == ["", "", "Context: w1 [MASK] w2"]
    assert lines[6:8] == ["", f"GLM: {result.output_text}"]
    assert lines[8:10] == ["", f"Filled: {result.text}"]
    assert file == f"w1 [MASK] w2{result.output_text}\n"


def test_a_context_as_long_as_the_window_is_refused(filler: BlankFiller, capsys: pytest.CaptureFixture):
    _, file = type_lines(filler, ["w1 [MASK] w2", "w1 [MASK]"], seq_length=5)
    printed = capsys.readouterr().out
    assert "\nContext length 5 \nPlease give smaller context than the window length!\n" in printed
    assert printed.count("GLM:") == 1
    assert file.startswith("w1 [MASK] w2w1 [MASK]<|startofpiece|>")


def test_a_context_beyond_the_positions_is_one_line(filler: BlankFiller, capsys: pytest.CaptureFixture):
    type_lines(filler, ["w1 " * 70, "stop"], seq_length=500)
    assert "the prompt has 72 tokens and needs 72 positions, the model has 65; shorten" in capsys.readouterr().out


def test_without_a_blank_nothing_is_generated(filler: BlankFiller, capsys: pytest.CaptureFixture):
    """``MASK]`` alone keeps the program from appending a mask, and is none."""
    tokenizer = WordTokenizer(TINY_COMMAND_IDS, num_tokens=58, unknown_id=0)
    _, file = type_lines(BlankFiller(filler.model, tokenizer), ["MASK] w1"])
    assert file == "MASK] w1\n"
    assert "\nGLM: \n" in capsys.readouterr().out


def test_samples_file(tmp_path: Path):
    with open_samples_file(tmp_path / "samples") as file:
        assert Path(file.name).parent == tmp_path / "samples"
        assert Path(file.name).match("sample-??-??-??-??.txt")


def test_prompt_files(filler: BlankFiller, tmp_path: Path):
    rows = [{"prompt": "w1 [MASK]", "truth": "w9"}, {"id": 3, "text": "[MASK] w2 [MASK]"}]
    source = tmp_path / "prompts.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    records = read_prompts(source)
    results = fill_records(filler, records, settings=SETTINGS, seed=1, batch_size=2)
    filled = filler.fill(["w1 [MASK]", "[MASK] w2 [MASK]"], settings=SETTINGS)
    assert [row["prompt"] for row in results] == ["w1 [MASK]", "[MASK] w2 [MASK]"]
    assert [row["answers"] for row in results] == [list(result.answers) for result in filled]
    assert [row["filled"] for row in results] == [result.text for result in filled]
    assert results[0]["truth"] == "w9"
    assert results[1]["id"] == 3
    printed = format_result(results[0])
    assert f"blank 1: {filled[0].answers[0]}\n" in printed
    assert f"Filled: {filled[0].text}" in printed
    target = tmp_path / "new" / "filled.jsonl"
    write_results(target, results)
    assert [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()] == results
    assert list(target.parent.iterdir()) == [target]


def test_lines_of_text(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffein [MASK]\r\n\n  zwei [MASK]\n".encode())
    assert [record.prompt for record in read_prompts(path)] == ["ein [MASK]", "  zwei [MASK]"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"prompts.jsonl, line 1: not valid JSON"),
        (b'\n{"prompt": 3}', r"prompts.jsonl, line 2: prompt is 3; a text is needed"),
        (b"[1]", r"line 1: an object with a text under"),
        (b"\xff\xfe", "not UTF-8"),
        (b"\n \n", "no prompt in it"),
        (b'{"prompt": "w1"}', r"prompts.jsonl, line 1: no blank to fill"),
        (json.dumps({"prompt": "w1 " * 70 + "[MASK]"}).encode(), "line 1: the prompt has 73 tokens"),
        (None, "no such file"),
    ],
)
def test_bad_prompt_files(filler: BlankFiller, tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        fill_records(filler, read_prompts(path), settings=SETTINGS, seed=1, batch_size=2)
    assert "\n" not in str(error.value)
