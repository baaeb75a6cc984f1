"""Translate between ``config.json`` of the Hugging Face layout and ``GLMConfig``.

h hidden, v vocabulary
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.checkpoints.format import BLOCK_POSITION_TABLE, POSITION_TABLES, PROMPT_PREFIX, WORD_TABLE
from model.config import GLMConfig

CONFIG_FILE = "config.json"
MODEL_TYPE = "glm"
# The field of config.json for each field of GLMConfig.
FIELD_NAMES = {
    "num_layers": "num_layers",
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "embedding_dropout": "embedding_dropout_prob",
    "attention_dropout": "attention_dropout_prob",
    "output_dropout": "output_dropout_prob",
    "max_position_embeddings": "max_sequence_length",
    "checkpoint_activations": "checkpoint_activations",
    "checkpoint_num_layers": "checkpoint_num_layers",
    "relative_encoding": "relative_encoding",
    "block_position_encoding": "block_position_encoding",
    "prompt_length": "spell_length",
    "prompt_function": "spell_func",
    "attention_scale": "attention_scale",
    "initializer_std": "initializer_range",
}
SIZES = ("num_layers", "vocab_size", "hidden_size", "num_attention_heads")
CLASSIFIER_CLASS = "GLMForSequenceClassification"
LAYER_NAME = re.compile(r"transformer\.layers\.(\d+)\.")


def config_fields(config: GLMConfig, *, pool_token: str = "cls") -> dict[str, Any]:
    """Return the fields of config.json that describe ``config``: those of the published models."""
    fields = {field: getattr(config, name) for name, field in FIELD_NAMES.items()}
    # The published code needs the last two: whole logits instead of hidden states.
    return fields | {
        "pool_token": pool_token,
        "model_type": MODEL_TYPE,
        "parallel_output": True,
        "output_predict": True,
    }


def config_from_fields(fields: Mapping[str, Any], *, file: Path) -> GLMConfig:
    """Return the model that the fields of a config.json describe; ``file`` names it in messages.

    Raises ValueError when it is no GLM, or a field has no possible value.
    """
    kind = fields.get("model_type")
    lacking = [name for name in SIZES if not isinstance(fields.get(FIELD_NAMES[name]), int)]
    if kind != MODEL_TYPE or lacking:
        # Another family of the same type name ships with transformers; it has no num_layers.
        problem = f"lacks {lacking[0]}" if kind == MODEL_TYPE else f"has model_type {kind!r}"
        raise ValueError(f"{file} describes another kind of model (it {problem}); give the folder of a GLM")
    values = {name: fields[field] for name, field in FIELD_NAMES.items() if fields.get(field) is not None}
    try:
        return GLMConfig(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error


def read_fields(folder: Path) -> dict[str, Any] | None:
    """Return the fields of a folder's config.json, None when it has none; raise ValueError for a damaged one."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        return None
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON file; copy it anew") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{file} holds no JSON object; copy it anew")
    return fields


def is_classifier(fields: Mapping[str, Any] | None) -> bool:
    """Tell whether a config.json names the class with a classification head."""
    return CLASSIFIER_CLASS in ((fields or {}).get("architectures") or ())


def sizes_from_shapes(shapes: Mapping[str, tuple[int, ...]], *, file: Path) -> dict[str, Any]:
    """Return what the shapes of whole parameters tell of a ``GLMConfig``: all sizes but the number of heads.

    That is known of relative models alone. Raises ValueError when the parameters are no language model's.
    """
    layers = {int(match[1]) for name in shapes if (match := LAYER_NAME.match(name))}
    if WORD_TABLE not in shapes or not layers:
        prompt = all(name.startswith(PROMPT_PREFIX) for name in shapes)
        names = "a continuous prompt" if prompt else ", ".join(list(shapes)[:3])
        raise ValueError(
            f"{file} holds no whole GLM but {names} alone; name the model that belongs to it with --load-pretrained"
        )
    vocab_size, hidden_size = shapes[WORD_TABLE]  # [v,h]
    sizes: dict[str, Any] = {
        "num_layers": max(layers) + 1,
        "hidden_size": hidden_size,
        "vocab_size": vocab_size,
        "block_position_encoding": BLOCK_POSITION_TABLE in shapes,
        "relative_encoding": "transformer.r_w_bias" in shapes,
    }
    if POSITION_TABLES[0] in shapes:
        sizes["max_position_embeddings"] = shapes[POSITION_TABLES[0]][0] - (BLOCK_POSITION_TABLE in shapes)
    if sizes["relative_encoding"]:
        sizes["num_attention_heads"] = shapes["transformer.r_w_bias"][0]
    return sizes
