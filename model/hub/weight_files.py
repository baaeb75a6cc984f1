"""Read weights from files of the Hugging Face layout: safetensors and pytorch_model.bin, whole or in parts.

    model.safetensors                   or  pytorch_model.bin
    model.safetensors.index.json        or  pytorch_model.bin.index.json, which names the file of each parameter

Parameters carry the names of the table, with or without a prefix. The head of a classifier, which
config.json tells from layers that are of no use, gets our names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from files.checksums import HashingFile
from files.reading import read_json, value_of
from model.checkpoints.checks import check_bytes
from model.checkpoints.format import HUB_HEAD_NAMES, canonical_name
from model.checkpoints.safe_loading import UnreadableCheckpointError, read_checkpoint_file
from model.hub.describe import is_classifier, read_fields

FILE_NAME = re.compile(r"(?!\.)[^/\\\0]{1,200}")
SAFETENSORS = ".safetensors"
INDEX = ".index.json"
# Names of number types in safetensors, in the order in which its own library sorts them: the widest first.
SAFETENSORS_TYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
# In the order of preference, where a folder has several.
HUB_FILES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")


def is_hub_file(path: Path) -> bool:
    """Tell whether a file is of this layout, by its name."""
    return path.name.endswith((SAFETENSORS, f"{SAFETENSORS}{INDEX}")) or path.name in HUB_FILES


def find_hub_file(folder: Path) -> Path | None:
    """Return the file in ``folder`` that holds, or names, all weights; None when there is no weight file.

    Raises ValueError when there are several and no index.
    """
    for name in HUB_FILES:
        if (folder / name).is_file():
            return folder / name
    files = sorted(file for file in folder.iterdir() if file.name.endswith(SAFETENSORS) and file.is_file())
    if len(files) > 1:
        raise ValueError(
            f"{folder} holds {len(files)} safetensors files and no {HUB_FILES[0]}, which names their parameters; "
            "copy it into the folder, or name one file"
        )
    return files[0] if files else None


def read_hub_file(path: Path) -> dict[str, Any]:
    """Return the weights of a weight file or of all files of an index, under ``module`` and the names of the table.

    The tensors are memory-mapped where possible. Raises ``UnreadableCheckpointError`` when a file is missing, damaged
    or does not have what the index promises.
    """
    if not path.name.endswith(INDEX):
        return {"module": _canonical(_read_weights(path), file=path)}
    places = _read_index(path)
    weights: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        weights |= _read_weights(path.with_name(name))
    missing = sorted(set(places) - set(weights))
    if missing:
        raise UnreadableCheckpointError(
            f"{path} names parameter {missing[0]!r}, which {places[missing[0]]} does not hold; copy all files again"
        )
    return {"module": _canonical({name: weights[name] for name in places}, file=path)}


def _read_index(path: Path) -> dict[str, str]:
    """Return the name of the file beside ``path`` that holds each parameter."""
    try:
        check_bytes(path)
        places = value_of(read_json(path), "weight_map", dict, place=str(path))
    except ValueError as error:
        raise UnreadableCheckpointError(str(error)) from error
    if not places or not all(isinstance(name, str) and FILE_NAME.fullmatch(name) for name in places.values()):
        raise UnreadableCheckpointError(f"{path} names no weight files of its own folder; use another one")
    return places


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UnreadableCheckpointError(f"{path} does not exist; copy all files of the model into its folder")
    check_bytes(path)
    return read_safetensors(path) if path.name.endswith(SAFETENSORS) else read_checkpoint_file(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, whose header and size fit together, memory-mapped where possible."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ValueError(f"{path} needs the package safetensors: pip install safetensors") from error
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # the file is no dictionary
    except (SafetensorError, OSError) as error:
        raise UnreadableCheckpointError(
            f"{path} cannot be read as safetensors: it is cut off, damaged or of another kind; use another one"
        ) from error


def write_safetensors(file: HashingFile, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` as one safetensors file, byte by byte what its own library writes.

    That one has no way to hear of every byte, and does not say what went wrong.
    """
    order = list(SAFETENSORS_TYPES)
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name in names:
        tensor = tensors[name]
        end = place + tensor.nbytes
        kind, shape = SAFETENSORS_TYPES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        values = tensors[name].detach().cpu().contiguous().reshape(-1)
        file.write(values.view(torch.uint8).numpy().data)


def _canonical(weights: dict[str, Tensor], *, file: Path) -> dict[str, Tensor]:
    heads = HUB_HEAD_NAMES if is_classifier(read_fields(file.parent)) else {}
    named = {heads.get(str(name)) or canonical_name(str(name)): tensor for name, tensor in weights.items()}
    if len(named) != len(weights):
        raise ValueError(f"{file} holds parameters under two names each; give a file of one model")
    return named
