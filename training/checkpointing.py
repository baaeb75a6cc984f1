"""Save and restore a run. A checkpoint appears as a whole or not at all.

Files are written to ``<root>/.tmp-<tag>``, made durable, and the folder gets its name ``<root>/<tag>``; the trackers
are replaced last. Whatever moment the process dies at, the trackers name a complete checkpoint. What a file holds:
docs/formats.md#checkpoints. A ``BackgroundWriter`` does all that beside training, from a copy.
"""

from __future__ import annotations

import copy
import hashlib
import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from files.checksums import CHECKSUMS_FILE, write_checksums
from files.writing import whole_file
from model.checkpoints.checks import not_finite
from model.checkpoints.reading import (
    ALL_RANKS_KEY,
    RELEASE_TAG,
    REPLACED_PREFIX,
    CheckpointLocation,
    CheckpointShards,
    LoadReport,
    load_weights,
    locate_tag,
    master_of,
    read_shards,
    resolve_checkpoint,
    shard_file,
    shard_name,
    weights_in,
)
from model.checkpoints.resharding import reshard_optimizer
from model.checkpoints.safe_loading import UnreadableCheckpointError
from model.checkpoints.writing import (
    TEMPORARY_PREFIX,
    new_save_id,
    prepare_folder,
    publish_folder,
    recover_folder,
    stamped,
    write_shard,
    write_trackers,
)
from mpu.fsdp import is_spread, own_rows, whole
from mpu.initialize import ParallelTopology, new_host_group
from mpu.mappings import any_rank, gathered
from mpu.random import ModelParallelRandomState
from training.optimizer import load_optimizer_state
from training.resume_state import check_resume_state
from training.schedule import AnnealingLR


@dataclass(frozen=True)
class ResumeState:
    """Where a restored run goes on.

    Attributes:
        iteration: updates made; 0 when only the weights count (``finetune``, a released model).
        data_state: what ``save_checkpoint`` was given; empty for files of the original.
        report: what was loaded into the model, with notes for the user.
    """

    iteration: int
    data_state: dict[str, Any]
    report: LoadReport


class BackgroundWriter:
    """Write checkpoints in a thread, one at a time, while training goes on (``--async-save``).

    What is written is a copy in the host's memory, which the next save takes again. Python waits for the thread when
    the process ends in order. Every rank has to make one, and all of them save together.
    """

    def __init__(self, topology: ParallelTopology) -> None:
        # The thread's votes must not come between those of the loop.
        self._topology = replace(topology, host_group=new_host_group() if topology.world_size > 1 else None)
        self._memory: list[Tensor] = []  # bytes [n] of every storage of the last copy
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def start(self, write: Callable[[ParallelTopology], object]) -> None:
        """Call ``write`` in the thread; a save before this one has been waited for (``done``)."""
        assert self._thread is None

        def run() -> None:
            try:
                write(self._topology)
            except Exception as error:  # it is raised where training asks
                self._failure = error

        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    def done(self, *, wait: bool = False) -> bool:
        """Tell whether nothing is being written (any more); ``wait`` until then. Raise what a save has failed with."""
        if self._thread is not None and (wait or not self._thread.is_alive()):
            self._thread.join()
            self._thread = None
        if self._thread is None and self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return self._thread is None

    def copied(self, content: dict[str, Any]) -> dict[str, Any]:
        """Return ``content`` apart from what training changes, its tensors in the host's memory.

        Tensors that share memory do so in the copy: the file is the same, bit for bit. Waits for the device.
        """
        memory = iter(self._memory)
        storages: dict[int, Tensor] = {}
        copies: dict[int, Any] = {}  # by the identity of the tensor, as ``deepcopy`` takes them
        tensors = [tensor for _, tensor in tensors_in(content)]
        for tensor in tensors:
            storage = tensor.untyped_storage()
            place = storage._cdata
            if place not in storages:
                source = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
                target = next(memory, None)
                if target is None or len(target) != len(source):
                    target = torch.empty(len(source), dtype=torch.uint8, pin_memory=source.is_cuda)
                storages[place] = target.copy_(source, non_blocking=True)
            like = torch.empty(0, dtype=tensor.dtype)
            host = storages[place].untyped_storage()
            copies[id(tensor)] = like.set_(host, tensor.storage_offset(), tensor.size(), tensor.stride())
        if any(tensor.is_cuda for tensor in tensors):
            torch.cuda.synchronize()
        self._memory = list(storages.values())
        return copy.deepcopy(content, copies)


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested tables and lists, with the keys that lead to them."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_in(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from tensors_in(item, f"{name}.{number}")


