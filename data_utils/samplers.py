"""Which sample numbers make up a batch, and which part of it a rank takes (spec: pretraining 7).

A global batch is ``batch_size`` samples of every data-parallel rank. Batches are numbered from 0 without end: when the
samples run out the next pass begins, so that a run can resume at any batch number without reading anything before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# torch's seed of a generator that nobody seeded: the original draws its sample numbers with it, whatever --seed is.
DEFAULT_GENERATOR_SEED = 67280421310721
RANDOM_CHUNK = 32  # numbers the original draws at a time


def random_sample_numbers(dataset_length: int, num_samples: int, *, seed: int = DEFAULT_GENERATOR_SEED) -> np.ndarray:
    """Draw ``num_samples`` numbers below ``dataset_length`` with replacement, int64."""
    import torch

    generator = torch.Generator()
    generator.manual_seed(seed)
    sizes = [RANDOM_CHUNK] * (num_samples // RANDOM_CHUNK) + [num_samples % RANDOM_CHUNK]
    chunks = [torch.randint(dataset_length, (size,), generator=generator).numpy() for size in sizes if size]
    return np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.int64)


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
    order: np.ndarray | None = None
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

    def batches(self, start: int = 0) -> Iterator[tuple[int, list[int]]]:
        """Yield (batch index, sample numbers) from batch ``start`` on, without end."""
        while True:
            yield start, self.numbers(start)
            start += 1


def sequential_rows(
    num_samples: int, *, global_batch_size: int, train_iters: int, rank: int, world_size: int, start_iter: int = 0
) -> Iterator[list[int]]:
    """Yield the batches of segment recurrence: each row of the batch reads its own stretch in order.

    Row i starts at ``i * (num_samples // global_batch_size)``; ten times ``train_iters`` batches are made at most.
    """
    stretch = num_samples // global_batch_size
    low, high = rank * global_batch_size // world_size, (rank + 1) * global_batch_size // world_size
    for step in range(start_iter, 10 * train_iters):
        yield [(step + row * stretch) % num_samples for row in range(low, high)]
