"""Save and load adapters in PEFT's format, and add them to the weights of a checkpoint.

    <folder>/adapter_config.json            rank, alpha, dropout and layers, as the package peft writes it
    <folder>/adapter_model.safetensors      the factors, whole, under the names peft gives them in the exported model
    <folder>/head_model.safetensors         only of classifiers: the trained head, under the exported model's names

An adapted weight ``transformer.layers.0.attention.dense.weight`` has the factors
``base_model.model.glm.transformer.layers.0.attention.dense.lora_A.weight`` [r,in] and ``...lora_B.weight`` [out,r].
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Generator, Tensor, nn

from files.checksums import warn_when_edited
from files.reading import described, read_json, value_of
from model.checkpoints.checks import check_finite, not_finite
from model.checkpoints.format import (
    ADAPTER_NAME,
    HEAD_NAMES,
    HUB_HEAD_NAMES,
    canonical_name,
    hub_name,
    merge_tensors,
    rule_for,
    split_tensor,
)
from model.checkpoints.reading import (
    CheckpointLocation,
    CheckpointShards,
    LoadReport,
    iteration_of,
    load_weights,
    present_folder,
    read_all_shards,
    resolve_checkpoint,
    weights_in,
)
from model.checkpoints.writing import check_is_new, new_folder
from model.config import LORA_TARGETS, LoraSettings
from model.hub.describe import copy_description
from model.hub.weight_files import read_hub_file, write_safetensors
from model.lora import adapted_layers, add_adapters, low_rank_product
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from mpu.mappings import concatenate_last_dim

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
HEAD_FILE = "head_model.safetensors"
PEFT_PREFIX = "base_model.model."
LARGEST_RANK = 1 << 20

# Options of PEFT that change what an adapter computes. Adapters that use one of them are refused.
UNSUPPORTED_OPTIONS = (
    "use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "lora_bias", "rank_pattern", "alpha_pattern",
    "layers_to_transform", "layer_replication", "trainable_token_indices", "target_parameters",
    "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip
# Ways of drawing the first values that leave the weights of the model as they are.
HARMLESS_STARTS = (True, False, "gaussian", "eva", "orthogonal", None)


@dataclass(frozen=True)
class Adapter:
    """An adapter outside of a model: whole factors and head layers under the names of the table of parameters."""

    settings: LoraSettings
    weights: dict[str, Tensor]
    folder: Path

    @property
    def adapted(self) -> list[str]:
        return adapted_weights(self.weights)


def adapted_weights(names: Mapping[str, Any]) -> list[str]:
    """Return the names of the weights that factors among ``names`` belong to."""
    matches = filter(None, map(ADAPTER_NAME.fullmatch, names))
    return list(dict.fromkeys(f"{match[1]}.weight" for match in matches))


def gather_adapter(network: nn.Module, *, topology: ParallelTopology) -> dict[str, Tensor]:
    """Return the whole factors and head layers of ``network``, a GLM or a head around one, on the CPU.

    Every rank of a model-parallel group has to call it; each gets the same.
    """
    size = topology.model_parallel_size
    whole = {}
    for full_name, parameter in network.named_parameters():
        name = canonical_name(full_name)
        if not (ADAPTER_NAME.fullmatch(name) or name in HEAD_NAMES):
            continue
        value = parameter.detach()
        if size > 1 and rule_for(name).dim is not None:
            value = merge_tensors(name, concatenate_last_dim(value, topology).chunk(size, dim=-1))
        whole[name] = value.cpu().clone()
    assert adapted_weights(whole), "the network has no adapters"
    return whole


def save_adapter(
    folder: Path, network: nn.Module, *, topology: ParallelTopology, base_model: str | None = None
) -> None:
    """Write the adapters of ``network`` to ``folder``; every rank has to call it, the first one writes.

    ``base_model`` says where the model's own weights come from. The folder appears as a whole and replaces an older
    one. Raises ValueError when a weight is not finite, OSError when the folder cannot be written.
    """
    weights = gather_adapter(network, topology=topology)
    settings = adapted_layers(network)[0].settings
    if topology.rank != 0:
        return
    factors = {
        f"{PEFT_PREFIX}{hub_name(name)}": value for name, value in weights.items() if ADAPTER_NAME.fullmatch(name)
    }
    head = {hub_name(name): value for name, value in weights.items() if not ADAPTER_NAME.fullmatch(name)}
    broken = not_finite(weights)
    if broken is not None:
        raise ValueError(f"{broken} holds NaN or infinity: the adapter is not written to {folder}")
    with new_folder(folder) as new:
        config = json.dumps(peft_config(settings, base_model=base_model), indent=2)
        (new.path / CONFIG_FILE).write_text(f"{config}\n", encoding="utf-8")
        for name, tensors in ((WEIGHT_FILES[0], factors), (HEAD_FILE, head)):
            if tensors:
                with new.create(name) as written:
                    write_safetensors(written, tensors)


def native_name(name: str) -> str:
    """Return the name of the table for that of a factor or a head's parameter in PEFT's files."""
    name = canonical_name(name.removeprefix(PEFT_PREFIX))
    return HUB_HEAD_NAMES.get(name, name)


def read_adapter(folder: Path) -> Adapter:
    """Read the adapter in ``folder``, written here or by the package peft.

    Raises ValueError when there is none, or it is of a kind that a GLM cannot take here.
    """
    folder = present_folder(folder)
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ValueError(f"{folder} holds no {CONFIG_FILE}; give the folder of an adapter (LoRA)")
    warn_when_edited(file)
    config: dict[str, Any] = read_json(file)
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"{folder} lacks {WEIGHT_FILES[0]}; copy the whole folder")
    present = read_hub_file(path)["module"]
    if (folder / HEAD_FILE).is_file():
        present = {**present, **read_hub_file(folder / HEAD_FILE)["module"]}
    check_finite(present, file=path)
    weights = {native_name(name): tensor for name, tensor in present.items()}
    for name in weights:
        if not (ADAPTER_NAME.fullmatch(name) or name in HEAD_NAMES):
            raise ValueError(f"{path} holds {name!r}, which is not an adapter of a GLM; give one made for it")
    modules = [name.removesuffix(".weight") for name in adapted_weights(weights)]
    settings = settings_of_peft(config, modules=modules, file=str(file))
    for module in modules:
        a, b = (weights.get(f"{module}.lora_{factor}.weight") for factor in "AB")
        if a is None or b is None or a.dim() != 2 or b.dim() != 2 or {len(a), b.size(1)} != {settings.rank}:
            raise ValueError(f"{path}: the factors of {module} are not of rank {settings.rank}; copy the folder again")
    return Adapter(settings, weights, folder)


def peft_config(settings: LoraSettings, *, base_model: str | None) -> dict[str, Any]:
    """Return the content of adapter_config.json; ``base_model`` says where the model's weights come from."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "r": settings.rank,
        "lora_alpha": int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": [LORA_TARGETS[name] for name in settings.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def settings_of_peft(config: Mapping[str, Any], *, modules: Sequence[str], file: str) -> LoraSettings:
    """Return the settings that adapter_config.json and the adapted ``modules`` of the weight file stand for.

    PEFT's target_modules may be patterns; the names in the weight file are exact. Raises ValueError for another kind of
    adapter, an option that changes what it computes, or modules that have no adapters here. ``file`` is for messages.
    """
    kind = value_of(config, "peft_type", str, place=file)
    if kind != "LORA":
        raise ValueError(f"{file} is for adapters of kind {described(kind)}; only LORA can be read")
    for name in UNSUPPORTED_OPTIONS:
        if config.get(name):
            raise ValueError(
                f"{file} has {name} = {described(config[name])}, which is not supported here; use it with PEFT"
            )
    bias = value_of(config, "bias", str, place=file, default="none")
    if bias != "none":
        raise ValueError(f"{file} trains biases ({described(bias)}), which is not supported here; use it with PEFT")
    start = config.get("init_lora_weights", True)
    if start not in HARMLESS_STARTS:
        raise ValueError(
            f"{file} has init_lora_weights {described(start)}, which changes the model's own weights; convert it with "
            "PEFT (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    rank = value_of(config, "r", int, place=file, at_least=1, at_most=LARGEST_RANK)
    alpha = value_of(config, "lora_alpha", float, place=file, above=0)
    dropout = value_of(config, "lora_dropout", float, place=file, default=0.0, at_least=0, below=1)
    rooted = value_of(config, "use_rslora", bool, place=file, default=False)
    places = {place: name for name, place in LORA_TARGETS.items()}
    adapted = {".".join(module.split(".")[-2:]) for module in modules}
    unknown = sorted(adapted - set(places))
    if unknown or not adapted:
        raise ValueError(
            f"{file}: its weights adapt {', '.join(unknown) or 'nothing'}; adapters of {', '.join(places)} can be read"
        )
    targets = tuple(name for name, place in LORA_TARGETS.items() if place in adapted)
    # PEFT's other convention divides by the root of the rank.
    return LoraSettings(rank, alpha * math.sqrt(rank) if rooted else alpha, dropout, targets)


def load_adapter(network: nn.Module, model: GLMModel, adapter: Adapter, *, topology: ParallelTopology) -> LoadReport:
    """Give ``model``, the GLM inside ``network`` (or itself), the adapters read, whatever its model-parallel size.

    The model's own weights have to be loaded before. Raises ValueError when the adapter is for a model of other sizes
    or lacks layers of this one.
    """
    add_adapters(model, adapter.settings, generator=Generator())  # filled in below
    location = CheckpointLocation(adapter.folder, adapter.folder.name, None, None)
    shards = CheckpointShards(location, [{"module": adapter.weights}], same_size=False)
    report = load_weights(network, shards, topology=topology)
    missing = [name for name in report.missing if ADAPTER_NAME.fullmatch(name)]
    unexpected = [name for name in report.unexpected if ADAPTER_NAME.fullmatch(name)]
    if missing or unexpected:
        what = f"lacks {missing[0]}" if missing else f"has {unexpected[0]} as well"
        raise ValueError(f"{adapter.folder} is for another model: it {what}; check --num-layers")
    return report


def merge_into_checkpoint(checkpoint: Path, adapter: Adapter, output: Path) -> Path:
    """Write the checkpoint's weights with the adapter added to ``output``, in as many shards, and return it.

    ``checkpoint`` is what the adapter was trained on, of any model-parallel size and either layout. Weights keep their
    type; memory holds one shard. Raises ValueError when the adapter does not fit, or ``output`` is not new.
    """
    check_is_new(output)
    location = resolve_checkpoint(checkpoint)
    files = location.shard_files()
    contents = read_all_shards(location)
    with new_folder(output) as new:
        for rank, (file, content) in enumerate(zip(files, contents, strict=True)):
            check_finite(weights_in(content, file=file), file=file)
            weights = {canonical_name(name): tensor for name, tensor in weights_in(content, file=file).items()}
            merged = {**weights, **_merged(weights, adapter, size=len(files), rank=rank, file=file)}
            iteration = iteration_of(content, location)
            new.write_shard(rank, {"module": merged, "iteration": iteration, "mp_world_size": len(files)})
        copy_description(location.folder, new.path)
    return output


def _merged(weights: Mapping[str, Tensor], adapter: Adapter, *, size: int, rank: int, file: Path) -> dict[str, Tensor]:
    """Return the weights of shard ``rank`` of ``size`` that the adapter changes, and its head layers."""
    merged = {name: value for name, value in adapter.weights.items() if not ADAPTER_NAME.fullmatch(name)}
    for name in adapter.adapted:
        if name not in weights:
            raise ValueError(f"{adapter.folder} adapts {name}, which {file} lacks; give the model it was trained on")
        factors = [f"{name.removesuffix('.weight')}.lora_{factor}.weight" for factor in "AB"]
        down, up = (split_tensor(factor, adapter.weights[factor], size)[rank] for factor in factors)
        weight = weights[name]
        if weight.shape != (len(up), down.size(1)):
            raise ValueError(
                f"{adapter.folder} is for a {name} of shape {(len(up), down.size(1))}, {file} has "
                f"{tuple(weight.shape)}; give the model it was trained on"
            )
        product = low_rank_product(down, up, scale=adapter.settings.scale)
        merged[name] = (weight.float() + product).to(weight.dtype)
    return merged
