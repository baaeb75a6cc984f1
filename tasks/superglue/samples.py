"""Examples as samples: the rows of tokens that the heads score.

Three encoders turn an example into a ``TaskSample``: ``ClozeEncoder`` asks the language model for what fills the blank
of a pattern, ``MultichoiceEncoder`` does so for any text and its choices, ``ClassificationEncoder`` lets a
classification head read the texts. ``batches.py`` pads samples and stacks them.

c choices (answers to choose from), l labels
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from data_utils.rows import LOST_MASK, Row, answer_row, context_ids, context_row, infilling_row, unidirectional_row
from generation.inputs import shorten
from tasks.readers import standardize
from tasks.superglue.patterns import MASK, PVP, Parts, PromptTokens, Shortenable
from tasks.superglue.pvp import mark_pronoun
from tasks.superglue.readers import InputExample

if TYPE_CHECKING:
    from data_utils.tokenizers.tokenizer import Tokenizer

Kind = Literal["single_token", "multi_token", "fast_decode", "language_model", "classification"]
PROMPT = -1  # stands in rows for a token of the continuous prompt
COMPATIBLE_FAST_ANSWER = 16  # positions that the original gives every answer in the fast-decode form


@dataclass(frozen=True)
class TaskSample:
    """One example, ready for a head. Its rows are as long as they need to be.

    Attributes:
        kind: which head the sample is for.

            - ``single_token``: one row that ends with the start token; ``label_ids`` are scored there.
            - ``multi_token``: a row per answer, or with segments several.
            - ``fast_decode``: one row, the context; ``answers`` are run after it.
            - ``language_model``: one row with the only answer.
            - ``classification``: one row for a class, or with ``choices`` one per choice for a score each.
        uid: the example's guid.
        label: class index, or index of the right choice; None for unlabelled examples.
        rows: what the model runs. Tokens of a continuous prompt are ``PROMPT`` in their input ids.
        choices: whether the rows are choices, so that batches have a dimension for them.
        label_ids: the id of every label's word [l], of ``single_token``.
        segment_ids: which answer a row belongs to, where answers are cut into segments; a row is then no choice.
        answers: one row per choice, of ``fast_decode``.
    """

    kind: Kind
    uid: str | int
    label: int | None
    rows: tuple[Row, ...]
    choices: bool = False
    label_ids: tuple[int, ...] = ()
    segment_ids: tuple[int, ...] | None = None
    answers: tuple[Row, ...] = ()

    @property
    def length(self) -> int:
        """Return the number of positions of its longest row."""
        return max(map(len, self.rows))

    @property
    def num_choices(self) -> int:
        """Return how many rows or answers are choices, 0 for a sample without choices."""
        return len(self.answers) or len(self.rows) * self.choices


@dataclass(frozen=True)
class EncodingOptions:
    """How examples become samples; all fields but ``block_positions`` are options of the command line.

    Attributes:
        seq_length: the longest sample, all its positions counted.
        cloze_eval: score answers by the language model; otherwise a classification head.
        pattern_id: the pattern.
        multi_token: score the verbalizer of a label as a sequence of tokens.
        fast_decode: encode the context once and the answers after it.
        segment_length: cut answers into pieces of that many tokens; 0 does not.
        continuous_prompt, num_prompt_tokens, prefix_prompt: tokens of the continuous prompt in the pattern's slots, and
            right after [CLS].
        wsc_negative: WSC with a list of candidates.
        loss_func: cross_entropy, hinge, generative or mix; it decides on the form of WSC's samples.
        block_positions: number the answer's positions in the second row.
        masked_lm: one row of positions.
        sentinel_token: the answer's position is ``max_position_embeddings``.
        max_position_embeddings: of the model.
        unidirectional: generic multiple choice, left to right.
        pool_token: what a classification head reads; for ``start`` samples keep one position after the context.
        compatible: do as the original where ours is better: prefix prompts as ordinary tokens, continuous prompts in
            labelled texts, answers of fast decode cut to 16 tokens, WSC without candidates in rows.
    """

    seq_length: int = 512
    cloze_eval: bool = True
    pattern_id: int = 0
    multi_token: bool = False
    fast_decode: bool = False
    segment_length: int = 0
    continuous_prompt: bool = False
    num_prompt_tokens: int = 0
    prefix_prompt: int = 0
    wsc_negative: bool = False
    loss_func: str = "cross_entropy"
    block_positions: bool = True
    masked_lm: bool = False
    sentinel_token: bool = False
    max_position_embeddings: int = 512
    unidirectional: bool = False
    pool_token: str = "cls"
    compatible: bool = False

    @property
    def prompt_length(self) -> int:
        """Return the length of the continuous prompt."""
        return self.num_prompt_tokens + self.prefix_prompt if self.continuous_prompt else 0

    def check_prompt(self) -> None:
        """Raise ValueError for options of the continuous prompt, or of answers, that exclude each other."""
        if self.prefix_prompt and not self.continuous_prompt and not self.compatible:
            raise ValueError("--prefix-prompt needs --continuous-prompt")
        if self.continuous_prompt and not self.prompt_length:
            raise ValueError("--continuous-prompt needs --num-prompt-tokens or --prefix-prompt")
        if self.continuous_prompt and self.fast_decode:
            raise ValueError("--fast-decode and --continuous-prompt exclude each other; leave one out")
        if self.fast_decode and self.segment_length:
            raise ValueError("--fast-decode and --segment-length exclude each other; leave one out")


class Encoder:
    """Turns the examples of a task into samples.

    Attributes:
        num_truncated: how often a text was shortened so far.
        num_commands: texts so far with a command in them, such as a literal ``[MASK]``.
    """

    num_truncated = 0
    num_commands = 0

    def __init__(self, tokenizer: Tokenizer, options: EncodingOptions) -> None:
        self.tokenizer = tokenizer
        self.options = options
        self.special = tokenizer.special

    def sample(self, example: InputExample, *, label: int | None) -> TaskSample:
        """Return the sample of an example. Raise ValueError that names the example when it does not fit."""
        raise NotImplementedError

    def blank_row(self, context: Sequence[int], answer: Sequence[int] | None) -> Row:
        """Return a context whose last mask ``answer`` fills; without an answer the start token alone."""
        options = self.options
        return infilling_row(
            context,
            answer,
            special=self.special,
            block_positions=options.block_positions,
            masked_lm=options.masked_lm,
            answer_position=options.max_position_embeddings if options.sentinel_token else None,
        )


@dataclass(frozen=True)
class Piece:
    """The tokens of one piece of a pattern."""

    ids: tuple[int, ...]
    shortenable: bool = False


def truncate(
    a: Sequence[Piece], b: Sequence[Piece], *, answer: Sequence[int] | None = None, max_length: int
) -> tuple[tuple[Piece, ...], tuple[Piece, ...], int]:
    """Shorten A and B until they fit with [CLS], the end token and the answer (or the start token without one).

    One token at a time is taken from the end of the last shortenable piece of the side that has more of them, of B
    when both have as many. Returns A, B and the number of tokens taken. Raises ValueError when nothing more can go.
    """
    sides = [[list(piece.ids) for piece in side] for side in (a, b)]
    flags = [[piece.shortenable for piece in side] for side in (a, b)]
    total = sum(len(ids) for side in sides for ids in side) + 2 + (len(answer) if answer else 1)
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


def single_token_id(word: str, label: Any, pvp: PVP, tokenizer: Tokenizer) -> int:
    """Return the id of a label's word. Raise ValueError when it is not exactly one ordinary token."""
    ids = tokenizer.encode(word)
    if len(ids) != 1 or any(ids[0] == token.id for token in tokenizer.command_tokens):
        raise ValueError(
            f"{pvp.name}: the word {word!r} of label {label} is {len(ids)} tokens of this vocabulary, it has to be one "
            "token; give --multi-token"
        )
    return ids[0]


