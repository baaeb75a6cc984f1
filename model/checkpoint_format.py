"""The layout of checkpoints: folders, parameter names, shards, loading of weights (spec: model 7, 8.3, 11, 12).

One table says how every parameter is cut over tensor-parallel ranks; saving, loading and resharding follow it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.safe_loading import read_checkpoint_file
from mpu.initialize import ParallelTopology

TRACKER = "latest_checkpointed_iteration.txt"
DEEPSPEED_TRACKER = "latest"
SHARD_NAME = "mp_rank_{:02d}_model_states.pt"
SHARD_PATTERN = re.compile(r"mp_rank_(\d+)_model_states\.pt")

Rule = Literal["rows", "three_rows", "columns", "replicated"]

# How a parameter is cut: along its rows, along the rows of each of its three thirds (query, key, value), along its
# columns, or not at all. The first pattern that matches the name counts.
PARAMETER_RULES: tuple[tuple[re.Pattern[str], Rule], ...] = tuple(
    (re.compile(pattern), rule)
    for pattern, rule in (
        (r"(^|\.)prompt_spell\.", "replicated"),
        (r"(^|\.)(pool_layer|multichoice_head)\.", "replicated"),
        (r"(^|\.)word_embeddings\.weight$", "rows"),
        (r"position_embeddings\.(weight|inv_freq)$", "replicated"),
        (r"attention\.query_key_value\.(weight|bias)$", "three_rows"),
        (r"attention\.relative\.(weight|bias)$", "rows"),
        (r"attention\.dense\.weight$", "columns"),
        (r"attention\.dense\.bias$", "replicated"),
        (r"mlp\.dense_h_to_4h\.(weight|bias)$", "rows"),
        (r"mlp\.dense_4h_to_h\.weight$", "columns"),
        (r"mlp\.dense_4h_to_h\.bias$", "replicated"),
        (r"layernorm\.(weight|bias)$", "replicated"),
        (r"transformer\.r_[wr]_bias$", "rows"),
    )
)

# Other names that checkpoints of the same model carry (spec: model 11.6).
FOREIGN_PREFIXES = ("module.", "model.", "glm.")
FOREIGN_NAMES = {
    "transformer.word_embeddings.weight": "word_embeddings.weight",
    "mixins.block_position_embedding.block_position_embeddings.weight": "transformer.block_position_embeddings.weight",
}


def split_rule(name: str) -> Rule:
    """Return how parameter ``name`` is cut. Raises ValueError for a name that no model here has."""
    for pattern, rule in PARAMETER_RULES:
        if pattern.search(name):
            return rule
    raise ValueError(f"{name}: no such parameter in a GLM checkpoint; it cannot be cut over tensor-parallel ranks")


def split_tensor(name: str, tensor: Tensor, num_parts: int) -> list[Tensor]:
    """Cut a whole parameter into one shard per rank (views where possible)."""
    rule = split_rule(name)
    if rule == "replicated" or num_parts == 1:
        return [tensor] * num_parts
    dim = 1 if rule == "columns" else 0
    blocks = 3 if rule == "three_rows" else 1
    if tensor.size(dim) % (num_parts * blocks):
        raise ValueError(f"{name}: {tensor.size(dim)} along dimension {dim} do not divide into {num_parts} parts")
    if rule == "three_rows":
        thirds = [third.chunk(num_parts) for third in tensor.chunk(3)]
        return [torch.cat(parts) for parts in zip(*thirds, strict=True)]
    return list(tensor.chunk(num_parts, dim=dim))


def merge_tensors(name: str, shards: Sequence[Tensor]) -> Tensor:
    """Join the shards of a parameter, in rank order."""
    rule = split_rule(name)
    if rule == "replicated" or len(shards) == 1:
        return shards[0]
    if rule == "three_rows":
        thirds = zip(*(shard.chunk(3) for shard in shards), strict=True)
        return torch.cat([piece for third in thirds for piece in third])
    return torch.cat(list(shards), dim=1 if rule == "columns" else 0)


@dataclass(frozen=True)
class CheckpointLocation:
    """Where a checkpoint lies: ``folder`` holds one file per tensor-parallel rank, ``root`` the trackers."""

    root: Path
    folder: Path
    tag: str

    @property
    def shards(self) -> list[Path]:
        """Return the model files in rank order."""
        numbered = [(SHARD_PATTERN.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return [path for _, path in sorted((int(match[1]), path) for match, path in numbered if match)]


def resolve_checkpoint(path: str | Path) -> CheckpointLocation:
    """Find the checkpoint that ``path`` names (spec: model 11.3).

    A folder with a tracker leads to the sub-folder of its tag; otherwise the folder itself holds the model files; a
    model file stands for its folder. Raises ValueError with one line when there is none.
    """
    path = Path(path)
    if SHARD_PATTERN.fullmatch(path.name) and path.is_file():
        path = path.parent
    if not path.is_dir():
        raise ValueError(f"{path}: no such checkpoint folder")
    location = CheckpointLocation(path.parent, path, path.name)
    for name in (TRACKER, DEEPSPEED_TRACKER):
        if (path / name).is_file():
            tag = (path / name).read_text(encoding="utf-8").strip()
            location = CheckpointLocation(path, path / tag, tag)
            if not location.folder.is_dir():
                raise ValueError(f"{path / name} names checkpoint {tag!r}, but there is no folder {location.folder}")
            break
    if not location.shards:
        raise ValueError(
            f"{location.folder}: no {SHARD_NAME.format(0)} here; name the folder of a checkpoint, or the one that "
            f"holds its {TRACKER}"
        )
    return location


@dataclass(frozen=True)
class LoadReport:
    """What loading weights did; names are those of the model."""

    file: Path
    iteration: int
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    grown: tuple[str, ...] = field(default=())

    def summary(self) -> str:
        """Return one line: the file, and how many tensors were loaded, missing, unexpected, grown."""
        line = f"loaded {len(self.loaded)} tensors from {self.file} (iteration {self.iteration})"
        for what, names in (("missing", self.missing), ("unexpected", self.unexpected), ("grown", self.grown)):
            shown = f": {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}" if names else ""
            line += f", {len(names)} {what}{shown}"
        return line


def canonical_names(module: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a foreign layout to ours: wrapper prefixes off, other names mapped."""
    renamed = {}
    for name, tensor in module.items():
        while prefix := next((p for p in FOREIGN_PREFIXES if name.startswith(p)), None):
            name = name[len(prefix) :]  # noqa: PLW2901
        renamed[FOREIGN_NAMES.get(name, name)] = tensor
    return renamed


