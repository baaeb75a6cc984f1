"""Windows of texts: which ids are given, which are predicted, and their batches.

A window is a row of the model. With block positions it is

    ENC | prompt | mask (eos, in LAMBADA) || sop | text without its last id

where everything left of the bars is seen by all; plain left to right it is the ids but the last. A table holds four
numbers per window; rows are made for a batch at a time.

b batch, s sequence, p prompt, n ids of a window
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_utils.tokenizers.tokenizer import Tokenizer
from tasks.language_model.documents import Ending, TokenDocuments
from tasks.language_model.settings import LanguageModelSettings


@dataclass(frozen=True)
class WindowLayout:
    """What stands around the ids of a window.

    Attributes:
        pad: the eos id, which fills rows.
        first, mask, start: ENC, the mask and sop; None in plain left-to-right rows.
        closed: the context ends in eos, as in LAMBADA.
        block_positions: ids of the text count in the second row of positions.
    """

    pad: int
    first: int | None = None
    mask: int | None = None
    start: int | None = None
    closed: bool = False
    block_positions: bool = True

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, settings: LanguageModelSettings, closed: bool) -> WindowLayout:
        """Choose the tokens: the mask is gMASK where there is one."""
        if not settings.block:
            return cls(tokenizer.command_id("eos"))
        special = tokenizer.special
        return cls(
            special.eos,
            special.cls,
            special.long_mask,
            special.sop,
            closed=closed,
            block_positions=settings.block_positions,
        )


@dataclass(frozen=True)
class WindowBatch:
    """Rows of several windows; int64 arrays.

    Attributes:
        input_ids: [b,s].
        position_ids: [b,2,s], positions and block positions; [b,s] plain left to right.
        prefix_lengths: [b], that many first columns are seen by all, the rest causally.
        target_ids: [b,s].
        loss_mask: [b,s], 1 where a target id is scored.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    prefix_lengths: np.ndarray
    target_ids: np.ndarray
    loss_mask: np.ndarray


@dataclass(frozen=True)
class WindowTable:
    """All windows of an evaluation.

    Attributes:
        ids: int32 [N], of all documents one after the other.
        starts: [w], where in ``ids`` a window begins.
        lengths: [w], n: its ids.
        prompts: [w], p: how many of them stand before the mask.
        scored_from: [w], the first of its ids that is scored.
        layout: of the rows.
    """

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    prompts: np.ndarray
    scored_from: np.ndarray
    layout: WindowLayout

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.starts)

    @property
    def num_scored(self) -> int:
        """Return the number of scored ids."""
        return int((self.lengths - self.scored_from).sum())

    @property
    def widths(self) -> np.ndarray:
        """Return the length of every row without padding, [w]."""
        if self.layout.first is None:
            return self.lengths - 1
        return self.lengths + 2 + int(self.layout.closed)

    def rows(self, numbers: Sequence[int] | np.ndarray, *, width: int | None = None) -> WindowBatch:
        """Return the rows of windows, padded to ``width``, by default to the longest of them."""
        chosen = np.asarray(numbers)
        width = int(self.widths[chosen].max()) if width is None else width
        columns = np.arange(width)[None, :]  # [1,s]
        start, prompt, scored = (
            array[chosen, None] for array in (self.starts, self.prompts, self.scored_from)
        )  # each [b,1]
        used = columns < self.widths[chosen, None]  # [b,s]
        if self.layout.first is None:
            return WindowBatch(
                input_ids=self._ids(start + columns, where=used, otherwise=self.layout.pad),
                position_ids=np.where(used, columns, 0),
                prefix_lengths=np.zeros(len(chosen), dtype=np.int64),
                target_ids=self._ids(start + columns + 1, where=used, otherwise=0),
                loss_mask=(used & (columns + 1 >= scored)).astype(np.int64),
            )
        layout = self.layout
        context = prompt + 2 + int(layout.closed)  # [b,1], columns of the context
        given, written = columns < context, used & (columns >= context)
        text = start + prompt + columns - context  # in ids: what a column of the text predicts
        where_prompt = given & (columns >= 1) & (columns <= prompt)
        input_ids = self._ids(
            np.where(given, start + columns - 1, text - 1),
            where=where_prompt | (written & (columns > context)),
            otherwise=layout.pad,
        )
        input_ids[:, 0] = layout.first
        rows = np.arange(len(chosen))
        input_ids[rows, prompt[:, 0] + 1] = layout.mask
        input_ids[rows, context[:, 0]] = layout.start
        blocks = columns - context + 1 if layout.block_positions else 1
        positions = np.where(given, columns, np.where(written, prompt + 1, 0))
        return WindowBatch(
            input_ids=input_ids,
            position_ids=np.stack([positions, np.where(written, blocks, 0)], axis=1),
            prefix_lengths=context[:, 0].astype(np.int64),
            target_ids=self._ids(text, where=written, otherwise=0),
            loss_mask=(written & (columns - context + prompt >= scored)).astype(np.int64),
        )

    def _ids(self, places: np.ndarray, *, where: np.ndarray, otherwise: int) -> np.ndarray:
        found = self.ids[np.where(where, places, 0)]
        return np.where(where, found, otherwise).astype(np.int64)