def save_checkpoint(
    root: str | Path,
    *,
    tag: str,
    iteration: int,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: AnnealingLR | None = None,
    topology: ParallelTopology | None = None,
    data_state: Mapping[str, Any] | None = None,
    random_state: bool = True,
    keep: int | None = None,
    beside: Mapping[str, bytes] | None = None,
    writer: BackgroundWriter | None = None,
) -> Path:
    """Write checkpoint ``tag`` of a run to ``root`` and return its folder; every rank has to call it.

    The first data rank of each model-parallel rank writes a file; what is to lie ``beside`` them is content by name.
    ``data_state`` consists of plain values and tensors. With ``keep`` the oldest numbered checkpoints are deleted so
    that this many remain; never this one, ``best`` or one of a higher number. Raises OSError (on all ranks) when a file
    cannot be written: earlier checkpoints are untouched then; ValueError for a bad tag or ``keep``. A ``writer`` writes
    after the return, and raises OSError later.
    """
    root, topology = Path(root), topology or ParallelTopology.single()
    if not re.fullmatch(r"\w[\w-]*", tag):
        raise ValueError(f"checkpoint tag {tag!r} cannot be the name of a folder; use the iteration or a word")
    if keep is not None and keep < 1:
        raise ValueError(f"{keep} checkpoints to keep; at least 1 is needed (--keep-checkpoints)")
    assert _is_plain(data_state or {}), data_state
    weights = trained_weights(model)
    refuse_not_finite(model, weights, optimizer, root=root, topology=topology)
    shard = root / f"{TEMPORARY_PREFIX}{tag}" / shard_name(topology.model_parallel_rank)
    content: dict[str, Any] = {
        "module": {name: tensor.detach() for name, tensor in weights.items()},
        "iteration": iteration,
        "mp_world_size": topology.model_parallel_size,
        "dp_world_size": topology.data_parallel_size,
        "data_state": dict(data_state or {}),
    }
    if optimizer is not None:
        content["optimizer"] = optimizer.state_dict()
    if scheduler is not None:
        content["lr_scheduler"] = scheduler.state_dict()
    if random_state:
        content.update(gather_random_states(model, topology=topology))
    content = stamped(content, shard.name, save_id=shared_save_id(topology))
    writes = topology.data_parallel_rank == 0
    if any(is_spread(tensor) for _, tensor in tensors_in(content)):
        content = gathered_content(content, keep=writes)
    elif writer is not None and writes:
        content = writer.copied(content)

    def write(topology: ParallelTopology) -> Path:
        files = (lambda: {shard.name: write_shard(shard, content)}) if writes else None
        return write_checkpoint(root / tag, files, topology=topology, keep=keep, beside=beside)

    if writer is None:
        return write(topology)
    writer.start(write)
    return root / tag


def gathered_content(content: dict[str, Any], *, keep: bool) -> dict[str, Any]:
    """Return ``content`` with its spread tensors whole, apart from what training changes; without ``keep`` nothing.

    They are put together one after the other, so that a device holds one of them at a time. Every rank has to call it.
    """
    copies: dict[int, Any] = {}
    for tensor in [one for _, one in tensors_in(content) if is_spread(one)]:
        together = whole(tensor.detach())
        if keep:
            copies[id(tensor)] = together.to("cpu", copy=True)
    return copy.deepcopy(content, copies) if keep else {}


def shared_save_id(topology: ParallelTopology) -> str:
    """Return a new id of a save, that of the first rank, on every rank; every rank has to call it."""
    return gathered(new_save_id() if topology.rank == 0 else "", topology=topology, world=True)[0]


