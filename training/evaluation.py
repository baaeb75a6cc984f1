"""Evaluate a model on a fixed number of batches, per objective."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from mpu.initialize import ParallelTopology
from training.metrics import OBJECTIVE_INDEX, OBJECTIVES, EvaluationResult

if TYPE_CHECKING:
    from training.engine import Engine


class EvaluationTotals:
    """Sum batch losses per objective on the device; read them once at the end."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._sums = torch.zeros(len(OBJECTIVES), dtype=torch.float64, device=device)
        self._counts = torch.zeros(len(OBJECTIVES), dtype=torch.float64)

    def add(self, mode: str, loss: Tensor) -> None:
        """Count one batch of objective ``mode`` with mean target loss ``loss`` (0-dim)."""
        self._sums[OBJECTIVE_INDEX[mode]] += loss.detach().double()
        self._counts[OBJECTIVE_INDEX[mode]] += 1

    def result(self, *, topology: ParallelTopology) -> EvaluationResult:
        """Return mean losses over all batches of all data ranks; every batch weighs the same, as in the original."""
        totals = torch.stack([self._sums, self._counts.to(self._sums.device)])  # [2,objectives]
        if topology.data_parallel_group is not None:
            dist.all_reduce(totals, group=topology.data_parallel_group)
        sums, counts = totals.tolist()
        num_batches = sum(counts)
        assert num_batches, "an evaluation without batches"
        losses = {mode: s / c for mode, s, c in zip(OBJECTIVES, sums, counts, strict=True) if c}
        return EvaluationResult(loss=sum(sums) / num_batches, objective_losses=losses)


def evaluate(engine: Engine, batches: Iterable[Any]) -> EvaluationResult:
    """Run the model over ``batches`` without dropout and return the losses per objective.

    The model is put back into training mode, and no random numbers are drawn: a run with evaluations takes the same
    steps as one without.
    """
    totals = EvaluationTotals(engine.device)
    engine.model.eval()
    with torch.inference_mode():
        for batch in batches:
            totals.add(engine.objective.mode(batch), engine.batch_loss(batch).mean)
    engine.model.train()
    return totals.result(topology=engine.topology)
