"""Mix several data sets: downstream tasks among pre-training batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_utils.objective.packing import ITEMS_PER_DOCUMENT, ItemGenerator, seed_words

TASK_TEMPERATURE = 0.8
TASK_SIZE_LIMIT = 200_000  # examples of a task that count


def mixture_weights(lengths: Sequence[int], *, temperature: float, max_limit: int | None = None) -> np.ndarray:
    """Return the probability of each data set, float64 [k]: its length, limited, to the power of the temperature."""
    sizes = np.asarray(lengths, dtype=np.float64)
    if max_limit is not None:
        sizes = np.minimum(sizes, max_limit)
    weights = sizes**temperature
    return weights / weights.sum()


class MixedDataset:
    """Items drawn from several data sets by weight; item i depends on i and the lengths only."""

    def __init__(
        self,
        datasets: Sequence[Any],
        *,
        reweight: bool = True,
        temperature: float = TASK_TEMPERATURE,
        max_limit: int | None = TASK_SIZE_LIMIT,
    ) -> None:
        """``reweight`` False strings the data sets together instead, again from the start after the last one."""
        self.datasets = list(datasets)
        self.reweight = reweight
        lengths = [len(dataset) for dataset in self.datasets]
        if not lengths or min(lengths) == 0:
            raise ValueError(f"a mixture needs data sets that are not empty; their lengths are {lengths}")
        self._lengths = lengths
        self._ends = np.cumsum(lengths)
        self.weights = mixture_weights(lengths, temperature=temperature, max_limit=max_limit)
        cumulative = np.cumsum(self.weights)
        self._cumulative = cumulative / cumulative[-1]

    def __len__(self) -> int:
        return ITEMS_PER_DOCUMENT * int(self._ends[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """Return (number of the data set, number of its item) of item ``index``."""
        if self.reweight:
            generator = ItemGenerator(seed_words(index))
            number = int(self._cumulative.searchsorted(generator.random_sample(), side="right"))
            return number, generator.randint(self._lengths[number])
        place = index % int(self._ends[-1])
        number = int(self._ends.searchsorted(place, side="right"))
        return number, place - (int(self._ends[number - 1]) if number else 0)

    def __getitem__(self, index: int) -> Any:
        """Return item ``index``."""
        number, item = self.locate(index)
        return self.datasets[number][item]


def downstream_draw(iteration: int, *, rank: int, world_size: int) -> float:
    """Return the number that decides on the kind of a step: below ``--multi-task-ratio`` it is a downstream batch."""
    return random.Random(iteration * world_size + rank).random()
