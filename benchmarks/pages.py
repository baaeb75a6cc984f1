"""Tables in Markdown, and pages whose results stand between two marks that name the command which writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from files.reading import lines_of, read_text
from files.writing import write_whole


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def marks(command: str) -> tuple[str, str]:
    """Return the lines between which ``command`` puts its results."""
    return f"<!-- results: begin ({command}) -->", "<!-- results: end -->"


def _parts(page: Path, command: str) -> tuple[str, str, str]:
    text, (begin, end) = read_text(page), marks(command)
    before, found, rest = text.partition(begin)
    between, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page} lacks the lines {begin} and {end}; put them where the results go")
    return before, between, after


def read_results(page: Path, *, command: str) -> list[str]:
    """Return the lines between the marks. Raises ValueError where the page lacks them."""
    return lines_of(_parts(page, command)[1].strip("\n"))


def write_results(page: Path, lines: Iterable[str], *, command: str) -> None:
    """Put ``lines`` between the marks, in place of what is there. Raises ValueError where the page lacks them."""
    (before, _, after), (begin, end) = _parts(page, command), marks(command)
    write_whole(page, "\n".join([f"{before}{begin}", "", *lines, "", f"{end}{after}"]))
