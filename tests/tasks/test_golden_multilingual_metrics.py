"""Figures as the multilingual release computes them: metrics.json, made with mglm_tiny.model."""

from __future__ import annotations

import json

import pytest

from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer
from tasks.metrics import macro_f1
from tasks.multilingual.metrics import NORMALIZATIONS, answer_scores
from tasks.multilingual.run import question_scores
from tasks.seq2seq.metrics import rouge_figures
from tasks.seq2seq.outputs import output_texts
from tasks.seq2seq.readers import Seq2SeqExample


@pytest.fixture
def recorded(golden):
    return golden.json("multilingual/metrics.json")


@pytest.fixture
def tokenizer(golden) -> Tokenizer:
    return build_tokenizer(
        "ChineseSPTokenizer", model_type=str(golden.path("multilingual/mglm_tiny.model")), task_mask=True
    )


def asked(items) -> list[Seq2SeqExample]:
    return [
        Seq2SeqExample(f"test-{n}", "", "", "", {"idx": item["id"], "answers": tuple(item["answers"])})
        for n, item in enumerate(items)
    ]


def test_answers(recorded):
    for case in recorded["normalize"]:
        assert NORMALIZATIONS["mglm"](case["text"], "") == case["normalized"]
    for case in recorded["pairs"]:
        scores = answer_scores(case["prediction"], [case["ground_truth"]], normalization="mglm", language="")
        assert scores == pytest.approx((float(case["em"]), case["f1"]), abs=1e-9)


def test_windows_of_a_question_count_once(recorded):
    case = recorded["squad"]
    items = case["items"]
    scores = question_scores([item["prediction"] for item in items], asked(items), normalization="mglm", merged=True)
    assert scores["EM"] == pytest.approx(case["EM"], abs=1e-9)
    assert scores["F1"] == pytest.approx(case["F1"], abs=1e-9)


def test_files(recorded):
    items = recorded["squad"]["items"]
    texts = output_texts("squad_v1", [item["prediction"] for item in items], asked(items), split="test")
    assert texts["test.jsonl"] == recorded["qa_output_file"]["suffix_none"]
    ours, theirs = (
        [json.loads(line) for line in text.splitlines()]
        for text in (texts["test.jsonl.refs"], recorded["qa_output_file"]["suffix_.refs"])
    )
    assert [(line["id"], line["pred"]) for line in ours] == [(line["id"], line["pred"]) for line in theirs]
    case = recorded["sum_output_file"]
    examples = [Seq2SeqExample("g", "", "", reference) for reference in case["refs"]]
    texts = output_texts("ncls", case["predictions"], examples, split="test")
    assert (texts["test.jsonl.hyps"], texts["test.jsonl.refs"]) == (case[".hyps"], case[".refs"])


def test_rouge_of_ids(recorded, tokenizer):
    cases = recorded["rouge"]["each"]
    options = {"unit": "mglm", "tokenizer": tokenizer, "task": "ncls"}
    for case in cases:
        figures = rouge_figures([case["prediction"]], [case["reference"]], **options)
        assert figures == pytest.approx({name: case[name] for name in figures}, abs=1e-9)
    texts = ([case[key] for case in cases] for key in ("prediction", "reference"))
    assert rouge_figures(*texts, **options) == pytest.approx(recorded["rouge"]["corpus"], abs=1e-9)
    for said, true in (("", "门"), ("门", ""), ("", "")):
        assert set(rouge_figures([said], [true], **options).values()) == {0.0}


def test_f1_of_classes(recorded):
    for case in recorded["f1_macro"]:
        assert macro_f1(case["predictions"], case["labels"]) == pytest.approx(case["f1_macro"], abs=1e-9)
