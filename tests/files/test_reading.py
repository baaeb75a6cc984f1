"""Text, lines, JSON and the values in it: what is read, and the one line for what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from files.reading import end_of_json, lines_of, parse_json, read_json, read_text, value_of


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "a number of too many digits"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('"half \\ud83d pair"', "half of a surrogate pair"),
        (b"\xff\xfea", "not UTF-8"),
    ],
)
def test_what_is_no_json_is_named_with_its_place(text: str | bytes, problem: str):
    with pytest.raises(ValueError, match=f"^here: .*{problem}"):
        parse_json(text, place="here")


def test_pairs_of_surrogates_and_escapes_are_read():
    assert parse_json('{"a": "\\ud83d\\ude00 \\\\ud83d"}', place="here") == {"a": "😀 \\ud83d"}


def test_lines_end_with_line_feeds_alone():
    assert lines_of("a\rb\u2028c\r\nd\x0ce\n\n") == ["a\rb\u2028c", "d\x0ce", ""]
    assert lines_of("a") == ["a"]
    assert lines_of("") == []


def test_a_file_of_another_encoding_names_the_command(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x\n" + "中文".encode("gb18030"))
    with pytest.raises(ValueError, match=r"a.txt, line 2: not UTF-8 .*iconv -f GB18030 -t UTF-8"):
        read_text(path)
    path.write_bytes("中文".encode("utf-16"))
    with pytest.raises(ValueError, match="iconv -f UTF-16"):
        read_text(path)
    path.write_bytes(b"\xef\xbb\xbfa\r\n")
    assert read_text(path) == "a\r\n"


def test_json_files_are_of_a_kind(tmp_path: Path):
    (tmp_path / "a.json").write_text("[1]", encoding="utf-8")
    assert read_json(tmp_path / "a.json", list) == [1]
    with pytest.raises(ValueError, match=r"a.json: an object is needed in JSON, found \[1\]"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ValueError, match="no such file"):
        read_json(tmp_path / "b.json")


def test_values_are_of_their_kind_and_within_bounds():
    fields = {"a": 3, "b": True, "c": 2.5, "d": None, "e": float("nan")}
    assert value_of(fields, "a", int, place="f") == 3
    assert value_of(fields, "a", float, place="f") == 3.0
    assert value_of(fields, "d", int, place="f", default=7) == 7
    for name, kind, problem in [
        ("b", int, "b is True; a whole number"), ("c", int, "c is 2.5; a whole number"),
        ("a", bool, "a is 3; true or false"), ("d", int, "d is null"), ("z", int, "no 'z'; it has a, b, c, d, e")
        ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"^f: {problem}"):
            value_of(fields, name, kind, place="f")
    with pytest.raises(ValueError, match="a is 3; at least 4 is needed"):
        value_of(fields, "a", int, place="f", at_least=4)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ('{"a": [1]} x', 10),
        ("12, 3", 2),
        ("12", 2),
        ('"ab', None),
        ("[1, 2", None),
        ("tru", None),
        ("1" * 9000 + ",", 9000),
    ],
)
def test_where_a_value_ends(text: str, end: int | None):
    assert end_of_json(text, 0) == end


@pytest.mark.parametrize("text", ['{"a": } and more text behind it', "[" * 100_000])
def test_what_no_more_text_mends(text: str):
    with pytest.raises(ValueError, match="JSON"):
        end_of_json(text, 0)
