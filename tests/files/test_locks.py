"""Locks: one holder, named; gone with the process, whatever it forked."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from files.locks import locked
from tests.helpers import REPOSITORY

# Takes the lock, forks a process that lives on, says so, and waits.
HOLDER = """
import os, sys, time
from files.locks import locked
with locked(sys.argv[1]):
    if os.fork() == 0:
        print("held", flush=True)
    time.sleep(600)
"""


def hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_lock_has_one_holder_and_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "a" / ".lock"
    process = hold(path)
    try:
        with pytest.raises(BlockingIOError, match=rf"process {process.pid} on \S+"), locked(path):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with locked(path):  # the forked process is still there
            assert re.fullmatch(rf"process {os.getpid()} on \S+\n", path.read_text(encoding="utf-8"))
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    process = hold(path)
    told: list[str] = []

    def waiting(holder: str) -> None:
        told.append(holder)
        os.killpg(process.pid, signal.SIGKILL)

    with locked(path, waiting=waiting):
        assert len(told) == 1 and str(process.pid) in told[0]


def test_nothing_is_left_of_a_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "a" / "b" / ".lock"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
