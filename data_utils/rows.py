"""Rows of tokens: a context that sees all of itself, then what is predicted after it.

    [CLS] text with a [MASK] [SEP] more text [end] | [sop] answer ...

Ids, targets and positions of one are worked out in docs/formats.md#samples.

n positions of a row, r rows, s width of their stack
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_utils.tokenizers.command_tokens import SpecialTokens

PICTURE_WIDTH = 48  # columns of a mask's picture; longer rows are drawn coarser
LOST_MASK = "the context has lost its mask: raise --seq-length"


@dataclass(frozen=True)
class Row:
    """One row, not padded.

    Attributes:
        values: int [5,n]: input ids, target ids, loss mask, positions, block positions; [4,n] for a model with a single
            row of positions (masked language models).
        prefix_length: length of the context, whose positions are visible to all; the rest is seen causally.
    """

    values: np.ndarray
    prefix_length: int

    def __len__(self) -> int:
        """Return the number of positions."""
        return self.values.shape[1]

    @property
    def input_ids(self) -> np.ndarray:
        """Return what the model reads, int [n]."""
        return self.values[0]

    @property
    def target_ids(self) -> np.ndarray:
        """Return what it has to predict, int [n]."""
        return self.values[1]

    @property
    def loss_mask(self) -> np.ndarray:
        """Return 1 where the prediction counts, int [n]."""
        return self.values[2]

    @property
    def position_ids(self) -> np.ndarray:
        """Return positions and block positions, int [2,n], or [1,n]."""
        return self.values[3:]


def context_ids(
    a: Sequence[int],
    b: Sequence[int] | None = None,
    *,
    special: SpecialTokens,
    max_length: int,
    cls: bool = True,
    sep: bool = False,
    end: bool = True,
) -> list[int]:
    """Return [CLS], ``a``, [SEP] where ``b`` is not None, ``b`` and the end token, cut so that the end token fits.

    ``cls``, ``sep`` and ``end`` say which of the special tokens there are.
    """
    ids = [special.cls] * cls + list(a)
    if b is not None:
        ids += [special.sep] * sep + list(b)
    if len(ids) >= max_length - end:
        ids = ids[: max_length - 1]
    return ids + [special.pad] * end


def infilling_row(
    context: Sequence[int],
    answer: Sequence[int] | None,
    *,
    special: SpecialTokens,
    block_positions: bool = True,
    masked_lm: bool = False,
    answer_position: int | None = None,
    mask_id: int | None = None,
    num_given: int = 0,
) -> Row:
    """Return a context with the answer that fills its last mask.

    Args:
        context: all its tokens.
        answer: what is predicted; None feeds the start token alone, whose prediction is scored by others.
        block_positions: number the answer's tokens; otherwise all are 1.
        masked_lm: a single row of positions.
        answer_position: where the answer is; the place of the mask without.
        mask_id: another mask than [MASK].
        num_given: that many first tokens of the answer are not scored.

    Raises:
        ValueError: no mask is left in the context.
    """
    mask_id = special.mask if mask_id is None else mask_id
    if mask_id not in context:
        raise ValueError(LOST_MASK)
    fed = [special.sop] if answer is None else [special.sop, *answer[:-1]]
    targets = [0] if answer is None else answer
    length = len(context)
    values = np.zeros((5, length + len(fed)), dtype=np.int32)
    values[0] = [*context, *fed]
    values[1, length : length + len(targets)] = targets
    values[2, length + num_given : length + len(targets)] = 1
    values[3, :length] = np.arange(length)
    values[3, length:] = length - 1 - list(context[::-1]).index(mask_id) if answer_position is None else answer_position
    values[4, length:] = np.arange(1, len(fed) + 1) if block_positions else 1
    return Row(values[:4] if masked_lm else values, length)


def context_row(context: Sequence[int], *, masked_lm: bool = False) -> Row:
    """Return a context alone: nothing is predicted."""
    values = np.zeros((4 if masked_lm else 5, len(context)), dtype=np.int32)
    values[0], values[3] = context, np.arange(len(context))
    return Row(values, len(context))


def answer_row(answer: Sequence[int], *, special: SpecialTokens, position: int, prefix_length: int) -> Row:
    """Return an answer as it is fed after a context that was encoded before: ``position`` is that of the mask."""
    length = len(answer)
    ones, numbers = np.ones(length, dtype=np.int32), np.arange(1, length + 1)
    values = np.stack([[special.sop, *answer[:-1]], answer, ones, position * ones, numbers]).astype(np.int32)
    return Row(values, prefix_length)


def unidirectional_row(text: Sequence[int], answer: Sequence[int], *, special: SpecialTokens, mask_id: int) -> Row:
    """Return [CLS], the mask ``mask_id``, the start token, the text and the answer: all of it is generated."""
    ids = [special.cls, mask_id, special.sop, *text, *answer[:-1]]
    values = np.zeros((5, len(ids)), dtype=np.int32)
    values[0] = ids
    values[1, -len(answer) :], values[2, -len(answer) :] = answer, 1
    values[3, 1:], values[4, 2:] = 1, np.arange(1, len(ids) - 1)
    return Row(values, 2)


def stack_rows(rows: Sequence[Row], *, width: int, pad_id: int = 0) -> np.ndarray:
    """Return the values of rows that are filled up at their end: int64 [5,r,s] or [4,r,s], as in ``Row.values``.

    Input ids are padded with ``pad_id``, everything else with 0.
    """
    stacked = np.zeros((len(rows[0].values), len(rows), width), dtype=np.int64)
    stacked[0] = pad_id
    for number, row in enumerate(rows):
        stacked[:, number, : len(row)] = row.values
    return stacked


def stacked_positions(values: np.ndarray) -> np.ndarray:
    """Return the positions [r,2,s], or [r,s] with a single row of positions, of stacked rows."""
    return values[3] if len(values) == 4 else np.ascontiguousarray(values[3:].swapaxes(0, 1))


def mask_picture(prefix_length: int, length: int, *, width: int = PICTURE_WIDTH) -> list[str]:
    """Draw the attention mask of a row of ``length`` tokens, part A of which has ``prefix_length``.

    One line per query (or group of queries), one character per key: ``#`` part A, which everyone sees, ``+`` earlier
    tokens of part B and the query itself, ``.`` hidden.
    """
    step = max(1, -(-length // width))
    places = range(0, length, step)
    return ["".join("#" if key < prefix_length else "+" if key <= query else "." for key in places) for query in places]
