"""Give back memory-mapped pages of a file as soon as they were read."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

DONT_NEED = 4  # MADV_DONTNEED of Linux


@functools.cache
def _advise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def release_pages(tensors: Iterable[Tensor]) -> None:
    """Drop the pages of tensors that are mapped from files; their values are read from the file again when needed.

    Tensors with memory of their own are left alone, and so are all of them where the system has no such call.
    """
    advise = _advise()
    if advise is None:
        return
    mapped = _mapped_files()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        start = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (storage.data_ptr() + storage.nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE
        # Memory of the process itself would lose its values.
        if start < end and any(first <= start and end <= last for first, last in mapped):
            advise(start, end - start, DONT_NEED)


def _mapped_files() -> list[tuple[int, int]]:
    """Return the address ranges of this process that are mapped from files."""
    ranges = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            first, last = (int(number, 16) for number in addresses.split("-"))
            ranges.append((first, last))
    return ranges
