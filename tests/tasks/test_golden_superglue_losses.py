"""Heads, losses, evaluation and prompt start as recorded (heads.pt, losses_eval.json)."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from data_utils.rows import Row
from model.checkpoints.format import canonical_name
from model.config import GLMConfig
from model.heads import MultiTokenCloze, MultiTokenClozeFast, SequenceClassification, SingleTokenCloze
from model.modeling_glm import GLMModel
from model.prompt import PromptEncoder
from tasks.registry import find_task
from tasks.superglue.objective import decoupled_loss, mask_scores, score_loss, score_rows
from tasks.superglue.run import freeze_transformer
from tasks.superglue.samples import TaskSample
from tests.helpers.engines import make_engine
from tests.helpers.golden_index import GoldenFolder

TOLERANCE = 1e-5
LOSSES = ("cross_entropy", "hinge", "generative", "mix")
SECTIONS = {
    "losses", "segment_losses", "evaluation", "prompt_init", "prompt_init_word_embeddings",
    "freeze_trainable_parameters_by_tune_prefix_layers",
}  # fmt: skip


@pytest.fixture(scope="module")
def recorded(golden: GoldenFolder) -> dict[str, Any]:
    content = golden.json("superglue/losses_eval.json")
    assert set(content) <= SECTIONS, set(content) - SECTIONS
    return content


def test_losses_and_their_gradients(recorded: dict[str, Any]) -> None:
    handled = {"logits", "labels", "loss_mask", *LOSSES, "adapet"}
    handled |= {f"{name}_grad" for name in (*LOSSES, "adapet")}
    handled |= {"cross_entropy_single", "cross_entropy_single_grad"}  # of the single-token head: the same
    for case in recorded["losses"]:
        assert set(case) <= handled, set(case) - handled
        labels = torch.tensor(case["labels"])
        choices = None if case["loss_mask"] is None else torch.tensor(case["loss_mask"])
        for key in sorted({*LOSSES, "adapet", "cross_entropy_single"} & set(case)):
            name = key.removesuffix("_single")
            logits = torch.tensor(case["logits"], requires_grad=True)
            scores = mask_scores(logits, choices, None)
            if name == "adapet":
                loss = decoupled_loss(scores, labels, choices) / len(labels)
            else:
                loss = score_loss(scores, labels, function=name) / len(labels)
            assert loss.item() == pytest.approx(case[key], rel=TOLERANCE, abs=TOLERANCE), key
            if f"{key}_grad" not in case:
                continue
            loss.backward()
            expected = torch.tensor(case[f"{key}_grad"])
            torch.testing.assert_close(logits.grad, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_segments_are_added_up(recorded: dict[str, Any]) -> None:
    for case in recorded["segment_losses"]:
        assert set(case) <= {"logits", "labels", "segment_id", "loss_mask", *LOSSES}, set(case)
        segments, logits = torch.tensor(case["segment_id"]), torch.tensor(case["logits"])
        real = torch.ones_like(segments) if case.get("loss_mask") is None else torch.tensor(case["loss_mask"])
        scores = mask_scores(logits, real, segments)
        if (scores == -10000.0).any():
            continue  # an answer that an example lacks: the original let it score 0
        labels = torch.tensor(case["labels"])
        for name in set(LOSSES) & set(case):
            loss = score_loss(scores, labels, function=name) / len(labels)
            assert loss.item() == pytest.approx(case[name], rel=TOLERANCE), name


def test_an_absent_answer_never_wins() -> None:
    scores = mask_scores(torch.tensor([[-5.0, -1.0]]), torch.tensor([[1, 1]]), torch.tensor([[0, 2]]))
    assert scores.tolist() == [[-5.0, -10000.0, -1.0]]


def test_prompts_start_from_words(recorded: dict[str, Any]) -> None:
    words = torch.tensor([[2.0 * i, 2.0 * i + 1] for i in range(5000)])
    for case in recorded["prompt_init"]:
        encoder = PromptEncoder(case["spell_length"], 2, function="none")
        encoder.initialize_from_words(
            words, task_token_ids=case["task_tokens"] or (), generator=random.Random(case["python_random_seed"])
        )
        expected = torch.tensor(case["embedding"])
        torch.testing.assert_close(encoder.spell_embeddings.weight.detach(), expected, rtol=TOLERANCE, atol=0.0)


def test_what_stays_trainable(recorded: dict[str, Any]) -> None:
    for layers, names in recorded["freeze_trainable_parameters_by_tune_prefix_layers"].items():
        numbers = [int(name.split("layers.")[1].split(".")[0]) for name in names if ".layers." in name]
        model = GLMModel(GLMConfig(max([*numbers, 1]) + 2, 8, 2, 16, prompt_length=3))
        freeze_transformer(model, tuned_layers=0 if layers == "None" else int(layers))
        found = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert sorted(map(canonical_name, found)) == sorted(map(canonical_name, names)), layers


class MinusTargets(torch.nn.Module):
    """The recorded stand-in for a network: minus the sum of target * logit_mask per choice."""

    def forward(self, input_ids, position_ids, attention_mask, target_ids, loss_mask, *, prompt_positions=None):
        return -(target_ids * loss_mask).sum(-1).float()


ROW_NAMES = ("text", "target", "logit_mask", "position", "mask")


def recorded_row(ids: list[int], targets: list[int], loss_mask: list[int], positions: list, prefix_length: int) -> Row:
    """Return a recorded row of a sample."""
    return Row(np.array([ids, targets, loss_mask, *positions]), prefix_length)


def test_choices_of_an_evaluation(recorded: dict[str, Any]) -> None:
    for case in recorded["evaluation"]:
        assert case["score"] == "minus sum of target*logit_mask"
        engine = make_engine()
        engine.model = MinusTargets()
        samples = [
            TaskSample(
                kind="multi_token",
                uid=sample["uid"],
                label=sample["label"],
                rows=tuple(map(recorded_row, *(sample[name] for name in ROW_NAMES))),
                choices=True,
            )
            for sample in case["samples"]
        ]
        rows = [int(row.argmax()) for row in score_rows(engine, samples, batch_size=case["batch_size"], pad_id=0)]
        task = find_task(case["task"])
        chosen = [task.predicted_class("multi_token", row) for row in rows]
        assert chosen == case["predictions"], case["task"]
        assert [sample.label for sample in samples] == case["labels"]


HEAD_SECTIONS = {"config", "lm", "encoder", "single_token", "multi_token", "fast_multi_token", "classification"}
INPUTS = ("text", "position", "mask")


@pytest.fixture(scope="module")
def heads(golden: GoldenFolder) -> dict[str, Any]:
    content = torch.load(golden.path("superglue/heads.pt"), weights_only=True)
    prompts = {name for name in content if name.startswith("prompt_")}
    assert set(content) - prompts <= HEAD_SECTIONS, set(content) - prompts - HEAD_SECTIONS
    return content


def model_with(heads: dict[str, Any], state: dict[str, torch.Tensor], **options: Any) -> GLMModel:
    values = dict(heads["config"])
    assert values.pop("dropout") == 0.0
    values["max_position_embeddings"] = values.pop("max_sequence_length")
    model = GLMModel(GLMConfig(**values, **options))
    model.load_state_dict(state, strict=True)
    return model.eval()


def assert_scores(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-4)


@torch.no_grad()
def test_cloze_heads(heads: dict[str, Any]) -> None:
    model = model_with(heads, heads["lm"])
    case = dict(heads["single_token"])
    inputs = [case.pop(name) for name in (*INPUTS, "target")]
    case.pop("logit_mask")
    scores, vocabulary = SingleTokenCloze(model)(*inputs)
    assert_scores(scores, case.pop("logits"))
    assert_scores(vocabulary, case.pop("vocab_logits"))
    assert_scores(SingleTokenCloze(model, take_softmax=True)(*inputs)[0], case.pop("logits_softmax"))
    assert not case, set(case)
    case = dict(heads["multi_token"])
    inputs = [case.pop(name) for name in (*INPUTS, "target", "logit_mask")]
    assert_scores(MultiTokenCloze(model, take_softmax=False)(*inputs), case.pop("logits_no_softmax"))
    flat = [value[:, 0] for value in inputs]
    assert_scores(MultiTokenCloze(model)(*flat), case.pop("logits_flat_first_choice"))
    for name, expected in case.items():
        penalty = float(name.removeprefix("logits_length_penalty_"))
        assert_scores(MultiTokenCloze(model, length_penalty=penalty)(*inputs), expected)
    case = dict(heads["fast_multi_token"])
    inputs = [case.pop(name) for name in INPUTS]
    answers = dict(zip(
        ("answer_ids", "answer_position_ids", "answer_prefix_lengths", "target_ids", "loss_mask"),
        [case.pop(f"dec_{name}") for name in ("text", "position", "mask", "target", "logit_mask")],
        strict=True,
    ))  # fmt: skip
    for name, expected in case.items():
        penalty = float(name.removeprefix("logits_length_penalty_"))
        assert_scores(MultiTokenClozeFast(model, length_penalty=penalty)(*inputs, **answers), expected)


@torch.no_grad()
def test_classification_heads(heads: dict[str, Any]) -> None:
    model = model_with(heads, heads["encoder"])
    case = dict(heads["classification"])
    inputs = [case.pop(name) for name in INPUTS]
    weights = {number: case.pop(f"head_{number}") for number in (3, 1)}
    choices = [value.unflatten(0, (2, 2)) for value in inputs]
    for name, expected in case.items():
        kind, pool_token = name.rsplit("_", 1)
        head = SequenceClassification(model, 1 if kind == "choice_logits" else 3, pool_token=pool_token).eval()
        missing = head.load_state_dict(weights[head.multichoice_head.out_features], strict=False)
        assert not missing.unexpected_keys
        assert_scores(head(*(choices if kind == "choice_logits" else inputs)), expected)


@torch.no_grad()
def test_prompts_in_the_heads(heads: dict[str, Any]) -> None:
    for name in [name for name in heads if name.startswith("prompt_")]:
        case = dict(heads[name])
        state = case.pop("state")
        length = state["prompt_spell.spell_embeddings.weight"].size(0)
        function = name.removeprefix("prompt_")
        model = model_with(heads, state, prompt_length=length, prompt_function=function)
        assert model.prompt_spell is not None
        assert_scores(model.prompt_spell(), case.pop("prompt_embeddings"))
        single = [heads["single_token"][key] for key in (*INPUTS, "target")]
        positions = case.pop("single_prompt_pos")
        assert_scores(SingleTokenCloze(model)(*single, prompt_positions=positions)[0], case.pop("single_logits"))
        multi = [heads["multi_token"][key] for key in (*INPUTS, "target", "logit_mask")]
        positions = case.pop("multi_prompt_pos")
        assert_scores(MultiTokenCloze(model)(*multi, prompt_positions=positions), case.pop("multi_logits"))
        assert not case, set(case)
