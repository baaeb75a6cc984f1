"""Which names of files are taken, and those that are made."""

from __future__ import annotations

from pathlib import Path

import pytest

from files.names import file_name_of, is_file_name, point_to_newest, undated


@pytest.mark.parametrize("name", ["rte-1", "新闻", "a b", "W04-1013", "x" * 199])
def test_names_that_are_taken(name: str) -> None:
    assert is_file_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\nb", "a\0b", " a", "x" * 200, "新" * 70])
def test_names_that_are_not(name: str) -> None:
    assert not is_file_name(name)


@pytest.mark.parametrize("text", ["", "..", "a/b", 'what? "this"', "line\nend", "名字"])
def test_any_text_becomes_a_name(text: str) -> None:
    assert is_file_name(file_name_of(text))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my-glm-11-28-17-56", "my-glm"),
        ("copa_11-28-17-56-2", "copa"),
        ("my-glm", None),
        ("glm11-28-17-56", None),
    ],
)
def test_the_time_in_the_name_of_a_run(name: str, expected: str | None) -> None:
    assert undated(name) == expected


def test_a_name_without_a_date_leads_to_the_newest(tmp_path: Path) -> None:
    for name in ("rte-11-28-17-56", "rte-11-28-17-56-2", "copa-11-28-17-57", "undated"):
        (tmp_path / name).mkdir()
        point_to_newest(tmp_path / name)
    assert (tmp_path / "rte").resolve() == tmp_path / "rte-11-28-17-56-2"
    assert (tmp_path / "copa").readlink() == Path("copa-11-28-17-57"), "it can be moved with the folders"
    (tmp_path / "own").mkdir()
    (tmp_path / "own-11-28-17-58").mkdir()
    point_to_newest(tmp_path / "own-11-28-17-58")
    assert not (tmp_path / "own").is_symlink(), "a folder stays"
    assert len(list(tmp_path.iterdir())) == 8
