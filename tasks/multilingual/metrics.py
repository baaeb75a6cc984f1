"""Figures of several languages: each language, their mean, the mean without English, everything pooled.

Answers to questions are compared by one of ``NORMALIZATIONS``; which one is said with the figures. The rules of SQuAD
and MLQA are written from their descriptions (Rajpurkar et al. 2016, Lewis et al. 2020), not from their scripts.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean

from tasks.metrics import best_over_answers, normalize_answer

PIVOT = "en"  # what zero-shot transfer starts from
ALL_PAIRS = "g-xlt"  # MLQA's mean over every pair of languages
Measure = Callable[[Sequence[int]], Mapping[str, float]]
_PUNCTUATION = frozenset(string.punctuation)
_ENGLISH_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# Languages that MLQA has no articles for keep all words.
_ARTICLES: Mapping[str, re.Pattern[str]] = {
    "en": _ENGLISH_ARTICLES,
    "es": re.compile(r"\b(?:un|una|unos|unas|el|la|los|las)\b"),
    "vi": re.compile(r"\b(?:của|là|cái|chiếc|những)\b"),
    "de": re.compile(r"\b(?:ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b"),
    "ar": re.compile("ال"),  # anywhere: the official script deletes it inside of words as well
}
_ARABIC_ARTICLE = re.compile(r"\bال")  # at the beginning of a word, where it is the article
_HAN = re.compile("([\u4e00-\u9fa5])")


def by_language(measure: Measure, languages: Sequence[str]) -> dict[str, float]:
    """Return the figures of examples in several languages by name.

    ``measure`` returns the figures of the examples with the given numbers; ``languages`` are those of all examples.
    Of a figure ``F1`` there is the mean over languages (``F1``), without English (``F1-without-en``), of all examples
    taken together (``F1-pooled``), and that of each language (``F1/de``). Pairs of languages (``de-en``) only count in
    ``F1-g-xlt``, the mean over all pairs with those of one language among them. Examples without a language have
    their figures alone.
    """
    if set(languages) == {""}:
        return dict(measure(range(len(languages))))
    numbers: dict[str, list[int]] = {}
    for number, language in enumerate(languages):
        numbers.setdefault(language, []).append(number)
    each = {language: dict(measure(numbers[language])) for language in sorted(numbers)}
    alone = {language: figures for language, figures in each.items() if "-" not in language} or each
    names = list(next(iter(each.values()), {}))
    figures = {name: fmean(one[name] for one in alone.values()) for name in names}
    if len(each) > 1:
        others = [one for language, one in alone.items() if language != PIVOT]
        if others and len(others) < len(alone):
            figures |= {f"{name}-without-{PIVOT}": fmean(one[name] for one in others) for name in names}
        if len(alone) < len(each):
            figures |= {f"{name}-{ALL_PAIRS}": fmean(one[name] for one in each.values()) for name in names}
        pooled = measure([number for language in alone for number in numbers[language]])
        figures |= {f"{name}-pooled": pooled[name] for name in names}
    figures |= {f"{name}/{language}": one[name] for name in names for language, one in each.items()}
    return figures


def normalize_squad(text: str) -> str:
    """Return ``text`` as SQuAD 1.1 compares it: lower case, no ASCII punctuation, no a, an, the."""
    kept = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ENGLISH_ARTICLES.sub(" ", kept).split())


def normalize_mlqa(text: str, language: str, *, fixed: bool = False) -> str:
    """Return ``text`` as MLQA compares answers in ``language`` (that of the context).

    Lower case, no punctuation of any script, no articles of the language; Chinese by character. ``fixed`` deletes the
    Arabic article at the beginning of words only.
    """
    kept = "".join(character for character in text.lower() if not _is_punctuation(character))
    articles = _ARABIC_ARTICLE if fixed and language == "ar" else _ARTICLES.get(language)
    if articles is not None:
        kept = articles.sub(" ", kept)
    if language.startswith("zh"):
        kept = _HAN.sub(r" \1 ", kept)
    return " ".join(kept.split())


def _is_punctuation(character: str) -> bool:
    return character in _PUNCTUATION or unicodedata.category(character).startswith("P")


# How the answer of a language is normalised; ``mglm`` is the original's, which writes everything in ASCII.
NORMALIZATIONS: Mapping[str, Callable[[str, str], str]] = {
    "squad": lambda text, language: normalize_squad(text),
    "mlqa": normalize_mlqa,
    "mlqa-fixed": partial(normalize_mlqa, fixed=True),
    "mglm": lambda text, language: normalize_answer(text),
}


def answer_scores(prediction: str, answers: Sequence[str], *, normalization: str, language: str) -> tuple[float, float]:
    """Return exact match and F1 of words, 0 to 1, each the best over the answers.

    What vanishes when it is normalised has no words: it equals another such text (exact match 1) and its F1 is 0, as
    in the official scripts.
    """
    normalize = NORMALIZATIONS[normalization]

    def f1(said: str, true: str) -> float:
        words, expected = normalize(said, language).split(), normalize(true, language).split()
        shared = (Counter(words) & Counter(expected)).total()
        return 2 * shared / (len(words) + len(expected)) if shared else 0.0

    def same(said: str, true: str) -> float:
        return float(normalize(said, language) == normalize(true, language))

    return best_over_answers(same, prediction, answers), best_over_answers(f1, prediction, answers)
