"""Save and resume runs, in the original's folders and under its keys (spec: model 11).

    <save>/latest_checkpointed_iteration.txt      tag of the newest checkpoint
    <save>/latest                                 the same, for DeepSpeed's readers
    <save>/<tag>/mp_rank_00_model_states.pt       one file per tensor-parallel rank

A checkpoint is written into a hidden folder, flushed, renamed, and only then named by the trackers: whenever a run is
killed, the trackers name a complete checkpoint.
"""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from model.checkpoint_format import (
    DEEPSPEED_TRACKER,
    SHARD_NAME,
    TRACKER,
    CheckpointLocation,
    LoadReport,
    iteration_of,
    load_contents,
    resolve_checkpoint,
)
from model.safe_loading import read_checkpoint_file
from mpu.initialize import ParallelTopology
from training.learning_rates import AnnealingLR

PARTIAL_PREFIX = ".partial-"
REPLACED_PREFIX = ".replaced-"


@dataclass(frozen=True)
class ResumeState:
    """Where a loaded checkpoint leaves a run: updates made, the run's own notes, and what was loaded."""

    iteration: int
    report: LoadReport
    data_state: dict[str, Any] = field(default_factory=dict)


def capture_random_state(model: nn.Module) -> dict[str, Any]:
    """Return all random states under the original's keys."""
    state = {
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "rng_tracker_states": model.random_state.state_dict() if hasattr(model, "random_state") else {},
    }
    if torch.cuda.is_available():
        state["cuda_rng_state"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any], model: nn.Module, *, device: torch.device) -> None:
    """Set all random states that ``state`` holds."""
    if "random_rng_state" in state:
        version, numbers, gauss = state["random_rng_state"]
        random.setstate((version, tuple(numbers), gauss))
    if "np_rng_state" in state:
        np.random.set_state(tuple(state["np_rng_state"]))
    if "torch_rng_state" in state:
        torch.set_rng_state(state["torch_rng_state"].cpu())
    if "cuda_rng_state" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda_rng_state"].cpu())
    if state.get("rng_tracker_states") and hasattr(model, "random_state"):
        model.random_state.load_state_dict(state["rng_tracker_states"], device=device)


def save_checkpoint(
    root: str | Path,
    *,
    tag: str,
    iteration: int,
    model: nn.Module,
    topology: ParallelTopology,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: AnnealingLR | None = None,
    data_state: dict[str, Any] | None = None,
    random_state: bool = True,
    keep: int | None = None,
) -> Path:
    """Write checkpoint ``tag`` below ``root`` and return its folder; every rank has to call it.

    ``data_state`` (plain values) comes back from ``load_checkpoint``. ``keep`` deletes all but that many of the newest
    numbered checkpoints.
    """
    root = Path(root)
    folder, partial = root / tag, root / f"{PARTIAL_PREFIX}{tag}"
    random_states = _gather_random_states(model, topology=topology) if random_state else []
    if topology.rank == 0:
        for stale in [*root.glob(f"{PARTIAL_PREFIX}*"), *root.glob(f"{REPLACED_PREFIX}*")]:
            shutil.rmtree(stale, ignore_errors=True)
        partial.mkdir(parents=True)
    _barrier(topology)
    if topology.data_parallel_rank == 0:
        content = {"iteration": iteration, "module": model.state_dict()}
        if optimizer is not None:
            content["optimizer"] = optimizer.state_dict()
        if scheduler is not None:
            content["lr_scheduler"] = scheduler.state_dict()
        if random_states:
            content |= random_states[0] | {"data_parallel_random_states": random_states[1:]}
        content |= {
            "data_state": data_state or {},
            "dp_world_size": topology.data_parallel_size,
            "mp_world_size": topology.model_parallel_size,
        }
        _write_flushed(content, partial / SHARD_NAME.format(topology.model_parallel_rank))
    _barrier(topology)
    if topology.rank == 0:
        _flush_folder(partial)
        if folder.exists():
            folder.rename(root / f"{REPLACED_PREFIX}{tag}")
        partial.rename(folder)
        _flush_folder(root)
        shutil.rmtree(root / f"{REPLACED_PREFIX}{tag}", ignore_errors=True)
        for name in (TRACKER, DEEPSPEED_TRACKER):
            write_text(root / name, tag)
        if keep is not None:
            for old in numbered_checkpoints(root)[keep:]:
                shutil.rmtree(old)
    _barrier(topology)
    return folder


