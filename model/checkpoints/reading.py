"""Checkpoint folders: where the files are, and how their weights are read, into a model or one by one.

    <root>/latest_checkpointed_iteration.txt        the tag of the newest checkpoint
    <root>/latest                                   the same
    <root>/<tag>/mp_rank_00_model_states.pt         one file per model-parallel rank
    <root>/<tag>/mp_rank_00_weights.pt              the same beside the files of ZeRO stage 3

A folder of the Hugging Face layout (safetensors, pytorch_model.bin) counts as a checkpoint of one rank, and so does a
single file of any other name (pretrained.pt).

v vocabulary, h hidden
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from files.checksums import CHECKSUMS_FILE
from files.names import is_file_name
from files.reading import read_text
from model.checkpoints.checks import (
    NO_CHECKSUMS,
    FileOrigin,
    check_bytes,
    check_finite,
    check_same_save,
    check_tensors,
    listed_checksums,
    origin_of,
)
from model.checkpoints.format import (
    ADAPTER_NAME,
    ADDITIONAL_ROWS,
    BLOCK_POSITION_TABLE,
    HUB_HEAD,
    POSITION_TABLES,
    PREFIX_PROMPT,
    PROMPT_PREFIX,
    TRACKERS,
    WORD_TABLE,
    canonical_name,
    merge_tensors,
    reshard_tensor,
    rule_for,
)
from model.checkpoints.safe_loading import UnreadableCheckpointError, read_checkpoint_file, release_pages
from model.hub.weight_files import find_hub_file, is_hub_file, read_hub_file
from mpu.fsdp import fill_rows
from mpu.initialize import ParallelTopology
from mpu.mappings import gathered

RELEASE_TAG = "release"
# A checkpoint that is being replaced by one of the same tag waits under this prefix until the new one is complete.
REPLACED_PREFIX = ".old-"
# DeepSpeed's tools take every *_model_states.pt for a file of their own.
SHARD_NAME = re.compile(r"mp_rank_(\d+)_(?:model_states|weights)\.pt")
# Random states of all data ranks, when there are several; the keys of the original hold those of the first.
ALL_RANKS_KEY = "data_parallel_random_states"


def shard_name(rank: int, kind: str = "model_states") -> str:
    """Return the file name of model-parallel rank ``rank``; its ``kind`` is ``weights`` beside ZeRO stage 3."""
    return f"mp_rank_{rank:02d}_{kind}.pt"


def shard_file(folder: Path, rank: int) -> Path:
    """Return the file of model-parallel rank ``rank`` in ``folder``, or where it would be."""
    beside_zero = folder / shard_name(rank, "weights")
    return beside_zero if beside_zero.is_file() else folder / shard_name(rank)


@dataclass(frozen=True)
class CheckpointLocation:
    """One checkpoint on disk.

    Attributes:
        folder: the folder that holds the shard files.
        tag: its name, usually the iteration.
        iteration: the tag as a number; None for ``best``, ``release`` or a folder of another name.
        root: the run's folder with the tracker; None when ``folder`` was named directly.
        hub_file: the weight file or index of a model of the Hugging Face layout; None for the layout above.
        single_file: the file that holds everything, where it was named directly and has a name of its own.
    """

    folder: Path
    tag: str
    iteration: int | None
    root: Path | None
    hub_file: Path | None = None
    single_file: Path | None = None

    @property
    def path(self) -> Path:
        """Return what messages call the checkpoint: its folder, or the single file it is."""
        return self.single_file or self.folder

    def shard_files(self) -> list[Path]:
        """Return the shard files in rank order; raise ``UnreadableCheckpointError`` when one is missing."""
        if (file := self.single_file or self.hub_file) is not None:
            return [file]
        shards = {int(match[1]): path for path in self.folder.iterdir() if (match := SHARD_NAME.fullmatch(path.name))}
        if not shards:
            raise UnreadableCheckpointError(f"{self.folder} holds no {shard_name(0)}; give a checkpoint folder")
        listed = [int(match[1]) for name in listed_checksums(self.folder) if (match := SHARD_NAME.fullmatch(name))]
        for rank in range(max(*shards, *listed, len(shards) - 1) + 1):
            if rank not in shards:
                raise UnreadableCheckpointError(f"{self.folder} lacks {shard_name(rank)}; copy all shards into it")
        return [shards[rank] for rank in range(len(shards))]


def locate_tag(root: Path, tag: str) -> CheckpointLocation | None:
    """Return the checkpoint ``tag`` of a run's folder, or None when there is no such folder."""
    folder = present_folder(root / tag)
    return CheckpointLocation(folder, tag, _number(tag), root) if folder.is_dir() else None


