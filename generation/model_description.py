"""Find out what model and tokenizer a checkpoint is made for, from what lies beside it.

In this order: the folder's own ``config.json`` (Hugging Face layout, or a copy of a run's), ``runs/NAME/config.json``
of the run that saved it, and the table of released models by the folder's name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer
from model.checkpoints.reading import resolve_checkpoint
from model.config import GLMConfig
from model.hub.config_file import CONFIG_FILE, config_from_fields, read_fields
from model.released import RELEASED_MODELS, ReleasedModel

# What tokenizer_config.json of the Hugging Face layout calls each tokenizer: type, model type.
HUB_TOKENIZERS = {
    "GLMBertTokenizer": ("BertWordPieceTokenizer", "bert-large-uncased"),
    "GLMGPT2Tokenizer": ("GPT2BPETokenizer", None),
    "GLMRobertaTokenizer": ("GPT2BPETokenizer", "roberta"),
    "GLMChineseTokenizer": ("ChineseSPTokenizer", None),
    "GLMSentencePieceTokenizer": ("SentencePieceTokenizer", None),
}
WITH_TASK_MASK = ("GLMGPT2Tokenizer", "GLMChineseTokenizer", "GLMSentencePieceTokenizer")
TOKENIZER_CONFIG = "tokenizer_config.json"
ORIGINAL_TOKENIZER_PATH = "tokenizer.model"  # what a command line without --tokenizer-path records
RUN_KEYS = ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "tokenizer_type")


@dataclass(frozen=True)
class ModelDescription:
    """What a checkpoint does not say itself.

    Attributes:
        source: where this was found, for messages.
        tokenizer: keywords of ``build_tokenizer``.
        sizes: fields of ``GLMConfig``; without ``vocab_size`` the tokenizer's padded size is taken.
        vocab_divisor: the padded size is a multiple of it.
        block_positions: tokens of a piece count in the second row of positions.
    """

    source: str
    tokenizer: Mapping[str, Any]
    sizes: Mapping[str, Any]
    vocab_divisor: int = 128
    block_positions: bool = True

    def build_tokenizer(self) -> Tokenizer:
        """Build the tokenizer. Raises ValueError when its files are missing."""
        try:
            return build_tokenizer(**self.tokenizer)
        except TypeError as error:
            raise ValueError(f"{self.source}: {error}") from error

    def config(self, tokenizer: Tokenizer) -> GLMConfig:
        """Return the model's configuration."""
        return GLMConfig(**{"vocab_size": tokenizer.padded_size(self.vocab_divisor), **self.sizes})


def describe(
    checkpoint: str | Path, *, settings: str | Path | None = None, released: str | None = None
) -> ModelDescription:
    """Return the description of a checkpoint.

    ``settings`` names a run's ``config.json``, ``released`` a released model; without them it is searched for. Raises
    ValueError when nothing is found or what is found is damaged.
    """
    if released is not None:
        if released not in RELEASED_MODELS:
            raise ValueError(f"released model {released!r} is unknown; choose one of {', '.join(RELEASED_MODELS)}")
        return of_released(RELEASED_MODELS[released])
    if settings is not None:
        return of_run(_read(Path(settings)), file=Path(settings))
    folder = resolve_checkpoint(checkpoint).folder.resolve()
    folders = [folder, folder.parent]  # a checkpoint without a number lies in the run's folder itself
    for folder in folders:
        fields = read_fields(folder)
        if fields is not None and fields.get("model_type") is not None:
            return of_hub_folder(folder, fields)
        if fields is not None:
            return of_run(fields, file=folder / CONFIG_FILE)
    for file in (file for folder in folders for file in _run_files(folder)):
        if file.is_file():
            return of_run(_read(file), file=file)
    for model in RELEASED_MODELS.values():
        if any(folder.name.startswith(model.checkpoint_folder) for folder in folders):
            return of_released(model)
    raise ValueError(
        f"{checkpoint}: nothing says what model this is; give settings= (config.json of the run, in runs/NAME), "
        f"released= (one of {', '.join(RELEASED_MODELS)}), or config= and tokenizer="
    )


