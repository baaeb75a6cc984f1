"""Pre-training runs with the same global batch at every number of processes, and the curve that each leaves."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.helpers.launching import metrics
from tests.helpers.small_corpus import SmallCorpus

TOLERANCE = 1e-5  # relative, fp32: another order of summation
MICRO_BATCHES = 4  # of one update, over data ranks and accumulation


def words(corpus: SmallCorpus, *, size: int, ranks: int, steps: int) -> list[str]:
    """Return the flags of one run; the global batch is the same at every size."""
    given = corpus.words()
    for name, value in {"--batch-size": "2", "--num-attention-heads": "4", "--log-interval": "1"}.items():
        given[given.index(name) + 1] = value
    return [
        *given, "--train-iters", str(steps), "--model-parallel-size", str(size), "--hidden-dropout", "0",
        "--attention-dropout", "0", "--gradient-accumulation-steps", str(MICRO_BATCHES * size // ranks),
        "--experiment-name", "r", "--save", "c", "--auto-resume", "--no-progress",
    ]  # fmt: skip


def curve(folder: Path) -> torch.Tensor:
    """Return loss and gradient norm of every update, float64 [updates,2]."""
    rows = [row for row in metrics(folder, "r") if row["kind"] == "train"]
    return torch.tensor([[row["loss"], row["grad_norm"]] for row in rows], dtype=torch.float64)