def iteration_of(content: Mapping[str, Any]) -> int:
    """Return the updates a checkpoint has behind it (old files call it ``total_iters``)."""
    return int(content.get("iteration", content.get("total_iters", 0)) or 0)


def weights_of(content: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint's ``module`` under our names. Raises ValueError when it has none."""
    module = content.get("module")
    if not isinstance(module, Mapping) or not all(isinstance(tensor, Tensor) for tensor in module.values()):
        raise ValueError(f"{file}: no weights under the key 'module' (keys: {', '.join(map(str, content))[:80]})")
    return canonical_names(module)


def load_model_weights(
    model: nn.Module,
    path: str | Path,
    *,
    topology: ParallelTopology | None = None,
    dtype: torch.dtype | None = None,
) -> LoadReport:
    """Load the weights of the checkpoint at ``path`` into ``model``, or into this rank's shard of it.

    The checkpoint may be cut for another number of tensor-parallel ranks. Position tables that are shorter than the
    model's are grown: the rows beyond keep their initial values (spec: model 11.5). Parameters on the meta device
    receive the file's tensors themselves, as ``dtype`` (None: as stored).

    Raises:
        ValueError: no checkpoint, a damaged file, another vocabulary or model size, nothing that fits.
    """
    location = resolve_checkpoint(path)
    contents = [read_checkpoint_file(shard) for shard in _shards_to_read(location, topology)]
    return load_contents(model, contents, location, topology=topology, dtype=dtype)


def _shards_to_read(location: CheckpointLocation, topology: ParallelTopology | None) -> list[Path]:
    shards = location.shards
    topology = topology or ParallelTopology.single()
    if len(shards) == topology.model_parallel_size:
        return [shards[topology.model_parallel_rank]]
    return shards


def load_contents(
    model: nn.Module,
    contents: Sequence[Mapping[str, Any]],
    location: CheckpointLocation,
    *,
    topology: ParallelTopology | None = None,
    dtype: torch.dtype | None = None,
) -> LoadReport:
    """Load what ``read_checkpoint_file`` returned: this rank's shard, or all shards to be cut anew."""
    topology = topology or ParallelTopology.single()
    file = location.shards[0]
    shards = [weights_of(content, file) for content in contents]
    own = model.state_dict()
    fitting: dict[str, Tensor] = {}
    grown: list[str] = []
    for name in own:
        if name not in shards[0]:
            continue
        tensor = shards[0][name]
        if len(shards) > 1 or len(location.shards) != topology.model_parallel_size:
            whole = merge_tensors(name, [shard[name] for shard in shards])
            tensor = split_tensor(name, whole, topology.model_parallel_size)[topology.model_parallel_rank]
        if tensor.shape != own[name].shape:
            tensor = _grow_positions(name, tensor, own[name], file=file)
            grown.append(name)
        fitting[name] = tensor
    if not fitting:
        raise ValueError(
            f"{file}: none of its {len(shards[0])} tensors belongs to this model (the first is "
            f"{next(iter(shards[0]), 'missing')!r}); is it a GLM checkpoint?"
        )
    _assign(model, fitting, dtype=dtype)
    return LoadReport(
        file=file,
        iteration=iteration_of(contents[0]),
        loaded=tuple(fitting),
        missing=tuple(name for name in own if name not in fitting),
        unexpected=tuple(name for name in shards[0] if name not in own),
        grown=tuple(grown),
    )


def _assign(model: nn.Module, tensors: dict[str, Tensor], *, dtype: torch.dtype | None) -> None:
    """Copy tensors into the model; a model on the meta device takes them as they are."""
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    if on_meta:
        absent = [name for name, parameter in model.named_parameters() if name not in tensors]
        if absent:
            raise ValueError(f"the checkpoint lacks {len(absent)} of the model's tensors, the first is {absent[0]}")
        if dtype is not None:
            tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    with torch.no_grad():
        model.load_state_dict(tensors, strict=False, assign=on_meta)


def _grow_positions(name: str, tensor: Tensor, own: Tensor, *, file: Path) -> Tensor:
    """Return ``tensor`` continued by the rows that ``own`` has more, or explain why it does not fit."""
    if name == "word_embeddings.weight":
        raise ValueError(
            f"{file}: a vocabulary of {tensor.size(0)} rows x {tensor.size(1)}, but the tokenizer and model here make "
            f"{own.size(0)} x {own.size(1)}: give the tokenizer and the sizes the checkpoint was trained with"
        )
    is_position_table = name.endswith("position_embeddings.weight")
    if is_position_table and tensor.size(1) == own.size(1) and tensor.size(0) < own.size(0):
        start = torch.zeros_like(own, device="cpu") if own.is_meta else own.detach().cpu().clone()
        start[: tensor.size(0)] = tensor
        return start
    flags = "--max-position-embeddings" if is_position_table else "--num-layers, --hidden-size"
    raise ValueError(
        f"{file}: {name} is {list(tensor.shape)}, the model here has {list(own.shape)}: give the sizes the checkpoint "
        f"was trained with ({flags})"
    )