def refuse_not_finite(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    optimizer: Optimizer | None,
    *,
    root: Path,
    topology: ParallelTopology,
) -> None:
    """Raise ValueError, on every rank, when weights or moments of one are not finite: such a checkpoint is of no use.

    Every rank has to call it. It would take the place of one that is.
    """
    tensors = dict(weights)
    if optimizer is not None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for number, (parameter, state) in enumerate(optimizer.state.items()):
            name = names.get(id(parameter), f"parameter {number}")
            tensors |= {f"{key} of {name}": value for key, value in state.items() if isinstance(value, Tensor)}
    broken = not_finite({name: own_rows(tensor) for name, tensor in tensors.items()})
    if any_rank(broken is not None, topology=topology):
        raise ValueError(
            f"no checkpoint is saved in {root}: {broken or 'a tensor of another rank'} holds NaN or infinity; earlier "
            "checkpoints are untouched: go on from one of them, with a lower --lr or --clip-grad"
        )


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters (their masters, where they have some) and buffers under the names of the state dict.

    Frozen parameters are left out: they come from the checkpoint the run started from.
    """
    state = model.state_dict(keep_vars=True)
    return {n: master_of(t) for n, t in state.items() if t.requires_grad or not isinstance(t, nn.Parameter)}


def write_checkpoint(
    folder: Path,
    write: Callable[[], dict[str, str]] | None,
    *,
    topology: ParallelTopology,
    keep: int | None = None,
    beside: Mapping[str, bytes] | None = None,
) -> Path:
    """Let ``write`` put this rank's files (None: it has none) into the temporary folder of ``folder``, then publish it.

    ``write`` returns their SHA-256, which the first rank lists; it writes the files ``beside`` them, too. Every rank
    has to call it. The trackers are replaced and old checkpoints deleted last. Raises OSError on all ranks when one
    of them failed: nothing is left behind and earlier checkpoints are untouched.
    """
    root, tag, first = folder.parent, folder.name, topology.rank == 0
    temporary = root / f"{TEMPORARY_PREFIX}{tag}"
    own: dict[str, str] = {}
    listed: dict[str, str] = {}

    def gather_checksums() -> None:
        for sums in gathered(own, topology=topology, world=True):
            listed.update(sums)

    def write_beside() -> None:
        for name, data in (beside or {}).items():
            listed[name] = hashlib.sha256(data).hexdigest()
            with whole_file(temporary / name) as file:
                file.write(data)

    steps: list[tuple[bool, Callable[[], None]]] = [
        (first, lambda: _prepare_run_folder(folder)),
        (write is not None, lambda: own.update(write() if write else {})),
        (True, gather_checksums),
        (first, write_beside),
        (first, lambda: write_checksums(temporary / CHECKSUMS_FILE, listed)),
        (first, lambda: publish_folder(folder)),
        (first, lambda: write_trackers(root, tag)),
        (first and keep is not None and tag.isdecimal(), lambda: _delete_old(root, tag, keep or 1)),
    ]
    try:
        for due, action in steps:
            _run_on_ranks(action if due else None, root=root, topology=topology)
    except OSError:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs the space
        raise
    return folder


def load_checkpoint(
    root: str | Path,
    *,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: AnnealingLR | None = None,
    topology: ParallelTopology | None = None,
    load_optimizer: bool = True,
    load_random: bool = True,
    finetune: bool = False,
) -> ResumeState:
    """Continue from the checkpoint ``root`` names; every rank has to call it.

    Weights and the optimizer's state may be of another model-parallel size. The schedule goes with the optimizer.
    ``finetune``, and a released model, take the weights alone. When the newest checkpoint of a run is damaged, the one
    before it is taken, and the report says so.

    Raises:
        ValueError: no checkpoint, none that can be read, another architecture, or a state to restore is missing.
    """
    topology = topology or ParallelTopology.single()
    location = resolve_checkpoint(root)
    resumed = not finetune and location.tag != RELEASE_TAG
    used = {
        "optimizer": resumed and load_optimizer and optimizer is not None,
        "schedule": resumed and load_optimizer and scheduler is not None,
        "random_states": resumed and load_random,
    }
    shards, notes = _read_newest(location, used=used, topology=topology)
    report = load_weights(model, shards, topology=topology, grow_positions=False)
    content = shards.contents[0]
    notes = report.notes + notes
    if not resumed:
        return ResumeState(0, {}, replace(report, notes=notes))
    if load_optimizer:
        if optimizer is not None:
            _restore_optimizer(optimizer, shards, topology=topology)
            schedule = content.get("lr_scheduler")
            if not optimizer.state and isinstance(schedule, Mapping) and schedule.get("num_iters"):
                notes += ("WARNING: the checkpoint's optimizer has no moments after updates: they start afresh",)
        if scheduler is not None:
            restore_schedule(scheduler, content, folder=report.file)
    else:
        notes += ("optimizer and schedule start afresh",)
    if load_random:
        size = topology.model_parallel_size if shards.same_size else len(shards.contents)
        notes += restore_random_states(content, model, topology=topology, model_parallel_size=size)
    return ResumeState(report.iteration, dict(content.get("data_state") or {}), replace(report, notes=notes))


def _prepare_run_folder(folder: Path) -> None:
    """Clear up what interrupted saves left in the run's folder, and make the temporary folder of ``folder``."""
    root = folder.parent
    for leftover in root.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    for replaced in root.glob(f"{REPLACED_PREFIX}*"):
        recover_folder(root / replaced.name.removeprefix(REPLACED_PREFIX))
    prepare_folder(folder)


