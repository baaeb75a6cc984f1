"""Files of prompts: what is read, filled and written, and what is refused."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generation.infill import BlankFiller
from generation.prompts import fill_records, format_result, read_prompts, write_results
from generation.sampling import DecodingSettings
from tests.helpers.logs import logged_lines
from tests.helpers.small_models import TINY_COMMAND_IDS, WordTokenizer, random_model

SETTINGS = DecodingSettings(max_length=4, top_k=1)
ROWS = [{"prompt": "w1 [MASK]", "id": 3}, {"text": "[MASK] w2"}, "w3 [MASK]"]
PROMPTS = ["w1 [MASK]", "[MASK] w2", "w3 [MASK]"]


@pytest.fixture(scope="module")
def filler() -> BlankFiller:
    return BlankFiller(random_model(), WordTokenizer(TINY_COMMAND_IDS, num_tokens=58, unknown_id=0))


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
    assert f"blank 1: {filled[0].answers[0].strip() or '(empty)'}\n" in printed
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


LINES = "\n".join(map(json.dumps, ROWS))
FORMATS = {
    "a.txt": "\n".join(PROMPTS), "a": "\r\n".join(PROMPTS), "a.TXT": "\ufeff" + "\n".join(PROMPTS),
    "a.jsonl": LINES, "a.JSONL": LINES, "a.ndjson": LINES + "\n", "a.NDJson": LINES.replace("\n", "\r\n\r\n"),
    "a.json": json.dumps(ROWS, indent=1), "b.json": LINES, "c.JSON": "\ufeff\n" + json.dumps(ROWS),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_the_suffix_says_what_is_in_a_file(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(FORMATS[name].encode("utf-8"))
    records = read_prompts(tmp_path / name)
    assert [record.prompt for record in records] == PROMPTS
    if "json" in name.lower() or "ndj" in name.lower():
        assert [record.fields for record in records] == [{"id": 3}, {}, {}]


def test_only_ends_of_lines_end_lines(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes("a\u2028b [MASK]\x0c\rc\n[MASK]\r\n".encode())
    assert [record.prompt for record in read_prompts(path)] == ["a\u2028b [MASK]\x0c\rc", "[MASK]"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "[MASK]", r"a.csv: .csv is no format of prompts; known are .txt \(or no suffix\)"),
        ("a.jsonl.gz", "[MASK]", ".gz is no format of prompts"),
        ("a.txt", LINES, "a.txt, line 1: a JSON object in a file of plain text; call the file .jsonl"),
        ("a.json", "[]", "no prompt in it"),
        ("a.json", '[{"prompt": "[MASK]"}', "a.json: not valid JSON"),
        ("a.json", '["[MASK]", {"prompt": null}]', "a.json, row 2: prompt is null"),
        ("a.json", '{\n"prompt": "[MASK]"}', "a.json, line 1: not valid JSON"),
        ("a.jsonl", '{"prompt": ["[MASK]"]}', "line 1: prompt is .*; a text is needed"),
        ("a.jsonl", '{"prompt": 3, "text": "[MASK]"}', "line 1: prompt is 3; a text is needed"),
        ("a.jsonl", '{"prompts": "[MASK]"}', "line 1: no 'prompt'; did you mean 'prompts'"),
        (
            "a.jsonl",
            '{"prompt": "[MASK]", "answers": ["x"]}',
            "line 1: the field 'answers' is one that the results add",
        ),
        ("a.jsonl", '{"prompt": "[MASK]", "filled": null}', "line 1: the field 'filled' is one that the results add"),
        ("a.jsonl", '{"prompt": "[MASK]", "n": 1e999}', "line 1: a number is NaN or too large"),
        ("a.jsonl", '{"prompt": "[MASK]", "n": [NaN]}', "line 1: a number is NaN or too large"),
        ("a.jsonl", '{"prompt": "[MASK]", "n": ' + "9" * 5000 + "}", "line 1: a number of too many digits"),
        ("a.jsonl", '{"prompt": "[MASK]", "n": ' + "[" * 10**5 + "}", "line 1: JSON nested too deeply"),
        ("a.jsonl", '{"prompt": "[MASK]"}\n{"prompt": "\\ud83d [MASK]"}', "line 2: .* is half of a surrogate pair"),
        ("a.jsonl", '{"prompt": "[MASK]", "prompt": "x"}', "line 1: the key 'prompt' stands twice"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        read_prompts(tmp_path / name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(tmp_path))


def test_what_only_looks_like_a_blank_is_named(filler: BlankFiller, tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("w1 [MASK] ［MASK］ [mask]\nw2 [MASK]\n[ sMASK ] [sMASK]\n", encoding="utf-8")
    with logged_lines() as lines:
        fill_records(filler, read_prompts(path), settings=SETTINGS, seed=1, batch_size=2)
    assert lines == [f"{path}, line 1: ［MASK］ and [mask] is text and no blank to this tokenizer (and such in 1 more)"]


def test_what_is_done_is_known_when_it_ends_early(filler: BlankFiller, tmp_path: Path):
    """A signal comes while the second batch is computed."""
    (tmp_path / "a.txt").write_text("w1 w2 w3 w4 [MASK]\nw1 [MASK]\nw2 w3 [MASK]\n", encoding="utf-8")
    records, done, calls = read_prompts(tmp_path / "a.txt"), {}, []
    straight = fill_records(filler, records, settings=SETTINGS, seed=1, batch_size=1)

    def interrupt(*_: Any) -> None:
        calls.append(1)
        if len(done) == 2:
            signal.raise_signal(signal.SIGINT)

    hook = filler.model.register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            fill_records(filler, records, settings=SETTINGS, seed=1, batch_size=1, done=done)
    finally:
        hook.remove()
    assert done == {1: straight[1], 2: straight[2]}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["prompt", "text", "answers", "filled", "truth", "id"]) | st.text(max_size=5)
TEXTS = st.text(max_size=20) | st.sampled_from(["w1 [MASK]", "[MASK] w2 [sMASK]", "[gMASK]", "\r[MASK]\x85w3"])
OBJECTS = st.dictionaries(KEYS, TEXTS | JSON_VALUES, max_size=4)
LINE_TEXTS = st.one_of(
    OBJECTS.map(json.dumps), OBJECTS.map(lambda row: json.dumps(row, ensure_ascii=False)), TEXTS, st.text(max_size=30),
    st.sampled_from(["", "[", "{", '"[MASK]"', '{"prompt": "[MASK]"', '{"prompt": "[MASK]"} x', "[" * 3000]),
)  # fmt: skip
FILES = st.one_of(
    st.lists(LINE_TEXTS, max_size=4).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")),
    st.lists(OBJECTS | TEXTS, max_size=3).map(lambda rows: json.dumps(rows).encode("utf-8", "surrogatepass")),
    st.binary(max_size=60),
)
SUFFIXES = st.sampled_from(["", ".txt", ".jsonl", ".JSON", ".ndjson", ".json", ".csv", ".jsonl.zst", "."])


@given(content=FILES, suffix=SUFFIXES)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_filled_or_refused_in_one_line(filler: BlankFiller, tmp_path: Path, content: bytes, suffix: str):
    """What is filled comes back with every field as it was given."""
    source, target = tmp_path / f"prompts{suffix}", tmp_path / "filled.jsonl"
    source.write_bytes(content)
    try:
        records = read_prompts(source)
        rows = fill_records(filler, records, settings=SETTINGS, seed=1, batch_size=8)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        return
    write_results(target, rows)
    written = [json.loads(line, parse_constant=pytest.fail) for line in target.read_bytes().split(b"\n")[:-1]]
    assert written == rows
    for record, row in zip(records, written, strict=True):
        assert {name: row[name] for name in record.fields} == record.fields
        assert row["prompt"] == record.prompt
        blanks = sum(record.prompt.count(f"[{name}]") for name in ("MASK", "sMASK", "gMASK"))
        assert len(row["answers"]) == max(1, blanks), "a prompt without a blank is continued"
        assert format_result(row).endswith(f"Filled: {row['filled']}")


ODD = st.integers() | st.floats() | st.sampled_from([10**400, math.nan, math.inf, "5", None, [1], True])
USUAL: dict[str, st.SearchStrategy] = {
    "temperature": st.floats(1e-6, 1e6), "top_k": st.integers(0, 70), "top_p": st.floats(0, 1),
    "num_beams": st.integers(1, 5), "length_penalty": st.floats(-20, 20), "no_repeat_ngram_size": st.integers(0, 3),
    "min_length": st.integers(0, 5), "draw_candidates": st.booleans(),
}  # fmt: skip


@given(
    values=st.fixed_dictionaries({}, optional=USUAL),
    changed=st.dictionaries(st.sampled_from([*USUAL, "max_length"]), ODD, max_size=1),
    length=st.integers(1, 5),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_way_of_decoding_works_or_is_refused_in_one_line(
    filler: BlankFiller, values: dict[str, Any], changed: dict[str, Any], length: int
):
    try:
        decoding = DecodingSettings(**{"max_length": length, **values, **changed})
        if decoding.num_beams > 40:
            return  # they work and take long
        [filled] = filler.fill("w1 [MASK] w2", settings=decoding)
    except ValueError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 250
        return
    assert len(filled.answers) == 1 and decoding.min_length <= len(filled.pieces[0]) <= decoding.max_length
