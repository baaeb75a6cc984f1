"""The files of an evaluation, and answers found again in their context (output_files.json)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_utils.tokenizers.tokenizer import build_tokenizer
from tasks.seq2seq.metrics import metric_names, score_predictions
from tasks.seq2seq.outputs import recover_answer, write_outputs
from tasks.seq2seq.readers import ContextOffsets, Seq2SeqExample
from tests.helpers.golden_tokenizers import TOKENIZERS


@pytest.fixture
def recorded(golden) -> dict[str, Any]:
    content = golden.json("generation/output_files.json")
    assert set(content) <= {"files", "squad_decode"}
    return content


def example_of(recorded: dict[str, Any]) -> Seq2SeqExample:
    assert set(recorded) == {"guid", "text_a", "meta", "idx"}
    assert set(recorded["meta"]) == {"ref", "answer", "answers"}
    meta = {**recorded["meta"], "idx": recorded["idx"]}
    return Seq2SeqExample(recorded["guid"], recorded["text_a"], "", meta["ref"], meta)


def test_files(recorded, tmp_path: Path):
    for number, case in enumerate(recorded["files"]):
        assert set(case) == {"task", "tokenizer_type", "predictions", "examples", "files", "metrics"}
        examples = [example_of(example) for example in case["examples"]]
        split = examples[0].guid.split("-")[0]
        folder = tmp_path / str(number)
        paths = write_outputs(case["task"], case["predictions"], examples, folder=folder, split=split)
        assert {path.name: path.read_bytes().decode("utf-8") for path in folder.iterdir()} == case["files"]
        assert {path.name for path in paths} == set(case["files"])
        assert list(metric_names(case["task"])) == case["metrics"]
        scores = score_predictions(case["task"], case["predictions"], examples, tokenizer_type=case["tokenizer_type"])
        assert list(scores)[: len(case["metrics"])] == case["metrics"]


def test_answers_are_found_in_their_context(recorded, vocab_dir):
    tokenizer = build_tokenizer(**TOKENIZERS["bert"], vocab_dir=vocab_dir)
    case = recorded["squad_decode"]
    assert set(case) == {"context", "context_tokens", "cases"}
    ids = tokenizer.encode(case["context"])
    assert ids == case["context_tokens"]
    offsets = ContextOffsets(tokenizer).of(case["context"], ids)
    meta = {"context": case["context"], "context_ids": ids, "context_offsets": offsets}
    for prediction in case["cases"]:
        assert set(prediction) == {"prediction_ids", "text"}
        assert recover_answer(prediction["prediction_ids"], meta, tokenizer=tokenizer) == prediction["text"]
