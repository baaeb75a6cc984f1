"""Write a checkpoint as a folder of the Hugging Face layout, or as one pytorch_model.bin.

    config.json  generation_config.json  README.md          what the model is
    LICENSE  NOTICE                                         whose the code and the weights are
    model-00001-of-0000N.safetensors, and an index          its weights, under the names of the task classes
    tokenizer files
    configuration_glm.py  modeling_glm.py  tokenization_glm.py ...      code that transformers runs

One weight file is in memory at a time. The folder appears as a whole or not at all.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from files.checksums import CHECKSUMS_FILE, write_checksums
from files.reading import read_json
from files.writing import write_whole
from model.checkpoints.checks import listed_checksums
from model.checkpoints.format import HEAD_NAMES, WORD_TABLE, hub_name
from model.checkpoints.reading import WholeWeights
from model.checkpoints.writing import TEMPORARY_PREFIX, NewFolder, check_is_new, new_folder, sync_folder, write_shard
from model.config import GLMConfig
from model.hub.describe import (
    CLASSIFIER_CLASS,
    CONFIG_FILE,
    GENERATION_FILE,
    PRETRAINING_KEY,
    TOKENIZER_CONFIG,
    HubTokenizer,
    ModelDescription,
    check_layers,
    config_fields,
    sizes_from_shapes,
)
from model.hub.weight_files import HUB_FILES, write_safetensors
from model.modeling_glm import GLMModel, count_parameters

CODE_FOLDER = Path(__file__).resolve().parent.parent / "hf"
CODE_FILES = "*_glm.py"
BIN_FILE = "pytorch_model.bin"
CARD_FILE = "README.md"
LICENCE_FILES = ("LICENSE", "NOTICE")  # of the code that is copied
AUTO_MAP = {
    "AutoConfig": "configuration_glm.GLMConfig",
    "AutoModel": "modeling_glm.GLMModel",
    "AutoModelForSeq2SeqLM": "modeling_glm.GLMForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_glm.GLMForConditionalGeneration",
    "AutoModelForMultipleChoice": "modeling_glm.GLMForMultipleChoice",
    "AutoModelForSequenceClassification": "modeling_glm.GLMForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_glm.GLMForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_glm.GLMForQuestionAnswering",
}
# The class that config.json names, by what the model is for. The first two have the same weights.
ARCHITECTURES = {
    "generation": "GLMForConditionalGeneration",
    "multiple-choice": "GLMForMultipleChoice",
    "classification": CLASSIFIER_CLASS,
}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", re.IGNORECASE)
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class TokenizerFiles:
    """What the folder gets of a tokenizer.

    Attributes:
        kind: its class in tokenization_glm.py.
        files: the vocabulary, in the order of ``kind.files``, whose names the copies get.
        num_tokens: ids it gives; the model's vocabulary holds at least as many.
        token_ids: ``pad_token_id`` and the like of generation_config.json.
        lower_case: of the BERT family.
    """

    kind: HubTokenizer
    files: Sequence[Path]
    num_tokens: int
    token_ids: Mapping[str, int] = field(default_factory=dict)
    lower_case: bool = True


@dataclass(frozen=True)
class ExportOptions:
    """How the folder is written.

    Attributes:
        max_shard_size: bytes of a weight file, at most (one larger parameter has a file of its own).
        purpose: a key of ``ARCHITECTURES``; None chooses by the weights.
        pool_token: what the classifier of the checkpoint read; the class of the layout knows ``cls``.
        shared_row: (row, row it becomes a copy of) of the word embeddings.
        generation: content of generation_config.json; None makes one from the tokenizer.
        pretraining: how samples and objectives were made, where that is known (``PRETRAINING_OPTIONS``).
        dtype: of the weights in the folder; None is as they are.
    """

    max_shard_size: int = 5 * 10**9
    purpose: str | None = None
    pool_token: str = "cls"
    shared_row: tuple[int, int] | None = None
    generation: Mapping[str, Any] | None = None
    pretraining: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype | None = None

    def of_description(self, description: ModelDescription, folder: Path) -> ExportOptions:
        """Return them for the described model: one that is exported again keeps its class and generation settings."""
        fields = description.hub_fields
        if fields is None:
            return replace(self, shared_row=description.shared_row, pretraining=description.pretraining)
        named = fields.get("architectures") or ()
        purpose = next((purpose for purpose, architecture in ARCHITECTURES.items() if architecture in named), None)
        file = folder / GENERATION_FILE
        generation = read_json(file) if file.is_file() else None
        return replace(
            self, purpose=self.purpose or purpose, generation=generation, pretraining=description.pretraining
        )


def parse_size(text: str) -> int:
    """Return the bytes that ``5GB``, ``200MB`` or ``1000`` stand for; raise ValueError for anything else."""
    match = SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise ValueError(f"--max-shard-size is {text!r}; give a size such as 5GB or 200MB")
    return size


def check_weights(weights: WholeWeights, config: GLMConfig) -> list[str]:
    """Return the names of the model's parameters in their order, those of a classifier's head last.

    Raises ValueError with one line when parameters are missing, unknown or of another shape.
    """
    check_layers(config, weights.pieces, file=weights.file)
    expected = {name: tuple(tensor.shape) for name, tensor in GLMModel(config, device="meta").state_dict().items()}
    head = [name for name in HEAD_NAMES if name in weights.pieces]
    missing = [name for name in expected if name not in weights.pieces]
    if missing:
        raise ValueError(
            f"{weights.file} holds a part of a model: {len(missing)} of {len(expected)} parameters are missing "
            f"({missing[0]}, ...); name the model that belongs to it with --load-pretrained"
        )
    unexpected = [name for name in weights.pieces if name not in expected and name not in head]
    if unexpected:
        raise ValueError(
            f"{weights.file} has {unexpected[0]}, which is not a parameter of a GLM; give a GLM checkpoint"
        )
    for name, shape in expected.items():
        if weights.shape(name) != shape:
            raise ValueError(
                f"{name} has shape {weights.shape(name)} in {weights.file} and {shape} in the described model; "
                "describe the model it is"
            )
    return [*expected, *head]


def read_exported(
    weights: WholeWeights, name: str, *, shared_row: tuple[int, int] | None, dtype: torch.dtype | None = None
) -> Tensor:
    """Return a parameter as it is exported."""
    tensor = weights.read(name)
    tensor = tensor if dtype is None else tensor.to(dtype)
    if name == WORD_TABLE and shared_row is not None:
        if max(shared_row) >= len(tensor):
            raise ValueError(
                f"{weights.file} has a vocabulary of {len(tensor)} and no row {max(shared_row)}: it is another model "
                "than the one named"
            )
        target, source = shared_row
        tensor[target] = tensor[source]
    return tensor


def export_bin(weights: WholeWeights, *, shared_row: tuple[int, int] | None = None) -> Path:
    """Write pytorch_model.bin beside the checkpoint's file and return its path (the original's conversion).

    The weights keep names and types; those of a classifier get the names of its class. The whole model is in memory.
    Raises ValueError when the checkpoint is not one of a whole model.
    """
    # No parameter's shape depends on the number of heads, except where the weights tell it.
    config = GLMConfig(**{"num_attention_heads": 1} | sizes_from_shapes(weights.shapes(), file=weights.file))
    names = check_weights(weights, config)
    rename = hub_name if any(name in HEAD_NAMES for name in names) else str
    content = {rename(name): read_exported(weights, name, shared_row=shared_row) for name in names}
    path = weights.location.folder / BIN_FILE
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{BIN_FILE}")
    try:
        listed = listed_checksums(path.parent)
        listed[path.name] = write_shard(temporary, content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    write_checksums(path.with_name(CHECKSUMS_FILE), listed)
    sync_folder(path.parent)
    return path


def export_folder(
    weights: WholeWeights,
    folder: Path,
    *,
    config: GLMConfig,
    tokenizer: TokenizerFiles | None,
    options: ExportOptions | None = None,
    name: str,
) -> list[Path]:
    """Write the model into the new folder ``folder`` and return the files in it. ``name`` is the model card's title.

    Raises ValueError with one line when the weights are not those of ``config``, the tokenizer has more ids than the
    model, or the folder exists; OSError when it cannot be written. Then nothing is left behind.
    """
    options = options or ExportOptions()
    check_is_new(folder)
    if config.relative_encoding:
        raise ValueError(
            f"{weights.file} has relative positions (--transformer-xl), which the Hugging Face classes lack"
        )
    names = check_weights(weights, config)
    architecture = _architecture(names, options)
    if tokenizer is not None and tokenizer.num_tokens > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.num_tokens} ids, the model of {weights.file} a vocabulary of "
            f"{config.vocab_size}; choose the tokenizer it was trained with"
        )
    with new_folder(folder) as new:
        temporary = new.path
        _write_weights(weights, names, new, options=options)
        fields = _config_file(weights, config, architecture=architecture, options=options)
        if tokenizer is not None:
            fields |= _write_tokenizer(tokenizer, temporary, positions=config.max_position_embeddings)
        _write_json(temporary / CONFIG_FILE, fields)
        _write_json(temporary / GENERATION_FILE, _generation_file(tokenizer, options=options))
        repository = CODE_FOLDER.parent.parent
        for file in (*CODE_FOLDER.glob(CODE_FILES), *(repository / name for name in LICENCE_FILES)):
            shutil.copyfile(file, temporary / file.name)
        card = model_card(name, config, architecture=architecture, has_tokenizer=tokenizer is not None)
        write_whole(temporary / CARD_FILE, card)
        for file in temporary.iterdir():
            shutil.copymode(temporary / CONFIG_FILE, file)  # some libraries keep their files from everyone else
    return sorted(folder.iterdir())


def _architecture(names: Sequence[str], options: ExportOptions) -> str:
    has_head = "multichoice_head.weight" in names
    purpose = options.purpose or ("classification" if has_head else "generation")
    if (purpose == "classification") != has_head:
        raise ValueError(
            f"the checkpoint {'has a' if has_head else 'lacks the'} classification head, so it cannot become a "
            f"{ARCHITECTURES[purpose]}; leave --purpose out"
        )
    if has_head and options.pool_token != "cls":
        raise ValueError(
            f"{CLASSIFIER_CLASS} reads the first position (--pool-token cls); a head trained with --pool-token "
            f"{options.pool_token} cannot be exported"
        )
    return ARCHITECTURES[purpose]


def _config_file(
    weights: WholeWeights, config: GLMConfig, *, architecture: str, options: ExportOptions
) -> dict[str, Any]:
    fields = {"architectures": [architecture], "auto_map": AUTO_MAP, **config_fields(config, options.pool_token)}
    fields["torch_dtype"] = str(options.dtype or weights.dtype).removeprefix("torch.")
    if architecture == CLASSIFIER_CLASS:
        count = weights.shape("multichoice_head.weight")[0]
        fields["classifier_dropout"] = config.output_dropout
        fields["id2label"] = {str(number): f"LABEL_{number}" for number in range(count)}
        fields["label2id"] = {f"LABEL_{number}": number for number in range(count)}
    if options.pretraining:
        fields[PRETRAINING_KEY] = dict(options.pretraining)
    return fields


def _generation_file(tokenizer: TokenizerFiles | None, *, options: ExportOptions) -> Mapping[str, Any]:
    if options.generation is not None:
        return options.generation
    content: dict[str, Any] = {"_from_model_config": False, **(tokenizer.token_ids if tokenizer is not None else {})}
    if options.shared_row is not None:
        content["suppress_tokens"] = [options.shared_row[0]]
    return content


def plan_files(sizes: Mapping[str, int], *, limit: int) -> list[list[str]]:
    """Spread parameters, in order, over files of at most ``limit`` bytes; a larger one has a file of its own."""
    files: list[list[str]] = [[]]
    total = 0
    for name, size in sizes.items():
        if files[-1] and total + size > limit:
            files.append([])
            total = 0
        files[-1].append(name)
        total += size
    return files


def _write_weights(weights: WholeWeights, names: Sequence[str], new: NewFolder, *, options: ExportOptions) -> None:
    sizes = {name: weights.num_bytes(name) for name in names}
    if options.dtype is not None:
        sizes = {name: math.prod(weights.shape(name)) * options.dtype.itemsize for name in names}
    files = plan_files(sizes, limit=options.max_shard_size)
    places: dict[str, str] = {}
    for number, group in enumerate(files, start=1):
        part = f"-{number:05d}-of-{len(files):05d}" if len(files) > 1 else ""
        file = f"model{part}.safetensors"
        shared_row, dtype = options.shared_row, options.dtype
        content = {hub_name(name): read_exported(weights, name, shared_row=shared_row, dtype=dtype) for name in group}
        with new.create(file) as written:
            write_safetensors(written, content)
        places |= dict.fromkeys(content, file)
    if len(files) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(places.items()))}
        _write_json(new.path / HUB_FILES[0], index)


def _write_tokenizer(tokenizer: TokenizerFiles, folder: Path, *, positions: int) -> dict[str, Any]:
    """Copy the vocabulary into ``folder`` and let the layout's class write the other files.

    Returns what config.json says of its ids, with which a model fills the blanks of texts that pipelines give it.
    """
    try:
        from model.hf import tokenization_glm
    except ImportError as error:
        raise ValueError(
            "the tokenizer's files need the package transformers: pip install 'transformers>=4.40'; --no-tokenizer "
            "leaves them out"
        ) from error
    kind = tokenizer.kind
    for file, name in zip(tokenizer.files, kind.files, strict=True):
        shutil.copyfile(file, folder / name)
    settings: dict[str, Any] = {
        "tokenizer_class": kind.class_name,
        "auto_map": {"AutoTokenizer": [f"tokenization_glm.{kind.class_name}", None]},
        "model_max_length": positions,
    }
    if kind.vocabulary == "bert":
        settings["do_lower_case"] = tokenizer.lower_case
    config = folder / TOKENIZER_CONFIG
    write_whole(config, json.dumps(settings))
    try:
        made = getattr(tokenization_glm, kind.class_name).from_pretrained(folder)
        made.save_pretrained(folder)
    except Exception as error:  # on a full disk the package tokenizers raises one without a class
        raise OSError(f"the tokenizer's files cannot be written: {' '.join(str(error).split())[:200]}") from error
    _write_json(config, read_json(config) | settings)
    # Pipelines of old versions of transformers look for a tokenizer where config.json names one.
    names = {"tokenizer_class": kind.class_name}
    return names | {"mask_token_ids": made.mask_token_ids, "sop_token_id": made.sop_token_id}


def model_card(name: str, config: GLMConfig, *, architecture: str, has_tokenizer: bool) -> str:
    """Return the README.md of an exported model."""
    auto_class = next(auto for auto, place in AUTO_MAP.items() if place.endswith(f".{architecture}"))
    sizes = (
        f"{count_parameters(config):,} parameters: {config.num_layers} layers, hidden size {config.hidden_size}, "
        f"{config.num_attention_heads} heads, {config.max_position_embeddings} positions, vocabulary "
        f"{config.vocab_size}."
    )
    names, lines = auto_class, [f"model = {auto_class}.from_pretrained(folder, trust_remote_code=True)"]
    if has_tokenizer:
        names = f"AutoTokenizer, {auto_class}"
        lines.insert(0, "tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)")
    if has_tokenizer and architecture == ARCHITECTURES["generation"]:
        lines += [
            "",
            'inputs = tokenizer("The capital of France is [MASK].", return_tensors="pt")',
            "inputs = tokenizer.build_inputs_for_generation(inputs, max_gen_length=16)",
            "outputs = model.generate(**inputs, max_new_tokens=16, eos_token_id=tokenizer.eop_token_id)",
            "print(tokenizer.decode(outputs[0].tolist()))",
        ]
    code = "\n".join([f"from transformers import {names}", "", 'folder = "."  # where this file is', *lines])
    return (
        f"---\nlibrary_name: transformers\ntags: [glm]\n---\n\n# {name}\n\n"
        "A GLM ([General Language Model](https://arxiv.org/abs/2103.10360)), which fills blanks in a text.\n"
        f"{sizes}\n\n```python\n{code}\n```\n\n## Licence\n\n"
        "The code (`*_glm.py`) is under the MIT License: `LICENSE`. The weights have the terms of those who trained\n"
        "them; the pages of the released GLM weights state no licence. What the code owes to whom: `NOTICE`.\n"
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
