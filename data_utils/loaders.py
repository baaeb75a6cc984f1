"""Numbered training batches, resumable at any number: which samples make them up, and building them.

A global batch is ``batch_size`` samples of every data-parallel rank. Batches are numbered from 0 without end: when the
samples run out the next pass begins, so that a run can resume at any batch number without reading anything before it.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from data_utils.batches import Batch
from data_utils.order_record import encode_origin

BATCHES_AHEAD = 4  # that every worker process prepares
# torch's seed of a generator that nobody seeded: the original draws its sample numbers with it, whatever --seed is.
DEFAULT_GENERATOR_SEED = 67280421310721
WORD = 1 << 32


class RandomSampleNumbers:
    """``num_samples`` numbers below ``dataset_length``, drawn with replacement; a slice of them is an int64 array.

    They are those of ``torch.randint`` as the original's version of torch drew them: the remainder of one 32-bit word
    of a Mersenne Twister, of two words from 2**32 on. (Later versions take two words from 2**28 on.) They are drawn
    when they are asked for, ``CHUNK`` at a time: kept are one chunk and the generator's state before every chunk seen,
    2.5 kB each.
    """

    CHUNK = 1 << 18

    def __init__(self, dataset_length: int, num_samples: int, *, seed: int = DEFAULT_GENERATOR_SEED) -> None:
        if dataset_length < 1:
            raise ValueError(f"cannot draw from {dataset_length} samples")
        self._dataset_length, self._num_samples = dataset_length, num_samples
        state: Any = np.random.RandomState(seed % WORD).get_state(legacy=False)  # seeds as torch does
        self._states = [state]
        self._number, self._chunk = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, places: slice) -> np.ndarray:
        """Return the numbers at ``places``, a slice without a step."""
        low, high, step = places.indices(self._num_samples)
        assert step == 1, places
        parts = [
            self._draw(number)[max(0, low - number * self.CHUNK) : high - number * self.CHUNK]
            for number in range(low // self.CHUNK, -(-high // self.CHUNK))
        ]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _draw(self, number: int) -> np.ndarray:
        """Return chunk ``number``; those before it are drawn once to get there."""
        if number == self._number:
            return self._chunk
        twister, width = np.random.MT19937(), 1 if self._dataset_length < WORD else 2
        for passed in range(min(number, len(self._states) - 1), number + 1):
            twister.state = self._states[passed]
            words = twister.random_raw(width * self.CHUNK).astype(np.uint64, copy=False)
            if passed + 1 == len(self._states):
                self._states.append(twister.state)
        if width == 2:
            words = words[::2] << np.uint64(32) | words[1::2]
        self._number, self._chunk = number, (words % np.uint64(self._dataset_length)).astype(np.int64)
        return self._chunk


class Plan(Protocol):
    """Which samples a numbered batch of one rank holds."""

    def __len__(self) -> int:
        """Return the number of batches in one pass."""

    def numbers(self, batch_index: int) -> list[int]:
        """Return the sample numbers of batch ``batch_index``, which may be any number from 0 on."""


@dataclass(frozen=True)
class BatchPlan:
    """The numbered batches of one rank.

    Attributes:
        num_samples: samples in one pass (the data set's length, or the length of ``order``).
        global_batch_size: samples of all ranks together.
        rank, world_size: data-parallel rank and number of ranks.
        order: the sample numbers in the order of their use (``--shuffle``); None counts up.
        drop_last: leave out an incomplete last batch; the original does so with several ranks.
    """

    num_samples: int
    global_batch_size: int
    rank: int = 0
    world_size: int = 1
    order: np.ndarray | RandomSampleNumbers | None = None
    drop_last: bool = True

    def __post_init__(self) -> None:
        """Refuse a data set that does not fill a batch."""
        if len(self) == 0:
            raise ValueError(
                f"{self.num_samples} samples do not fill one batch of {self.global_batch_size} "
                f"({self.world_size} ranks): lower --batch-size"
            )

    def __len__(self) -> int:
        """Return the number of batches in one pass."""
        full, rest = divmod(self.num_samples, self.global_batch_size)
        return full + bool(rest and not self.drop_last)

    def numbers(self, batch_index: int) -> list[int]:
        """Return the sample numbers of batch ``batch_index`` (any size) that are this rank's."""
        first = (batch_index % len(self)) * self.global_batch_size
        low = min(first + self.rank * self.global_batch_size // self.world_size, self.num_samples)
        high = min(first + (self.rank + 1) * self.global_batch_size // self.world_size, self.num_samples)
        return list(range(low, high)) if self.order is None else self.order[low:high].tolist()


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
        records_origin: batches say where their samples come from (``data_utils/order_record.py``).
    """

    dataset: Items
    collator: Collator
    plan: Plan
    num_workers: int = 0
    collator_start: int = 0
    records_origin: bool = False

    def __getitem__(self, batch_index: int) -> Batch:
        """Build batch ``batch_index``."""
        numbers = self.plan.numbers(batch_index)
        samples = [self.dataset[number] for number in numbers]
        batch = self.collator(samples, batch_index=self.collator_start + batch_index)
        if not self.records_origin:
            return batch
        pieces = (getattr(sample, "pieces", ()) for sample in samples)  # samples of tasks have none
        return replace(batch, origin=encode_origin(batch_index, list(zip(numbers, pieces, strict=True))))

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
        worker_init_fn=_leave_signals_to_the_run,
        generator=torch.Generator(),
    )


def _leave_signals_to_the_run(worker: int) -> None:
    """Let a worker live on when a batch system sends a signal to every process: the run still needs its batches.

    It ends with the run, which it looks for every few seconds.
    """
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _unchanged(batch: Any) -> Any:
    return batch