def document_windows(
    documents: TokenDocuments, *, settings: LanguageModelSettings, layout: WindowLayout
) -> WindowTable:
    """Cut documents into windows in which every id but the first of a document is scored once.

    Documents without two ids have none. ``num_scored`` of the result counts what is scored.

    Raises:
        ValueError: an overlap that leaves ids out.
    """
    settings.check_overlap()
    most, step = settings.window_length, settings.overlap
    sizes = np.array([len(ids) for ids in documents.documents], dtype=np.int64)  # [d]
    begins = np.cumsum(sizes) - sizes
    counts = -(-np.maximum(sizes - most, 0) // step) + 1  # windows of each document
    document = np.repeat(np.arange(len(sizes)), counts)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # within its document
    offset = number * step
    lengths = np.minimum(sizes[document] - offset, most)
    first = number == 0
    scored_from = np.where(first, 1, most - step)
    if settings.left_to_right:
        scored_from = np.maximum(scored_from, 1)
        prompts = np.ones_like(number)
    else:
        prompts = scored_from
    kept = lengths > scored_from
    starts = begins[document] + offset
    return WindowTable(
        ids=np.concatenate([np.zeros(0, dtype=np.int32), *documents.documents]),
        starts=starts[kept],
        lengths=lengths[kept],
        prompts=prompts[kept],
        scored_from=scored_from[kept],
        layout=layout,
    )


def ending_windows(endings: Sequence[Ending], *, settings: LanguageModelSettings, layout: WindowLayout) -> WindowTable:
    """Return a window per passage of LAMBADA, in order; over-long contexts lose ids.

    They are cut at their left; with ``unidirectional`` after their first id, which stands before the mask.

    Raises:
        ValueError: a last word that does not fit; plain left to right, one without a word before it.
    """
    around = -1 if layout.first is None else 2 + int(layout.closed)  # columns of a row besides its ids
    pieces, contexts, prompts = [], [], []
    for ending in endings:
        room = settings.seq_length - around - len(ending.label)
        context = ending.context
        if room < 1:
            raise ValueError(
                f"{ending.place}: its last word has {len(ending.label)} ids, which leaves no room for the text; "
                f"raise --seq-length {settings.seq_length}"
            )
        if len(context) > room:
            kept = int(settings.unidirectional and settings.block)  # the first id stays before the mask
            context = context[:kept] + context[len(context) - room + kept :]
        if not context and layout.first is None:
            raise ValueError(f"{ending.place}: one word; without --block-lm another one has to come before it")
        pieces.append(np.array([*context, *ending.label], dtype=np.int32))
        contexts.append(len(context))
        prompts.append(min(1, len(context)) if settings.unidirectional else len(context))
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    return WindowTable(
        ids=np.concatenate(pieces),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        prompts=np.array(prompts, dtype=np.int64),
        scored_from=np.array(contexts, dtype=np.int64),
        layout=layout,
    )
