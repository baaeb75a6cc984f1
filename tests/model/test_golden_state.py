"""Recorded state-dict keys, shapes, optimizer groups and statistics of a fresh initialisation."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.heads import MultiTokenCloze, MultiTokenClozeFast, SequenceClassification, SingleTokenCloze
from model.modeling_glm import GLMModel
from tests.helpers.golden_index import GoldenFolder
from tests.helpers.golden_models import config_for, load_vectors

# The original's encoder-decoder never ran; it is optional and not provided (its layer: test_golden_forward.py).
NOT_PROVIDED = {"encoder_decoder"}
CLOZE_KEYS = {
    "multi_token_cloze_state_dict_keys_equal_glm": MultiTokenCloze,
    "single_token_cloze_state_dict_keys_equal_glm": SingleTokenCloze,
}
FAST_KEYS = "multi_token_cloze_fast_first_keys"


def _build(name: str, sizes: dict[str, int]) -> nn.Module:
    """Return the module a table's name describes; an unknown name fails."""
    classes = re.fullmatch(r"sequence_classification_(\d+)", name)
    if classes:
        return SequenceClassification(GLMModel(config_for("block", sizes)), int(classes[1]))
    parts = re.fullmatch(
        r"glm_(block|plain|relative)(?:_prompt(\d+)_(lstm|mlp|none))?(?:_frozen_tune_prefix_layers_(\d+))?", name
    )
    assert parts, f"unknown table {name}"
    variant, length, function, tuned_layers = parts.groups()
    options = {"prompt_length": int(length), "prompt_function": function} if length else {}
    model = GLMModel(config_for(variant, sizes, **options))
    if tuned_layers is not None:
        model.freeze_transformer(tune_prefix_layers=int(tuned_layers))
    return model


def _tables(golden: GoldenFolder) -> tuple[dict[str, int], dict[str, Any]]:
    recorded = load_vectors(golden, "state_and_groups.json")
    assert set(recorded) == {"config", "tables"}
    return recorded["config"], recorded["tables"]


def test_state_dicts(golden: GoldenFolder) -> None:
    sizes, tables = _tables(golden)
    for name, table in tables.items():
        if name in NOT_PROVIDED or name in CLOZE_KEYS or name == FAST_KEYS:
            continue
        assert set(table) <= {"state_dict", "param_groups", "num_parameters", "trainable"}, name
        module = _build(name, sizes)
        if "state_dict" in table:
            ours = {key: list(tensor.shape) for key, tensor in module.state_dict().items()}
            assert list(ours.items()) == list(table["state_dict"].items()), name
        if "num_parameters" in table:
            assert sum(parameter.numel() for parameter in module.parameters()) == table["num_parameters"], name
        if "trainable" in table:
            trainable = [key for key, parameter in module.named_parameters() if parameter.requires_grad]
            assert trainable == table["trainable"], name


def test_optimizer_groups(golden: GoldenFolder) -> None:
    from training.optimizer import build_parameter_groups

    sizes, tables = _tables(golden)
    for name, table in tables.items():
        if "param_groups" not in (table if isinstance(table, dict) else {}):
            continue
        recorded = table["param_groups"]
        assert set(recorded) == {"decay", "no_decay", "no_decay_weight_decay", "keys_of_first_group"}
        module = _build(name, sizes)
        names = {id(parameter): key for key, parameter in module.named_parameters()}
        decay, no_decay = build_parameter_groups(module)
        assert [names[id(parameter)] for parameter in decay["params"]] == recorded["decay"], name
        assert [names[id(parameter)] for parameter in no_decay["params"]] == recorded["no_decay"], name
        assert no_decay["weight_decay"] == recorded["no_decay_weight_decay"]
        assert set(recorded["keys_of_first_group"]) <= set(decay)


def test_cloze_heads_are_transparent(golden: GoldenFolder) -> None:
    sizes, tables = _tables(golden)
    plain = GLMModel(config_for("block", sizes))
    for name, head in CLOZE_KEYS.items():
        assert tables[name] is True
        assert list(head(plain).state_dict()) == list(plain.state_dict())
    # The original's fast head wrote prefixed keys; ours writes plain ones and reads both.
    fast = MultiTokenClozeFast(plain)
    first_keys = list(fast.state_dict())[: len(tables[FAST_KEYS])]
    assert [f"model.{key}" for key in first_keys] == tables[FAST_KEYS]
    prefixed = {f"model.{key}": tensor.clone() for key, tensor in plain.state_dict().items()}
    fast.load_state_dict(prefixed)


def _class_of(name: str) -> str:
    return re.sub(r"layers\.\d+\.", "layers.N.", name)


@pytest.mark.parametrize("variant", ["block", "relative"])
def test_initialisation(golden: GoldenFolder, variant: str) -> None:
    recorded = load_vectors(golden, "init_stats.json")
    assert set(recorded["stats"]) <= {"block", "relative"}
    model = GLMModel(config_for(variant, recorded["config"]), generator=torch.Generator().manual_seed(20))
    classes: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        classes[_class_of(name)].append(parameter.detach().flatten())
    expected = recorded["stats"].get(variant)
    if expected is None:
        pytest.skip(f"no statistics of variant {variant}")
    assert set(classes) == set(expected)
    for name, statistics in expected.items():
        values = torch.cat(classes[name])
        assert values.numel() == statistics["n"], name
        if statistics["std"] == 0.0:
            assert torch.equal(values, torch.full_like(values, statistics["mean"])), name
            continue
        assert values.std().item() == pytest.approx(statistics["std"], rel=0.03), name
        assert abs(values.mean().item()) < 5 * statistics["std"] / statistics["n"] ** 0.5, name
        assert values.abs().max().item() < 1.5 * statistics["max_abs"], name
