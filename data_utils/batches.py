"""Filled samples, and stacking them into a batch: a row for each, or rows that several of them share.

b rows, s width of the batch, n length of a sample
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class FilledSample:
    """One row before padding: part A, then part B.

    Attributes:
        values: int64 [5,n]: input ids, target ids, loss mask, position in part A, position inside the span.
        separator: length of part A.
    """

    values: np.ndarray
    separator: int

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
    attention_mask: np.ndarray  # [b] separators: columns below are visible to all, the rest causally; causal: [.,1,s,k]
    # samples that share rows: [b,2,s], see pack_batch
    mode: str  # bert, sentence or gpt
    num_dropped: int = 0  # samples left out because their spans did not fit


def pad_batch(rows: Sequence[FilledSample], mode: str, *, masked_lm: bool = False, num_dropped: int = 0) -> Batch:
    """Stack rows of different lengths, padded with 0; ``masked_lm`` has one row of positions."""
    width = max(row.values.shape[1] for row in rows)
    values = np.zeros((5, len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        values[:, index, : row.values.shape[1]] = row.values
    separators = np.array([row.separator for row in rows], dtype=np.int64)
    positions = values[3] if masked_lm else np.ascontiguousarray(values[3:].swapaxes(0, 1))
    return Batch(values[0], values[1], values[2], positions, separators, mode, num_dropped)


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


def pack_batch(
    samples: Sequence[FilledSample], mode: str, *, width: int, masked_lm: bool = False, num_dropped: int = 0
) -> Batch:
    """Stack samples like ``pad_batch``, several in a row where they fit into ``width`` (or the longest sample).

    The loss and its gradients are those of the samples in rows of their own. ``attention_mask`` is int64 [b,2,s]: the
    number of the sample in its row from 1 on, 0 for padding; and 1 in part A.
    """
    lengths = [sample.values.shape[1] for sample in samples]
    rows = first_fit(lengths, max(width, *lengths))
    joined = [FilledSample(np.concatenate([samples[n].values for n in row], axis=1), 0) for row in rows]
    batch = pad_batch(joined, mode, masked_lm=masked_lm, num_dropped=num_dropped)
    owners = np.zeros((len(rows), 2, batch.input_ids.shape[1]), dtype=np.int64)
    for number, row in enumerate(rows):
        start = 0
        for place, sample in enumerate(row, start=1):
            owners[number, 0, start : start + lengths[sample]] = place
            owners[number, 1, start : start + samples[sample].separator] = 1
            start += lengths[sample]
    return replace(batch, attention_mask=owners)