def _is_plain(value: Any) -> bool:
    """Tell whether a value can be read back without trusting the file: no classes but the built-in ones."""
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, float, bool, torch.Tensor)


def _run_on_ranks(action: Callable[[], None] | None, *, root: Path, topology: ParallelTopology) -> None:
    """Run this rank's part of a save, wait for the others, and raise OSError everywhere when one failed."""
    failure: Exception | None = None
    try:
        if action is not None:
            action()
    except (OSError, RuntimeError) as error:  # torch reports some failed writes as RuntimeError
        failure = error
    if any_rank(failure is not None, topology=topology):
        reason = failure if failure is not None else "another rank failed"
        raise OSError(f"cannot save a checkpoint in {root}: {reason}; earlier checkpoints are untouched") from failure


def numbered_checkpoints(root: Path) -> list[int]:
    """Return the numbers of the checkpoints in ``root``, the newest first."""
    names = (folder.name for folder in root.iterdir() if shard_file(folder, 0).is_file())
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _delete_old(root: Path, tag: str, keep: int) -> None:
    """Delete checkpoints older than ``tag`` except the newest ``keep - 1`` of them."""
    for number in [number for number in numbered_checkpoints(root) if number < int(tag)][keep - 1 :]:
        # Renamed first: a half-deleted folder must not look like a checkpoint.
        deleted = root / f"{TEMPORARY_PREFIX}deleted-{number}"
        (root / str(number)).rename(deleted)
        shutil.rmtree(deleted)


def newest_first(location: CheckpointLocation) -> list[CheckpointLocation]:
    """Return the checkpoint at ``location`` and, when a tracker named it, those before it in its run."""
    if location.root is None or location.iteration is None:
        return [location]
    older = [number for number in numbered_checkpoints(location.root) if number < location.iteration]
    return [location] + [place for number in older if (place := locate_tag(location.root, str(number)))]


def _read_newest(
    location: CheckpointLocation, *, used: Mapping[str, bool], topology: ParallelTopology
) -> tuple[CheckpointShards, tuple[str, ...]]:
    """Read the checkpoint at ``location``, or the newest before it that all ranks can read.

    ``used`` says what is checked besides the weights; see ``check_resume_state``.
    """
    failures: list[UnreadableCheckpointError] = []
    for candidate in newest_first(location):
        shards, failure = None, None
        try:
            shards = read_shards(candidate, topology=topology)
            own = [topology.model_parallel_rank] if shards.same_size else range(len(shards.contents))
            for rank, content in zip(own, shards.contents, strict=True):
                check_resume_state(content, file=shard_file(candidate.folder, rank), **used)
        except UnreadableCheckpointError as error:
            failure = error
        if not any_rank(failure is not None, topology=topology):
            assert shards is not None
            return shards, tuple(f"WARNING: {before}: an OLDER checkpoint is used" for before in failures)
        failures.append(failure or UnreadableCheckpointError(f"{candidate.folder} cannot be read by another rank"))
    raise failures[0]


