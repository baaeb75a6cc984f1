"""The line that a program ends with."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from files.errors import LONGEST_LINE, error_line
from tests.helpers import REPOSITORY


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "data_utils.show", "--train-data", "x"],
        ["-m", "model.released"],
        ["pretrain_glm.py", "--block-lm", "--train-data", "x", "--train-iters", "1"],
        ["scripts/merge_lora.py", "a", "b", "c"],
    ],
)
def test_an_interpreter_without_the_requirements_says_so_in_one_line(words: list[str]) -> None:
    bare = [sys.executable, "-S"]  # without site-packages
    run = subprocess.run([*bare, *words], cwd=REPOSITORY, capture_output=True, text=True, encoding="utf-8")
    line = rf"error: {re.escape(sys.executable)} has no (torch|numpy): first .*\n"
    assert run.returncode == 2 and re.fullmatch(line, run.stderr), run.stderr


def test_an_error_is_one_line_of_bounded_length():
    assert error_line("a.txt,\nline 2:\tbad", rank=1) == "error on rank 1: a.txt, line 2: bad"
    line = error_line(f"a.txt, line 2: label {'x' * 100_000!r}; known are yes, no")
    assert len(line) <= LONGEST_LINE + len("error:  ... ")
    assert line.startswith("error: a.txt, line 2: label 'xxx") and line.endswith("known are yes, no")
