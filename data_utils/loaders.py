"""Numbered blank-infilling batches for training, resumable at any number."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from data_utils.batches import Batch
from data_utils.samplers import Plan

BATCHES_AHEAD = 4  # that every worker process prepares


class Items(Protocol):
    """Packed samples by number."""

    def __getitem__(self, index: int) -> Any:
        """Return sample ``index``."""


class Collator(Protocol):
    """Turns samples into a batch; what it draws depends on ``batch_index`` only."""

    def __call__(self, samples: Sequence[Any], *, batch_index: int) -> Batch:
        """Build batch number ``batch_index`` of this rank."""


@dataclass(frozen=True)
class BatchLoader:
    """Build the batches of one data-parallel rank from packed samples.

    What batch n holds depends on n alone: not on the number of workers, nor on where the run started.

    Attributes:
        dataset: packed samples.
        collator: blanks them out (or makes causal batches); knows its rank and the number of ranks.
        plan: which samples form a batch.
        num_workers: processes that build batches ahead; 0 builds them in this one.
        collator_start: number that the collator gives to batch 0. The original counts from 0 again after a resume.
    """

    dataset: Items
    collator: Collator
    plan: Plan
    num_workers: int = 0
    collator_start: int = 0

    def __getitem__(self, batch_index: int) -> Batch:
        """Build batch ``batch_index``."""
        samples = [self.dataset[number] for number in self.plan.numbers(batch_index)]
        return self.collator(samples, batch_index=self.collator_start + batch_index)

    def batches(self, start: int = 0, count: int | None = None) -> Iterator[Batch]:
        """Yield ``count`` batches (None: without end) from batch number ``start`` on; earlier ones are not read."""
        numbers = itertools.count(start) if count is None else range(start, start + count)
        if self.num_workers == 0:
            return map(self.__getitem__, numbers)
        return _batches_of_workers(self, numbers)


def _batches_of_workers(loader: BatchLoader, numbers: Iterator[int] | range) -> Iterator[Batch]:
    """Build batches in worker processes, in order; torch's global random state stays as it is."""
    import torch
    from torch.utils.data import DataLoader

    dataset: Any = loader  # anything with __getitem__ will do
    yield from DataLoader(
        dataset,
        sampler=numbers,
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=loader.num_workers,
        prefetch_factor=BATCHES_AHEAD,
        generator=torch.Generator(),
    )


def _unchanged(batch: Any) -> Any:
    return batch
