"""Read files of SQuAD's nesting: SQuAD itself, question generation, CMRC."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.readers import read_text
from tasks.seq2seq.answers import NO_ANSWER, ContextOffsets
from tasks.seq2seq.examples import Seq2SeqExample, Seq2SeqOptions

if TYPE_CHECKING:
    from data_utils.tokenizers.tokenizer import Tokenizer

FAKE_ANSWER = "FAKE_ANSWER"  # what a test split's questions are given instead of an answer
SQUAD_VERSIONS = {"squad": "v2.0", "squad_v1": "v1.1"}


@dataclass(frozen=True)
class Question:
    """One question of a file.

    Attributes:
        where: file and place in it, for messages.
        identity: the question's id; empty where the file gives none.
        context, question: the texts.
        answers: all answer texts, in file order.
    """

    where: str
    identity: str
    context: str
    question: str
    answers: tuple[str, ...]


def read_nested(path: Path) -> Iterator[Question]:
    """Yield the questions of a file. Raise ValueError with file and place for anything malformed."""
    try:
        document = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno})") from None
    for article, article_place in _items(document, "data", f"{path}, "):
        for paragraph, paragraph_place in _items(article, "paragraphs", article_place):
            context = _text(paragraph, "context", paragraph_place)
            for entry, place in _items(paragraph, "qas", paragraph_place):
                answers = tuple(_text(answer, "text", at) for answer, at in _items(entry, "answers", place, default=[]))
                identity = str(entry.get("id", ""))
                yield Question(place.rstrip("."), identity, context, _text(entry, "question", place), answers)


def _items(parent: Any, key: str, place: str, *, default: list | None = None) -> Iterator[tuple[Any, str]]:
    """Yield the entries of a list field with their places."""
    value = parent.get(key, default) if isinstance(parent, dict) else None
    if not isinstance(value, list):
        raise ValueError(f"{place.rstrip(',. ')}: no list {key!r}; the file needs data > paragraphs > qas > answers")
    for index, entry in enumerate(value):
        yield entry, f"{place}{key}[{index}]."


def _text(parent: Any, key: str, place: str) -> str:
    value = parent.get(key) if isinstance(parent, dict) else None
    if not isinstance(value, str):
        raise ValueError(f"{place.rstrip('.')}: no text {key!r}")
    return value


def read_questions(
    task: str, folder: Path, split: str, *, tokenizer: Tokenizer, options: Seq2SeqOptions
) -> list[Seq2SeqExample]:
    """Return the examples of question generation or CMRC: one per distinct answer of a question.

    The target is the question, or the answer (CMRC). A test split's answers are not looked at.
    """
    path = folder / f"{split}.json"
    examples: list[Seq2SeqExample] = []
    generates_question = task == "squad_generation"
    for question in read_nested(path):
        answers = (FAKE_ANSWER,) if split == "test" else tuple(dict.fromkeys(question.answers))
        for answer in answers:
            target = question.question if generates_question else answer
            compared = answer if options.compatible else target
            meta = {"question": question.question, "answer": answer, "idx": question.identity}
            reference = tokenizer.decode(tokenizer.encode(compared))
            examples.append(Seq2SeqExample(f"{split}-{len(examples)}", question.context, target, reference, meta))
    return _not_empty(examples, path)


def read_squad(
    task: str, folder: Path, split: str, *, tokenizer: Tokenizer, options: Seq2SeqOptions
) -> list[Seq2SeqExample]:
    """Return the examples of SQuAD: a window of the context each, with the answer if the window holds it."""
    path = folder / f"{'train' if split == 'train' else 'dev'}-{SQUAD_VERSIONS[task]}.json"
    needs_answer = task == "squad_v1" and (split == "train" or options.compatible)
    offsets = ContextOffsets(tokenizer)
    encoded: dict[str, tuple[int, ...]] = {}  # per context its ids; the questions of a context follow each other
    examples: list[Seq2SeqExample] = []
    for question in read_nested(path):
        if question.context not in encoded:
            encoded = {question.context: tuple(tokenizer.encode(question.context))}
        ids = encoded[question.context]
        answers = question.answers or (NO_ANSWER,)
        expected = tokenizer.decode(tokenizer.encode(answers[0]))
        for text in _windows(question, ids, tokenizer=tokenizer, size=options.source_length):
            present = bool(expected) and expected in text.value
            if needs_answer and not present:
                continue
            answer = answers[0] if present else NO_ANSWER
            meta = {
                "question": question.question,
                "answer": answer,
                "answers": answers,
                "idx": question.identity,
                "context": question.context,
                "context_ids": ids,
                "context_offsets": offsets.of(question.context, ids),
            }
            examples.append(Seq2SeqExample(f"{split}-{len(examples)}", text.value, answer, answer, meta))
            if text.is_last:
                break
    return _not_empty(examples, path)


@dataclass(frozen=True)
class _Window:
    value: str
    is_last: bool


def _windows(question: Question, ids: tuple[int, ...], *, tokenizer: Tokenizer, size: int) -> Iterator[_Window]:
    """Yield the windows of a context that fit beside the question; half of the source length apart."""
    length = size - 3 - len(tokenizer.encode(f" {question.question}"))
    if length <= 0:
        raise ValueError(f"{question.where}: the question leaves no room in --src-seq-length {size}; raise it")
    for start in range(0, len(ids), size // 2):
        window = ids[start : start + length]
        yield _Window(tokenizer.decode(window), len(window) < length)


def _not_empty(examples: list[Seq2SeqExample], path: Path) -> list[Seq2SeqExample]:
    if not examples:
        raise ValueError(f"{path}: no question to make an example of")
    return examples