def _run_files(root: Path) -> Iterator[Path]:
    """Yield where the run that saved into ``root`` may have left its settings: the working folder, and above."""
    for folder in (Path.cwd(), *root.parents):
        yield folder / "runs" / root.name / CONFIG_FILE


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file}: no such file; a run leaves it in runs/NAME/{CONFIG_FILE}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON file; copy it anew") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no JSON object; copy it anew")
    return values


def of_run(values: Mapping[str, Any], *, file: Path) -> ModelDescription:
    """Return the description from a run's command line, as ``runs/NAME/config.json`` keeps it."""
    lacking = [key for key in RUN_KEYS if key not in values]
    if lacking:
        raise ValueError(f"{file} lacks {lacking[0]!r}: it is not the config.json of a run")
    get = values.get
    kind, path = values["tokenizer_type"], get("tokenizer_path")
    if kind != "SentencePieceTokenizer" and path == ORIGINAL_TOKENIZER_PATH:
        path = None
    block = bool(get("block_lm", True))
    tokenizer = {
        "tokenizer_type": kind,
        "model_type": get("tokenizer_model_type"),
        "path": path,
        "block_symbols": block,
        "task_mask": bool(get("task_mask")),
        "decoder_mask": (get("block_mask_prob") or 0) > 0 or (get("context_mask_ratio") or 0) > 0,
        "num_sentinels": values["max_position_embeddings"] if get("sentinel_token") else 0,
        "fix_command_token": bool(get("fix_command_token")),
        "vocab_dir": get("vocab_dir"),
        "cache_dir": get("cache_dir"),
    }
    sizes = {key: values[key] for key in RUN_KEYS if key != "tokenizer_type"}
    sizes |= {
        "block_position_encoding": block and not get("masked_lm"),
        "relative_encoding": bool(get("transformer_xl")),
        "attention_scale": get("attention_scale") or 1.0,
    }
    return ModelDescription(
        str(file), tokenizer, sizes, get("make_vocab_size_divisible_by") or 128, not get("no_block_position")
    )


def of_released(model: ReleasedModel) -> ModelDescription:
    """Return the description of a released model."""
    config = model.config
    tokenizer = {
        "tokenizer_type": model.tokenizer_type,
        "model_type": model.tokenizer_model_type,
        "task_mask": model.task_mask,
        "fix_command_token": model.fix_command_token,
    }
    return ModelDescription(f"released model {model.name}", tokenizer, vars(config))


def of_hub_folder(folder: Path, fields: Mapping[str, Any]) -> ModelDescription:
    """Return the description of a folder of the Hugging Face layout, with the vocabulary files in it."""
    file = folder / TOKENIZER_CONFIG
    config = config_from_fields(fields, file=folder / CONFIG_FILE)
    content = _read(file) if file.is_file() else {}
    kind = content.get("tokenizer_class")
    if kind not in HUB_TOKENIZERS:
        known = ", ".join(HUB_TOKENIZERS)
        raise ValueError(f"{file}: tokenizer_class {kind!r} is none of {known}; give tokenizer=")
    tokenizer_type, model_type = HUB_TOKENIZERS[kind]
    if kind == "GLMBertTokenizer" and not content.get("do_lower_case", True):
        model_type = "bert-base-cased"
    tokenizer = {
        "tokenizer_type": tokenizer_type,
        "model_type": model_type,
        "path": folder / "tokenizer.model" if kind == "GLMSentencePieceTokenizer" else folder,
        "task_mask": kind in WITH_TASK_MASK,
        "fix_command_token": True,
    }
    return ModelDescription(str(folder), tokenizer, vars(replace(config, prompt_length=None)))