def _restore_optimizer(optimizer: Optimizer, shards: CheckpointShards, *, topology: ParallelTopology) -> None:
    folder = shards.location.folder
    states: list[Any] = [content.get("optimizer") for content in shards.contents]
    if not all(isinstance(state, Mapping) for state in states):
        if any(folder.glob("*zero_pp_rank_*")):
            raise ValueError(
                f"{folder} was written by DeepSpeed with ZeRO, whose optimizer files this engine cannot read: go on "
                "with --deepspeed (and --universal-checkpoint at another number of ranks), or continue without the "
                "optimizer (--no-load-optim)"
            )
        raise ValueError(
            f"{folder} has no optimizer state that can be read; continue without it (--no-load-optim), "
            "or start a new run from its weights (--finetune)"
        )
    state = states[0]
    if not shards.same_size:
        weights = [weights_in(content, file=folder) for content in shards.contents]
        size, rank = topology.model_parallel_size, topology.model_parallel_rank
        state = reshard_optimizer(states, weights, size=size, rank=rank, file=folder)
    try:
        load_optimizer_state(optimizer, state)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def restore_schedule(scheduler: AnnealingLR, content: Mapping[str, Any], *, folder: Path) -> None:
    """Continue the schedule of a checkpoint's ``content``. Raises ValueError when it has none."""
    state = content.get("lr_scheduler") or content.get("client_lr_scheduler")
    if not isinstance(state, Mapping):
        raise ValueError(f"{folder} has no learning rate state; continue without it (--no-load-lr-scheduler)")
    try:
        scheduler.load_state_dict(dict(state))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def gather_random_states(model: nn.Module, *, topology: ParallelTopology) -> dict[str, Any]:
    """Return the states of python, NumPy, torch and the model-parallel generators under the original's keys.

    They are this rank's; on the first data rank also those of the others. Every rank has to call it.
    """
    states: dict[str, Any] = {
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "rng_tracker_states": {},
    }
    if torch.cuda.is_available():
        states["cuda_rng_state"] = torch.cuda.get_rng_state()
    for tracker in _trackers(model):
        states["rng_tracker_states"].update(tracker.state_dict())
    if topology.data_parallel_group is None:
        return states
    first = topology.data_parallel_rank == 0
    gathered: list[Any] | None = [None] * topology.data_parallel_size if first else None
    # Model-parallel rank m is the first member of its data-parallel group.
    dist.gather_object(states, gathered, dst=topology.model_parallel_rank, group=topology.data_parallel_group)
    return {**states, ALL_RANKS_KEY: gathered} if first else states


def restore_random_states(
    content: Mapping[str, Any],
    model: nn.Module,
    *,
    topology: ParallelTopology,
    model_parallel_size: int | None = None,
) -> tuple[str, ...]:
    """Put this rank's random states back; return notes on what the checkpoint does not have for it.

    States of another number of ranks would give several ranks the same dropout masks: those stay as seeded.
    ``model_parallel_size`` is that of the checkpoint (default: what the content says).
    """
    all_ranks = content.get(ALL_RANKS_KEY) or [content]
    if len(all_ranks) != topology.data_parallel_size:
        return (
            "random states are those of another number of data ranks: they stay as seeded, so dropout differs from an "
            "unbroken run",
        )
    saved_size = model_parallel_size or content.get("mp_world_size") or topology.model_parallel_size
    content, notes = all_ranks[topology.data_parallel_rank], []
    states = content.get("rng_tracker_states") or {}
    keys = ["random_rng_state", "np_rng_state", "torch_rng_state"]
    missing = [key for key in keys if content.get(key) is None] + ["rng_tracker_states"] * (not states)
    if missing:
        notes.append(f"no {', '.join(missing)} in the checkpoint: these random states stay as seeded")
    if "random_rng_state" not in missing:
        random.setstate(content["random_rng_state"])
    if "np_rng_state" not in missing:
        np.random.set_state(content["np_rng_state"])
    if "torch_rng_state" not in missing:
        torch.set_rng_state(content["torch_rng_state"].cpu())
    if torch.cuda.is_available() and content.get("cuda_rng_state") is not None:
        torch.cuda.set_rng_state(content["cuda_rng_state"].cpu())
    device = next(model.parameters()).device
    expected = torch.Generator(device).get_state().shape
    if saved_size != topology.model_parallel_size:
        notes.append(
            "model-parallel random states are those of another number of tensor-parallel ranks: they stay as seeded, "
            "so dropout differs from an unbroken run"
        )
    elif any(state.shape != expected for state in states.values()):
        notes.append("model-parallel random states are of another kind of device: they stay as seeded")
    elif states:
        for tracker in _trackers(model):
            tracker.load_state_dict(states, device=device)
    return tuple(notes)


def _trackers(model: nn.Module) -> list[ModelParallelRandomState]:
    states = (getattr(module, "random_state", None) for module in model.modules())
    return list({id(state): state for state in states if isinstance(state, ModelParallelRandomState)}.values())
