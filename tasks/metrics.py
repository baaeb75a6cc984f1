"""How good predictions are.

Scales are those of the original's files: percent for accuracies, EM and F1; 0 to 1 for F1 of classes and exact match.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from files.reading import described
from tasks.superglue.readers import InputExample

NO_ANSWER = "N/A"
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

# Called with the predicted classes (or choices), the labels' classes and the examples.
Metric = Callable[[Sequence[int], Sequence[int], Sequence[InputExample]], float]


def accuracy(predictions: Sequence[int], labels: Sequence[int], examples: Sequence[InputExample] = ()) -> float:
    """Return the share of right predictions in percent; 0 without any."""
    right = sum(prediction == label for prediction, label in zip(predictions, labels, strict=True))
    return 100.0 * right / max(len(predictions), 1)


def _sklearn() -> Any:
    try:
        from sklearn import metrics
    except ImportError as error:
        raise ValueError("F1 and Matthews' correlation need scikit-learn: pip install scikit-learn") from error
    return metrics


def binary_f1(predictions: Sequence[int], labels: Sequence[int], examples: Sequence[InputExample] = ()) -> float:
    """Return the F1 of class 1 over all examples, 0 to 1."""
    return float(_sklearn().f1_score(labels, predictions, zero_division=0))


def macro_f1(predictions: Sequence[int], labels: Sequence[int], examples: Sequence[InputExample] = ()) -> float:
    """Return the mean F1 of the classes that occur in labels or predictions, 0 to 1."""
    return float(_sklearn().f1_score(labels, predictions, average="macro", zero_division=0))


def matthews(predictions: Sequence[int], labels: Sequence[int], examples: Sequence[InputExample] = ()) -> float:
    """Return Matthews' correlation coefficient, -1 to 1."""
    return float(_sklearn().matthews_corrcoef(labels, predictions))


def grouped_exact_match(predictions: Sequence[int], labels: Sequence[int], groups: Sequence[Any]) -> float:
    """Return the share of groups whose predictions are all right, 0 to 1."""
    right: dict[Any, bool] = {}
    for prediction, label, group in zip(predictions, labels, groups, strict=True):
        right[group] = right.get(group, True) and prediction == label
    return sum(right.values()) / max(len(right), 1)


def question_exact_match(predictions: Sequence[int], labels: Sequence[int], examples: Sequence[InputExample]) -> float:
    """Return MultiRC's share of questions with every answer right; questions are told apart by their place."""
    return grouped_exact_match(predictions, labels, [example.group for example in examples])


def gender_parity(predictions: Sequence[int], labels: Sequence[int], examples: Sequence[InputExample]) -> float:
    """Return the percentage of neighbouring pairs (which differ in a pronoun's gender) with equal predictions."""
    pairs = list(zip(predictions[::2], predictions[1::2]))
    return 100.0 * sum(first == second for first, second in pairs) / max(len(pairs), 1)


def normalize_answer(text: str) -> str:
    """Return ``text`` in lower case and ASCII, without punctuation and articles, its blanks squeezed.

    Raises ValueError when a text is not ASCII and the package that transliterates it is missing.
    """
    text = _ascii(text.lower()).translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def _ascii(text: str) -> str:
    if text.isascii():
        return text
    try:
        from unidecode import unidecode
    except ImportError as error:
        raise ValueError(f"comparing {described(text)} needs transliteration: pip install unidecode") from error
    return unidecode(text)


def exact_match(prediction: str, truth: str) -> bool:
    """Return whether two answers are the same once normalised."""
    return normalize_answer(prediction) == normalize_answer(truth)


