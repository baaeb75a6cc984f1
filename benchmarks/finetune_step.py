"""Forward and backward of a fine-tuning batch: padded to the longest sample against padded to 256, the same loss.

    python -m benchmarks.finetune_step [--json]

12 layers, hidden 384, 6 heads, vocabulary 30592; 16 cloze samples of 20-60, 40-160 and 60-250 tokens, one predicted
token each. Both sides use our model: the gain comes on top of the training step's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.measuring import Row, compare, report
from benchmarks.train_step import VOCABULARY, make_config
from data_utils.errors import run_main
from model.modeling_glm import GLMModel

BATCH, MAXIMUM = 16, 256
GOALS = {(20, 60): 5.0, (40, 160): 2.2, (60, 250): None}


def padded(lengths: Sequence[int], width: int) -> dict[str, Tensor]:
    """Return a batch of samples whose last token is predicted, padded to ``width``."""
    generator = torch.Generator().manual_seed(5)
    batch = {name: torch.zeros(len(lengths), width, dtype=torch.long) for name in ("ids", "labels", "loss_mask")}
    positions = torch.zeros(len(lengths), 2, width, dtype=torch.long)
    for row, length in enumerate(lengths):
        batch["ids"][row, :length] = torch.randint(VOCABULARY - 600, (length,), generator=generator)
        batch["labels"][row, length - 1] = torch.randint(VOCABULARY - 600, (), generator=generator)
        batch["loss_mask"][row, length - 1] = 1
        positions[row, 0, :length] = torch.arange(length)
        positions[row, 1, length - 1] = 1
    return {**batch, "positions": positions, "separators": torch.tensor(lengths) - 1}


def step(model: GLMModel, batch: dict[str, Tensor]) -> Callable[[], float]:
    """Return a function that computes loss and gradients and returns the loss."""

    def work() -> float:
        model.zero_grad()
        loss = model(
            batch["ids"], batch["positions"], batch["separators"], labels=batch["labels"], loss_mask=batch["loss_mask"]
        ).mean
        loss.backward()
        return loss.item()

    return work


def measure() -> Sequence[Row]:
    """Return a row per range of lengths."""
    model = GLMModel(make_config(0.0), generator=torch.Generator().manual_seed(2)).train()
    rows = []
    for (shortest, longest), goal in GOALS.items():
        lengths = torch.randint(shortest, longest + 1, (BATCH,), generator=torch.Generator().manual_seed(6)).tolist()
        ours = step(model, padded(lengths, -(-max(lengths) // 8) * 8))
        fixed = step(model, padded(lengths, MAXIMUM))
        same = abs(ours() - fixed()) < 1e-5
        name = f"fine-tuning step, lengths {shortest}-{longest}"
        rows.append(compare(name, ours, fixed, amount=BATCH, unit="samples/s", equal=same, goal=goal))
    return rows


if __name__ == "__main__":
    run_main(lambda: report(measure, description=__doc__))
