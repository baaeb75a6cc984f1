"""Corrupt text: samples of text to blank-infilling batches (paper sections 2.1-2.2).

Part A of a row is the text with one mask token per blanked span, part B the spans in random order, each read from a
start token on and predicted up to an end token. Row 0 of the positions is the place in part A (for part B the place of
the span's mask), row 1 counts inside a span.

b batch, s width of the batch, N length of a sample
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import TYPE_CHECKING

import numpy as np

from data_utils.batches import Batch, pack_batch, pad_batch
from data_utils.objective import Objective
from data_utils.objective.packing import Sample
from data_utils.objective.spans import (
    SHORTEST_SHORT_SEQUENCE,
    Span,
    SpanLengths,
    context_next_to_blanks,
    sentence_spans,
    short_pieces,
    shuffle,
    spans_in_documents,
)
from data_utils.rows import Row

if TYPE_CHECKING:
    from data_utils.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class BlankInfillingSettings:
    """Which blanks are made; the document objective has the probability that the other two leave.

    Attributes:
        bert_prob, gap_sentence_prob: of batches of the token and of the sentence objective.
        gpt_infill_prob: of a suffix, not a span in the middle, as the blank of the document objective.
        gpt_min_ratio: of a text that this blank takes at least.
        bert_ratio, gap_sentence_ratio: of a text that short spans, and sentences, cover.
        avg_block_length, max_block_length: of short spans, in tokens.
        one_token_prob: of a short span to be one token, whatever their average is.
        block_mask_prob: of an input token of part B to be hidden by [dBLOCK].
        context_mask_ratio, context_mask_range: of tokens of part A to be hidden, and how far from a blank they are.
        short_seq_prob: of batches of short pieces.
        single_span_prob: of batches with one short span in each text.
        block_position_encoding: count the tokens inside a span; otherwise all are 1.
        shuffle_blocks: generate the spans in random order.
        sentinel_token: numbered mask and start tokens in place of positions.
        task_mask: [gMASK] and [sMASK] for documents and sentences.
        random_position: move a text by a random offset of its positions.
        masked_lm: predict in place, as BERT does.
    """

    bert_prob: float = 0.5
    gap_sentence_prob: float = 0.0
    gpt_infill_prob: float = 0.5
    gpt_min_ratio: float = 0.5
    bert_ratio: float = 0.15
    gap_sentence_ratio: float = 0.15
    avg_block_length: float = 3
    max_block_length: int = 40
    one_token_prob: float = 0.0
    block_mask_prob: float = 0.0
    context_mask_ratio: float = 0.0
    context_mask_range: int = 3
    short_seq_prob: float = 0.0
    single_span_prob: float = 0.0
    block_position_encoding: bool = True
    shuffle_blocks: bool = True
    sentinel_token: bool = False
    task_mask: bool = False
    random_position: bool = False
    masked_lm: bool = False

    def __post_init__(self) -> None:
        """Refuse probabilities that are none."""
        for name in (
            "bert_prob",
            "gap_sentence_prob",
            "gpt_infill_prob",
            "short_seq_prob",
            "single_span_prob",
            "one_token_prob",
        ):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; a probability between 0 and 1 is needed")
        if self.bert_prob + self.gap_sentence_prob > 1.0 + 1e-9:
            raise ValueError(
                f"--bert-prob {self.bert_prob} and --gap-sentence-prob {self.gap_sentence_prob} add up to more than 1"
            )


@dataclass(frozen=True)
class Blanks:
    """All that was drawn for one row: what is left to do needs no random numbers."""

    tokens: np.ndarray  # int64 [N]
    order: list[Span]  # the spans in the order in which they are generated
    position_offset: int = 0
    hidden: Sequence[int] = ()  # tokens of part A that become dBLOCK


@dataclass(frozen=True)
class CorruptedRows:
    """Rows of a batch with their parts B, padded with 0."""

    values: np.ndarray  # int64 [5,b,s], as in ``Row``
    lengths: list[int]  # of the rows
    prefix_lengths: list[int]  # of their parts A

    def batch(self, objective: Objective, num_dropped: int) -> Batch:
        """Return them as a batch, without another copy of all but the positions."""
        positions = np.ascontiguousarray(self.values[3:].swapaxes(0, 1))
        prefix_lengths = np.array(self.prefix_lengths, dtype=np.int64)
        input_ids, target_ids, loss_mask = self.values[:3]
        return Batch(input_ids, target_ids, loss_mask, positions, prefix_lengths, objective, num_dropped)

    def rows(self) -> list[Row]:
        """Return them one by one, without the padding."""
        sizes = zip(self.lengths, self.prefix_lengths, strict=True)
        return [Row(self.values[:, index, :length], end) for index, (length, end) in enumerate(sizes)]


class BlankInfillingCollator:
    """Turn a list of samples into a ``Batch`` of one objective by blanking out spans.

    The generator of a batch is seeded with ``batch_index * world_size + rank``: the running number of the batch on its
    data-parallel rank is all that the draws depend on, whatever worker builds it and whenever.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        settings: BlankInfillingSettings,
        *,
        max_seq_length: int,
        rank: int = 0,
        world_size: int = 1,
        pack: bool = False,
    ) -> None:
        """``pack`` lets short samples share rows."""
        if settings.short_seq_prob > 0.0 and max_seq_length <= SHORTEST_SHORT_SEQUENCE + 1:
            raise ValueError(
                f"--short-seq-prob needs --seq-length above {SHORTEST_SHORT_SEQUENCE + 1}; it is {max_seq_length}"
            )
        self.tokenizer = tokenizer
        self.settings = settings
        self.max_seq_length = max_seq_length
        self.rank = rank
        self.world_size = world_size
        self.pack = pack
        self._lengths = SpanLengths(
            settings.avg_block_length, settings.max_block_length, one_token_prob=settings.one_token_prob
        )
        self._sentence_end = tokenizer.sentence_end_table("span")
        special = tokenizer.special
        self._eos, self._enc, self._sop, self._eop = special.eos, special.cls, special.sop, special.eop
        masks = {Objective.TOKEN: "MASK", Objective.SENTENCE: "MASK", Objective.DOCUMENT: "MASK"}
        if settings.task_mask:
            masks |= {Objective.SENTENCE: "sMASK", Objective.DOCUMENT: "gMASK"}
        self._mask_of = {objective: tokenizer.command_id(name) for objective, name in masks.items()}
        needs_decoder_mask = settings.block_mask_prob > 0.0 or settings.context_mask_ratio > 0.0
        self._decoder_mask = tokenizer.command_id("dBLOCK") if needs_decoder_mask else -1  # then it is never used

    def __call__(self, samples: Sequence[Sample], *, batch_index: int) -> Batch:
        """Build batch number ``batch_index`` of this rank from its samples."""
        seed = batch_index * self.world_size + self.rank
        # The original draws these from a process-wide generator; a second one keeps batches independent of each other.
        token_generator = random.Random(f"block mask {seed}")
        batch = self.collate(samples, generator=random.Random(seed), token_generator=token_generator)
        if self.pack:
            return replace(batch, filled=batch.num_real_tokens, room=batch.input_ids.size)
        filled = sum(len(sample.tokens) for sample in samples)
        return replace(batch, filled=filled, room=len(samples) * self.max_seq_length)

    def collate(self, samples: Sequence[Sample], *, generator: random.Random, token_generator: random.Random) -> Batch:
        """Blank out spans of ``samples``.

        ``token_generator`` gives the draws of ``block_mask_prob``. Samples whose spans do not fit are dropped; when
        that leaves none, the first sample is kept without blanks and without loss.
        """
        if not samples:
            raise ValueError("a batch needs at least one sample")
        settings = self.settings
        if generator.random() < settings.short_seq_prob:
            samples = self.split_samples(samples, generator)
        single_span = generator.random() < settings.single_span_prob
        drawn = 0.0 if single_span else generator.random()
        rows: Sequence[Blanks | Row | None]
        if drawn < settings.bert_prob:
            objective = Objective.TOKEN
            rows = [self._token(sample, generator, single_span=single_span) for sample in samples]
        elif drawn < settings.bert_prob + settings.gap_sentence_prob:
            objective = Objective.SENTENCE
            rows = [self._sentence(sample, generator) for sample in samples]
        else:
            objective = Objective.DOCUMENT
            lengths = [len(sample.tokens) for sample in samples]
            longest = max(lengths) - 2
            shortest = min(int(settings.gpt_min_ratio * min(lengths)), longest)
            generation_length = generator.randint(shortest, longest)
            rows = [self._document(sample, generator, generation_length) for sample in samples]
        kept = [row for row in rows if row is not None] or [self.without_blanks(samples[0].tokens)]
        blanks = [row for row in kept if isinstance(row, Blanks)]
        num_dropped = rows.count(None)
        if len(blanks) == len(kept) and not self.pack:
            return self._corrupt(blanks, objective, token_generator).batch(objective, num_dropped)
        corrupted = iter(self.corrupt(blanks, objective, token_generator))
        complete = [next(corrupted) if isinstance(row, Blanks) else row for row in kept]
        masked_lm = settings.masked_lm and objective is Objective.TOKEN
        make_batch = pack_batch if self.pack else pad_batch
        return make_batch(complete, objective, masked_lm=masked_lm, num_dropped=num_dropped)

    def split_samples(self, samples: Sequence[Sample], generator: random.Random) -> list[Sample]:
        """Cut every sample into pieces of one drawn length; the batch becomes that much taller."""
        length = generator.randrange(SHORTEST_SHORT_SEQUENCE, self.max_seq_length - 1)
        count = (self.max_seq_length - 1) // length
        pieces = []
        for sample in samples:
            tokens, loss_mask = sample.tokens[1:], sample.loss_mask[1:]
            boundary = self._sentence_end[tokens] | (tokens == self._eos)
            for start, end in short_pieces(generator, tokens, boundary, length=length, count=count, eos=self._eos):
                with_enc = np.concatenate([[self._enc], tokens[start:end]])
                pieces.append(Sample(with_enc, np.concatenate([[0], loss_mask[start:end]])))
        return pieces

    def draw_length(self, generator: random.Random) -> int:
        """Draw the length of a short span."""
        return self._lengths.draw(generator)

    def _token(self, sample: Sample, generator: random.Random, *, single_span: bool) -> Blanks | Row | None:
        """Blank out short spans up to ``bert_ratio`` of the tokens; None when they do not fit."""
        tokens = sample.tokens
        if single_span:
            lengths = [self.draw_length(generator)]
        else:
            lengths = self._lengths.draw_until(generator, int(self.settings.bert_ratio * len(tokens)))
        shuffle(generator, lengths)
        spans = spans_in_documents(
            generator, lengths, tokens, eos=self._eos, enc=self._enc, ratio=self.settings.bert_ratio
        )
        if spans is None:
            return None
        if self.settings.masked_lm:
            return self._mask_in_place(sample, spans)
        return self.draw_order(tokens, spans, Objective.TOKEN, generator)

    def _sentence(self, sample: Sample, generator: random.Random) -> Blanks | Row:
        """Blank out whole sentences."""
        tokens = sample.tokens
        spans = sentence_spans(
            generator,
            tokens,
            self._sentence_end[tokens],
            eos=self._eos,
            enc=self._enc,
            ratio=self.settings.gap_sentence_ratio,
        )
        return self.draw_order(tokens, spans, Objective.SENTENCE, generator)

    def _document(self, sample: Sample, generator: random.Random, generation_length: int) -> Blanks | Row:
        """Generate a suffix, or one long span in the middle."""
        tokens = sample.tokens
        length = min(generation_length, len(tokens) - 2)
        if length < 1:
            return self.without_blanks(sample.tokens)
        several_documents = bool((tokens[:-1] == self._eos).any())
        if several_documents or generator.random() < self.settings.gpt_infill_prob:
            return self._suffix(sample, length)
        spans = spans_in_documents(
            generator, [length], tokens, eos=self._eos, enc=self._enc, ratio=self.settings.bert_ratio
        )
        return (
            self.draw_order(tokens, spans, Objective.DOCUMENT, generator)
            if spans
            else self.without_blanks(sample.tokens)
        )

    def _suffix(self, sample: Sample, length: int) -> Row:
        """Keep a prefix and generate the last ``length`` tokens; the only form that honours the sample's loss mask."""
        cut = len(sample.tokens) - length
        values = np.zeros((5, cut + 1 + length), dtype=np.int64)
        values[:2, :cut] = sample.tokens[:cut]
        values[:2, cut] = self._mask_of[Objective.DOCUMENT]
        values[0, cut + 1] = self._sop
        values[0, cut + 2 :] = sample.tokens[cut:-1]
        values[1, cut + 1 :] = sample.tokens[cut:]
        values[2, cut + 1 :] = sample.loss_mask[cut:]
        values[3, :cut] = np.arange(cut)
        values[3, cut:] = cut
        values[4, cut + 1 :] = np.arange(1, length + 1) if self.settings.block_position_encoding else 1
        return Row(values, cut + 1)

    def _mask_in_place(self, sample: Sample, spans: list[Span]) -> Row:
        """Predict masked tokens in place, the BERT-style ablation."""
        row = self.without_blanks(sample.tokens)
        for start, end in spans:
            row.values[0, start:end] = self._mask_of[Objective.TOKEN]
            row.values[2, start:end] = sample.loss_mask[start:end]
        return row

    def without_blanks(self, tokens: np.ndarray) -> Row:
        """Return the text [N] as it is, with nothing to predict."""
        length = len(tokens)
        values = np.zeros((5, length), dtype=np.int64)
        values[:2] = tokens
        values[3] = np.arange(length)
        return Row(values, length)

    def draw_order(
        self, tokens: np.ndarray, spans: list[Span], objective: Objective, generator: random.Random
    ) -> Blanks:
        """Draw what corrupting ``tokens`` [N] needs beside ``spans``: offset of positions, order, dBLOCK places."""
        settings = self.settings
        hides_context = objective is Objective.TOKEN and settings.context_mask_ratio > 0.0
        offset = source_length = 0
        if settings.random_position or hides_context:
            source_length = len(tokens) - sum(end - start - 1 for start, end in spans)
        if settings.random_position and source_length < self.max_seq_length:
            offset = generator.randrange(0, self.max_seq_length - source_length + 1)
        order = list(spans) if settings.shuffle_blocks else sorted(spans)
        if settings.shuffle_blocks:
            shuffle(generator, order)
        hidden: Sequence[int] = ()
        if hides_context:
            candidates = context_next_to_blanks(spans, source_length, reach=settings.context_mask_range)
            num_hidden = min(int(settings.context_mask_ratio * len(tokens)), len(candidates))
            hidden = generator.sample(candidates, num_hidden)
        return Blanks(tokens, order, offset, hidden)

    def corrupt(self, rows: Sequence[Blanks], objective: Objective, token_generator: random.Random) -> list[Row]:
        """Replace spans by the mask tokens of ``objective`` and append them as part B."""
        return self._corrupt(rows, objective, token_generator).rows() if rows else []

    def _corrupt(self, rows: Sequence[Blanks], objective: Objective, token_generator: random.Random) -> CorruptedRows:
        """Corrupt all rows of a batch at once.

        Legend: n tokens of all rows, a of them in part A, k spans of all rows, p tokens of part B.
        """
        settings = self.settings
        tokens = np.concatenate([row.tokens for row in rows])  # [n]
        row_ends = list(accumulate(len(row.tokens) for row in rows))
        row_starts = np.array([0, *row_ends[:-1]])
        num_spans = [len(row.order) for row in rows]
        shifts = np.repeat(row_starts, num_spans)
        bounds = chain.from_iterable(chain.from_iterable([row.order for row in rows]))
        starts, ends = np.fromiter(bounds, dtype=np.int64, count=2 * sum(num_spans)).reshape(-1, 2).T
        lengths = ends - starts  # [k], spans in order of generation
        starts = starts + shifts
        kept = np.ones(len(tokens), dtype=bool)  # [n]; part A keeps the first token of a span for its mask
        kept[_ranges(starts + 1, lengths - 1)] = False
        positions = np.cumsum(kept)  # [n], counts over all rows
        source_ends = positions[np.array(row_ends) - 1].tolist()
        source_starts = [0, *source_ends[:-1]]
        offsets = np.array([row.position_offset for row in rows]) - 1 - source_starts
        positions += np.repeat(offsets, [len(row.tokens) for row in rows])  # [n], place of each token in part A

        source = np.zeros((5, source_ends[-1]), dtype=np.int64)  # [5,a]
        with_masks = tokens.copy()
        with_masks[starts] = self._masks(objective, num_spans)
        source[:2] = with_masks[kept]
        source[3] = positions[kept]
        for row, start in zip(rows, source_starts, strict=True):
            if row.hidden:
                source[0, start + np.array(row.hidden)] = self._decoder_mask

        span_starts = np.cumsum(lengths + 1) - lengths - 1  # [k], of the spans in part B
        places = _ranges(starts, lengths + 1)  # [p], where each target comes from
        block = np.ones((5, len(places)), dtype=np.int64)  # [5,p]; all of it is predicted
        block[0] = tokens[places - 1]
        if objective is Objective.TOKEN and settings.block_mask_prob > 0.0:
            is_token = np.ones(len(places), dtype=bool)
            is_token[span_starts] = False
            block[0, is_token & self._hidden_inputs(is_token, token_generator)] = self._decoder_mask
        block[0, span_starts] = self._start_tokens(num_spans)
        block[1] = tokens.take(places, mode="clip")  # the place behind the text is overwritten below
        block[1, span_starts + lengths] = self._eop
        assert not (block[1] == self._eos).any(), "a blanked span holds the end of a document"
        block[3] = self.max_seq_length if settings.sentinel_token else np.repeat(positions[starts], lengths + 1)
        if settings.block_position_encoding:
            block[4] = _ranges(np.ones_like(lengths), lengths + 1)

        block_ends = [0, *np.cumsum(lengths + 1).tolist()]
        cuts = [block_ends[last] for last in accumulate(num_spans, initial=0)]  # between the rows' parts B
        source_lengths = [end - start for start, end in zip(source_starts, source_ends, strict=True)]
        row_lengths = [a + end - start for a, start, end in zip(source_lengths, cuts, cuts[1:], strict=False)]
        values = np.zeros((5, len(rows), max(row_lengths)), dtype=np.int64)
        for index, (middle, length) in enumerate(zip(source_lengths, row_lengths, strict=True)):
            values[:, index, :middle] = source[:, source_starts[index] : source_ends[index]]
            values[:, index, middle:length] = block[:, cuts[index] : cuts[index + 1]]
        return CorruptedRows(values, row_lengths, source_lengths)

    def _hidden_inputs(self, is_token: np.ndarray, token_generator: random.Random) -> np.ndarray:
        """Draw which inputs of part B become dBLOCK, bool [p]; one draw for each token of a span."""
        uniform = token_generator.random
        drawn = np.ones(len(is_token))
        drawn[is_token] = [uniform() for _ in range(int(is_token.sum()))]
        return drawn < self.settings.block_mask_prob

    def _masks(self, objective: Objective, num_spans: Sequence[int]) -> np.ndarray | int:
        """Return the mask token of every span [k]; with sentinels it carries the number of the span in its row."""
        if not (self.settings.sentinel_token and objective is Objective.TOKEN):
            return self._mask_of[objective]
        return self._numbered("MASK", num_spans)

    def _start_tokens(self, num_spans: Sequence[int]) -> np.ndarray | int:
        """Return the start token of every span [k]."""
        return self._numbered("sop", num_spans) if self.settings.sentinel_token else self._sop

    def _numbered(self, name: str, num_spans: Sequence[int]) -> np.ndarray:
        """Return the sentinels ``name``, ``name``1, ... of every row, end to end [k]."""
        names = [name, *(f"{name}{index}" for index in range(1, max(num_spans)))]
        ids = [self.tokenizer.command_id(each) for each in names]
        return np.array([ids[index] for count in num_spans for index in range(count)], dtype=np.int64)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate start, start + 1, ... (length numbers) over all pairs, without a loop."""
    offsets = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - offsets, lengths)
