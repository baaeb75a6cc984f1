"""Write a model of the Hugging Face layout as a checkpoint of GLM, of any size.

    mp_rank_00_model_states.pt ...      the weights
    config.json, generation_config.json, tokenizer files       as in the folder read, for a later export
    model.sh                            flags of the programs here, as in config_tasks/

One new weight file is in memory at a time. The folder appears as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model.checkpoints.format import HEAD_NAMES, reshard_tensor
from model.checkpoints.reading import WholeWeights, read_whole_weights, shard_name
from model.checkpoints.safe_loading import release_pages
from model.checkpoints.writing import check_is_new, new_folder
from model.config import GLMConfig
from model.hub.describe import (
    CONFIG_FILE,
    TokenizerDescription,
    config_from_fields,
    copy_description,
    model_file,
    read_fields,
    tokenizer_of_folder,
)
from model.hub.export import check_weights
from model.hub.weight_files import HUB_FILES, SAFETENSORS

HUB_PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model*.bin")
MODEL_PREFIX = "model."  # of the language model's names in a classifier's checkpoint


@dataclass(frozen=True)
class HubModel:
    """A folder of the Hugging Face layout."""

    folder: Path
    config: GLMConfig
    weights: WholeWeights
    tokenizer: TokenizerDescription | None


def fetch_model(name: str) -> Path:
    """Return the folder that ``name`` is, or into which the hub's model of this name was downloaded.

    Raises ValueError with one line when there is neither.
    """
    if Path(name).exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return Path(name)
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(f"{name}: no such folder; to download it: pip install huggingface_hub") from error
    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_PATTERNS)))
    except Exception as error:  # the hub's errors have no common root
        reason = str(error).strip().split("\n")[0][:150]
        raise ValueError(f"{name} is not a folder here and cannot be downloaded from the hub: {reason}") from error


def open_hub_model(folder: Path) -> HubModel:
    """Open a folder without reading its weights; raise ValueError with one line when it holds no GLM."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give one of the Hugging Face layout, or a model's name on the hub")
    fields = read_fields(folder)
    if fields is None:
        raise ValueError(f"{folder} has no {CONFIG_FILE}; give the folder of a model of the Hugging Face layout")
    config = config_from_fields(fields, file=folder / CONFIG_FILE)
    tokenizer = tokenizer_of_folder(folder)
    if not any((folder / name).is_file() for name in HUB_FILES) and not any(folder.glob(f"*{SAFETENSORS}")):
        raise ValueError(f"{folder} holds no weights; copy {HUB_FILES[1]} or {HUB_FILES[3]} into it")
    weights = read_whole_weights(folder)
    if weights.location.hub_file is None:
        raise ValueError(f"{folder} is a checkpoint of GLM already; change_mp.py writes it for another size")
    check_weights(weights, config)
    return HubModel(folder, config, weights, tokenizer)


def import_folder(model: HubModel, folder: Path, *, size: int = 1) -> list[Path]:
    """Write the model into the new folder ``folder`` for ``size`` model-parallel ranks; return the weight files.

    Raises ValueError when the model cannot be cut evenly or the folder exists, OSError when it cannot be written. Then
    nothing is left behind.
    """
    if size < 1:
        raise ValueError(f"--model-parallel-size is {size}; give a number of at least 1")
    check_is_new(folder)
    names = check_weights(model.weights, model.config)
    with new_folder(folder) as new:
        for rank in range(size):  # one at a time: memory holds one new shard, the present files are mapped
            weights = _shard(model.weights, names, size=size, rank=rank)
            new.write_shard(rank, {"module": weights, "mp_world_size": size})
        copy_description(model.folder, new.path)
        flags = model_file(model.folder.resolve().name, model.config, model.tokenizer)
        (new.path / "model.sh").write_text(flags, encoding="utf-8")
    return [folder / shard_name(rank) for rank in range(size)]


def _shard(weights: WholeWeights, names: list[str], *, size: int, rank: int) -> Mapping[str, Tensor]:
    """Return the parameters of one rank under the names of the class the checkpoint is of."""
    prefix = MODEL_PREFIX if set(HEAD_NAMES).intersection(names) else ""
    shard = {}
    for name in names:
        part = reshard_tensor(name, weights.pieces[name], size=size, rank=rank)
        shard[name if name in HEAD_NAMES else f"{prefix}{name}"] = part.clone()
        release_pages(weights.pieces[name])
    return shard
