"""Host memory: what a step frees stays with the process, and what the host makes reaches the device without a wait."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

# Parameters of glibc's mallopt (malloc.h).
TRIM_THRESHOLD, MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let the C library reuse freed blocks of any size instead of returning them to the system; tell whether it can.

    A training step takes and frees the same large tensors every time. By default glibc maps a block of more than
    32 MB, often a smaller one too, from the system and gives it back when it is freed, so that every tensor of that
    size costs a page fault for each of its pages. What the process holds then stays at its peak. Only glibc has the
    switch; elsewhere nothing changes. It cannot be undone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    never, none = -1, 0
    return bool(mallopt(MMAP_MAX, none)) and bool(mallopt(TRIM_THRESHOLD, never))


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return ``tensor`` on ``device``; what is there already is returned as it is.

    To a GPU it goes by way of pinned memory: from ordinary memory the host would wait until the GPU has done all that
    it was told before, and could not run ahead.
    """
    if tensor.device.type == "cpu" and device.type not in ("cpu", "meta"):
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
