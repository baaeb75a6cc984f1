"""Examples as samples for a classification head, without patterns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from tasks.cloze import TaskTokenizer, stack_padded
from tasks.examples import InputExample
from tasks.layout import CommandIds, PositionOptions, Row, build_row
from tasks.readers import standardize
from tasks.samples import EncodingOptions, TaskSample
from tasks.superglue.patterns_superglue import mark_pronoun

# The texts of A and of B: those of B are tokenized one by one and then joined; None is no B at all.
HeadTexts: TypeAlias = "tuple[str, tuple[str, ...] | None]"
# Returns what the head reads of an example; a list has one entry per choice.
TextChooser: TypeAlias = "Callable[[InputExample], HeadTexts | list[HeadTexts]]"


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


HEAD_TEXTS: Mapping[str, TextChooser] = {
    "wic": word_texts,
    "wsc": pronoun_texts,
    "wsc1": pronoun_and_candidate_texts,
    "cluewsc": chinese_pronoun_texts,
    "multirc": answer_texts,
    "copa": cause_or_effect_texts,
    "record": candidate_texts,
}


@dataclass
class ClassificationEncoder:
    """Turn the examples of a task into samples for a classification head.

    Attributes:
        task_name: for messages.
        texts: what is read of an example.
        tokenizer: of the model.
        options: ``seq_length``, ``encoder``, ``reserve_position`` and the positions count here.
        num_truncated: how many examples were cut so far.
    """

    task_name: str
    texts: TextChooser
    tokenizer: TaskTokenizer
    options: EncodingOptions
    num_truncated: int = 0

    def __post_init__(self) -> None:
        """Collect the command ids; refuse the tasks that have no such form."""
        if self.task_name in ("race", "squad", "multichoice"):
            raise ValueError(f"{self.task_name} has no form for a classification head; give --cloze-eval")
        if self.task_name == "wsc" and self.options.wsc_negative:
            raise ValueError("--wsc-negative scores candidates by the language model; give --cloze-eval")
        if self.options.continuous_prompt:
            raise ValueError("--continuous-prompt needs patterns; give --cloze-eval")
        self.commands = CommandIds.of(self.tokenizer)

    def sample(self, example: InputExample, *, label: int) -> TaskSample:
        """Return the sample: [CLS] text [SEP] text and the end token, cut at its end when it is too long."""
        texts = self.texts(example)
        choices = isinstance(texts, list)
        rows = [self._row(*entry) for entry in (texts if isinstance(texts, list) else [texts])]
        return self._of_rows(example, rows, label, choices=choices)

    def _row(self, text_a: str, texts_b: tuple[str, ...] | None) -> Row:
        encode = self.tokenizer.encode
        b = None if texts_b is None else [index for text in texts_b for index in encode(text)]
        return self._row_of_ids(encode(text_a), b)

    def _row_of_ids(self, a: list[int], b: list[int] | None) -> Row:
        length = self.options.seq_length - self.options.reserve_position
        self.num_truncated += len(a) + len(b or ()) + 2 + (b is not None) > length
        row = build_row(
            a,
            b,
            None,
            commands=self.commands,
            max_length=length,
            options=PositionOptions(masked_lm=self.options.masked_lm),
            add_sep=True,
            add_piece=False,
        )
        if self.options.reserve_position:
            row.ids.append(self.commands.pad)
            row.positions.append(0)
            row.block_positions.append(0)
        return row

    def _of_rows(self, example: InputExample, rows: list[Row], label: int, *, choices: bool) -> TaskSample:
        length = max(len(row.ids) for row in rows)
        ids = stack_padded([row.ids for row in rows], length, self.commands.pad)
        if self.options.encoder:
            types = stack_padded([row.types for row in rows], length, 0)
            masks = stack_padded([[1] * row.prefix_length for row in rows], length, 0)
            rows_or_row = [array if choices else array[0] for array in (ids, types, masks)]
            return TaskSample("encoder", example.guid, label, rows_or_row[0], token_types=rows_or_row[1],
                              padding_mask=rows_or_row[2])  # fmt: skip
        positions = stack_padded([row.position_rows(masked_lm=self.options.masked_lm) for row in rows], length, 0)
        prefix_lengths = np.array([row.prefix_length for row in rows], dtype=np.int32)
        ids, positions, prefix_lengths = (array if choices else array[0] for array in (ids, positions, prefix_lengths))
        return TaskSample(
            "classification", example.guid, label, ids, positions, np.asarray(prefix_lengths, dtype=np.int32)
        )
