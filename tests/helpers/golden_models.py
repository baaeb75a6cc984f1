"""Build models from the weights of ``golden/model/weights.pt``."""

from __future__ import annotations

import json
from typing import Any

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
