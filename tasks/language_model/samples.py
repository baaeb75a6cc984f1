"""Windows of texts: which ids are given, which are predicted.

A window is a row of the model. With block positions it is

    ENC | prompt | mask (eos, in LAMBADA) || sop | text without its last id

where everything left of the bars is seen by all; plain left to right it is the ids but the last. A table holds four
numbers per window; rows are made for a batch at a time.

p prompt, n ids of a window, w windows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_utils.rows import Row, infilling_row
from data_utils.tokenizers.command_tokens import SpecialTokens
from data_utils.tokenizers.tokenizer import Tokenizer
from generation.scoring import Question
from tasks.language_model.readers import Ending, TokenDocuments


@dataclass(frozen=True)
class LanguageModelSettings:
    """How texts are cut into windows.

    Attributes:
        seq_length: ids of a window, and of a LAMBADA example, with the command tokens.
        overlap: ids by which a window of a long document moves on; that many of it are scored.
        unidirectional: the context is written as well, so that every id sees only those before it.
        block_lm: the text follows a mask in a context; without, it is plain left to right.
        block_positions: ids of the text count in the second row of positions; without, it stays 1.
        compatible: accept an overlap so large that the first id of a window is not scored, as the original does.
    """

    seq_length: int
    overlap: int = 32
    unidirectional: bool = False
    block_lm: bool = True
    block_positions: bool = True
    compatible: bool = False

    @property
    def window_length(self) -> int:
        """Return the most ids of a text in one window."""
        return self.seq_length - 1

    @property
    def left_to_right(self) -> bool:
        """Tell whether every id sees only those before it."""
        return self.unidirectional or not self.block_lm

    def check_overlap(self) -> None:
        """Raise ValueError where windows that move on by the overlap would leave ids out."""
        length = self.window_length
        assert self.overlap >= 1
        left_out = self.overlap > length or (self.overlap == length and self.left_to_right and not self.compatible)
        if left_out:
            most = length - 1 if self.left_to_right else length
            raise ValueError(
                f"--overlapping-eval {self.overlap} would leave ids unscored in windows of --seq-length "
                f"{self.seq_length}; at most {most} is possible"
            )


@dataclass(frozen=True)
class WindowTable:
    """All windows of an evaluation.

    Attributes:
        ids: int32 [N], of all documents one after the other.
        starts: [w], where in ``ids`` a window begins.
        lengths: [w], n: its ids.
        prompts: [w], p: how many of them stand before the mask.
        scored_from: [w], the first of its ids that is scored.
        special: what stands around the ids of a window; None plain left to right.
        closed: the context ends in eos, as in LAMBADA.
        block_positions: ids of the text count in the second row of positions.
    """

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    prompts: np.ndarray
    scored_from: np.ndarray
    special: SpecialTokens | None
    closed: bool = False
    block_positions: bool = True

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.starts)

    @property
    def num_scored(self) -> int:
        """Return the number of scored ids."""
        return int((self.lengths - self.scored_from).sum())

    @property
    def widths(self) -> np.ndarray:
        """Return the length of every row, [w]."""
        return self.lengths - 1 if self.special is None else self.lengths + 2 + int(self.closed)

    def row(self, number: int) -> Row:
        """Return the row of a window."""
        start, prompt, scored_from = (int(array[number]) for array in (self.starts, self.prompts, self.scored_from))
        ids = self.ids[start : start + int(self.lengths[number])]
        if self.special is None:
            columns = np.arange(len(ids) - 1)
            return Row(np.stack([ids[:-1], ids[1:], columns + 1 >= scored_from, columns]), 0)
        special = self.special
        context = [special.cls, *ids[:prompt], special.long_mask, *[special.eos] * self.closed]
        return infilling_row(
            context,
            ids[prompt:].tolist(),
            special=special,
            block_positions=self.block_positions,
            answer_position=prompt + 1,
            mask_id=special.long_mask,
            num_given=scored_from - prompt,
        )

    def __getitem__(self, number: int) -> Question:
        """Return a window as the scorer takes it."""
        question = Question.of_rows([self.row(number)])
        assert question is not None
        return question


def document_windows(
    documents: TokenDocuments, *, settings: LanguageModelSettings, tokenizer: Tokenizer
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
        special=tokenizer.special if settings.block_lm else None,
        block_positions=settings.block_positions,
    )


def ending_windows(endings: Sequence[Ending], *, settings: LanguageModelSettings, tokenizer: Tokenizer) -> WindowTable:
    """Return a window per passage of LAMBADA, in order; over-long contexts lose ids.

    They are cut at their left; with ``unidirectional`` after their first id, which stands before the mask.

    Raises:
        ValueError: a last word that does not fit; plain left to right, one without a word before it.
    """
    around = 3 if settings.block_lm else -1  # columns of a row besides its ids
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
            kept = int(settings.unidirectional and settings.block_lm)  # the first id stays before the mask
            context = context[:kept] + context[len(context) - room + kept :]
        if not context and not settings.block_lm:
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
        special=tokenizer.special if settings.block_lm else None,
        closed=True,
        block_positions=settings.block_positions,
    )
