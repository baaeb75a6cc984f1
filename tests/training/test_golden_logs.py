"""loss_and_logs.json: the loss of a batch, the aggregation of an evaluation, the text of log lines."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from model.modeling_glm import LanguageModelLoss
from mpu.cross_entropy import vocab_parallel_cross_entropy
from mpu.initialize import ParallelTopology
from tests.helpers.golden_index import GoldenFolder
from training.metrics import (
    EvaluationResult,
    EvaluationTotals,
    evaluation_lines,
    evaluation_scalars,
    iteration_line,
    iteration_scalars,
)

SECTIONS = {"log_lines", "forward_step", "evaluate"}
SINGLE = ParallelTopology.single()


@pytest.fixture(scope="module")
def content(golden: GoldenFolder) -> dict[str, Any]:
    content = golden.json("pretraining/loss_and_logs.json")
    assert set(content) <= SECTIONS, f"unknown sections: {set(content) - SECTIONS}"
    return content


def test_loss_of_a_batch(content: dict[str, Any]):
    for case in content["forward_step"]:
        assert set(case) <= {"logits", "target", "loss_mask", "loss", "mode"}
        logits = torch.tensor(case["logits"])  # [b,s,v]
        mask = torch.tensor(case["loss_mask"]).float()  # [b,s]
        losses = vocab_parallel_cross_entropy(logits, torch.tensor(case["target"]), topology=SINGLE)
        mean = LanguageModelLoss((losses * mask).sum(), mask.sum()).mean
        assert mean.item() == pytest.approx(case["loss"], abs=1e-6)


def test_aggregation_of_an_evaluation(content: dict[str, Any]):
    case = content["evaluate"]
    assert set(case) <= {"sequence", "eval_iters", "result_lm_gpt_bert_sentence_multi", "note"}
    assert len(case["sequence"]) == case["eval_iters"]
    totals = EvaluationTotals()
    for mode, loss in case["sequence"]:
        totals.add(mode, torch.tensor(loss))
    result = totals.result(topology=SINGLE)
    losses = [result.objective_losses.get(mode, 0.0) for mode in ("gpt", "bert", "sentence", "multi-task")]
    assert [result.loss, *losses] == pytest.approx(case["result_lm_gpt_bert_sentence_multi"], abs=1e-6)
    assert result.perplexity == pytest.approx(math.exp(min(20, result.loss)))


def iteration_case(case: dict[str, Any]) -> tuple[list[str], list[Any]]:
    assert set(case["flags"]) <= {"fp16", "deepspeed"}
    scale = None
    if case["flags"].get("fp16"):
        scale = case["deepspeed_cur_scale" if case["flags"].get("deepspeed") else "loss_scale"]
    numbers = {"elapsed_ms": case["elapsed_ms"], "learning_rate": case["lr"], "loss": case["loss"]}
    line = iteration_line(case["step"], case["total"], **numbers, loss_scale=scale)
    return [line], iteration_scalars(case["step"], **numbers)


def evaluation_case(case: dict[str, Any]) -> tuple[list[str], list[Any]]:
    losses = {
        "gpt": case["gpt"], "bert": case["bert"], "sentence": case["sentence"], "multi-task": case["multi"],
    }  # fmt: skip
    result = EvaluationResult(case["loss"], losses)
    assert result.perplexity == pytest.approx(case["ppl"])
    scalars = [] if case["step"] is None else evaluation_scalars(result, step=case["step"])
    return evaluation_lines(case["prefix"], result), scalars


def test_log_lines_are_the_same_text(content: dict[str, Any]):
    cases = {"iteration": iteration_case, "evaluation": evaluation_case}
    for case in content["log_lines"]:
        lines, scalars = cases[case["kind"]](case)
        assert lines == case["lines"]
        assert [(name, step) for name, _, step in scalars] == [(name, step) for name, _, step in case["scalars"]]
        assert [value for _, value, _ in scalars] == pytest.approx([value for _, value, _ in case["scalars"]])
