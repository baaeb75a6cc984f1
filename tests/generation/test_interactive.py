"""The interactive program's words."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from generation.infill import BlankFiller
from generation.interactive import InteractiveSession, marked, open_samples_file
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


@pytest.mark.parametrize(("answer", "plain"), [(" w2 ", " w2"), ("w2", "w2"), ("", "(empty)"), ("  ", "  (empty)")])
def test_answers_stand_out_on_a_terminal(answer: str, plain: str):
    assert marked(answer, highlight=False) == plain
    highlighted = marked(answer, highlight=True)
    assert "\033[1;32m" in highlighted and re.sub(r"\033\[[0-9;]*m", "", highlighted) == plain


def test_a_terminal_keeps_what_was_on_it(filler: BlankFiller, monkeypatch: pytest.MonkeyPatch):
    terminal, lines = io.StringIO(), iter(["w1 [MASK] w2", "stop"])
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    InteractiveSession(
        filler, settings=SETTINGS, seq_length=20, seed=1, samples=io.StringIO(), read_line=lambda _text: next(lines)
    ).run()
    shown = terminal.getvalue()
    assert "\033[1;32m" in shown and not re.search(r"\033\[[0-9]*[HJ]", shown), "nothing is cleared"
    assert "\nContext: w1 [MASK] w2\n" in shown and "\nGLM: <|startofpiece|>" in shown


def test_samples_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.strftime", lambda _form: "sample-11-28-23-59")
    names = []
    for number in range(3):
        with open_samples_file(tmp_path / "samples") as file:
            file.write(str(number))
            names.append(Path(file.name).name)
    assert names == ["sample-11-28-23-59.txt", "sample-11-28-23-59-2.txt", "sample-11-28-23-59-3.txt"]
    assert (tmp_path / "samples" / names[0]).read_text(encoding="utf-8") == "0"


def test_an_answer_is_kept_before_it_is_shown(filler: BlankFiller, monkeypatch: pytest.MonkeyPatch):
    class Closed(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    samples, lines = io.StringIO(), iter(["w1 [MASK]"])
    session = InteractiveSession(
        filler, settings=SETTINGS, seq_length=20, seed=1, samples=samples, read_line=lambda _text: next(lines)
    )
    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(BrokenPipeError):
        session.run()
    assert samples.getvalue().startswith("w1 [MASK]<|startofpiece|>")


def test_a_full_disk_costs_the_transcript_alone(filler: BlankFiller, capsys: pytest.CaptureFixture):
    lines = iter(["w1 [MASK]", "stop"])
    with pytest.raises(OSError, match="No space left"), Path("/dev/full").open("w", encoding="utf-8") as samples:
        InteractiveSession(
            filler, settings=SETTINGS, seq_length=20, seed=1, samples=samples, read_line=lambda _text: next(lines)
        ).run()
    printed = capsys.readouterr().out
    assert "not kept in /dev/full: No space left on device" in printed
    assert "\nGLM: <|startofpiece|>" in printed


def test_typed_bytes_that_are_no_text(filler: BlankFiller, capsys: pytest.CaptureFixture):
    _, file = type_lines(filler, ["w1 \udcff [MASK]", "w1 [MASK]"])
    assert "The prompt is not UTF-8 text: the text has '\\udcff' at character 3" in capsys.readouterr().out
    assert file.startswith("w1 [MASK]<|startofpiece|>")


def test_the_words_of_the_multilingual_release(filler: BlankFiller, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Each query has a file of its own, with all beams one a line, the best first."""
    left, asked = ["", "w1 [MASK] w2 [MASK]", "stop"], []
    settings = DecodingSettings(max_length=4, num_beams=3, fill="replace", min_length=1)

    def read_line(text: str) -> str:
        asked.append(text)
        return left.pop(0)

    InteractiveSession(
        filler, settings=settings, seq_length=20, seed=1, samples=io.StringIO(), read_line=read_line, folder=tmp_path
    ).run()
    printed = capsys.readouterr().out
    assert asked == ["\nPlease Input Query (stop to exit) >>> "] * 3
    assert printed.startswith("Query should not be empty!")
    [result] = filler.fill(["w1 [MASK] w2 [MASK]"], settings=settings)
    [file] = tmp_path.iterdir()
    assert file.name.startswith("w1 [MASK] w2 [MASK]-")
    assert file.read_text(encoding="utf-8").split("\n")[:-1] == list(result.alternatives)
    assert f"GLM: {result.text}\n" in printed and f"kept in {file}" in printed
