"""files/writing.py: whole or not at all, and what cannot be written is said before."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from files.writing import check_can_write, whole_file, write_whole
from tests.helpers import REPOSITORY


def test_a_file_is_whole_or_as_before(tmp_path: Path):
    path = tmp_path / "new" / "a.txt"
    write_whole(path, "one\r\ntwo")
    assert path.read_bytes() == b"one\r\ntwo"
    with pytest.raises(KeyError), whole_file(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"one\r\ntwo"
    assert list(path.parent.iterdir()) == [path]


def test_links_and_pipes_stay_what_they_are(tmp_path: Path):
    link, target, pipe = tmp_path / "link", tmp_path / "target", tmp_path / "pipe"
    link.symlink_to(target)
    write_whole(link, "text")
    assert link.is_symlink() and target.read_text(encoding="utf-8") == "text"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    check_can_write(pipe)
    write_whole(pipe, "text")
    assert os.read(reader, 10) == b"text" and pipe.is_fifo()
    os.close(reader)


def test_no_room_is_said_with_the_path(tmp_path: Path):
    program = f"from files.writing import write_whole; write_whole({str(tmp_path / 'a.txt')!r}, 'x' * 5000)"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )  # fmt: skip
    assert run.stderr.splitlines()[-1] == f"OSError: [Errno 27] File too large: '{tmp_path / 'a.txt'}'"
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_file(tmp_path: Path):
    program = "import os, sys; from files.writing import whole_file\nwith whole_file(sys.argv[1]): os._exit(9)"
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.txt")], cwd=REPOSITORY, check=False)
    assert run.returncode == 9
    (left,) = tmp_path.iterdir()
    kept = [tmp_path / f"a.txt.{os.getpid()}x.tmp", tmp_path / f"a.txt.{os.getppid()}.tmp", tmp_path / "b.txt.1.tmp"]
    for path in kept:  # a name of somebody else's, of a living process, of another file
        path.touch()
    write_whole(tmp_path / "a.txt", "whole")
    assert not left.exists() and all(path.exists() for path in kept)


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "is a folder"), ("file/a.txt", "is a file, no folder"), ("x" * 255, "cannot be written"), ("no/a.txt", None)],
)
def test_what_cannot_be_written_is_known_before(tmp_path: Path, name: str, message: str | None):
    (tmp_path / "file").write_text("", encoding="utf-8")
    if message is None:
        check_can_write(tmp_path / name)
    else:
        with pytest.raises(ValueError, match=message):
            check_can_write(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_permission(tmp_path: Path):
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(ValueError, match="no permission to write there"):
            check_can_write(tmp_path / "a.txt")
    finally:
        tmp_path.chmod(0o700)