def present_folder(folder: Path) -> Path:
    """Return ``folder`` or, when a process died while it replaced it, the older one of that name."""
    if folder.exists() or folder.name in ("", ".."):
        return folder
    replaced = folder.with_name(f"{REPLACED_PREFIX}{folder.name}")
    return replaced if replaced.is_dir() else folder


def _number(tag: str) -> int | None:
    """Return the iteration that a checkpoint's name is, as programs write it."""
    return int(tag) if re.fullmatch(r"[0-9]{1,18}", tag) else None


def resolve_checkpoint(path: str | Path) -> CheckpointLocation:
    """Find the checkpoint that ``path`` names.

    ``path`` is a run's folder with a tracker, a folder that holds the weight files itself, or one of these files.
    Raises ValueError with one line when there is none.
    """
    path = Path(path)
    if is_hub_file(path) and path.is_file():
        return CheckpointLocation(path.parent, path.parent.resolve().name, None, None, path)
    if SHARD_NAME.fullmatch(path.name) and path.is_file():
        path = path.parent
    if path.is_file():
        return CheckpointLocation(path.parent, path.stem, None, None, single_file=path)
    path = present_folder(path)
    if not path.is_dir():
        raise ValueError(
            f"checkpoint {path} does not exist; give the folder of a run or of a released model, or a file of weights"
        )
    for name in TRACKERS:
        if not (path / name).is_file():
            continue
        tag = read_text(path / name).strip()
        if not is_file_name(tag):
            raise ValueError(f"{path / name} holds {tag[:40]!r} where the name of a checkpoint belongs; write it there")
        location = locate_tag(path, tag)
        if location is None:
            raise ValueError(f"{path / name} names checkpoint {tag!r}, which {path} does not hold; correct the file")
        return location
    if any(SHARD_NAME.fullmatch(file.name) for file in path.iterdir()):
        tag = path.resolve().name
        return CheckpointLocation(path, tag, _number(tag), None)
    if (hub_file := find_hub_file(path)) is not None:
        return CheckpointLocation(path, path.resolve().name, None, None, hub_file)
    raise ValueError(
        f"no checkpoint in {path}: it has neither {TRACKERS[0]} nor {shard_name(0)} nor *.safetensors; give the folder "
        "of a run or of a released model"
    )


@dataclass(frozen=True)
class CheckpointShards:
    """The contents of a checkpoint's files: this rank's alone with ``same_size``, else those of all ranks in order."""

    location: CheckpointLocation
    contents: list[dict[str, Any]]
    same_size: bool  # the checkpoint's model-parallel size is that of the model

    def parameter_names(self) -> list[str]:
        """Return the names of the parameters in the first file, as the table has them."""
        return list(map(canonical_name, weights_in(self.contents[0], file=self.location.path)))


