"""Held-out blanks of three kinds, and how well they are filled.

A blank is a piece of a passage of one or more sentences. Its length is unknown to the models: all kinds may get up to
``LONGEST`` tokens, and nothing but the context is given.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_utils.corpora.named import read_documents
from data_utils.tokenizers.tokenizer import Tokenizer

KINDS = {"1-3 words": (1, 3), "4-10 words": (4, 10), "sentence": (5, 30)}  # words of a blank, inclusive
LONGEST = 40  # tokens of an answer
RESAMPLES = 1000
SENTENCE = re.compile(r"[^.!?]+[.!?]+[”’\"')\]]*")
TRAILING = ".,;:!?”’\"')]—-"


@dataclass(frozen=True)
class Blank:
    """What stands before and after a blank, and what was in it, as ids of the shared tokenizer."""

    kind: str
    before: tuple[int, ...]
    truth: tuple[int, ...]
    after: tuple[int, ...]


def word_spans(sentence: str) -> list[tuple[int, int]]:
    """Return start and end of every word: the blank in front of it counts, punctuation behind it does not."""
    return [
        (match.start(), match.start() + len(match[0].rstrip(TRAILING)))
        for match in re.finditer(r"\s\S+", sentence)
        if match[0][1:2].isalnum()
    ]


def make_blanks(
    source: str, tokenizer: Tokenizer, *, count: int, room: int, seed: int = 1, text_field: str = "text"
) -> list[Blank]:
    """Draw ``count`` blanks of every kind from the documents of ``source``.

    Sentences are added around the one with the blank, turn by turn, as long as the context has at most ``room`` tokens.
    Raises ValueError when the text has too few places.
    """
    documents = [SENTENCE.findall(document.text) for document in read_documents(source, text_field=text_field)]
    places = [(d, s) for d, sentences in enumerate(documents) for s in range(1, len(sentences) - 1)]
    random.Random(seed).shuffle(places)
    blanks: list[Blank] = []
    rest = iter(places)
    for kind, (least, most) in KINDS.items():
        made = 0
        for number, (document, index) in enumerate(rest):
            blank = _blank(documents[document], index, kind, tokenizer, room=room, generator=random.Random(number))
            if blank is not None and least <= len(tokenizer.decode(blank.truth).split()) <= most:
                blanks.append(blank)
                made += 1
            if made == count:
                break
        if made < count:
            raise ValueError(f"{source}: {made} places for blanks of {kind}, {count} are needed; give more text")
    return blanks


def _blank(
    sentences: Sequence[str], index: int, kind: str, tokenizer: Tokenizer, *, room: int, generator: random.Random
) -> Blank | None:
    """Blank out a sentence, or words of it; None where it has too few words or is too long."""
    sentence = sentences[index]
    start, end = 0, len(sentence)
    if kind != "sentence":
        words = word_spans(sentence)
        length = generator.randint(*KINDS[kind])
        if len(words) < length:
            return None
        first = generator.randrange(len(words) - length + 1)
        start, end = words[first][0], words[first + length - 1][1]
    before, truth, after = (tokenizer.encode(text) for text in (sentence[:start], sentence[start:end], sentence[end:]))
    low, high, grown = index, index + 1, True
    while grown:
        grown = False
        if low > 0 and len(more := tokenizer.encode(sentences[low - 1])) + len(before) + len(after) <= room:
            low, before, grown = low - 1, more + before, True
        if high < len(sentences) and len(more := tokenizer.encode(sentences[high])) + len(before) + len(after) <= room:
            high, after, grown = high + 1, after + more, True
    if not (before and after and 0 < len(truth) <= LONGEST and len(before) + len(after) <= room):
        return None
    return Blank(kind, tuple(before), tuple(truth), tuple(after))


@dataclass(frozen=True)
class Scores:
    """Figures of answers to some blanks: a row per seed of decoding, a column per blank, [r,n].

    ``counts`` [r,n,6] is what BLEU adds up: matches and number of words, of pairs of words, and both lengths.
    """

    exact: np.ndarray
    right_length: np.ndarray
    rouge: np.ndarray
    counts: np.ndarray

    @cached_property
    def _draws(self) -> np.ndarray:
        """Return [resamples,n]: numbers of blanks drawn with replacement."""
        number = self.exact.shape[1]
        return np.random.default_rng(0).integers(0, number, (RESAMPLES, number))

    def summary(self) -> dict[str, list[float]]:
        """Return every figure in percent with its 95 % interval over blanks, the mean of the seeds in both."""
        figures: dict[str, list[float]] = {}
        for name in ("exact", "right_length", "rouge"):
            values = getattr(self, name).mean(axis=0)
            figures[name] = _interval(values.mean(), values[self._draws].mean(axis=1))
        drawn = self.counts[:, self._draws].sum(axis=2)  # [r,resamples,6]
        figures["bleu2"] = _interval(_bleu(self.counts.sum(axis=1)).mean(), _bleu(drawn).mean(axis=0))
        return figures


def _interval(value: float, resampled: np.ndarray) -> list[float]:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return [round(100 * float(each), 2) for each in (value, low, high)]


def _bleu(counts: np.ndarray) -> np.ndarray:
    """Return corpus BLEU of words and pairs of words from sums [...,6]; without a match it is 0."""
    matched, words, matched_pairs, pairs, length, true_length = np.moveaxis(counts.astype(float), -1, 0)
    precision = np.sqrt(matched / np.maximum(words, 1) * (matched_pairs / np.maximum(pairs, 1)))
    return precision * np.exp(np.minimum(0.0, 1.0 - true_length / np.maximum(length, 1)))


def score(truths: Sequence[str], answers: Sequence[Sequence[str]]) -> Scores:
    """Compare answers, a list per seed, with what was there. Blanks at both ends do not count, upper case does.

    Words are counted as BLEU and lengths count them: separated by blanks. ROUGE-L is that of rouge-score.
    """
    try:
        from nltk.translate.bleu_score import modified_precision
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise ValueError("nltk and rouge-score are needed to score answers: pip install nltk rouge-score") from None

    scorer = RougeScorer(["rougeL"])

    def counts(truth: str, answer: str) -> list[int]:
        expected, got = truth.split(), answer.split()
        parts = [modified_precision([expected], got, n=n) for n in (1, 2)]
        sizes = [max(0, len(got) - n) for n in (0, 1)]
        matches = [part.numerator if size else 0 for part, size in zip(parts, sizes)]
        return [matches[0], sizes[0], matches[1], sizes[1], len(got), len(expected)]

    pairs = [[(truth.strip(), answer.strip()) for truth, answer in zip(truths, row, strict=True)] for row in answers]
    return Scores(
        exact=np.array([[truth == answer for truth, answer in row] for row in pairs], dtype=float),
        right_length=np.array([[len(t.split()) == len(a.split()) for t, a in row] for row in pairs], dtype=float),
        rouge=np.array([[scorer.score(t, a)["rougeL"].fmeasure for t, a in row] for row in pairs]),
        counts=np.array([[counts(truth, answer) for truth, answer in row] for row in pairs]),
    )
