"""A real engine around a scoring head, and small texts, for tests of scores."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from mpu.initialize import ParallelTopology
from training.engine import TorchEngine
from training.schedule import AnnealingLR


def scoring_engine(head: nn.Module, *, topology: ParallelTopology | None = None) -> TorchEngine:
    """Return an engine that only evaluates ``head``."""
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    scheduler = AnnealingLR(
        optimizer, start_lr=1.0, warmup_iters=1.0, num_iters=2, decay_style="linear", decay_ratio=0.1
    )
    return TorchEngine(
        head, optimizer=optimizer, scheduler=scheduler, precision="fp32", loss_scaler=None, clip_grad=1.0,
        topology=topology,
    )  # fmt: skip


def made_up_texts(count: int, *, seed: int = 0, longest: int = 4) -> list[tuple[str, list[str]]]:
    """Return contexts of numbered words, most with a blank, and one to five continuations for each."""
    generator = np.random.default_rng(seed)

    def draw(length: int) -> list[str]:
        return [f"w{number}" for number in generator.integers(0, 50, length)]

    texts = []
    for number in range(count):
        words = draw(int(generator.integers(2, 20)))
        if number % 4:
            words.insert(int(generator.integers(0, len(words) + 1)), "[MASK]")
        continuations = [draw(int(generator.integers(1, longest + 1))) for _ in range(int(generator.integers(1, 6)))]
        texts.append((" ".join(words), [" ".join(continuation) for continuation in continuations]))
    return texts
