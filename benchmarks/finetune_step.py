"""Loss and gradients of a fine-tuning batch: trimmed, and in shared rows, against padded to 256; the same loss.

    python -m benchmarks.finetune_step [--json]

12 layers, hidden 384, 6 heads, vocabulary 30592; 16 cloze samples of 20-60, 40-160 and 60-250 tokens with two labels of
one token each. A step collates the samples, computes the cross entropy of the labels and its gradients. Trimmed: padded
to the longest sample, what every run does. Shared rows: ``--pack-samples``. Both sides use our model: the gain comes on
top of the training step's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from benchmarks.measuring import Row, compare, report
from benchmarks.train_step import VOCABULARY, make_config
from data_utils.errors import run_main
from model.heads import SingleTokenCloze
from model.modeling_glm import GLMModel
from tasks.collation import collate
from tasks.objective import TaskCriterion
from tasks.samples import TaskSample
from tasks.task_data import WIDTH_MULTIPLE

BATCH, MAXIMUM = 16, 256
GOALS = {(20, 60): 5.0, (40, 160): 2.2, (60, 250): None}
DEVICE = torch.device("cpu")


def make_samples(shortest: int, longest: int) -> list[TaskSample]:
    """Return samples of random lengths whose last position predicts a label."""
    generator = np.random.default_rng(6)
    samples = []
    for number, length in enumerate(generator.integers(shortest, longest + 1, BATCH)):
        ids = generator.integers(0, VOCABULARY - 600, length)
        positions = np.stack([np.arange(length), np.zeros(length, dtype=np.int64)])
        positions[:, -1] = length // 2, 1
        read = np.zeros(length, dtype=np.int64)
        read[-1] = 1
        labels = np.array([7, 11])
        samples.append(TaskSample("single_token", number, number % 2, ids, positions, length - 1, labels, read))
    return samples


def step(head: SingleTokenCloze, samples: Sequence[TaskSample], **options: int | bool) -> Callable[[], float]:
    """Return a function that collates the samples, computes loss and gradients and returns the loss."""

    def work() -> float:
        head.zero_grad()
        loss = TaskCriterion().loss(head, collate(samples, pad_id=0, **options), device=DEVICE).mean
        loss.backward()
        return loss.item()

    return work


def measure() -> Sequence[Row]:
    """Return two rows per range of lengths."""
    head = SingleTokenCloze(GLMModel(make_config(0.0), generator=torch.Generator().manual_seed(2))).train()
    rows = []
    for (shortest, longest), goal in GOALS.items():
        samples = make_samples(shortest, longest)
        fixed = step(head, samples, pad_to=MAXIMUM)
        for name, share_rows in (("trimmed", False), ("shared rows", True)):
            ours = step(head, samples, multiple_of=WIDTH_MULTIPLE, share_rows=share_rows)
            same = abs(ours() - fixed()) < 1e-5
            work = f"fine-tuning step, lengths {shortest}-{longest}, {name}"
            columns = {"amount": BATCH, "unit": "samples/s", "equal": same, "goal": goal if share_rows else None}
            rows.append(compare(work, ours, fixed, repeats=3, warm=True, **columns))
    return rows


if __name__ == "__main__":
    run_main(lambda: report(measure, description=__doc__))
