"""Locks by files. The kernel releases them with the process, however that ends.

Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from files.reading import described

_held: set[int] = set()  # descriptors


def _release_in_child() -> None:
    """A forked process shares what it was forked from; it may live on a little, and must not hold the lock then."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)


@contextmanager
def locked(path: str | Path, *, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock that the file ``path`` stands for; folders are made, the file is removed at the end.

    Where another process holds it, ``waiting`` is told which one and the lock is waited for; without ``waiting`` that
    is a BlockingIOError, whose text names it. A file system without locks gives a warning and no lock.
    """
    path = Path(path)
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _take(path, waiting)
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    _held.add(descriptor)
    process = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == process:
            _held.discard(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
                for folder in made:  # that nothing was put into
                    folder.rmdir()
            os.close(descriptor)


def _take(path: Path, waiting: Callable[[str], None] | None) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = described(os.read(descriptor, 200).decode(errors="replace").strip()).strip("'\"")
            if waiting is None:
                os.close(descriptor)
                raise BlockingIOError(holder or "another process") from None
            waiting(holder or "another process")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            logging.getLogger("glm").warning(f"{path}: no lock here ({error.strerror}); start one process at a time")
            return descriptor
        with contextlib.suppress(FileNotFoundError):  # it was removed by who held the lock: another may hold a new one
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)