def read_shards(location: CheckpointLocation, *, topology: ParallelTopology) -> CheckpointShards:
    """Read the files this rank needs: its own, or all of them when the model-parallel size is another one.

    Every rank of a model-parallel group has to call it: they compare what their files say of the save they are of, and
    fail together. Raises ``UnreadableCheckpointError`` when a file is missing, damaged, of another save or has weights
    that are not finite; ValueError when it is no file of a GLM.
    """
    shards, origins, count = None, {}, 0
    failure: ValueError | None = None
    try:
        files = location.shard_files()
        count = len(files)
        same_size = count == topology.model_parallel_size
        read = [files[topology.model_parallel_rank]] if same_size else files
        contents = [read_weight_file(file) for file in read]
        shards = CheckpointShards(location, contents, same_size)
        origins = {file.name: origin_of(content, file=file) for file, content in zip(read, contents, strict=True)}
        _check_origins(origins, location=location, size=count)
        for file, content in zip(read, contents, strict=True):
            check_finite(weights_in(content, file=file), file=file)
    except ValueError as error:
        failure = error
    answers = gathered((failure, count, origins), topology=topology)
    if failure is not None:
        raise failure
    for lost, _, _ in answers:
        if lost is not None:
            raise type(lost)(f"another rank: {lost}")
    assert shards is not None
    together: dict[str, FileOrigin] = {}
    for _, _, found in answers:
        together.update(found)
    _check_origins(together, location=location, size=count)
    return shards


def _check_origins(origins: Mapping[str, FileOrigin], *, location: CheckpointLocation, size: int) -> None:
    """Raise ``UnreadableCheckpointError`` unless the files of ``location``, by name, are of one save of ``size``."""
    if location.hub_file is None:
        if location.single_file is not None:  # people give it what name they like
            origins = {name: replace(origin, file_name=None) for name, origin in origins.items()}
        check_same_save(origins, folder=location.folder, size=size)


def read_all_shards(location: CheckpointLocation, *, check: bool = True) -> list[dict[str, Any]]:
    """Return the contents of all files in rank order. Raises ``UnreadableCheckpointError`` as ``read_shards`` does.

    Without ``check`` their bytes are not looked through.
    """
    files = location.shard_files()
    contents = [read_weight_file(file) if check else read_checkpoint_file(file) for file in files]
    origins = {file.name: origin_of(content, file=file) for file, content in zip(files, contents, strict=True)}
    _check_origins(origins, location=location, size=len(files))
    return contents


def read_weight_file(file: Path) -> dict[str, Any]:
    """Return the content of one of a checkpoint's files, of either layout, whose bytes are as they were written."""
    if is_hub_file(file):
        return read_hub_file(file)
    check_bytes(file)
    return read_checkpoint_file(file)


def weights_in(content: dict[str, Any], *, file: Path) -> dict[str, Tensor]:
    """Return the weights in a file's content: the dictionary under ``module``, or the content itself when bare.

    Raises ValueError for another layout or tensors that cannot be weights; their values are not looked at.
    """
    weights = content.get("module", content)
    if not isinstance(weights, dict) or not weights or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ValueError(
            f"{file} has an unknown layout: its keys are {_few(map(str, content))} and no weights are under 'module'; "
            "give a GLM checkpoint"
        )
    named = {str(name): tensor for name, tensor in weights.items()}
    check_tensors(named, file=file)
    return named


def parameters_in(content: dict[str, Any], *, file: Path) -> dict[str, Tensor]:
    """Return the weights in a file's content by the names of the table, of whichever layout the file is.

    Additional rows of positions, which the multilingual release keeps apart, are put behind their table's.
    """
    weights = weights_in(content, file=file)
    parameters = {canonical_name(name): tensor for name, tensor in weights.items()}
    for theirs, table in ADDITIONAL_ROWS.items():
        rows = parameters.pop(theirs, None)
        if rows is not None and table in parameters:
            parameters[table] = torch.cat([parameters[table], rows])
    return parameters


def iteration_of(content: dict[str, Any], location: CheckpointLocation) -> int:
    """Return the number of updates a checkpoint was written after; ``release`` and unnumbered ones count 0."""
    if location.tag == RELEASE_TAG:
        return 0
    for iteration in (content.get("iteration"), content.get("total_iters"), location.iteration):
        if isinstance(iteration, int) and not isinstance(iteration, bool):
            return iteration
    return 0


