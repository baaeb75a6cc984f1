"""A real engine around a scoring head, and small questions, for tests of scores."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from generation.scoring import Question, build_question
from mpu.initialize import ParallelTopology
from training.engine import TorchEngine
from training.learning_rates import AnnealingLR


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


def made_up_questions(count: int, *, seed: int = 0, vocab_size: int = 50, longest: int = 4) -> list[Question]:
    """Return questions of different lengths with one to five continuations each."""
    generator = np.random.default_rng(seed)

    def draw(length: int) -> list[int]:
        return generator.integers(0, vocab_size, length).tolist()

    questions = []
    for _ in range(count):
        context = draw(int(generator.integers(2, 20)))
        continuations = [draw(int(generator.integers(1, longest + 1))) for _ in range(int(generator.integers(1, 6)))]
        mask_index = int(generator.integers(0, len(context)))
        questions.append(build_question(context, continuations, mask_index=mask_index, start_id=vocab_size))
    return questions