def token_f1(prediction: str, truth: str) -> float:
    """Return the F1 of the words that two normalised answers share; 0 when they share none."""
    predicted, true = normalize_answer(prediction).split(), normalize_answer(truth).split()
    shared = sum((Counter(predicted) & Counter(true)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(true)
    return 2 * precision * recall / (precision + recall)


def best_over_answers(score: Callable[[str, str], float], prediction: str, answers: Iterable[str]) -> float:
    """Return the best score against any of the answers, 0 without answers."""
    return max((float(score(prediction, answer)) for answer in answers), default=0.0)


def candidate_exact_match(predictions: Sequence[int], labels: Sequence[int], examples: Sequence[InputExample]) -> float:
    """Return ReCoRD's exact match of the chosen candidates, in percent."""
    return _candidate_score(exact_match, predictions, examples)


def candidate_f1(predictions: Sequence[int], labels: Sequence[int], examples: Sequence[InputExample]) -> float:
    """Return ReCoRD's F1 of the chosen candidates, in percent."""
    return _candidate_score(token_f1, predictions, examples)


def _candidate_score(
    score: Callable[[str, str], float], predictions: Sequence[int], examples: Sequence[InputExample]
) -> float:
    scores = [
        best_over_answers(score, example.meta["candidates"][prediction], example.meta["answers"])
        for prediction, example in zip(predictions, examples, strict=True)
    ]
    return 100.0 * sum(scores) / max(len(scores), 1)


def grouped_span_score(
    score: Callable[[str, str], float],
    predictions: Sequence[str],
    groups: Sequence[Any],
    answers: Sequence[Sequence[str]],
) -> float:
    """Return the mean score of questions in percent, each asked several times (spans of a long text).

    A question's prediction is the first that is not ``n/a``. Where ``N/A`` is the only truth it has to be predicted.
    """
    predicted: dict[Any, str] = {}
    truths: dict[Any, Sequence[str]] = {}
    for prediction, group, answer in zip(predictions, groups, answers, strict=True):
        truths[group] = answer
        if group not in predicted and prediction.lower().replace(" ", "") != "n/a":
            predicted[group] = prediction
    total = 0.0
    for group, truth in truths.items():
        prediction = predicted.get(group, NO_ANSWER)
        if list(truth) == [NO_ANSWER]:
            total += prediction == NO_ANSWER
        else:
            total += best_over_answers(score, prediction, truth)
    return 100.0 * total / max(len(truths), 1)


def entity_f1(predictions: Sequence[int], labels: Sequence[int], examples: Sequence[InputExample]) -> float:
    """Return the F1 of whole entities, 0 to 1; 0 when none is found.

    Entities of the file begin at B-, or where the kind changes. Predictions are kinds without beginnings: neighbouring
    tokens of one kind are one entity.
    """
    true: set[tuple[str, int, int, int]] = set()
    found: set[tuple[str, int, int, int]] = set()
    outside = 3
    sentences: dict[str, list[int]] = {}
    for number, example in enumerate(examples):
        sentences.setdefault(example.meta["sentence"], []).append(number)
    for name, numbers in sentences.items():
        begins = [examples[number].meta["tag"].startswith("B-") for number in numbers]
        for kinds, starts, entities in (
            ([labels[number] for number in numbers], begins, true),
            ([predictions[number] for number in numbers], [False] * len(numbers), found),
        ):
            start = 0
            for end in range(1, len(kinds) + 1):
                if end < len(kinds) and kinds[end] == kinds[start] and not starts[end]:
                    continue
                if kinds[start] != outside:
                    entities.add((name, start, end, kinds[start]))
                start = end
    shared = len(true & found)
    return 2 * shared / (len(true) + len(found)) if shared else 0.0


METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "acc": accuracy,
    "f1": binary_f1,
    "f1a": binary_f1,
    "f1-macro": macro_f1,
    "matthews": matthews,
    "em": question_exact_match,
    "parity": gender_parity,
    "EM": candidate_exact_match,
    "F1": candidate_f1,
    "entity-f1": entity_f1,
}


def evaluate(
    names: Sequence[str], predictions: Sequence[int], labels: Sequence[int], examples: Sequence[InputExample]
) -> dict[str, float]:
    """Return the metrics called ``names`` of predicted classes (or choices), in the order of ``examples``."""
    assert len(predictions) == len(labels) == len(examples), (len(predictions), len(labels), len(examples))
    return {name: METRICS[name](predictions, labels, examples) for name in names}
