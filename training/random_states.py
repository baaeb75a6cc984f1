"""Random states of a process, as checkpoints keep them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from model.checkpoints.reading import ALL_RANKS_KEY
from mpu.initialize import ParallelTopology
from mpu.random import ModelParallelRandomState


def capture_random_states(model: nn.Module) -> dict[str, Any]:
    """Return the states of python, NumPy, torch and the model-parallel generators under the original's keys."""
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
    return states


def gather_random_states(model: nn.Module, *, topology: ParallelTopology) -> dict[str, Any]:
    """Return this rank's states; on the first data rank also those of the others.

    Every rank has to call it.
    """
    states = capture_random_states(model)
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
    found = (getattr(module, "random_state", None) for module in model.modules())
    return list({id(state): state for state in found if isinstance(state, ModelParallelRandomState)}.values())
