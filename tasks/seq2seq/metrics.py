"""How good written texts are. ``score_predictions`` is the one way.

The original's metrics come first, under its names and on its scales; the figures the field uses stand beside them.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

from tasks.metrics import exact_match, grouped_span_score, token_f1
from tasks.seq2seq.bleu import library_scores, multi_bleu, sentence_bleu
from tasks.seq2seq.detokenizers import clean_filled
from tasks.seq2seq.examples import BLANK_TASKS, SEQ2SEQ_TASKS, SQUAD_TASKS, Seq2SeqExample
from tasks.seq2seq.rouge import ROUGE_TYPES, compatible_rouge, rouge, rouge_texts


def metric_names(task: str) -> tuple[str, ...]:
    """Return the names of the original's metrics for ``task``; the first selects the best checkpoint. May be empty."""
    assert task in SEQ2SEQ_TASKS, task
    if task in SQUAD_TASKS:
        return ("EM", "F1")
    return () if task in BLANK_TASKS else tuple(ROUGE_TYPES)


def score_predictions(
    task: str,
    predictions: Sequence[str],
    examples: Sequence[Seq2SeqExample],
    *,
    tokenizer_type: str,
    characters: bool = False,
    filled: Sequence[Sequence[str]] | None = None,
) -> dict[str, float]:
    """Return the metrics of predictions by name, those of ``metric_names`` first.

    Args:
        task: one of ``SEQ2SEQ_TASKS``.
        predictions, examples: in the same order.
        tokenizer_type: family of the tokenizer (``Tokenizer.family``): bert, gpt2, roberta, chinese.
        characters: ROUGE of characters as well, which Chinese needs (``rouge-1-characters`` ...).
        filled: for blank and extraction, the text of each blank of each example.

    Scales: ROUGE 0 to 1, everything else 0 to 100. Names: ``rouge-1-plain`` ... have the conventional order of
    arguments and no sentence left out; ``bleu`` is multi-bleu's figure, ``sacrebleu`` and ``chrf`` are that package's.
    """
    assert len(predictions) == len(examples), (len(predictions), len(examples))
    if task in SQUAD_TASKS:
        return squad_scores(predictions, examples)
    if task in BLANK_TASKS:
        return blank_scores(task, predictions, examples, filled=filled)
    references = [example.reference for example in examples]
    variant = {"family": tokenizer_type, "task": task}
    compared = rouge_texts(predictions, references, **variant, filtered=True)
    plain = rouge_texts(predictions, references, **variant, filtered=False)
    scores = compatible_rouge(compared)
    scores |= {f"{name}-plain": score.f_measure for name, score in rouge(plain).items()}
    if characters:
        scores |= {f"{name}-characters": score.f_measure for name, score in rouge(plain, characters=True).items()}
    said, true = ([" ".join(text.split()) for text in texts] for texts in (predictions, references))
    scores["bleu"] = multi_bleu(said, [true]).score
    return scores | library_scores(said, true, chinese=tokenizer_type == "chinese")


def squad_scores(predictions: Sequence[str], examples: Sequence[Seq2SeqExample]) -> dict[str, float]:
    """Return exact match and F1 in percent of questions; a question has one prediction per window."""
    questions = [example.meta["idx"] for example in examples]
    answers = [example.meta["answers"] for example in examples]
    return {
        "EM": grouped_span_score(exact_match, predictions, questions, answers),
        "F1": grouped_span_score(token_f1, predictions, questions, answers),
    }


def blank_scores(
    task: str,
    predictions: Sequence[str],
    examples: Sequence[Seq2SeqExample],
    *,
    filled: Sequence[Sequence[str]] | None,
) -> dict[str, float]:
    """Return how well blanks are filled, in percent; the original has no metric for it.

    ``bleu`` compares whole texts with blanks filled (blank only). With ``filled``: the share of blanks with exactly the
    right words (``blank-exact-match``), and the means over blanks of word F1 and BLEU (``blank-f1``, ``blank-bleu``).
    Case, accents and the blanks around punctuation do not matter for a blank; one that was not filled is wrong.
    """
    scores: dict[str, float] = {}
    if task == "blank":
        said, true = ([_plain(text) for text in texts] for texts in (predictions, [e.reference for e in examples]))
        scores["bleu"] = multi_bleu(said, [true]).score
    if filled is None:
        return scores
    pairs = [
        (_plain(texts[number]) if number < len(texts) else "", _plain(answer))
        for texts, example in zip(filled, examples, strict=True)
        for number, answer in enumerate(example.meta.get("blanks") or ())
    ]
    if not pairs:
        return scores
    count = len(pairs)
    right = sum("".join(a.split()) == "".join(b.split()) for a, b in pairs)
    scores["blank-exact-match"] = 100 * right / count
    scores["blank-f1"] = 100 * sum(word_f1(a, b) for a, b in pairs) / count
    scores["blank-bleu"] = sum(sentence_bleu(a, b) for a, b in pairs) / count
    return scores


def _plain(text: str) -> str:
    """Return a text in lower case without accents, as WordPiece's blanks are cleaned up."""
    letters = (c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    return clean_filled(" ".join("".join(letters).split()))


def word_f1(first: str, second: str) -> float:
    """Return the F1 of the words of two texts, case ignored, 0 to 1; two texts without words agree."""
    said, true = first.lower().split(), second.lower().split()
    shared = (Counter(said) & Counter(true)).total()
    if not (said or true):
        return 1.0
    return 2 * shared / (len(said) + len(true))