@dataclass(frozen=True)
class LoadReport:
    """What was loaded: names of the model's parameters (wrappers' prefixes removed).

    Attributes:
        loaded: parameters that have the file's values.
        missing: parameters the file lacks; they keep their values.
        unexpected: parameters of the file that the model lacks.
        grown: position tables of which the file has the first rows.
        iteration: updates the weights were trained for.
        file: the folder read.
        notes: what else the user should know.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    grown: tuple[str, ...]
    iteration: int
    file: Path
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return one line: the counts, and the first names of what does not match."""
        parts = [f"loaded {len(self.loaded)} parameters of iteration {self.iteration} from {self.file}"]
        for what, names in (("missing", self.missing), ("unexpected", self.unexpected), ("grown", self.grown)):
            parts.append(f"{len(names)} {what}" + (f" ({_few(names)})" if names else ""))
        return "; ".join([", ".join(parts), *self.notes])


def master_of(tensor: Any) -> Any:
    """Return the fp32 value that is kept of a parameter in half precision, and any other tensor itself."""
    return getattr(tensor, "master", tensor)


@dataclass(frozen=True)
class _Slot:
    """A place in a model that holds a parameter or a buffer."""

    owner: nn.Module
    name: str

    @property
    def tensor(self) -> Tensor:
        return master_of(getattr(self.owner, self.name))

    @property
    def is_parameter(self) -> bool:
        return self.name in self.owner._parameters

    def fill(self, rows: Tensor) -> None:
        """Take over ``rows``, which may be only the first ones; a tensor on the meta device is replaced."""
        tensor = self.tensor
        if not tensor.is_meta:
            fill_rows(tensor, rows)
            return
        assert rows.shape == tensor.shape, (self.name, rows.shape, tensor.shape)
        value = rows.to(tensor.dtype)
        if self.is_parameter:
            value = nn.Parameter(value, requires_grad=tensor.requires_grad)
            value.__dict__.update(tensor.__dict__)  # the model-parallel flag
        setattr(self.owner, self.name, value)


def _slots(model: nn.Module) -> Iterator[tuple[str, _Slot]]:
    """Yield every parameter and saved buffer with its name in the table of parameters."""
    for prefix, module in model.named_modules():
        saved = {name for name in module._buffers if name not in module._non_persistent_buffers_set}
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and (name in module._parameters or name in saved):
                yield canonical_name(f"{prefix}.{name}" if prefix else name), _Slot(module, name)


def load_model_weights(
    model: nn.Module,
    path: str | Path,
    *,
    topology: ParallelTopology | None = None,
    grow_positions: bool = True,
) -> LoadReport:
    """Load the weights of the checkpoint at ``path`` into ``model``, a GLM or a head around one.

    The file may be written for another model-parallel size, carry wrappers' prefixes or be of a foreign layout. Files
    are mapped into memory and copied tensor by tensor; on the meta device the mapped tensors become the model's. With
    ``grow_positions`` a model with block positions may have more of them than the file: new rows keep their values.

    Raises:
        ValueError: no checkpoint, an unreadable or unknown file, no parameter in common, or another architecture.
    """
    topology = topology or ParallelTopology.single()
    shards = read_shards(resolve_checkpoint(path), topology=topology)
    return load_weights(model, shards, topology=topology, grow_positions=grow_positions)