class ClozeEncoder(Encoder):
    """Samples for the language model: one token, several tokens, segments of them, fast decode."""

    def __init__(
        self,
        pvp: PVP,
        tokenizer: Tokenizer,
        options: EncodingOptions,
        *,
        multi_token: bool = False,
        language_model: bool = False,
    ) -> None:
        """Take the patterns; ``multi_token`` says that answers are sequences, ``language_model`` that there is one.

        Raise ValueError for options that exclude each other.
        """
        super().__init__(tokenizer, options)
        self.pvp = pvp
        self.multi_token = multi_token
        self.language_model = language_model
        self._command_ids = {token.id for token in tokenizer.command_tokens if token.name != "unk"}
        self._label_ids: tuple[int, ...] = ()
        self._texts: dict[str, tuple[int, ...]] = {}
        options.check_prompt()

    def sample(self, example: InputExample, *, label: int | None) -> TaskSample:
        """Return the sample of an example. Raise ValueError that names the example when it does not fit."""
        if not self.multi_token:
            self.label_ids()  # what is wrong with the words is not this example's fault
        try:
            return self._sample(example, label)
        except ValueError as error:
            raise _named(error, example) from error

    def _sample(self, example: InputExample, label: int | None) -> TaskSample:
        options, eop = self.options, self.special.eop
        joined = None if options.continuous_prompt else self.pvp.joined_choices(example, options.pattern_id)
        if joined is not None:
            word = self._fixed(joined[0])
            if len(word) != 1:
                raise ValueError(f"the joining word {joined[0]!r} has to be one token of the vocabulary")
            rows = [
                self._row(self._shortened(self._tokenized(parts), (*word, eop)), (*word, eop)) for parts in joined[1]
            ]
            return TaskSample("multi_token", example.guid, label, tuple(rows), choices=True)
        pieces = self._tokenized(self._parts(example))
        if not self.multi_token:
            row = self._row(self._shortened(pieces, None), None)
            return TaskSample("single_token", example.guid, label, (row,), label_ids=self.label_ids())
        answers = [(*answer, eop) for answer in self._answers(example)]
        if self.language_model:
            row = self._row(self._shortened(pieces, answers[0]), answers[0])
            return TaskSample("language_model", example.guid, label, (row,))
        if options.fast_decode:
            return self._fast_sample(example, self._shortened(pieces, None), answers, label)
        rows, segment_ids = [], []
        length = options.segment_length
        for number, answer in enumerate(answers):
            ids = self._shortened(pieces, answer)
            for start in range(0, len(answer), length or len(answer)):
                segment = answer[start : start + length] if length else answer
                rows.append(self._row(self._before_mask(ids, answer[:start]), segment))
                segment_ids.append(number)
        return TaskSample(
            kind="multi_token",
            uid=example.guid,
            label=label,
            rows=tuple(rows),
            choices=True,
            segment_ids=tuple(segment_ids) if length else None,
        )

    def _fast_sample(
        self, example: InputExample, ids: list[int], answers: Sequence[tuple[int, ...]], label: int | None
    ) -> TaskSample:
        context = self._context(ids)
        if self.special.mask not in context:
            raise ValueError(LOST_MASK)
        position = context.index(self.special.mask)
        if self.options.compatible:
            answers = [answer[:COMPATIBLE_FAST_ANSWER] for answer in answers]
        rows = [
            answer_row(answer, special=self.special, position=position, prefix_length=len(context))
            for answer in answers
        ]
        row = context_row(context, masked_lm=self.options.masked_lm)
        return TaskSample("fast_decode", example.guid, label, (row,), answers=tuple(rows))

    def labelled_text(self, example: InputExample, *, label: int) -> list[int]:
        """Return [CLS], the example's ids with its answer in place of the first mask, and the end token.

        Raise ValueError for a continuous prompt, which has no ids (the original leaves an id beyond the vocabulary).
        """
        if self.options.continuous_prompt and self.options.num_prompt_tokens and not self.options.compatible:
            raise ValueError("--block-lm-ratio and --continuous-prompt exclude each other: a prompt token has no id")
        try:
            pieces = self._tokenized(self._parts(example))
            if self.multi_token:
                answer = self._answers(example)[label]
                ids = self._shortened(pieces, answer)
            else:
                name, word = list(self.pvp.verbalizers(self.options.pattern_id).items())[label]
                answer = (single_token_id(word, name, self.pvp, self.tokenizer),)
                ids = self._shortened(pieces, None)
            if self.special.mask not in ids:
                raise ValueError(LOST_MASK)
        except ValueError as error:
            raise _named(error, example) from error
        where = ids.index(self.special.mask)
        ids[where : where + 1] = answer
        ids = [self.tokenizer.num_tokens if index == PROMPT else index for index in ids]
        return [self.special.cls, *ids, self.special.pad]

    def label_ids(self) -> tuple[int, ...]:
        """Return the id of every label's word. Raise ValueError for a word that is not exactly one ordinary token."""
        if not self._label_ids:
            words = self.pvp.verbalizers(self.options.pattern_id)
            self._label_ids = tuple(
                single_token_id(word, label, self.pvp, self.tokenizer) for label, word in words.items()
            )
        return self._label_ids

    def _parts(self, example: InputExample) -> Parts:
        options = self.options
        parts = self.pvp.rendered(
            example,
            options.pattern_id,
            continuous_prompt=options.continuous_prompt,
            num_prompt_tokens=options.num_prompt_tokens,
        )
        return Parts((PromptTokens(options.prefix_prompt), *parts.a), parts.b) if options.prefix_prompt else parts

    def _tokenized(self, parts: Parts) -> tuple[list[Piece], list[Piece]]:
        """Tokenize the pieces of a pattern, each on its own."""
        sides: tuple[list[Piece], list[Piece]] = [], []
        for side, pieces in zip(sides, (parts.a, parts.b)):
            for piece in pieces:
                if isinstance(piece, Shortenable):
                    ids = tuple(self.tokenizer.encode(piece.text))
                    self.num_commands += not self._command_ids.isdisjoint(ids)
                    side.append(Piece(ids, shortenable=True))
                elif isinstance(piece, PromptTokens):
                    side.append(Piece((PROMPT,) * piece.count))
                elif piece == MASK:
                    side.append(Piece((self.special.mask,)))
                else:
                    assert isinstance(piece, str), piece
                    side.append(Piece(self._fixed(piece)))
        return sides

    def _fixed(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text that mostly comes again with the next example."""
        if text not in self._texts:
            if len(self._texts) > 10_000:
                self._texts.clear()
            self._texts[text] = tuple(self.tokenizer.encode(text))
        return self._texts[text]

    def _answers(self, example: InputExample) -> list[tuple[int, ...]]:
        """Return the ids of every answer."""
        answers = [self._fixed(text) for text in self.pvp.answers(example, self.options.pattern_id)]
        if not all(answers):
            raise ValueError("an answer to choose from is empty")
        return answers

    def _shortened(self, pieces: tuple[Sequence[Piece], Sequence[Piece]], answer: Sequence[int] | None) -> list[int]:
        """Return the ids of a pattern, shortened until they fit with the answer."""
        a, b, removed = truncate(*pieces, answer=answer, max_length=self.options.seq_length)
        self.num_truncated += removed > 0
        return [index for piece in (*a, *b) for index in piece.ids]

    def _before_mask(self, ids: list[int], given: Sequence[int]) -> list[int]:
        """Return ``ids`` with the given ones in front of the first mask."""
        if not given:
            return ids
        if self.special.mask not in ids:
            raise ValueError(LOST_MASK)
        where = ids.index(self.special.mask)
        return [*ids[:where], *given, *ids[where:]]

    def _context(self, ids: Sequence[int]) -> list[int]:
        return context_ids(ids, special=self.special, max_length=self.options.seq_length)

    def _row(self, ids: Sequence[int], answer: Sequence[int] | None) -> Row:
        return self.blank_row(self._context(ids), answer)


class MultichoiceEncoder(Encoder):
    """Samples with one row per choice of any text; choices are scored as they are, without an end token."""

    def __init__(self, tokenizer: Tokenizer, options: EncodingOptions) -> None:
        """Left to right needs the mask for generation. Raise ValueError for what the task does not have."""
        super().__init__(tokenizer, options)
        if options.continuous_prompt or options.fast_decode or options.segment_length:
            raise ValueError("multichoice has no --continuous-prompt, --fast-decode or --segment-length")
        self.generation_mask = tokenizer.command_id("gMASK") if options.unidirectional else None

    def sample(self, example: InputExample, *, label: int | None) -> TaskSample:
        """Return the sample of an example.

        A text that is too long keeps its end, or the surroundings of its last mask where the end has none. Raise
        ValueError, with the place of the example, for a choice that is empty or leaves no room for the text.
        """
        length, special = self.options.seq_length, self.special
        place = example.source or f"example {example.guid}"
        ids = self.tokenizer.encode(example.text_a)
        choices = [self.tokenizer.encode(choice) for choice in example.meta["choices"]]
        if not all(choices):
            raise ValueError(f"{place}: a choice is empty")
        if self.generation_mask is None and special.mask not in ids:
            ids.append(special.mask)
        longest = max(map(len, choices))
        room = length - longest - 2
        if len(ids) > room:
            if room < 1:
                raise ValueError(
                    f"{place}: a choice of {longest} tokens leaves no room for the text; raise --seq-length {length}"
                )
            ids = shorten(ids, room, mask_id=special.mask if self.generation_mask is None else None)
            self.num_truncated += 1
        if self.generation_mask is None:
            context = context_ids(ids, special=special, max_length=length)
            rows = [self.blank_row(context, choice) for choice in choices]
        else:
            mask_id = self.generation_mask
            rows = [unidirectional_row(ids, choice, special=special, mask_id=mask_id) for choice in choices]
        return TaskSample("multi_token", example.guid, label, tuple(rows), choices=True)


# The texts of A and of B: those of B are tokenized one by one and then joined; None is no B at all.
HeadTexts: TypeAlias = "tuple[str, tuple[str, ...] | None]"
# Returns what a classification head reads of an example; a list has one entry per choice.
TextChooser: TypeAlias = "Callable[[InputExample], HeadTexts | list[HeadTexts]]"


class ClassificationEncoder(Encoder):
    """Samples for a classification head, without patterns."""

    def __init__(self, texts: TextChooser, tokenizer: Tokenizer, options: EncodingOptions) -> None:
        super().__init__(tokenizer, options)
        if options.continuous_prompt:
            raise ValueError("--continuous-prompt needs patterns; give --cloze-eval")
        self.texts = texts

    def sample(self, example: InputExample, *, label: int | None) -> TaskSample:
        """Return the sample: [CLS] text [SEP] text and the end token, cut at its end when it is too long."""
        texts = self.texts(example)
        choices = isinstance(texts, list)
        rows = tuple(self._row(*entry) for entry in (texts if isinstance(texts, list) else [texts]))
        return TaskSample("classification", example.guid, label, rows, choices=choices)

    def _row(self, text_a: str, texts_b: tuple[str, ...] | None) -> Row:
        encode, reserved = self.tokenizer.encode, self.options.pool_token == "start"
        a = encode(text_a)
        b = None if texts_b is None else [index for text in texts_b for index in encode(text)]
        max_length = self.options.seq_length - reserved
        self.num_truncated += len(a) + len(b or ()) + 2 + (b is not None) > max_length
        context = context_ids(a, b, special=self.special, max_length=max_length, sep=True)
        row = context_row([*context, self.special.pad] if reserved else context, masked_lm=self.options.masked_lm)
        row.values[3, len(context) :] = 0
        return Row(row.values, len(context))


def plain_texts(example: InputExample) -> HeadTexts:
    """Return the texts as they are."""
    return example.text_a, None if example.text_b is None else (example.text_b,)


def word_texts(example: InputExample) -> HeadTexts:
    """Return WiC's sentences, the word in front of them."""
    return f"{example.meta['word']}: {example.text_a}", (example.text_b,)


def pronoun_texts(example: InputExample) -> HeadTexts:
    """Return WSC's text with the pronoun marked, and the span."""
    return mark_pronoun(example), (example.meta["span1_text"],)


def pronoun_and_candidate_texts(example: InputExample) -> HeadTexts:
    """Return WSC's text with the pronoun marked, and the candidate that the example is about."""
    return mark_pronoun(example), (example.text_b,)


def chinese_pronoun_texts(example: InputExample) -> HeadTexts:
    """Return the Chinese WSC's text with the pronoun marked, and the span."""
    start = example.meta["span2_index"]
    end = start + example.meta["span2_length"]
    text = example.text_a
    return f"{text[:start]}*{text[start:end]}*{text[end:]}", (example.meta["span1_text"],)


def answer_texts(example: InputExample) -> HeadTexts:
    """Return MultiRC's passage, and question with answer."""
    return example.text_a, (f"{example.text_b} answer: {example.meta['answer']}",)


def cause_or_effect_texts(example: InputExample) -> list[HeadTexts]:
    """Return COPA's premise with the joining word, and each choice."""
    joiner = " because" if example.meta["question"] == "cause" else " so"
    premise = standardize(example.text_a) + joiner
    return [(premise, (standardize(example.meta[name]),)) for name in ("choice1", "choice2")]


def candidate_texts(example: InputExample) -> list[HeadTexts]:
    """Return ReCoRD's passage, and the query with each candidate after it."""
    return [(example.text_a, (example.text_b, candidate)) for candidate in example.meta["candidates"]]


def choice_texts(example: InputExample) -> list[HeadTexts]:
    """Return the texts of an example, and each of its choices."""
    texts = f"{example.text_a} {example.text_b}" if example.text_b else example.text_a
    return [(texts, (choice,)) for choice in example.meta["choices"]]


def _named(error: ValueError, example: InputExample) -> ValueError:
    message, place = str(error), example.source or f"example {example.guid}"
    return ValueError(message if message.startswith((place, "--")) else f"{place}: {message}")
