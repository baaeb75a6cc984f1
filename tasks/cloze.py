"""Examples as samples for the language model: one token, several tokens, segments, fast decode.

c choices, l labels, p prompt tokens, s sequence
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tasks.examples import InputExample
from tasks.layout import (
    PROMPT,
    CommandIds,
    Piece,
    PositionOptions,
    Row,
    build_decoder_row,
    build_row,
    truncate,
)
from tasks.patterns import PVP
from tasks.samples import COMPATIBLE_FAST_ANSWER, EncodingOptions, TaskSample
from tasks.segments import MASK, Parts, PromptTokens, Shortenable


class TaskTokenizer(Protocol):
    """What samples need of a tokenizer (``data_utils.tokenizers.tokenizer.Tokenizer`` has it)."""

    num_tokens: int
    command_tokens: Sequence[Any]

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``."""

    def command_id(self, name: str) -> int:
        """Return the id of a command."""


def single_token_ids(pvp: PVP, pattern_id: int, tokenizer: TaskTokenizer) -> list[int]:
    """Return the id of every label's word. Raise ValueError for a word that is not exactly one ordinary token."""
    return [single_token_id(word, label, pvp, tokenizer) for label, word in pvp.verbalizers(pattern_id).items()]


def single_token_id(word: str, label: Any, pvp: PVP, tokenizer: TaskTokenizer) -> int:
    """Return the id of a label's word. Raise ValueError when it is not exactly one ordinary token."""
    ids = tokenizer.encode(word)
    if len(ids) != 1 or any(ids[0] == token.id for token in tokenizer.command_tokens):
        raise ValueError(
            f"{pvp.name}: the word {word!r} of label {label} is {len(ids)} tokens of this vocabulary, it has to be one "
            "token; give --multi-token"
        )
    return ids[0]


def verbalizer_token_ids(pvp: PVP, pattern_id: int, tokenizer: TaskTokenizer) -> list[int]:
    """Return all ids of the labels' words, in label order; none for a task without words (for ``--prompt-init``)."""
    if not pvp.words:
        return []
    return [index for word in pvp.verbalizers(pattern_id).values() for index in tokenizer.encode(word)]