def load_weights(
    model: nn.Module, shards: CheckpointShards, *, topology: ParallelTopology, grow_positions: bool = True
) -> LoadReport:
    """Load what ``read_shards`` returned for the same topology; see ``load_model_weights``."""
    file = shards.location.path
    parts = [parameters_in(content, file=file) for content in shards.contents]
    if any(set(part) != set(parts[0]) for part in parts):
        raise ValueError(f"the files in {file} hold different parameters; they are not shards of one model")
    slots = dict(_slots(model))
    loaded = [name for name in slots if name in parts[0]]
    missing = [name for name in slots if name not in parts[0]]
    unexpected = [name for name in parts[0] if name not in slots]
    if any(map(ADAPTER_NAME.fullmatch, unexpected)) and not any(map(ADAPTER_NAME.fullmatch, slots)):
        raise ValueError(
            f"{file} holds adapters (LoRA), the model has none: give the run's --lora-rank and --lora-target, or put "
            "adapter and model together with scripts/merge_lora.py"
        )
    if not loaded:
        raise ValueError(f"{file} has no parameter of the model: its names are {_few(parts[0])}; give a GLM checkpoint")
    if WORD_TABLE in parts[0]:
        _check_completeness(slots, missing, unexpected, file=file)
    size, rank = topology.model_parallel_size, topology.model_parallel_rank
    _check_vocabulary(slots, [part[WORD_TABLE] for part in parts if WORD_TABLE in part], shards, size=size)
    grown = []
    for name in loaded:
        slot, pieces = slots[name], [part[name] for part in parts]
        value = pieces[0] if shards.same_size else reshard_tensor(name, pieces, size=size, rank=rank)
        if value.shape != slot.tensor.shape:
            may_grow = grow_positions and BLOCK_POSITION_TABLE in slots and BLOCK_POSITION_TABLE in parts[0]
            _check_growth(name, value, slots, may_grow=may_grow, file=file)
            grown.append(name)
        slot.fill(value)
    return LoadReport(
        loaded=tuple(loaded),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        grown=tuple(grown),
        iteration=iteration_of(shards.contents[0], shards.location),
        file=file,
        notes=() if (file / CHECKSUMS_FILE).is_file() else (NO_CHECKSUMS,),
    )


def _check_completeness(slots: dict[str, _Slot], missing: list[str], unexpected: list[str], *, file: Path) -> None:
    """Raise ValueError when a file of a whole language model does not have exactly the network's parameters.

    Files of frozen models hold a part of it; they lack the word embeddings and are not checked.
    """
    lacking = [name for name in missing if name.startswith("transformer.") and slots[name].is_parameter]
    surplus = [name for name in unexpected if name.startswith("transformer.") and not name.endswith("inv_freq")]
    if lacking or surplus:
        parts = [f"lacks {_few(lacking)}"] * bool(lacking) + [f"has {_few(surplus)} as well"] * bool(surplus)
        raise ValueError(
            f"{file} is of another architecture than the model: it {' and '.join(parts)}; check --num-layers, "
            "--block-lm and --transformer-xl"
        )


def _check_vocabulary(slots: dict[str, _Slot], tables: list[Tensor], shards: CheckpointShards, *, size: int) -> None:
    """Raise ValueError when the word embeddings [v,h] have another size than the model's."""
    if not tables or WORD_TABLE not in slots:
        return
    saved = tables[0].size(0) * (size if shards.same_size else len(tables))
    rows, hidden_size = slots[WORD_TABLE].tensor.shape
    if saved != rows * size:
        raise ValueError(
            f"{shards.location.path} has a vocabulary of {saved}, the model one of {rows * size}; choose the "
            "tokenizer the checkpoint was trained with (--tokenizer-type, --tokenizer-model-type, --task-mask)"
        )
    if tables[0].size(1) != hidden_size:
        raise ValueError(
            f"{shards.location.path} has hidden size {tables[0].size(1)}, the model {hidden_size}; "
            f"set --hidden-size {tables[0].size(1)}"
        )


