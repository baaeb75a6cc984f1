"""Put together what an export needs of a checkpoint: its sizes, its description and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_description import Description, from_run
from hf_tokenizers import choice_of_folder, tokenizer_files

from model.checkpoints.whole_weights import WholeWeights, read_whole_weights
from model.config import GLMConfig
from model.hub.config_file import CONFIG_FILE, config_from_fields, read_fields, sizes_from_shapes
from model.hub.export import ARCHITECTURES, GENERATION_FILE, SHARED_ROWS, ExportOptions, TokenizerFiles


@dataclass(frozen=True)
class ExportSource:
    """A checkpoint and all that is exported with it."""

    name: str
    weights: WholeWeights
    config: GLMConfig
    tokenizer: TokenizerFiles | None
    options: ExportOptions


def read_weights(checkpoint: Path, base: Path | None) -> WholeWeights:
    """Open a checkpoint, over the parameters of ``base`` when it is a partial one."""
    weights = read_whole_weights(checkpoint)
    return weights if base is None else weights.over(read_whole_weights(base))


def open_source(
    weights: WholeWeights, description: Description | None, *, options: ExportOptions, with_tokenizer: bool
) -> ExportSource:
    """Complete what the weights say by ``description``, or without one by the config.json beside them.

    Raises ValueError with one line when neither says it, or they do not fit the weights.
    """
    folder = weights.location.folder
    fields = read_fields(folder)
    if description is None and fields is not None and "model_type" not in fields:
        description = from_run(folder / CONFIG_FILE)  # a copy of the run's
    if description is not None:
        config, choice, name = described_config(weights, description), description.tokenizer, description.name
        if choice is not None and choice.shares_rows:
            options = replace(options, shared_row=SHARED_ROWS["glm-10b-chinese"])
        if with_tokenizer and choice is None:
            raise ValueError("no tokenizer is described; give --tokenizer-type, or --no-tokenizer to leave it out")
    elif fields is not None:
        config, choice = config_from_fields(fields, file=folder / CONFIG_FILE), choice_of_folder(folder)
        name = fields.get("_name_or_path") or folder.resolve().name
        options = replace(options, purpose=options.purpose or _purpose(fields), generation=_generation(folder))
    else:
        raise ValueError(
            f"{weights.file} does not say its number of heads and its tokenizer; give a NAME (glm-large ..., or a file "
            "config_tasks/model_*.sh, runs/NAME/config.json), or --num-attention-heads and --tokenizer-type"
        )
    tokenizer = None
    if with_tokenizer and choice is not None:
        tokenizer = tokenizer_files(choice, vocab_size=config.vocab_size, checkpoint=folder)
    return ExportSource(name, weights, config, tokenizer, options)


def described_config(weights: WholeWeights, description: Description) -> GLMConfig:
    """Return the configuration of ``weights``: sizes from their shapes, the rest as described.

    Raises ValueError with one line when the described model has other sizes, or the number of heads is not known.
    """
    sizes = sizes_from_shapes(weights.shapes(), file=weights.file)
    if description.hidden_size not in (None, sizes["hidden_size"]):
        raise ValueError(
            f"{weights.file} has hidden size {sizes['hidden_size']}, {description.name} {description.hidden_size}; "
            "name the model it is, or give --num-attention-heads"
        )
    if description.num_attention_heads is not None:
        sizes["num_attention_heads"] = description.num_attention_heads
    if "num_attention_heads" not in sizes:
        raise ValueError(f"{weights.file} does not say its number of heads; give --num-attention-heads")
    return GLMConfig(**sizes, attention_scale=description.attention_scale)


def _purpose(fields: Mapping[str, Any]) -> str | None:
    named = fields.get("architectures") or ()
    return next((purpose for purpose, architecture in ARCHITECTURES.items() if architecture in named), None)


def _generation(folder: Path) -> dict[str, Any] | None:
    file = folder / GENERATION_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