@dataclass
class ClozeEncoder:
    """Turn the examples of a task into samples.

    Attributes:
        pvp: patterns and verbalizers.
        tokenizer: of the model.
        options: the form of the samples.
        multi_token: answers are sequences of tokens.
        num_truncated: how often a text was shortened so far.
        num_commands: texts so far with a command in them, such as a literal ``[MASK]``.
    """

    pvp: PVP
    tokenizer: TaskTokenizer
    options: EncodingOptions
    multi_token: bool = False
    num_truncated: int = 0
    num_commands: int = 0
    _label_ids: list[int] | None = None
    _pieces: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Collect the command ids and refuse options that exclude each other."""
        options = self.options
        self.commands = CommandIds.of(self.tokenizer)
        self._command_ids = {token.id for token in self.tokenizer.command_tokens if token.name != "unk"}
        self.positions = PositionOptions(
            block_positions=options.block_positions,
            masked_lm=options.masked_lm,
            sentinel=options.max_position_embeddings if options.sentinel_token else None,
        )
        self.num_prompt_tokens = options.num_prompt_tokens if options.continuous_prompt else 0
        check_prompt_options(options)

    def sample(self, example: InputExample, *, label: int) -> TaskSample:
        """Return the sample of an example. Raise ValueError that names the example when it does not fit."""
        options, pvp = self.options, self.pvp
        if not self.multi_token:
            self._single_token_ids()  # what is wrong with the words is not this example's fault
        try:
            joins = getattr(pvp, "joins", None)
            if joins is not None and joins(options.pattern_id, continuous_prompt=options.continuous_prompt):
                return self._joiner_sample(example, label)
            a, b = self._pieces_of(self._parts(example))
            if not self.multi_token:
                return self._single_token_sample(example, a, b, label)
            answers = self._answers(example)
            if options.fast_decode:
                return self._fast_sample(example, a, b, answers, label)
            return self._multi_token_sample(example, a, b, answers, label)
        except ValueError as error:
            raise _named(error, example) from error

    def language_model_sample(self, example: InputExample, *, label: int) -> TaskSample:
        """Return the example as plain language modelling of its first answer (WSC without candidates)."""
        try:
            a, b = self._pieces_of(self._parts(example))
            answer = self._answers(example)[0]
            a, b = self._truncated(a, b, answer)
            row = self._row(a, b, answer)
        except ValueError as error:
            raise _named(error, example) from error
        ids, prompts = split_prompts(row.ids)
        return TaskSample(
            kind="language_model",
            uid=example.guid,
            label=label,
            input_ids=ids,
            position_ids=row.position_rows(masked_lm=self.options.masked_lm),
            attention_mask=np.array(row.prefix_length, dtype=np.int32),
            target_ids=np.array(row.targets, dtype=np.int32),
            loss_mask=np.array(row.loss_mask, dtype=np.int32),
            prompt_positions=prompts,
        )

    def labelled_text(self, example: InputExample, *, label: int) -> list[int]:
        """Return the example's ids with its answer in place of the first mask, without [CLS] and end token.

        Raise ValueError for a continuous prompt, which has no ids (the original leaves an id beyond the vocabulary).
        """
        if self.num_prompt_tokens and not self.options.compatible:
            raise ValueError("--block-lm-ratio and --continuous-prompt exclude each other: a prompt token has no id")
        try:
            a, b = self._pieces_of(self._parts(example))
            if self.multi_token:
                answer = self._answers(example, end=False)[label]
                a, b = self._truncated(a, b, answer)
            else:
                name, word = list(self.pvp.verbalizers(self.options.pattern_id).items())[label]
                answer = (single_token_id(word, name, self.pvp, self.tokenizer),)
                a, b = self._truncated(a, b, None)
            context = [index for piece in (*a, *b) for index in piece.ids]
            if self.commands.mask not in context:
                raise ValueError("the context has lost its mask: raise --seq-length")
        except ValueError as error:
            raise _named(error, example) from error
        where = context.index(self.commands.mask)
        context = [*context[:where], *answer, *context[where + 1 :]]
        return [self.tokenizer.num_tokens if index == PROMPT else index for index in context]

    def _parts(self, example: InputExample) -> Parts:
        options = self.options
        parts = self.pvp.slotted(
            example,
            options.pattern_id,
            continuous_prompt=options.continuous_prompt,
            num_prompt_tokens=options.num_prompt_tokens,
        )
        prefix = (PromptTokens(options.prefix_prompt),) if options.prefix_prompt else ()
        return Parts((*prefix, *parts.a), parts.b)

    def _pieces_of(self, parts: Parts) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
        """Tokenize the pieces of a pattern, each on its own."""
        sides = []
        for side in (parts.a, parts.b):
            pieces = []
            for piece in side:
                if isinstance(piece, Shortenable):
                    ids = tuple(self.tokenizer.encode(piece.text))
                    self.num_commands += not self._command_ids.isdisjoint(ids)
                    pieces.append(Piece(ids, shortenable=True))
                elif isinstance(piece, PromptTokens):
                    pieces.append(Piece((PROMPT,) * piece.count))
                elif piece == MASK:
                    pieces.append(Piece((self.commands.mask,)))
                else:
                    assert isinstance(piece, str), piece
                    pieces.append(Piece(self._fixed(piece)))
            sides.append(tuple(pieces))
        return sides[0], sides[1]

    def _fixed(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text that mostly comes again with the next example."""
        if text not in self._pieces:
            if len(self._pieces) > 10_000:
                self._pieces.clear()
            self._pieces[text] = tuple(self.tokenizer.encode(text))
        return self._pieces[text]

    def _answers(self, example: InputExample, *, end: bool = True) -> list[tuple[int, ...]]:
        """Return the ids of every answer, with the end-of-piece token unless ``end`` is False."""
        answers = [self._fixed(text) for text in self.pvp.answers(example, self.options.pattern_id)]
        if not all(answers):
            raise ValueError("an answer to choose from is empty")
        return [(*answer, self.commands.eop) for answer in answers] if end else answers

    def _single_token_ids(self) -> list[int]:
        if self._label_ids is None:
            self._label_ids = single_token_ids(self.pvp, self.options.pattern_id, self.tokenizer)
        return self._label_ids

    def _truncated(
        self, a: Sequence[Piece], b: Sequence[Piece], answer: Sequence[int] | None
    ) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
        a, b, removed = truncate(a, b, answer=answer, max_length=self.options.seq_length)
        self.num_truncated += removed > 0
        return a, b

    def _row(
        self, a: Sequence[Piece], b: Sequence[Piece], answer: Sequence[int] | None, *, add_piece: bool = True
    ) -> Row:
        return build_row(
            _flat(a),
            _flat(b),
            answer,
            commands=self.commands,
            max_length=self.options.seq_length,
            options=self.positions,
            add_piece=add_piece,
        )

    def _single_token_sample(
        self, example: InputExample, a: Sequence[Piece], b: Sequence[Piece], label: int
    ) -> TaskSample:
        targets = self._single_token_ids()
        row = self._row(*self._truncated(a, b, None), None)
        ids, prompts = split_prompts(row.ids)
        return TaskSample(
            kind="single_token",
            uid=example.guid,
            label=label,
            input_ids=ids,
            position_ids=row.position_rows(masked_lm=self.options.masked_lm),
            attention_mask=np.array(row.prefix_length, dtype=np.int32),
            target_ids=np.array(targets, dtype=np.int32),
            loss_mask=np.array(row.loss_mask, dtype=np.int32),
            prompt_positions=prompts,
        )

    def _multi_token_sample(
        self,
        example: InputExample,
        a: Sequence[Piece],
        b: Sequence[Piece],
        answers: Sequence[tuple[int, ...]],
        label: int,
    ) -> TaskSample:
        rows: list[Row] = []
        owners: list[int] = []
        length = self.options.segment_length
        for number, answer in enumerate(answers):
            short_a, short_b = self._truncated(a, b, answer)
            for start in range(0, len(answer), length or len(answer)):
                given, predicted = answer[:start], answer[start : start + length] if length else answer
                row_a, row_b = _insert_before_mask(short_a, short_b, given, self.commands.mask)
                rows.append(self._row(row_a, row_b, predicted))
                owners.append(number)
        segment_ids = np.array(owners, dtype=np.int32) if length else None
        return self._stacked(example, rows, label, segment_ids)

    def _stacked(
        self, example: InputExample, rows: Sequence[Row], label: int, segment_ids: np.ndarray | None = None
    ) -> TaskSample:
        """Return the sample of several rows, each padded to the longest."""
        length = max(len(row.ids) for row in rows)
        split = [split_prompts(row.ids) for row in rows]
        positions = [row.position_rows(masked_lm=self.options.masked_lm) for row in rows]
        return TaskSample(
            kind="multi_token",
            uid=example.guid,
            label=label,
            input_ids=stack_padded([ids for ids, _ in split], length, self.commands.pad),
            position_ids=stack_padded(positions, length, 0),
            attention_mask=np.array([row.prefix_length for row in rows], dtype=np.int32),
            target_ids=stack_padded([row.targets for row in rows], length, 0),
            loss_mask=stack_padded([row.loss_mask for row in rows], length, 0),
            prompt_positions=np.stack([prompts for _, prompts in split]),
            segment_ids=segment_ids,
        )

    def _joiner_sample(self, example: InputExample, label: int) -> TaskSample:
        """Return COPA's sample that predicts the joining word, given each choice."""
        pvp: Any = self.pvp
        word = self._fixed(pvp.joiner_word(example))
        if len(word) != 1:
            raise ValueError(f"the joining word {pvp.joiner_word(example)!r} has to be one token of the vocabulary")
        answer = (*word, self.commands.eop)
        rows = []
        for parts in pvp.joiner_parts(example):
            rows.append(self._row(*self._truncated(*self._pieces_of(parts), answer), answer))
        return self._stacked(example, rows, label)

    def _fast_sample(
        self,
        example: InputExample,
        a: Sequence[Piece],
        b: Sequence[Piece],
        answers: Sequence[tuple[int, ...]],
        label: int,
    ) -> TaskSample:
        row = self._row(*self._truncated(a, b, None), None, add_piece=False)
        if self.commands.mask not in row.ids:
            raise ValueError("the context has lost its mask: raise --seq-length")
        length = COMPATIBLE_FAST_ANSWER if self.options.compatible else max(map(len, answers))
        decoders = [build_decoder_row(row.ids, answer, commands=self.commands, max_length=length) for answer in answers]
        return TaskSample(
            kind="fast_decode",
            uid=example.guid,
            label=label,
            input_ids=np.array(row.ids, dtype=np.int32),
            position_ids=row.position_rows(masked_lm=self.options.masked_lm),
            attention_mask=np.array(row.prefix_length, dtype=np.int32),
            target_ids=np.array([decoder.targets for decoder in decoders], dtype=np.int32),
            loss_mask=np.array([decoder.loss_mask for decoder in decoders], dtype=np.int32),
            answer_ids=np.array([decoder.ids for decoder in decoders], dtype=np.int32),
            answer_position_ids=np.array([decoder.positions for decoder in decoders], dtype=np.int32),
            answer_prefix_lengths=np.full(len(decoders), row.prefix_length, dtype=np.int32),
        )