def _check_growth(name: str, value: Tensor, slots: dict[str, _Slot], *, may_grow: bool, file: Path) -> None:
    """Raise ValueError unless ``value`` is a position table that the model's may extend."""
    table = slots[name].tensor
    if name not in POSITION_TABLES or value.shape[1:] != table.shape[1:]:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)} in {file} and {tuple(table.shape)} in the model; "
            "check the sizes of the model"
        )
    if len(value) > len(table) or not may_grow:
        extra = 1 if BLOCK_POSITION_TABLE in slots else 0  # the tables of block positions have a row more
        raise ValueError(
            f"{file} has {len(value)} rows of positions, the model {len(table)}; "
            f"set --max-position-embeddings {len(value) - extra}"
        )


@dataclass(frozen=True)
class WholeWeights:
    """Parameters under the names of the table.

    Attributes:
        location: where the files are.
        pieces: of each parameter the tensors of all ranks, in rank order.
        left_out: parameters of the file that are no part of a language model or classifier.
    """

    location: CheckpointLocation
    pieces: Mapping[str, Sequence[Tensor]]
    left_out: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        """Return what messages call the checkpoint."""
        return self.location.path

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a whole parameter, without reading it."""
        first, rule = self.pieces[name][0], rule_for(name)
        shape = list(first.shape)
        if rule.dim is not None and rule.dim < len(shape):
            shape[rule.dim] *= len(self.pieces[name])
        return tuple(shape)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self.shape(name) for name in self.pieces}

    def num_bytes(self, name: str) -> int:
        """Return the size of a whole parameter in bytes."""
        return math.prod(self.shape(name)) * self.pieces[name][0].element_size()

    @property
    def dtype(self) -> torch.dtype:
        """Return the number type of the word embeddings."""
        return self.pieces[WORD_TABLE][0].dtype

    def read(self, name: str) -> Tensor:
        """Return a whole parameter in memory of its own; nothing else of the files stays in memory."""
        pieces = self.pieces[name]
        whole = merge_tensors(name, pieces)
        if whole is pieces[0]:
            whole = whole.clone(memory_format=torch.contiguous_format)
        release_pages(pieces)
        return whole


def read_whole_weights(path: str | Path, *, base: str | Path | None = None) -> WholeWeights:
    """Open the checkpoint that ``path`` names; a partial one goes over the parameters of ``base``.

    Continuous prompts are left out when there is a model besides; the head of a classifier is kept. Raises ValueError
    with one line when there is no checkpoint, one of its files is damaged, or it is not one of a GLM.
    """
    location = resolve_checkpoint(path)
    parts = [parameters_in(content, file=location.path) for content in read_all_shards(location)]
    if any(list(part) != list(parts[0]) for part in parts):
        raise ValueError(f"the files in {location.path} hold different parameters; they are not shards of one model")
    names = [name for name in parts[0] if name not in HUB_HEAD]
    if any(ADAPTER_NAME.fullmatch(name) for name in names):
        raise ValueError(
            f"{location.path} holds adapters (LoRA) beside or without the weights they change; put them together "
            "with scripts/merge_lora.py and give the result"
        )
    unknown = [name for name in names if not _is_known(name)]
    if unknown:
        raise ValueError(
            f"{location.path} holds another kind of model: a GLM has no parameter {unknown[0]!r}; give a GLM checkpoint"
        )
    prompts = (PROMPT_PREFIX, PREFIX_PROMPT)
    if any(not name.startswith(prompts) for name in names):
        names = [name for name in names if not name.startswith(prompts)]
    for part in parts:
        check_finite({name: part[name] for name in names}, file=location.path)
    left_out = tuple(name for name in parts[0] if name not in names)
    pieces: dict[str, Sequence[Tensor]] = {name: [part[name] for part in parts] for name in names}
    if base is not None:
        pieces = {**read_whole_weights(base).pieces, **pieces}
    return WholeWeights(location, pieces, left_out)


def _is_known(name: str) -> bool:
    try:
        rule_for(name)
    except ValueError:
        return False
    return True


def _few(names: Iterable[str]) -> str:
    """Quote up to three names and count the others."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
