"""The models that the golden vectors were recorded with, and a recorder of what a model is fed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import GLMConfig
from model.modeling_glm import GLMModel
from tests.helpers.golden_index import GoldenFolder

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


def load_vectors(golden: GoldenFolder, name: str) -> Any:
    """Return the content of ``golden/model/<name>``."""
    path = golden.path(f"model/{name}")
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    return torch.load(path, weights_only=True)


def config_for(variant: str, sizes: dict[str, int], **options: Any) -> GLMConfig:
    """Return the configuration of variant ``block``, ``plain`` or ``relative`` with the recorded sizes."""
    assert variant in ("block", "plain", "relative"), variant
    names = {"num_layers", "vocab_size", "hidden_size", "num_attention_heads", "max_sequence_length"}
    assert set(sizes) == names, sizes
    return GLMConfig(
        sizes["num_layers"],
        sizes["hidden_size"],
        num_attention_heads=sizes["num_attention_heads"],
        vocab_size=sizes["vocab_size"],
        max_position_embeddings=sizes["max_sequence_length"],
        block_position_encoding=variant == "block",
        relative_encoding=variant == "relative",
        **options,
    )


def build_model(golden: GoldenFolder, variant: str, **options: Any) -> GLMModel:
    """Return the recorded model in evaluation mode, with further options of ``GLMConfig``."""
    weights = load_vectors(golden, "weights.pt")
    model = GLMModel(config_for(variant, weights["config"], **options))
    report = model.load_state_dict(weights[variant], strict=False)
    assert not report.unexpected_keys
    assert all(key.startswith("prompt_spell.") for key in report.missing_keys), report
    return model.eval()


def assert_close(actual: Tensor, expected: Tensor, what: str = "") -> None:
    """Compare at the tolerance the vectors are recorded for."""
    assert actual.shape == expected.shape, (what, actual.shape, expected.shape)
    torch.testing.assert_close(actual, expected, **TOLERANCE, msg=lambda message: f"{what}: {message}")


def tiny_model(golden: GoldenFolder, description: dict[str, Any], **options: Any) -> GLMModel:
    """Return the recorded model of ``description``, with further options of ``GLMConfig``."""
    known = {"weights", "num_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings"}
    assert set(description) == known | {"ffn"}, description
    assert description["ffn"] == 4 * description["hidden_size"]
    config = GLMConfig(**{name: description[name] for name in known - {"weights"}}, **options)
    model = GLMModel(config)
    model.load_state_dict(torch.load(golden.path(f"generation/{description['weights']}"), weights_only=True))
    return model.eval()


def recipe_model(description: dict[str, Any]) -> GLMModel:
    """Return the model whose weights follow the recipe of the vectors' description from a NumPy seed."""
    known = {"seed", "num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "vocab_size"}
    assert set(description) == known | {"num_tokens", "eop", "eop_scale"}, description
    config = GLMConfig(**{name: description[name] for name in known - {"seed"}})
    model = GLMModel(config)
    state = model.state_dict()
    scales = {"word_embeddings": 1.0, "position_embeddings": 0.6, "block_position_embeddings": 0.6}
    names = [f"{'' if name == 'word_embeddings' else 'transformer.'}{name}.weight" for name in scales]
    for layer in range(config.num_layers):
        for part in ("input_layernorm", "attention.query_key_value", "attention.dense", "post_attention_layernorm",
                     "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"):  # fmt: skip
            names += [f"transformer.layers.{layer}.{part}.{kind}" for kind in ("weight", "bias")]
    names += ["transformer.final_layernorm.weight", "transformer.final_layernorm.bias"]
    assert set(names) == set(state), set(names) ^ set(state)
    random = np.random.RandomState(description["seed"])
    for name in names:
        module, kind = name.split(".")[-2:]
        base = 1.0 if "layernorm" in module and kind == "weight" else 0.0
        scale = scales.get(module, 0.1 if "layernorm" in module or kind == "bias" else 0.35)
        values = np.float32(base + scale * random.standard_normal(tuple(state[name].shape)))
        state[name].copy_(torch.from_numpy(values))
    state["word_embeddings.weight"][description["num_tokens"] :] = 0.0
    state["word_embeddings.weight"][description["eop"]] *= description["eop_scale"]
    return model.eval()


@dataclass
class Recorder:
    """Record the calls of a model: (token, position, block position, cached positions before) of one-token calls."""

    steps: list[list[int]] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)  # before every call
    contexts: list[list[list[int]]] = field(default_factory=list)

    def attach(self, model: GLMModel) -> Recorder:
        """Listen to ``model`` from now on."""

        def before(_module: GLMModel, arguments: tuple, keywords: dict) -> None:
            ids, positions = arguments[:2]
            length = keywords["cache"].length
            self.cached.append(length)
            if length == 0:
                self.contexts.append([ids[0].tolist(), *positions[0].tolist()])
            elif ids.size(1) == 1:
                self.steps.append([ids[0, 0].item(), *positions[0, :, 0].tolist(), length])

        def after(module: GLMModel, _arguments: tuple, keywords: dict, hidden: torch.Tensor) -> None:
            self.logits.append(module.project(hidden[0]))

        model.register_forward_pre_hook(before, with_kwargs=True)
        model.register_forward_hook(after, with_kwargs=True)
        return self
