"""Freed host memory stays with the process: a training step takes and frees the same large tensors every time."""

from __future__ import annotations

import ctypes

# Parameters of glibc's mallopt (malloc.h).
TRIM_THRESHOLD, MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let the C library reuse freed blocks of any size instead of returning them to the system; tell whether it can.

    By default glibc maps a block of more than 32 MB, often a smaller one too, from the system and gives it back when
    it is freed, so that every tensor of that size costs a page fault for each of its pages. What the process holds
    then stays at its peak. Only glibc has the switch; elsewhere nothing changes. It cannot be undone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    never, none = -1, 0
    return bool(mallopt(MMAP_MAX, none)) and bool(mallopt(TRIM_THRESHOLD, never))
