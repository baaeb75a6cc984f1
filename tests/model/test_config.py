"""The configuration, the table of released models, and construction without memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.config import GLMConfig
from model.modeling_glm import GLMModel, count_parameters
from model.released import RELEASED_MODELS, released_models_table

# Sizes by the names of the released models; a name stands for its parameter count within 3 % unless listed here with
# the count its layers give (a larger vocabulary or a rounded name).
NOMINAL = {
    "GLM-Base": 110e6,
    "GLM-Large": 335e6,
    "GLM-Doc": 335e6,
    "GLM-410M": 410e6,
    "GLM-515M": 515e6,
    "GLM-RoBERTa": 355e6,
    "GLM-Large-Chinese": 355e6,
    "GLM-2B": 1.92e9,
    "GLM-10B": 9.88e9,
    "GLM-10B-Chinese": 9.88e9,
    "mGLM-1B": 1.067280384e9,
}


def _closed_form(config: GLMConfig) -> int:
    h, layers = config.hidden_size, config.num_layers
    per_layer = 12 * h * h + 13 * h
    return config.vocab_size * h + 2 * (config.max_position_embeddings + 1) * h + layers * per_layer + 2 * h


def test_parameter_counts_of_the_released_models() -> None:
    assert set(RELEASED_MODELS) == set(NOMINAL)
    for name, released in RELEASED_MODELS.items():
        count = count_parameters(released.config)
        assert count == _closed_form(released.config), name
        assert count == pytest.approx(NOMINAL[name], rel=0.03), name
        assert released.config.vocab_size % 128 == 0


def test_the_largest_model_takes_no_memory_on_the_meta_device() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = RELEASED_MODELS["GLM-10B"].config
    with torch.device("meta"):
        model = GLMModel(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert all(buffer.is_meta for buffer in model.buffers())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    ids = torch.zeros(1, 8, dtype=torch.long, device="meta")
    logits = model(ids, torch.zeros(1, 2, 8, dtype=torch.long, device="meta"), torch.zeros(1, device="meta"))
    assert logits.shape == (1, 8, config.vocab_size)


def test_table(repository: Path) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "model.released"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == released_models_table()
    lines = printed.splitlines()
    assert len(lines) == 2 + len(RELEASED_MODELS)
    for name, released in RELEASED_MODELS.items():
        (line,) = (line for line in lines if line.split()[0] == name)
        assert f"{count_parameters(released.config):,}" in line
        assert released.config_task in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0"),
        ({"hidden_size": 30}, "hidden_size 30 is not a multiple of num_attention_heads 4"),
        ({"hidden_size": 3, "num_attention_heads": 1, "relative_encoding": True}, "even"),
        ({"attention_dropout": 1.5}, "attention_dropout is 1.5"),
        ({"max_memory_length": -1}, "max_memory_length is -1"),
        ({"prompt_length": 0}, "prompt_length is 0"),
        ({"prompt_function": "gru"}, "'gru' is unknown; choose one of lstm, mlp, none"),
        ({"checkpoint_num_layers": 0}, "checkpoint_num_layers is 0"),
    ],
)
def test_values_that_do_not_fit(change: dict, message: str) -> None:
    sizes = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 64}
    with pytest.raises(ValueError, match=message):
        GLMConfig(**{**sizes, **change})