def check_prompt_options(options: EncodingOptions) -> None:
    """Raise ValueError for options of the continuous prompt that make no sense."""
    if options.prefix_prompt and not options.continuous_prompt and not options.compatible:
        raise ValueError("--prefix-prompt needs --continuous-prompt")
    if options.continuous_prompt and options.num_prompt_tokens + options.prefix_prompt < 1:
        raise ValueError("--continuous-prompt needs --num-prompt-tokens or --prefix-prompt")
    if options.continuous_prompt and options.fast_decode:
        raise ValueError("--fast-decode and --continuous-prompt exclude each other; leave one out")
    if options.fast_decode and options.segment_length:
        raise ValueError("--fast-decode and --segment-length exclude each other; leave one out")


def split_prompts(ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids with 0 for prompt tokens, int32 [s], and where those stand, int32 [p]."""
    array = np.array(ids, dtype=np.int32)
    prompts = np.flatnonzero(array == PROMPT)
    array[prompts] = 0
    return array, prompts.astype(np.int32)


def stack_padded(values: Iterable[Any], length: int, fill: int) -> np.ndarray:
    """Stack arrays or lists whose last axis is filled up to ``length``."""
    arrays = [np.asarray(value, dtype=np.int32) for value in values]
    widths = [(0, 0)] * (arrays[0].ndim - 1)
    return np.stack([np.pad(a, [*widths, (0, length - a.shape[-1])], constant_values=fill) for a in arrays])


def _flat(pieces: Sequence[Piece]) -> list[int]:
    return [index for piece in pieces for index in piece.ids]


def _insert_before_mask(
    a: Sequence[Piece], b: Sequence[Piece], ids: Sequence[int], mask: int
) -> tuple[Sequence[Piece], Sequence[Piece]]:
    """Return A and B with ``ids`` in front of the first mask."""
    if not ids:
        return a, b
    sides = [list(a), list(b)]
    for side in sides:
        for number, piece in enumerate(side):
            if mask in piece.ids:
                where = piece.ids.index(mask)
                side[number] = Piece((*piece.ids[:where], *ids, *piece.ids[where:]), piece.shortenable)
                return sides[0], sides[1]
    raise ValueError("the context has lost its mask: raise --seq-length")


def _named(error: ValueError, example: InputExample) -> ValueError:
    message = str(error)
    return ValueError(message if message.startswith(("example ", "--")) else f"example {example.guid}: {message}")
