"""Arithmetic of a run: fp32, bfloat16 autocast, or fp16 autocast with loss scaling. Parameters stay fp32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from training.configurations import PrecisionSettings

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def supported_precision(settings: PrecisionSettings, *, device: torch.device) -> tuple[str, str | None]:
    """Return the arithmetic to use on ``device`` and, when it is not the one asked for, a line that says so.

    fp16 on a CPU is emulated, about 70 times slower than fp32: bf16 takes its place there.
    """
    if settings.kind == "fp16" and device.type == "cpu":
        return "bf16", "warning: fp16 is emulated on a CPU, 70 times slower than fp32; this run uses bf16 instead"
    return settings.kind, None


def autocast(kind: str, *, device: torch.device) -> AbstractContextManager:
    """Return the context of a forward pass in arithmetic ``kind``."""
    if kind not in AUTOCAST_TYPES:
        return nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST_TYPES[kind])
