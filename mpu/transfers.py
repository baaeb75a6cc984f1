"""Move what the host has made to the device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return ``tensor`` on ``device``; what is there already is returned as it is.

    To a GPU it goes by way of pinned memory: from ordinary memory the host would wait until the GPU has done all that
    it was told before, and could not run ahead.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
