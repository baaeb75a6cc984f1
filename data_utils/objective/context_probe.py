"""Blanks that tell whether a model reads what stands beside them: the same ones in three surroundings.

Samples of the validation text get a blank in every ``CELL`` tokens, as long as those of the token objective. Part B of
a row is the start tokens alone: each sees part A and itself, and predicts the first token of its blank, as that of the
blank which is generated first does.

    true       part A as in training
    swapped    the token on each side of a blank is the one that stands there at another blank
    far        nobody sees the ``NEAR`` tokens on each side of a blank; the others keep their positions

b rows, s width of the batch, N length of a sample
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from data_utils.batches import Batch, pad_batch
from data_utils.objective import Objective
from data_utils.objective.block_infilling import BlankInfillingCollator, Blanks
from data_utils.objective.packing import BlockDataset
from data_utils.objective.spans import Span
from data_utils.rows import Row

SURROUNDINGS = ("true", "swapped", "far")
CELL = 32  # tokens of a sample for each blank
NEAR = 4  # tokens on each side of a blank that ``far`` hides
PROBED_TOKENS = 16_384  # of validation text, however long its samples are: some 500 blanks


@dataclass(frozen=True)
class ContextProbe:
    """The blanks of a probe.

    Attributes:
        batches: of this data rank, by surroundings; as many on every rank.
        most_frequent: share of the blanks, of all data ranks, whose first token is the most frequent of them.
    """

    batches: Mapping[str, Sequence[Batch]]
    most_frequent: float


class ProbeRow(NamedTuple):
    """A sample whose part B is start tokens alone, and where their masks are in part A, int64 [blanks]."""

    row: Row
    places: np.ndarray


def make_context_probe(
    dataset: BlockDataset, collator: BlankInfillingCollator, *, batch_size: int, rank: int = 0, world_size: int = 1
) -> ContextProbe:
    """Return the probe of the first samples of ``dataset``, of which this data rank has every ``world_size``-th.

    The same blanks are made each time. A sample too short for a blank is a row without a target. Raises ValueError when
    all of them are.
    """
    # A power of two, which most numbers of ranks divide: their figures are those of one.
    count = 1 << max(1, PROBED_TOKENS // dataset.seq_length).bit_length() - 1
    count += -count % world_size
    rows = [_probe_row(dataset, collator, number) for number in range(count)]
    targets = Counter(row.target_ids[column] for row, _ in rows for column in row.loss_mask.nonzero()[0])
    if not targets:
        raise ValueError(
            f"--probe-context: the validation text has no {2 * NEAR + 1} tokens in a row to make a blank in; give "
            "longer documents, or leave it out"
        )
    batches = {
        name: [
            _stacked(mine[start : start + batch_size], hidden=NEAR * (name == "far"))
            for start in range(0, len(mine), batch_size)
        ]
        for name, given in zip(SURROUNDINGS, (rows, _swapped(rows), rows), strict=True)
        for mine in [given[rank::world_size]]
    }
    return ContextProbe(batches, targets.most_common(1)[0][1] / targets.total())


def _probe_row(dataset: BlockDataset, collator: BlankInfillingCollator, number: int) -> ProbeRow:
    """Return sample ``number`` with a blank in each of its cells, if they fit."""
    tokens = dataset[number].tokens  # [N]
    spans = _spans(tokens, collator, random.Random(f"context probe {number}"))
    if not spans:
        return ProbeRow(collator.without_blanks(tokens), np.zeros(0, dtype=np.int64))
    (row,) = collator.corrupt([Blanks(tokens, spans)], Objective.TOKEN, random.Random(number))
    lengths = [end - start for start, end in spans]
    before = [0, *accumulate(lengths)][:-1]  # tokens of the blanks before each one
    starts = row.prefix_length + np.array(before) + np.arange(len(spans))  # of the blanks in part B
    columns = np.concatenate([np.arange(row.prefix_length), starts])
    places = np.array([start - gone + index for index, ((start, _), gone) in enumerate(zip(spans, before))])
    return ProbeRow(Row(row.values[:, columns], row.prefix_length), places)


def _spans(tokens: np.ndarray, collator: BlankInfillingCollator, generator: random.Random) -> list[Span]:
    """Draw a span in each cell, ``NEAR`` tokens from its ends; beside it there are words of its own document."""
    special = collator.tokenizer.special
    bounds = np.flatnonzero((tokens == special.cls) | (tokens == special.eos))
    spans = []
    for first in range(1, len(tokens), CELL):
        length = min(collator.draw_length(generator), CELL - 2 * NEAR)
        last = min(first + CELL, len(tokens)) - NEAR - length
        starts = [s for s in range(first + NEAR, last + 1) if not ((bounds >= s - 1) & (bounds <= s + length)).any()]
        if starts:
            start = generator.choice(starts)
            spans.append((start, start + length))
    return spans


def _swapped(rows: Sequence[ProbeRow]) -> list[ProbeRow]:
    """Return the rows with the tokens beside each blank moved on to the next blank, the last one's to the first."""
    beside = [row.input_ids[place + side] for row, places in rows for place in places for side in (-1, 1)]
    moved = iter(beside[-2:] + beside[:-2])
    swapped = []
    for row, places in rows:
        values = row.values.copy()
        for place in places:
            values[0, place - 1], values[0, place + 1] = next(moved), next(moved)
        swapped.append(ProbeRow(replace(row, values=values), places))
    return swapped


def _stacked(rows: Sequence[ProbeRow], *, hidden: int) -> Batch:
    """Return a batch whose start tokens see part A and themselves; ``hidden`` tokens on each side of blanks are not
    seen.
    """
    batch = pad_batch([row for row, _ in rows], Objective.TOKEN)
    columns = np.arange(batch.input_ids.shape[1])  # [s]
    seen = columns < batch.attention_mask[:, None]  # [b,s]
    for number, (_, places) in enumerate(rows):
        distance = np.abs(columns[:, None] - places)  # [s,blanks]
        seen[number] &= ~((distance > 0) & (distance <= hidden)).any(axis=1)
    visible = seen[:, None] | np.eye(len(columns), dtype=bool)  # [b,s,s]
    return replace(batch, attention_mask=visible[:, None], layout="matrix")
