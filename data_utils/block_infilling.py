"""Blank construction: samples of text to blank-infilling batches (spec: pretraining 6; paper sections 2.1-2.2).

Part A of a row is the text with one mask token per blanked span, part B the spans in random order, each read from a
start token on and predicted up to an end token. Row 0 of the positions is the place in part A (for part B the place of
the span's mask), row 1 counts inside a span.

b batch, s width of the batch, N length of a sample
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data_utils.span_sampling import (
    SHORTEST_SHORT_SEQUENCE,
    Span,
    SpanLengths,
    sentence_spans,
    short_pieces,
    spans_in_documents,
)


class CommandVocabulary(Protocol):
    """What blank construction asks of a tokenizer."""

    def command_id(self, name: str) -> int:
        """Return the id of a command token such as ``MASK``."""

    def sentence_end_table(self, predicate: str) -> np.ndarray:
        """Return bool [number of ids]: which ids end a sentence."""


@dataclass(frozen=True)
class BlankInfillingSettings:
    """Options of the blank construction; probabilities of the document mode is what the other two leave."""

    bert_prob: float = 0.5
    gap_sentence_prob: float = 0.0
    gpt_infill_prob: float = 0.5
    gpt_min_ratio: float = 0.5
    bert_ratio: float = 0.15
    gap_sentence_ratio: float = 0.15
    average_block_length: float = 3
    max_block_length: int = 40
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
        for name in ("bert_prob", "gap_sentence_prob", "gpt_infill_prob", "short_seq_prob", "single_span_prob"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; a probability between 0 and 1 is needed")
        if self.bert_prob + self.gap_sentence_prob > 1.0 + 1e-9:
            raise ValueError(
                f"--bert-prob {self.bert_prob} and --gap-sentence-prob {self.gap_sentence_prob} add up to more than 1"
            )


@dataclass(frozen=True)
class Sample:
    """A packed piece of text: token ids int64 [N] and the weight of predicting each of them int64 [N]."""

    tokens: np.ndarray
    loss_mask: np.ndarray


@dataclass(frozen=True)
class FilledSample:
    """One row before padding: part A, then part B."""

    input_ids: np.ndarray  # [n]
    target_ids: np.ndarray  # [n]
    loss_mask: np.ndarray  # [n]
    position_ids: np.ndarray  # [2,n], or [n] with masked_lm
    separator: int  # length of part A


@dataclass(frozen=True)
class Batch:
    """A blank-infilling batch, int64, padded with 0 to its longest row."""

    input_ids: np.ndarray  # [b,s]
    target_ids: np.ndarray  # [b,s]
    loss_mask: np.ndarray  # [b,s], 1 where target_ids counts
    position_ids: np.ndarray  # [b,2,s], or [b,s] with masked_lm
    attention_mask: np.ndarray  # [b] separators: columns below are visible to all, the rest causally
    mode: str  # bert, sentence or gpt


def pad_batch(rows: Sequence[FilledSample], mode: str) -> Batch:
    """Stack rows of different lengths, padded with 0."""
    width = max(len(row.input_ids) for row in rows)
    planes = rows[0].position_ids.shape[:-1]
    inputs, targets, loss = (np.zeros((len(rows), width), dtype=np.int64) for _ in range(3))
    positions = np.zeros((len(rows), *planes, width), dtype=np.int64)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        inputs[index, :length] = row.input_ids
        targets[index, :length] = row.target_ids
        loss[index, :length] = row.loss_mask
        positions[index, ..., :length] = row.position_ids
    separators = np.array([row.separator for row in rows], dtype=np.int64)
    return Batch(inputs, targets, loss, positions, separators, mode)


class BlankInfillingCollator:
    """Turn a list of samples into a ``Batch`` by blanking out spans.

    The generator of a batch is seeded with ``batch_index * world_size + rank``: the running number of the batch on its
    data-parallel rank is all that the draws depend on, whatever worker builds it and whenever.
    """

    def __init__(
        self,
        vocabulary: CommandVocabulary,
        settings: BlankInfillingSettings,
        *,
        max_seq_length: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if settings.short_seq_prob > 0.0 and max_seq_length <= SHORTEST_SHORT_SEQUENCE + 1:
            raise ValueError(
                f"--short-seq-prob needs --seq-length above {SHORTEST_SHORT_SEQUENCE + 1}; it is {max_seq_length}"
            )
        self.vocabulary = vocabulary
        self.settings = settings
        self.max_seq_length = max_seq_length
        self.rank = rank
        self.world_size = world_size
        self._lengths = SpanLengths(settings.average_block_length, settings.max_block_length)
        self._sentence_end = vocabulary.sentence_end_table("span")
        self._eos = vocabulary.command_id("eos")
        self._enc = vocabulary.command_id("ENC")
        self._sop = vocabulary.command_id("sop")
        self._eop = vocabulary.command_id("eop")
        masks = {"bert": "MASK", "gap_sentence": "MASK", "generation": "MASK"}
        if settings.task_mask:
            masks.update(gap_sentence="sMASK", generation="gMASK")
        self._mask_of = {task: vocabulary.command_id(name) for task, name in masks.items()}
        needs_decoder_mask = settings.block_mask_prob > 0.0 or settings.context_mask_ratio > 0.0
        self._decoder_mask = vocabulary.command_id("dBLOCK") if needs_decoder_mask else None

    def __call__(self, samples: Sequence[Sample], *, batch_index: int) -> Batch:
        """Build batch number ``batch_index`` of this rank from its samples."""
        generator = random.Random(batch_index * self.world_size + self.rank)
        # The original draws these from a process-wide generator; a second one keeps batches independent of each other.
        token_generator = random.Random(f"block mask {batch_index * self.world_size + self.rank}")
        return self.collate(samples, generator=generator, token_generator=token_generator)

    def collate(self, samples: Sequence[Sample], *, generator: random.Random, token_generator: random.Random) -> Batch:
        """Blank out spans of ``samples`` (spec: pretraining 6, order of draws).

        ``token_generator`` gives the draws of ``block_mask_prob``. Samples whose spans do not fit are dropped; when
        that leaves none, the first sample is kept without blanks and without loss.
        """
        settings = self.settings
        if generator.random() < settings.short_seq_prob:
            samples = self.split_samples(samples, generator)
        single_span = generator.random() < settings.single_span_prob
        objective = 0.0 if single_span else generator.random()
        if objective < settings.bert_prob:
            mode = "bert"
            rows = [self._bert(sample, generator, token_generator, single_span=single_span) for sample in samples]
        elif objective < settings.bert_prob + settings.gap_sentence_prob:
            mode = "sentence"
            rows = [self._sentence(sample, generator, token_generator) for sample in samples]
        else:
            mode = "gpt"
            lengths = [len(sample.tokens) for sample in samples]
            longest = max(lengths) - 2
            shortest = min(int(settings.gpt_min_ratio * min(lengths)), longest)
            generation_length = generator.randint(shortest, longest)
            rows = [self._document(sample, generator, token_generator, generation_length) for sample in samples]
        kept = [row for row in rows if row is not None]
        return pad_batch(kept or [self._without_blanks(samples[0])], mode)

    def split_samples(self, samples: Sequence[Sample], generator: random.Random) -> list[Sample]:
        """Cut every sample into pieces of one drawn length; the batch becomes that much taller (6.1)."""
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

    def _bert(
        self, sample: Sample, generator: random.Random, token_generator: random.Random, *, single_span: bool
    ) -> FilledSample | None:
        """Blank out short spans up to ``bert_ratio`` of the tokens; None when they do not fit (6.2)."""
        tokens = sample.tokens
        if single_span:
            lengths = [self._lengths.draw(generator)]
        else:
            lengths = self._lengths.draw_until(generator, int(self.settings.bert_ratio * len(tokens)))
        generator.shuffle(lengths)
        spans = spans_in_documents(
            generator, lengths, tokens, eos=self._eos, enc=self._enc, ratio=self.settings.bert_ratio
        )
        if spans is None:
            return None
        if self.settings.masked_lm:
            return self._mask_in_place(sample, spans)
        return self.fill(tokens, spans, "bert", generator=generator, token_generator=token_generator)

    def _sentence(self, sample: Sample, generator: random.Random, token_generator: random.Random) -> FilledSample:
        """Blank out whole sentences (6.3)."""
        tokens = sample.tokens
        spans = sentence_spans(
            generator,
            tokens,
            self._sentence_end[tokens],
            eos=self._eos,
            enc=self._enc,
            ratio=self.settings.gap_sentence_ratio,
        )
        if not spans:
            return self._without_blanks(sample)
        return self.fill(tokens, spans, "gap_sentence", generator=generator, token_generator=token_generator)

    def _document(
        self, sample: Sample, generator: random.Random, token_generator: random.Random, generation_length: int
    ) -> FilledSample:
        """Generate a suffix, or one long span in the middle (6.4)."""
        tokens = sample.tokens
        length = min(generation_length, len(tokens) - 2)
        if length < 1:
            return self._without_blanks(sample)
        several_documents = bool((tokens[:-1] == self._eos).any())
        if several_documents or generator.random() < self.settings.gpt_infill_prob:
            return self._suffix(sample, length)
        spans = spans_in_documents(
            generator, [length], tokens, eos=self._eos, enc=self._enc, ratio=self.settings.bert_ratio
        )
        if spans is None:
            return self._without_blanks(sample)
        return self.fill(tokens, spans, "generation", generator=generator, token_generator=token_generator)

    def _suffix(self, sample: Sample, length: int) -> FilledSample:
        """Keep a prefix and generate the last ``length`` tokens; the only form that honours the sample's loss mask."""
        cut = len(sample.tokens) - length
        mask = self._mask_of["generation"]
        source, target = sample.tokens[:cut], sample.tokens[cut:]
        inputs = np.concatenate([source, [mask, self._sop], target[:-1]])
        targets = np.concatenate([source, [mask], target])
        loss = np.concatenate([np.zeros(cut + 1, dtype=np.int64), sample.loss_mask[cut:]])
        positions = np.minimum(np.arange(cut + 1 + length), cut)
        in_block = np.arange(cut + 1 + length) - cut
        if not self.settings.block_position_encoding:
            in_block = np.minimum(in_block, 1)
        return FilledSample(inputs, targets, loss, np.stack([positions, np.maximum(in_block, 0)]), cut + 1)

    def _mask_in_place(self, sample: Sample, spans: list[Span]) -> FilledSample:
        """Predict masked tokens in place, the BERT-style ablation."""
        inside = np.zeros(len(sample.tokens), dtype=bool)
        for start, end in spans:
            inside[start:end] = True
        inputs = np.where(inside, self._mask_of["bert"], sample.tokens)
        positions = np.arange(len(inputs))
        return FilledSample(inputs, sample.tokens, sample.loss_mask * inside, positions, len(inputs))

    def _without_blanks(self, sample: Sample) -> FilledSample:
        """Return the text as it is, with nothing to predict."""
        length = len(sample.tokens)
        positions = np.arange(length)
        if not self.settings.masked_lm:
            positions = np.stack([positions, np.zeros(length, dtype=np.int64)])
        return FilledSample(sample.tokens, sample.tokens, np.zeros(length, dtype=np.int64), positions, length)

    def fill(
        self,
        tokens: np.ndarray,
        spans: list[Span],
        task: str,
        *,
        generator: random.Random,
        token_generator: random.Random,
    ) -> FilledSample:
        """Replace ``spans`` by mask tokens and append them as part B (6.5).

        ``tokens`` int64 [N]; ``task`` bert, gap_sentence or generation chooses the mask token.
        """
        settings = self.settings
        if not spans:
            return self._without_blanks(Sample(tokens, np.zeros_like(tokens)))
        in_text_order = np.array(sorted(spans), dtype=np.int64)  # [k,2]
        starts, ends = in_text_order.T
        kept = np.ones(len(tokens), dtype=bool)  # part A keeps the first token of a span for its mask
        kept[_ranges(starts + 1, ends - starts - 1)] = False
        positions = np.cumsum(kept) - 1  # [N], place of each token in part A
        if settings.random_position and positions[-1] < self.max_seq_length - 1:
            positions = positions + generator.randrange(0, self.max_seq_length - int(positions[-1]))
        order = sorted(spans)
        if settings.shuffle_blocks:
            order = list(spans)
            generator.shuffle(order)
        source = tokens.copy()
        source[starts] = self._masks(task, order, in_text_order)
        source, source_positions = source[kept], positions[kept]

        starts, ends = np.array(order, dtype=np.int64).T
        lengths = ends - starts
        span_number = np.repeat(np.arange(len(order)), lengths + 1)
        block_positions = _ranges(np.ones_like(lengths), lengths + 1)  # 1 .. length + 1 in every span
        token_index = _ranges(starts, lengths + 1)  # where each target comes from
        at_start, at_end = block_positions == 1, block_positions == lengths[span_number] + 1
        inputs = tokens[token_index - 1]
        inputs[at_start] = self._start_tokens(task, len(order))
        targets = tokens[np.minimum(token_index, len(tokens) - 1)]
        targets[at_end] = self._eop
        assert not (targets == self._eos).any(), "a blanked span holds the end of a document"
        if task == "bert" and settings.block_mask_prob > 0.0:
            for index in np.flatnonzero(~at_start).tolist():
                if token_generator.random() < settings.block_mask_prob:
                    inputs[index] = self._decoder_mask
        if task == "bert" and settings.context_mask_ratio > 0.0:
            hidden = self._context_mask(in_text_order, len(tokens), len(source), generator)
            masked = source.copy()
            masked[hidden] = self._decoder_mask
        else:
            masked = source
        if settings.sentinel_token:
            span_positions = np.full(len(span_number), self.max_seq_length, dtype=np.int64)
        else:
            span_positions = positions[starts][span_number]
        if not settings.block_position_encoding:
            block_positions = np.ones_like(block_positions)
        zeros = np.zeros(len(source), dtype=np.int64)
        return FilledSample(
            np.concatenate([masked, inputs]),
            np.concatenate([source, targets]),
            np.concatenate([zeros, np.ones(len(inputs), dtype=np.int64)]),
            np.stack([np.concatenate([source_positions, span_positions]), np.concatenate([zeros, block_positions])]),
            len(source),
        )

    def _masks(self, task: str, order: list[Span], in_text_order: np.ndarray) -> np.ndarray | int:
        """Return the mask token of every span in text order; with sentinels it carries the order of generation."""
        if not (self.settings.sentinel_token and task == "bert"):
            return self._mask_of[task]
        number = {span[0]: index for index, span in enumerate(order)}
        names = ["MASK" if number[start] == 0 else f"MASK{number[start]}" for start in in_text_order[:, 0].tolist()]
        return np.array([self.vocabulary.command_id(name) for name in names], dtype=np.int64)

    def _start_tokens(self, task: str, count: int) -> np.ndarray | int:
        """Return the start token of every span in order of generation."""
        if not self.settings.sentinel_token:
            return self._sop
        names = ["sop" if index == 0 else f"sop{index}" for index in range(count)]
        return np.array([self.vocabulary.command_id(name) for name in names], dtype=np.int64)

    def _context_mask(
        self, in_text_order: np.ndarray, num_tokens: int, source_length: int, generator: random.Random
    ) -> list[int]:
        """Draw context tokens next to blanks that become dBLOCK, as indices into part A."""
        reach = self.settings.context_mask_range
        candidates: set[int] = set()  # the draw depends on the iteration order of this very set
        start = 0  # of a kept piece, in part A
        removed = 0
        pieces = []
        previous_end = 0
        for span_start, span_end in in_text_order.tolist():
            pieces.append((start, span_start - removed))
            removed += span_end - span_start - 1
            start = span_end - removed
            previous_end = span_end
        pieces.append((start, source_length))
        assert previous_end <= num_tokens
        for begin, end in pieces:
            if begin != 0:
                candidates.update(range(begin, min(begin + reach, end)))
            if end != 0:
                candidates.update(range(max(end - reach, begin), end))
        count = int(self.settings.context_mask_ratio * num_tokens)
        return generator.sample(tuple(candidates), count)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate start, start + 1, ... (length numbers) over all pairs, without a loop."""
    offsets = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - offsets, lengths)
