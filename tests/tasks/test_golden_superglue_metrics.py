"""Metrics and prediction files as recorded: metrics.json and prediction_files.json."""

from __future__ import annotations

import pytest

from tasks.metrics import (
    accuracy,
    binary_f1,
    candidate_exact_match,
    candidate_f1,
    exact_match,
    grouped_exact_match,
    grouped_span_score,
    macro_f1,
    normalize_answer,
    token_f1,
)
from tasks.registry import TASKS
from tasks.superglue.readers import InputExample

TOLERANCE = 1e-9


def close(value: float):
    return pytest.approx(value, abs=TOLERANCE)


def test_classification_metrics(golden):
    metrics = golden.json("superglue/metrics.json")
    assert set(metrics) == {
        "classification", "normalize_answer", "pairs_prediction_truth_f1_em", "candidate_qa", "grouped_span_qa",
    }  # fmt: skip
    for case in metrics["classification"]:
        assert set(case) <= {"predictions", "labels", "accuracy", "f1_macro", "f1", "question_idx", "em"}
        arguments = case["predictions"], case["labels"]
        assert accuracy(*arguments) == close(case["accuracy"])
        assert macro_f1(*arguments) == close(case["f1_macro"])
        if "f1" in case:
            assert binary_f1(*arguments) == close(case["f1"])
        if "em" in case:
            assert grouped_exact_match(*arguments, case["question_idx"]) == close(case["em"])


def test_text_metrics(golden):
    metrics = golden.json("superglue/metrics.json")
    for text, expected in metrics["normalize_answer"]:
        assert normalize_answer(text) == expected
    for prediction, truth, f1, em in metrics["pairs_prediction_truth_f1_em"]:
        assert token_f1(prediction, truth) == close(f1), (prediction, truth)
        assert exact_match(prediction, truth) == em, (prediction, truth)
    for case in metrics["candidate_qa"]:
        assert set(case) == {"examples", "predictions", "EM", "F1"}
        examples = [InputExample(str(number), "", meta=meta) for number, meta in enumerate(case["examples"])]
        assert candidate_exact_match(case["predictions"], (), examples) == close(case["EM"])
        assert candidate_f1(case["predictions"], (), examples) == close(case["F1"])
    for case in metrics["grouped_span_qa"]:
        assert set(case) == {"idx", "answers", "predictions", "EM", "F1"}
        arguments = case["predictions"], case["idx"], case["answers"]
        assert grouped_span_score(exact_match, *arguments) == close(case["EM"])
        assert grouped_span_score(token_f1, *arguments) == close(case["F1"])


def test_prediction_files(golden):
    for case in golden.json("superglue/prediction_files.json"):
        if case["task"] == "multichoice":
            assert set(case) == {"task", "example_idx", "predictions", "file"}
            task = TASKS["multichoice"]
            examples = [InputExample(index, "", idx=index) for index in case["example_idx"]]
        else:
            assert set(case) == {"task", "dir", "split", "reversed_examples", "predictions", "file"}
            task = TASKS[case["task"]]
            examples = task.examples(golden.path("superglue/raw") / case["dir"], case["split"])
            if case["reversed_examples"]:
                examples = examples[::-1]
        lines = task.prediction_lines(examples, case["predictions"], compatible=True)
        assert "".join(line + "\n" for line in lines) == case["file"], case["task"]
