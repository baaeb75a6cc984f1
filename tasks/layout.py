"""From pieces of tokens to the rows of a sample.

Pure Python on lists of ids. A context is [CLS], the pieces of A and B, and the end token; after it stand the start
token and the tokens to predict, all at the position of the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

PROMPT = -1  # stands in contexts for a token of the continuous prompt


class CommandTable(Protocol):
    """What layouts need of a tokenizer."""

    def command_id(self, name: str) -> int:
        """Return the id of a command."""


@dataclass(frozen=True)
class CommandIds:
    """The command ids of a sample."""

    enc: int
    mask: int
    sep: int
    sop: int
    eop: int
    pad: int

    @classmethod
    def of(cls, tokenizer: CommandTable) -> CommandIds:
        """Collect them from a tokenizer. Raise ValueError for one that has no blank infilling."""
        return cls(*(tokenizer.command_id(name) for name in ("ENC", "MASK", "sep", "sop", "eop", "pad")))


@dataclass(frozen=True)
class PositionOptions:
    """How positions are numbered; see ``EncodingOptions``."""

    block_positions: bool = True
    masked_lm: bool = False
    sentinel: int | None = None  # the answer's position instead of the mask's


@dataclass(frozen=True)
class Piece:
    """Tokens of one piece of a pattern."""

    ids: tuple[int, ...]
    shortenable: bool = False


@dataclass(frozen=True)
class Row:
    """One row of a sample: lists of equal length, not padded.

    Attributes:
        ids, types, positions, block_positions, targets, loss_mask: per position.
        prefix_length: length of the context.
    """

    ids: list[int]
    types: list[int]
    positions: list[int]
    block_positions: list[int]
    targets: list[int]
    loss_mask: list[int]
    prefix_length: int

    def position_rows(self, *, masked_lm: bool = False) -> np.ndarray:
        """Return the positions int32 [2,s], or [s] for ``masked_lm``."""
        return np.array(self.positions if masked_lm else [self.positions, self.block_positions], dtype=np.int32)


def num_special_tokens(
    text_b: Sequence[int] | None,
    answer: Sequence[int] | None,
    *,
    add_cls: bool,
    add_sep: bool,
    add_piece: bool,
    add_eos: bool = True,
) -> int:
    """Return how many positions beside texts and answer a row needs; empty lists count as absent."""
    return add_cls + (add_sep and bool(text_b)) + add_eos + (add_piece and not answer)


def truncate(
    a: Sequence[Piece], b: Sequence[Piece], *, answer: Sequence[int] | None = None, max_length: int
) -> tuple[tuple[Piece, ...], tuple[Piece, ...], int]:
    """Shorten A and B until they fit with [CLS], the end token and the answer (or the start token without one).

    One token at a time is taken from the end of the last shortenable piece of the side that has more of them, of B
    when both have as many. Returns A, B and the number of tokens taken. Raises ValueError when nothing more can go.
    """
    sides = [[list(piece.ids) for piece in side] for side in (a, b)]
    flags = [[piece.shortenable for piece in side] for side in (a, b)]
    special = num_special_tokens((), answer, add_cls=True, add_sep=False, add_piece=True)
    total = sum(len(ids) for side in sides for ids in side) + len(answer or ()) + special
    surplus = max(0, total - max_length)
    left = [sum(len(ids) for ids, flag in zip(*side) if flag) for side in zip(sides, flags)]
    if surplus > sum(left):
        raise ValueError(
            f"needs {total - sum(left)} positions even without the texts that may be shortened, --seq-length is "
            f"{max_length}"
        )
    for _ in range(surplus):
        side = 0 if left[0] > left[1] else 1
        ids = next(ids for ids, flag in zip(reversed(sides[side]), reversed(flags[side])) if flag and ids)
        ids.pop()
        left[side] -= 1
    shortened = [tuple(Piece(tuple(ids), flag) for ids, flag in zip(*side)) for side in zip(sides, flags)]
    return shortened[0], shortened[1], surplus


def build_row(
    a: Sequence[int],
    b: Sequence[int] | None,
    answer: Sequence[int] | None,
    *,
    commands: CommandIds,
    max_length: int,
    options: PositionOptions = PositionOptions(),
    add_cls: bool = True,
    add_sep: bool = False,
    add_piece: bool = True,
    add_eos: bool = True,
    mask_id: int | None = None,
) -> Row:
    """Lay out a context and what is to be predicted.

    ``b`` None is absent, which with ``add_sep`` is not the same as empty. Without an answer, ``add_piece`` adds the
    start token alone. The context is cut so that the end token fits into ``max_length``. Raises ValueError when a
    prediction is asked for and no mask is left in the context.
    """
    mask_id = commands.mask if mask_id is None else mask_id
    ids = [commands.enc] * add_cls + list(a)
    if b is not None and add_sep:
        ids.append(commands.sep)
    num_a = len(ids)
    ids += b or ()
    if len(ids) >= max_length - add_eos:
        ids = ids[: max_length - 1]
    types = [0] * min(num_a, len(ids)) + [1] * (len(ids) - num_a)
    if add_eos:
        ids.append(commands.pad)
        types.append(0 if b is None else 1)
    prefix_length = len(ids)
    positions, block_positions = list(range(prefix_length)), [0] * prefix_length
    targets, loss_mask = [0] * prefix_length, [0] * prefix_length
    if add_piece or answer is not None:
        if mask_id not in ids:
            raise ValueError("the context has lost its mask: raise --seq-length")
        if answer is None:
            generated, target = [commands.sop], [0]
        else:
            generated, target = [commands.sop, *answer[:-1]], list(answer)
        where = prefix_length - 1 - ids[::-1].index(mask_id) if options.sentinel is None else options.sentinel
        ids += generated
        types += [0 if b is None else 1] * len(generated)
        positions += [where] * len(generated)
        block_positions += list(range(1, len(generated) + 1)) if options.block_positions else [1] * len(generated)
        targets += target
        loss_mask += [1] * len(target)
    return Row(ids, types, positions, block_positions, targets, loss_mask, prefix_length)


def build_unidirectional_row(text: Sequence[int], answer: Sequence[int], *, commands: CommandIds, mask_id: int) -> Row:
    """Lay out [CLS], the mask ``mask_id``, the start token, the text and the answer: all of it is generated."""
    ids = [commands.enc, mask_id, commands.sop, *text, *answer[:-1]]
    generated = len(ids) - 2
    unscored = len(text) + 2
    return Row(
        ids=ids,
        types=[0] * len(ids),
        positions=[0] + [1] * (len(ids) - 1),
        block_positions=[0, 0, *range(1, generated + 1)],
        targets=[0] * unscored + list(answer),
        loss_mask=[0] * unscored + [1] * len(answer),
        prefix_length=2,
    )


@dataclass(frozen=True)
class DecoderRow:
    """An answer as it is fed after an encoded context; lists of ``max_length`` entries, [2,r] for positions."""

    ids: list[int]
    positions: list[list[int]]
    targets: list[int]
    loss_mask: list[int]


def build_decoder_row(
    context: Sequence[int], answer: Sequence[int], *, commands: CommandIds, max_length: int
) -> DecoderRow:
    """Lay out an answer, cut to ``max_length``, at the position of the context's first mask."""
    answer = list(answer[:max_length])
    where = list(context).index(commands.mask)
    rest = max_length - len(answer)
    zeros = [0] * rest
    return DecoderRow(
        ids=[commands.sop, *answer[:-1]] + [commands.pad] * rest,
        positions=[[where] * len(answer) + zeros, [*range(1, len(answer) + 1), *zeros]],
        targets=answer + zeros,
        loss_mask=[1] * len(answer) + zeros,
    )
