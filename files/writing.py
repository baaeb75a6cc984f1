"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Give a file to fill; it is on the disk under ``path`` when the block ends well. Folders are made.

    It has a temporary name until then; a link keeps pointing where it points, and what is no regular file (a pipe,
    /dev/null) is written to directly. Raises OSError, with ``path``, when there is no room; the file of before is then
    still there.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    direct = path.exists() and not (path.is_file() or path.is_dir())
    unfinished = path if direct else _unfinished(path)
    if not direct:
        _remove_leftovers(path)
    try:
        with unfinished.open("wb" if direct else "w+b") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            if not direct:
                os.fsync(file.fileno())
        if not direct:
            unfinished.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        if not direct:
            unfinished.unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def _remove_leftovers(path: Path) -> None:
    """Delete what killed processes left of their attempts to write ``path``: nobody holds its lock any more."""
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            number = leftover.name[len(path.name) + 1 : -len(".tmp")]
            if number.isdecimal() and leftover != _unfinished(path) and not _is_running(int(number)):
                with leftover.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of a process on another machine
                    leftover.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_whole(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 like ``whole_file``; ends of lines stay as they are."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))


def check_can_write(path: str | Path) -> None:
    """Raise ValueError when ``whole_file`` would not be able to begin, before the work whose results it is to hold.

    Nothing is made. A disk that is full is found when it is written to.
    """
    path = Path(os.path.realpath(path))
    try:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give the name of a file")
        _unfinished(path).exists()  # a name that is too long
        folder = next(folder for folder in path.parents if folder.exists())
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror})") from None
    if not folder.is_dir():
        raise ValueError(f"{path}: {folder} is a file, no folder")
    if not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ValueError(f"{path}: no permission to write there; choose another place")
