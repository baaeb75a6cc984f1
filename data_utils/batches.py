"""Stacking rows into a batch: a row for each, or rows that several of them share.

b rows, s width of the batch, n length of a sample
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from data_utils.objective import Objective
from data_utils.rows import Row, stack_rows, stacked_positions

WIDTH_FACTORS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75)  # tried, then narrowed; in longest samples
# A position of a row that wide costs twice that of a narrow row: 12 layers, hidden 384, on a CPU (docs/performance.md).
DOUBLE_COST_WIDTH = 1000


@dataclass(frozen=True)
class Batch:
    """Rows, stacked; int64 arrays, or tensors after ``tensors``.

    Attributes:
        input_ids: [b,s].
        target_ids: [b,s].
        loss_mask: [b,s], 1 where ``target_ids`` counts.
        position_ids: [b,2,s], positions and block positions; [b,s] for models with one row of positions.
        attention_mask: what ``layout`` says: for ``prefix`` the prefix lengths [b]: columns below are visible to all,
            the rest causally; for ``packed`` [b,2,s], see ``pack_batch``; for ``matrix`` [b or 1,1,s,k], 1 is visible.
        objective: what the rows ask for; the loss is reported under its name.
        num_dropped: samples that were left out because their spans did not fit.
        filled, room: tokens that packing has put into the batch, and the positions it had for them: --seq-length of
            every sample, or the rows that samples share; 0 where nothing is packed.
        origin: which documents the samples come from (``order_record.encode_origin``), where that is recorded.
    """

    input_ids: Any
    target_ids: Any
    loss_mask: Any
    position_ids: Any
    attention_mask: Any
    objective: Objective
    num_dropped: int = 0
    layout: Literal["prefix", "packed", "matrix"] = "prefix"
    filled: int = 0
    room: int = 0
    origin: bytes | None = None

    @property
    def num_real_tokens(self) -> int:
        """Return the tokens of the rows without their padding; of arrays, not of tensors."""
        if self.layout == "packed":
            return int(np.count_nonzero(self.attention_mask[:, 0]))
        return int(row_lengths(self.position_ids, self.input_ids.shape).sum())

    def tensors(self) -> Batch:
        """Return the batch as tensors that share its memory."""
        import torch

        arrays = ("input_ids", "target_ids", "loss_mask", "position_ids", "attention_mask")
        tensors: dict[str, Any] = {name: torch.from_numpy(getattr(self, name)) for name in arrays}
        return replace(self, **tensors)


def row_lengths(position_ids: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the lengths of rows without the padding at their end, int64 [...], for input ids of ``shape`` [...,s].

    ``position_ids`` [...,2,s], or [...,s] for models with one row of positions, are 0 in padding; elsewhere only a
    row's first token may have all its positions 0.
    """
    used = position_ids != 0
    if used.ndim > len(shape):
        used = used[..., 0, :] | used[..., 1, :]
    return np.maximum(1, (used * np.arange(1, shape[-1] + 1)).max(axis=-1))


def pad_batch(
    rows: Sequence[Row],
    objective: Objective,
    *,
    pad_id: int = 0,
    multiple_of: int = 1,
    masked_lm: bool = False,
    num_dropped: int = 0,
) -> Batch:
    """Stack rows of different lengths, padded at their end to the longest one, rounded up to ``multiple_of``.

    Input ids are padded with ``pad_id``, everything else with 0. ``masked_lm`` leaves block positions out.
    """
    width = -(-max(map(len, rows)) // multiple_of) * multiple_of
    values = stack_rows(rows, width=width, pad_id=pad_id)
    positions = stacked_positions(values[:4] if masked_lm else values)
    prefix_lengths = np.array([row.prefix_length for row in rows], dtype=np.int64)
    return Batch(values[0], values[1], values[2], positions, prefix_lengths, objective, num_dropped)


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
        narrower = first_fit(lengths, middle)
        if len(narrower) > len(rows):
            low = middle + 1
        else:
            rows, high = narrower, _used_width(lengths, narrower)
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
    places = np.full((len(rows), -(-max(used) // multiple_of) * multiple_of), -1, dtype=np.int64)
    for values, row in zip(places, rows, strict=True):
        start = 0
        for number in row:
            values[start : start + lengths[number]] = np.arange(number * stride, number * stride + lengths[number])
            start += lengths[number]
    return places


def pack_batch(
    samples: Sequence[Row],
    objective: Objective,
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
    alone = pad_batch(samples, objective, masked_lm=masked_lm, num_dropped=num_dropped)
    lengths, stride = [len(sample) for sample in samples], alone.input_ids.shape[1]
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
        layout="packed",
    )
