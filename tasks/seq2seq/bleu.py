"""Corpus BLEU as ``multi-bleu.perl`` computes it: words between blanks, no smoothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

LONGEST_NGRAM = 4


@dataclass(frozen=True)
class Bleu:
    """BLEU of a corpus.

    Attributes:
        score: 0 to 100; 0 when no n-gram of some length matches.
        precisions: of n-grams of 1 to 4 words, 0 to 100.
        brevity_penalty: 0 to 1.
        hypothesis_length, reference_length: words; of several references the closest in length counts.
    """

    score: float
    precisions: tuple[float, ...]
    brevity_penalty: float
    hypothesis_length: int
    reference_length: int

    def __str__(self) -> str:
        """Return the line that ``multi-bleu.perl`` prints."""
        ratio = self.hypothesis_length / self.reference_length if self.reference_length else 0.0
        precisions = "/".join(f"{precision:.1f}" for precision in self.precisions)
        return (
            f"BLEU = {self.score:.2f}, {precisions} (BP={self.brevity_penalty:.3f}, ratio={ratio:.3f}, "
            f"hyp_len={self.hypothesis_length}, ref_len={self.reference_length})"
        )


def multi_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, lowercase: bool = False) -> Bleu:
    """Return the BLEU of ``hypotheses``; ``references`` holds one list of as many texts per set of references.

    Raises ValueError when the numbers of texts differ.
    """
    for texts in references:
        if len(texts) != len(hypotheses):
            raise ValueError(f"{len(hypotheses)} hypotheses and {len(texts)} references: BLEU needs one for each")
    matches, totals = [0] * LONGEST_NGRAM, [0] * LONGEST_NGRAM
    hypothesis_length = reference_length = 0
    for hypothesis, *truths in zip(hypotheses, *references, strict=True):
        words, *true_words = ((text.lower() if lowercase else text).split() for text in (hypothesis, *truths))
        hypothesis_length += len(words)
        reference_length += min((len(truth) for truth in true_words), key=lambda n: (abs(n - len(words)), n))
        for size in range(1, LONGEST_NGRAM + 1):
            allowed: Counter[tuple[str, ...]] = Counter()
            for truth in true_words:
                allowed |= _ngrams(truth, size)
            found = _ngrams(words, size)
            matches[size - 1] += (found & allowed).total()
            totals[size - 1] += found.total()
    precisions = tuple(match / total if total else 0.0 for match, total in zip(matches, totals))
    if hypothesis_length == 0:
        penalty = 0.0
    else:
        penalty = min(1.0, math.exp(1 - reference_length / hypothesis_length))
    score = penalty * math.exp(sum(map(math.log, precisions)) / LONGEST_NGRAM) if all(precisions) else 0.0
    percents = tuple(100 * precision for precision in precisions)
    return Bleu(100 * score, percents, penalty, hypothesis_length, reference_length)


def _ngrams(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def library_scores(hypotheses: Sequence[str], references: Sequence[str], *, chinese: bool = False) -> dict[str, float]:
    """Return BLEU and chrF of the sacrebleu package, 0 to 100; ``chinese`` cuts Chinese into characters.

    Raises ValueError when the package is missing.
    """
    sacrebleu = _library()
    bleu = sacrebleu.corpus_bleu(hypotheses, [references], tokenize="zh" if chinese else "13a", force=True)
    chrf = sacrebleu.corpus_chrf(hypotheses, [references])
    return {"sacrebleu": float(bleu.score), "chrf": float(chrf.score)}


def sentence_bleu(hypothesis: str, reference: str) -> float:
    """Return sacrebleu's smoothed BLEU of one text, 0 to 100; a text of few words is judged by its short n-grams."""
    return float(_library().sentence_bleu(hypothesis, [reference], use_effective_order=True).score)


def _library() -> ModuleType:
    try:
        import sacrebleu
    except ImportError as error:
        raise ValueError("BLEU and chrF need sacrebleu: pip install sacrebleu") from error
    return sacrebleu
