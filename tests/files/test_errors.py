"""The line that a program ends with."""

from __future__ import annotations

from files.errors import LONGEST_LINE, error_line


def test_an_error_is_one_line_of_bounded_length():
    assert error_line("a.txt,\nline 2:\tbad", rank=1) == "error on rank 1: a.txt, line 2: bad"
    line = error_line(f"a.txt, line 2: label {'x' * 100_000!r}; known are yes, no")
    assert len(line) <= LONGEST_LINE + len("error:  ... ")
    assert line.startswith("error: a.txt, line 2: label 'xxx") and line.endswith("known are yes, no")
