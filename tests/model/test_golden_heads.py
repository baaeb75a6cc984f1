"""Recorded scores of the heads, and continuous prompts."""

from __future__ import annotations

import random
import re
from typing import Any

import torch

from model.heads import MultiTokenCloze, MultiTokenClozeFast, SequenceClassification, SingleTokenCloze
from model.prompt import PromptEncoder
from tests.helpers.golden_index import GoldenFolder
from tests.helpers.golden_models import assert_close, build_model, load_vectors

INPUT_NAMES = ("input_ids", "position_ids", "attention_mask")
TARGET_NAMES = (*INPUT_NAMES, "target_ids", "logit_mask")
CHECKED_BELOW = {
    "multi_token_3d",
    "multi_token_2d",
    "multi_token_no_target",
    "multi_token_fast",
    "single_token",
}


def _case(golden: GoldenFolder, name: str, *known: str) -> dict[str, Any]:
    case = load_vectors(golden, "heads.pt")[name]
    assert set(case) <= set(known), set(case) - set(known)
    return case


def _arguments(case: dict[str, Any], names: tuple[str, ...]) -> list[Any]:
    return [case[name] for name in names]


@torch.no_grad()
def test_multi_token(golden: GoldenFolder) -> None:
    model = build_model(golden, "block")
    case = _case(golden, "multi_token_3d", *TARGET_NAMES, "scores")
    for name, expected in case["scores"].items():
        penalty, softmax = re.fullmatch(r"lp([\d.]+)_softmax(True|False)", name).groups()
        head = MultiTokenCloze(model, length_penalty=float(penalty), take_softmax=softmax == "True")
        assert_close(head(*_arguments(case, TARGET_NAMES)), expected, name)
    case = load_vectors(golden, "heads.pt")["multi_token_2d"]
    for name in set(case) - set(TARGET_NAMES):
        penalty = re.fullmatch(r"scores_lp([\d.]+)", name)[1]
        head = MultiTokenCloze(model, length_penalty=float(penalty))
        assert_close(head(*_arguments(case, TARGET_NAMES)), case[name], name)
    expected = _case(golden, "multi_token_no_target", "logits")["logits"]
    assert_close(MultiTokenCloze(model)(*_arguments(case, INPUT_NAMES)), expected)


@torch.no_grad()
def test_multi_token_fast(golden: GoldenFolder) -> None:
    names = {
        "answer_ids": "dec_input_ids",
        "answer_position_ids": "dec_position_ids",
        "answer_prefix_lengths": "dec_attention_mask",
        "target_ids": "dec_target_ids",
        "loss_mask": "dec_logit_mask",
    }
    case = _case(golden, "multi_token_fast", *INPUT_NAMES, *names.values(), "scores")
    answers = {ours: case[theirs] for ours, theirs in names.items()}
    for name, expected in case["scores"].items():
        penalty = re.fullmatch(r"lp([\d.]+)", name)[1]
        head = MultiTokenClozeFast(build_model(golden, "block"), length_penalty=float(penalty))
        assert_close(head(*_arguments(case, INPUT_NAMES), **answers), expected, name)


@torch.no_grad()
def test_single_token(golden: GoldenFolder) -> None:
    outputs = ("scores", "target_logits", "scores_softmax", "second_output_softmax")
    case = _case(golden, "single_token", *INPUT_NAMES, "target_ids", *outputs)
    inputs = _arguments(case, (*INPUT_NAMES, "target_ids"))
    for take_softmax, expected in ((False, outputs[:2]), (True, outputs[2:])):
        head = SingleTokenCloze(build_model(golden, "block"), take_softmax=take_softmax)
        for actual, name in zip(head(*inputs), expected):
            assert_close(actual, case[name], name)


@torch.no_grad()
def test_classification(golden: GoldenFolder) -> None:
    names = set(load_vectors(golden, "heads.pt")) - CHECKED_BELOW
    assert all(name.startswith("classification_") for name in names), names
    for name in names:
        case = _case(golden, name, *INPUT_NAMES, "head", "logits")
        for pool_token, expected in case["logits"].items():
            num_class = case["head"]["multichoice_head.weight"].size(0)
            head = SequenceClassification(build_model(golden, "block"), num_class, pool_token=pool_token).eval()
            assert not head.load_state_dict(case["head"], strict=False).unexpected_keys
            assert_close(head(*_arguments(case, INPUT_NAMES)), expected, f"{name} {pool_token}")


@torch.no_grad()
def test_prompts(golden: GoldenFolder) -> None:
    for function, case in load_vectors(golden, "prompt.pt").items():
        assert set(case) == {*INPUT_NAMES, "prompt_state", "prompt_embeds", "prompt_pos", "logits"}
        options = {"prompt_length": case["prompt_pos"].size(1), "prompt_function": function}
        model = build_model(golden, "block", **options)
        ours = [name for name in model.state_dict() if name.startswith("prompt_spell.")]
        assert ours == list(case["prompt_state"])
        model.load_state_dict(case["prompt_state"], strict=False)
        assert_close(model.prompt_spell(), case["prompt_embeds"], function)
        logits = model(*_arguments(case, INPUT_NAMES), prompt_positions=case["prompt_pos"])
        assert_close(logits, case["logits"], function)


def test_prompt_initialisation(golden: GoldenFolder) -> None:
    case = load_vectors(golden, "prompt_init.json")
    results = {"without_task_tokens": (), "with_task_tokens": tuple(case["task_tokens"])}
    assert set(case) == {"python_random_seed", "spell_length", "table", "task_tokens", *results}
    table = re.fullmatch(r"row i = \[i, -2i\], (\d+) rows, float32", case["table"])
    rows = torch.arange(int(table[1]), dtype=torch.float32)
    word_rows = torch.stack([rows, -2 * rows], dim=1)
    for name, task_token_ids in results.items():
        encoder = PromptEncoder(case["spell_length"], 2, function="none")
        generator = random.Random(case["python_random_seed"])
        encoder.initialize_from_words(word_rows, task_token_ids=task_token_ids, generator=generator)
        assert_close(encoder.spell_embeddings.weight.detach(), torch.tensor(case[name]), name)
