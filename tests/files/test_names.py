"""Which names of files are taken, and those that are made."""

from __future__ import annotations

import pytest

from files.names import file_name_of, is_file_name


@pytest.mark.parametrize("name", ["rte-1", "新闻", "a b", "W04-1013", "x" * 199])
def test_names_that_are_taken(name: str) -> None:
    assert is_file_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\nb", "a\0b", " a", "x" * 200, "新" * 70])
def test_names_that_are_not(name: str) -> None:
    assert not is_file_name(name)


@pytest.mark.parametrize("text", ["", "..", "a/b", 'what? "this"', "line\nend", "名字"])
def test_any_text_becomes_a_name(text: str) -> None:
    assert is_file_name(file_name_of(text))