def load_checkpoint(
    root: str | Path,
    *,
    model: nn.Module,
    topology: ParallelTopology,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: AnnealingLR | None = None,
    load_optimizer: bool = True,
    load_random: bool = True,
    finetune: bool = False,
) -> ResumeState:
    """Restore a run from the newest readable checkpoint of ``root`` (spec: model 11.4).

    A damaged newest checkpoint is reported, and the one before it is taken. ``finetune`` restores the weights only and
    counts from 0.

    Raises:
        ValueError: no checkpoint, none readable, another model, or an optimizer state that is missing.
    """
    location, contents = _read_newest(resolve_checkpoint(root), topology=topology)
    report = load_contents(model, contents, location, topology=topology)
    content = contents[0]
    if finetune or location.tag == "release":
        return ResumeState(0, report)
    if load_optimizer and optimizer is not None:
        _load_optimizer(content, optimizer, file=report.file)
        state = content.get("lr_scheduler") or content.get("client_lr_scheduler")
        if scheduler is not None and state:
            scheduler.load_state_dict(state)
    if load_random:
        device = next(model.parameters()).device
        restore_random_state(_random_state_of(content, topology), model, device=device)
    return ResumeState(iteration_of(content), report, dict(content.get("data_state", {})))


def numbered_checkpoints(root: Path) -> list[Path]:
    """Return the folders of numbered checkpoints, the newest first."""
    return sorted((p for p in root.iterdir() if p.name.isdigit() and p.is_dir()), key=lambda p: -int(p.name))


def write_text(path: Path, text: str) -> None:
    """Replace a small text file in one step."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read_newest(
    location: CheckpointLocation, *, topology: ParallelTopology
) -> tuple[CheckpointLocation, list[dict[str, Any]]]:
    """Read this rank's shard; fall back to the checkpoint before when a numbered one is damaged."""
    candidates = [location]
    if location.tag.isdigit() and (location.root / TRACKER).is_file():
        older = [folder for folder in numbered_checkpoints(location.root) if int(folder.name) < int(location.tag)]
        candidates += [CheckpointLocation(location.root, folder, folder.name) for folder in older]
    for candidate, following in zip(candidates, [*candidates[1:], None], strict=True):
        shards = candidate.shards
        if len(shards) != topology.model_parallel_size:
            raise ValueError(
                f"{candidate.folder} is cut for {len(shards)} tensor-parallel ranks, this run has "
                f"{topology.model_parallel_size}: python change_mp.py {location.root} {topology.model_parallel_size}, "
                f"or take its weights only with --load-pretrained"
            )
        try:
            return candidate, [read_checkpoint_file(shards[topology.model_parallel_rank])]
        except ValueError as error:
            if following is None:
                raise
            print(f"warning: {error}; falling back to checkpoint {following.tag}", flush=True)
    raise AssertionError("the loop returns or raises")


def _load_optimizer(content: dict[str, Any], optimizer: torch.optim.Optimizer, *, file: Path) -> None:
    """Restore moments and step counts; rates and decays stay as the flags say."""
    state = content.get("optimizer")
    if not isinstance(state, dict) or "param_groups" not in state:
        raise ValueError(
            f"{file}: holds no optimizer state that fits; continue with its weights only (--load-pretrained), or "
            "without the optimizer (--no-load-optim)"
        )
    own = optimizer.state_dict()
    sizes = [len(group["params"]) for group in own["param_groups"]]
    stored = [len(group["params"]) for group in state["param_groups"]]
    if sizes != stored:
        raise ValueError(f"{file}: an optimizer for groups of {stored} parameters, the model has {sizes}")
    groups = [
        {**group, "params": saved["params"]}
        for group, saved in zip(own["param_groups"], state["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def _gather_random_states(model: nn.Module, *, topology: ParallelTopology) -> list[dict[str, Any]]:
    """Return the random states of all data-parallel ranks, in rank order."""
    own = capture_random_state(model)
    if topology.data_parallel_size == 1:
        return [own]
    states: list[Any] = [None] * topology.data_parallel_size
    dist.all_gather_object(states, own, group=topology.data_parallel_group)
    return states


def _random_state_of(content: dict[str, Any], topology: ParallelTopology) -> dict[str, Any]:
    """Return the random state of this data-parallel rank; that of rank 0 when the number of ranks has changed."""
    others = content.get("data_parallel_random_states", [])
    if topology.data_parallel_rank > 0 and len(others) + 1 == topology.data_parallel_size:
        return others[topology.data_parallel_rank - 1]
    return content


def _write_flushed(content: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _barrier(topology: ParallelTopology) -> None:
    if topology.world_size > 1:
        dist.barrier()
