"""Text transforms and metrics of sequence to sequence and language modelling (text_metrics.json)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tasks.language_model import readers as language_model
from tasks.metrics import normalize_answer
from tasks.readers import standardize
from tasks.seq2seq import detokenizers
from tasks.seq2seq.metrics import (
    bleu_line,
    drop_repeated,
    metric_names,
    multi_bleu,
    rouge_texts,
    score_predictions,
    word_f1,
)
from tasks.seq2seq.readers import Seq2SeqExample


def fixed(family: str, task: str) -> Callable[[str], str]:
    return lambda text: detokenizers.fix_tokenization(text, family=family, task=task)


TRANSFORMS: dict[str, Callable[[str], str]] = {
    "gigaword_source": detokenizers.gigaword,
    "gigaword_target": detokenizers.gigaword,
    "cnn_dm_source": lambda text: detokenizers.cnn_dm(text, is_target=False),
    "cnn_dm_target": lambda text: detokenizers.cnn_dm(text, is_target=True),
    "blank": detokenizers.blank_text,
    "ptb": language_model.ptb_text,
    "wikitext": language_model.wikitext_text,
    "lambada": str,
    "punctuation_standardization": standardize,
    "fix_tokenization_cnn_dm": fixed("bert", "cnn_dm"),
    "fix_tokenization_gigaword": fixed("gpt2", "gigaword"),
    "fix_tokenization_cnn_dm_org": fixed("gpt2", "cnn_dm_original"),
    "squad_fix_tokenization": detokenizers.clean_answer,
    "blank_fix_tokenization": detokenizers.clean_filled,
    "normalize_answer": normalize_answer,
}
METRICS = {"get_f1", "remove_duplicate", "rouge", "squad", "multi_bleu"}
# The variants of the clean-up before ROUGE by the name they are recorded under: tokenizer and task that choose them.
VARIANTS = {"cnn_dm": ("bert", "cnn_dm"), "gigaword": ("gpt2", "gigaword"), "cnn_dm_org": ("gpt2", "cnn_dm_original")}


@pytest.fixture
def recorded(golden) -> dict[str, Any]:
    return golden.json("generation/text_metrics.json")


def test_everything_recorded_is_tested(recorded):
    assert set(recorded) <= set(TRANSFORMS) | METRICS


@pytest.mark.parametrize("name", TRANSFORMS)
def test_text_transforms(name: str, recorded):
    for text, expected in recorded.get(name, []):
        result = TRANSFORMS[name](text)
        if isinstance(expected, dict):  # where the original raises, ours gives a text
            assert set(expected) == {"error"}
            assert isinstance(result, str)
        else:
            assert result == (text if expected is None else expected), text


def test_word_f1(recorded):
    """The original adds 1e-5 to a denominator; two texts that agree have 0.999995 there."""
    for first, second, expected in recorded.get("get_f1", []):
        assert word_f1(first, second) == pytest.approx(expected, abs=1e-5)


def test_repeated_sentences_are_dropped(recorded):
    for sentences, rate, expected in recorded.get("remove_duplicate", []):
        assert drop_repeated(sentences, rate) == expected


def test_rouge(recorded):
    for case in recorded.get("rouge", []):
        assert set(case) == {"dataset", "predictions", "refs", "scores", "postprocessed"}
        family, task = VARIANTS[case["dataset"]]
        examples = [Seq2SeqExample(str(n), "", "", reference) for n, reference in enumerate(case["refs"])]
        scores = score_predictions(task, case["predictions"], examples, tokenizer_type=family)
        names = metric_names(task)
        assert set(names) == set(case["scores"])
        assert tuple(scores)[: len(names)] == names
        assert {name: scores[name] for name in names} == pytest.approx(case["scores"], abs=1e-6)
        texts = rouge_texts(case["predictions"], case["refs"], family=family, task=task, filtered=True)
        compared = [{"ref": text.reference, "pred": text.prediction} for text in texts]
        assert compared == case["postprocessed"]


def test_squad(recorded):
    for case in recorded.get("squad", []):
        assert set(case) == {"items", "EM", "F1"}
        examples = [Seq2SeqExample("", "", "", "", item) for item in case["items"]]
        predictions = [item["prediction"] for item in case["items"]]
        for task in ("squad", "squad_v1"):
            scores = score_predictions(task, predictions, examples, tokenizer_type="bert")
            assert scores == pytest.approx({"EM": case["EM"], "F1": case["F1"]})


def test_multi_bleu(recorded):
    for case in recorded.get("multi_bleu", []):
        assert set(case) == {"lowercase", "hyps", "refs", "output"}
        assert bleu_line(multi_bleu(case["hyps"], [case["refs"]], lowercase=case["lowercase"])) == case["output"]
