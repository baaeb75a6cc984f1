"""Which sample numbers make up a batch, and which part of it a rank takes.

A global batch is ``batch_size`` samples of every data-parallel rank. Batches are numbered from 0 without end: when the
samples run out the next pass begins, so that a run can resume at any batch number without reading anything before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

# torch's seed of a generator that nobody seeded: the original draws its sample numbers with it, whatever --seed is.
DEFAULT_GENERATOR_SEED = 67280421310721
WORD = 1 << 32


def random_sample_numbers(dataset_length: int, num_samples: int, *, seed: int = DEFAULT_GENERATOR_SEED) -> np.ndarray:
    """Draw ``num_samples`` numbers below ``dataset_length`` with replacement, int64.

    They are those of ``torch.randint`` as the original's version of torch drew them: the remainder of one 32-bit word
    of a Mersenne Twister, of two words from 2**32 on. (Later versions take two words from 2**28 on.)
    """
    if dataset_length < 1:
        raise ValueError(f"cannot draw from {dataset_length} samples")
    twister = np.random.MT19937()
    state: Any = np.random.RandomState(seed % WORD).get_state(legacy=False)  # seeds as torch does
    twister.state = state
    if dataset_length < WORD:
        return (twister.random_raw(num_samples) % np.uint64(dataset_length)).astype(np.int64)
    words = twister.random_raw(2 * num_samples).astype(np.uint64)
    return ((words[::2] << np.uint64(32) | words[1::2]) % np.uint64(dataset_length)).astype(np.int64)


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
