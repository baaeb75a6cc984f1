"""ROUGE: the original's figures, and the conventional ones beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.seq2seq.detokenizers import fix_tokenization

SENTENCE_BREAK = "[SEP]"
FEWEST_WORDS = 5  # shorter sentences of a prediction are dropped
MOST_SEEN = 0.7  # share of a sentence's words that may have been seen before
ROUGE_TYPES = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeLsum"}


@dataclass(frozen=True)
class Rouge:
    """Means over the examples, 0 to 1."""

    precision: float
    recall: float
    f_measure: float


@dataclass(frozen=True)
class RougeTexts:
    """A prediction and its reference as ROUGE compares them: one sentence a line."""

    prediction: str
    reference: str


def drop_repeated(sentences: Sequence[str], most_seen: float) -> list[str]:
    """Return the sentences of whose distinct words at most a share of ``most_seen`` occurs in any earlier sentence."""
    kept, seen = [], set()
    for sentence in sentences:
        words = set(sentence.lower().split())
        if not words or len(words & seen) / len(words) <= most_seen:
            kept.append(sentence)
        seen |= words
    return kept


def rouge_texts(
    predictions: Sequence[str], references: Sequence[str], *, family: str, task: str, filtered: bool
) -> list[RougeTexts]:
    """Return the texts that are compared.

    Args:
        predictions, references: texts, their sentences separated by ``[SEP]``.
        family, task: of the tokenizer and the data; see ``fix_tokenization``.
        filtered: as the original, without the predictions' sentences of at most four words and their repetitions.
    """
    texts = []
    for prediction, reference in zip(predictions, references, strict=True):
        said, true = (
            [fix_tokenization(part, family=family, task=task) for part in text.split(SENTENCE_BREAK)]
            for text in (prediction, reference)
        )
        if filtered:
            said = drop_repeated([part for part in said if len(part.split()) >= FEWEST_WORDS], MOST_SEEN)
        texts.append(RougeTexts("\n".join(said), "\n".join(true)))
    return texts


def compatible_rouge(texts: Sequence[RougeTexts]) -> dict[str, float]:
    """Return the original's F-measures: it hands the prediction over as the truth, which changes ``rouge-l``."""
    swapped = [RougeTexts(text.reference, text.prediction) for text in texts]
    return {name: score.f_measure for name, score in rouge(swapped).items()}


def rouge(texts: Sequence[RougeTexts], *, characters: bool = False) -> dict[str, Rouge]:
    """Return the mean ROUGE scores by name.

    ``characters`` compares characters beside Latin words and numbers; without it text in scripts such as Chinese
    scores 0. Raises ValueError when rouge-score is missing.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ValueError("ROUGE needs rouge-score: pip install rouge-score") from error
    tokenizer = CharacterTokenizer() if characters else None
    scorer = RougeScorer(list(ROUGE_TYPES.values()), use_stemmer=True, tokenizer=tokenizer)
    scores: list[dict[str, Any]] = [scorer.score(text.reference, text.prediction) for text in texts]
    count = max(len(scores), 1)
    return {
        name: Rouge(
            sum(score[kind].precision for score in scores) / count,
            sum(score[kind].recall for score in scores) / count,
            sum(score[kind].fmeasure for score in scores) / count,
        )
        for name, kind in ROUGE_TYPES.items()
    }


class CharacterTokenizer:
    """Cuts a text into Latin words, numbers and the single characters of everything else, without punctuation."""

    _UNITS = re.compile(r"[a-z0-9]+|[^\W_]")

    def tokenize(self, text: str) -> list[str]:
        """Return the units of ``text`` in lower case."""
        return self._UNITS.findall(text.lower())
