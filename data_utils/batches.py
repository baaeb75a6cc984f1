"""Filled samples, and stacking them into a batch: a row for each, or rows that several of them share.

b rows, s width of the batch, n length of a sample
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_utils.objective import Objective

WIDTH_FACTORS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75)  # tried, then narrowed; in longest samples
# A position of a row that wide costs twice that of a narrow row: 12 layers, hidden 384, on a CPU (docs/performance.md).
DOUBLE_COST_WIDTH = 1000


@dataclass(frozen=True)
class FilledSample:
    """One row before padding: part A, then part B.

    Attributes:
        values: int64 [5,n]: input ids, target ids, loss mask, position in part A, position inside the span.
        prefix_length: length of part A.
    """

    values: np.ndarray
    prefix_length: int

    @property
    def input_ids(self) -> np.ndarray:
        """Return what the model reads, int64 [n]."""
        return self.values[0]

    @property
    def target_ids(self) -> np.ndarray:
        """Return what it has to predict, int64 [n]."""
        return self.values[1]

    @property
    def loss_mask(self) -> np.ndarray:
        """Return 1 where the prediction counts, int64 [n]."""
        return self.values[2]

    @property
    def position_ids(self) -> np.ndarray:
        """Return both rows of positions, int64 [2,n]."""
        return self.values[3:]


@dataclass(frozen=True)
class Batch:
    """A batch, int64. Blank-infilling rows are padded with 0 to the longest one."""

    input_ids: np.ndarray  # [b,s]
    target_ids: np.ndarray  # [b,s]
    loss_mask: np.ndarray  # [b,s], 1 where target_ids counts
    position_ids: np.ndarray  # [b,2,s], or [b,s] with masked_lm and for causal models
    attention_mask: (
        np.ndarray
    )  # [b] prefix_lengths: columns below are visible to all, the rest causally; causal: [.,1,s,k]
    # samples that share rows: [b,2,s], see pack_batch
    mode: Objective
    num_dropped: int = 0  # samples left out because their spans did not fit


def pad_batch(rows: Sequence[FilledSample], mode: Objective, *, masked_lm: bool = False, num_dropped: int = 0) -> Batch:
    """Stack rows of different lengths, padded with 0; ``masked_lm`` has one row of positions."""
    width = max(row.values.shape[1] for row in rows)
    values = np.zeros((5, len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        values[:, index, : row.values.shape[1]] = row.values
    prefix_lengths = np.array([row.prefix_length for row in rows], dtype=np.int64)
    positions = values[3] if masked_lm else np.ascontiguousarray(values[3:].swapaxes(0, 1))
    return Batch(values[0], values[1], values[2], positions, prefix_lengths, mode, num_dropped)


def first_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Return the numbers of the samples that share a row of ``width``: the longest first, each into the first row."""
    assert max(lengths, default=0) <= width, (lengths, width)
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        row = next((row for row, free in enumerate(room) if free >= lengths[number]), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(width)
        rows[row].append(number)
        room[row] -= lengths[number]
    return rows


def fitting_rows(lengths: Sequence[int]) -> list[list[int]]:
    """Return the numbers of the samples that share a row, for rows of the width that costs least.

    Wide rows leave fewer positions empty, but every position is compared with all of its row.
    """

    def cost(rows: list[list[int]]) -> float:
        width = _used_width(lengths, rows)
        return len(rows) * width * (1.0 + width / DOUBLE_COST_WIDTH)

    return min((_narrowed(lengths, int(factor * max(lengths))) for factor in WIDTH_FACTORS), key=cost)


def _narrowed(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Return rows like ``first_fit``, as narrow as their number allows."""
    rows = first_fit(lengths, width)
    low, high = max(*lengths, -(-sum(lengths) // len(rows))), _used_width(lengths, rows)
    while low < high:
        middle = (low + high) // 2
        found = first_fit(lengths, middle)
        if len(found) > len(rows):
            low = middle + 1
        else:
            rows, high = found, _used_width(lengths, found)
    return rows


def _used_width(lengths: Sequence[int], rows: Sequence[Sequence[int]]) -> int:
    return max(sum(lengths[number] for number in row) for row in rows)


def shared_positions(
    lengths: Sequence[int], rows: Sequence[Sequence[int]], *, stride: int, multiple_of: int = 1
) -> np.ndarray:
    """Return int64 [r,w]: which position of the samples stands there, -1 for padding.

    Position i of sample n is number ``n * stride + i``. ``w`` is rounded up to ``multiple_of``.
    """
    used = [sum(lengths[number] for number in row) for row in rows]
    found = np.full((len(rows), -(-max(used) // multiple_of) * multiple_of), -1, dtype=np.int64)
    for values, row in zip(found, rows, strict=True):
        start = 0
        for number in row:
            values[start : start + lengths[number]] = np.arange(number * stride, number * stride + lengths[number])
            start += lengths[number]
    return found


def pack_batch(
    samples: Sequence[FilledSample],
    mode: Objective,
    *,
    masked_lm: bool = False,
    num_dropped: int = 0,
    multiple_of: int = 1,
) -> Batch:
    """Stack samples like ``pad_batch``, several in a row.

    The loss and its gradients are those of the samples in rows of their own. ``attention_mask`` is int64 [b,2,s]: the
    number of the sample that a position belongs to from 1 on, 0 for padding; and 1 in part A. The width is rounded up
    to ``multiple_of``.
    """
    alone = pad_batch(samples, mode, masked_lm=masked_lm, num_dropped=num_dropped)
    lengths, stride = [sample.values.shape[1] for sample in samples], alone.input_ids.shape[1]
    rows = fitting_rows(lengths)
    places = shared_positions(lengths, rows, stride=stride, multiple_of=multiple_of)  # [r,w]
    number, column = np.divmod(places, stride)
    real = places >= 0
    visible = real & (column < alone.attention_mask[number])

    def moved(values: np.ndarray) -> np.ndarray:
        return np.where(real, values[number, column], 0)

    positions = alone.position_ids
    if masked_lm:
        moved_positions = moved(positions)
    else:
        moved_positions = np.stack([moved(positions[:, line]) for line in (0, 1)], axis=1)
    return replace(
        alone,
        input_ids=moved(alone.input_ids),
        target_ids=moved(alone.target_ids),
        loss_mask=moved(alone.loss_mask),
        position_ids=moved_positions,
        attention_mask=np.stack([number + 1, visible], axis=1),
    )
