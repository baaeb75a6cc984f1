"""ReCoRD as the benchmark asks it: a passage, a query with a blank, and entities as candidates for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.superglue.processors import RecordProcessor
from tasks.superglue.pvp import RecordPVP
from tasks.superglue.readers import DataOptions, InputExample
from tasks.superglue.samples import ClozeEncoder, EncodingOptions, TaskSample

if TYPE_CHECKING:
    from data_utils.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class ClozeQuestion:
    """One question.

    Attributes:
        sample: a row per candidate (kind ``multi_token``); its label is 0: in training the answer comes first.
        right: numbers of the candidates that are answers; of several, any counts.
    """

    sample: TaskSample
    right: tuple[int, ...]


class BenchmarkProcessor(RecordProcessor):
    """ReCoRD with the answers of a question in alphabetical order."""

    sorted_answers = True


def read_examples(folder: str | Path, split: str) -> list[InputExample]:
    """Return the examples of ``train`` or ``dev`` in ``folder``, those with fewer candidates first.

    Raises ValueError for a file that is missing or malformed, and for a question without answers.
    """
    return BenchmarkProcessor("record", DataOptions(needs_labels=True)).examples(folder, split)


def right_candidates(example: InputExample) -> tuple[int, ...]:
    """Return the numbers of the candidates that are answers; an answer that is no candidate is left out."""
    candidates = example.meta["candidates"]
    return tuple(candidates.index(answer) for answer in example.meta["answers"] if answer in candidates)


def encode_questions(examples: list[InputExample], tokenizer: Tokenizer, *, seq_length: int) -> Iterator[ClozeQuestion]:
    """Yield the examples as questions of at most ``seq_length`` positions. A passage that is too long loses its end."""
    pvp = RecordPVP("record", BenchmarkProcessor.labels)
    encoder = ClozeEncoder(pvp, tokenizer, EncodingOptions(seq_length=seq_length), multi_token=True)
    for example in examples:
        yield ClozeQuestion(encoder.sample(example, label=0), right_candidates(example))
