"""Rewrite the files of a checkpoint for another model-parallel size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoints.format import HUB_HEAD, reshard_tensor
from model.checkpoints.mapped_memory import release_pages
from model.checkpoints.optimizer_states import is_factored, reshard_optimizer
from model.checkpoints.reading import ALL_RANKS_KEY, weights_in

# Everything else but the weights and our own optimizer state becomes None.
KEPT_KEYS = frozenset({
    "lr_scheduler", "client_lr_scheduler", "iteration", "total_iters", "skipped_steps", "global_steps",
    "global_samples", "dp_world_size", "random_rng_state", "np_rng_state", "torch_rng_state", "cuda_rng_state",
    "rng_tracker_states", "data_state", ALL_RANKS_KEY,
})  # fmt: skip
TRACKER_KEY = "rng_tracker_states"


def reshard_content(contents: Sequence[dict[str, Any]], *, size: int, rank: int, file: Path) -> dict[str, Any]:
    """Return the content of shard ``rank`` of ``size`` from the contents of all present shards, in rank order.

    Names keep their order, tensors their dtype. Optimizer states of the torch engine are cut along; the other keys are
    those of the first present shard. Of this program's own checkpoints the random states of single model-parallel ranks
    are left out, which would give several ranks the same dropout masks. ``file`` names the checkpoint in messages. What
    is read of the present shards is let go of at once: memory holds the new shard alone. Raises ValueError when a
    parameter is unknown or cannot be cut evenly.
    """
    shards = [weights_in(content, file=file) for content in contents]
    if any(list(shard) != list(shards[0]) for shard in shards):
        raise ValueError(f"the files in {file} hold different parameters; they are not shards of one model")
    weights = {}
    for name in shards[0]:
        if name in HUB_HEAD:
            continue
        present = [shard[name] for shard in shards]
        weights[name] = _compact(reshard_tensor(name, present, size=size, rank=rank))
        release_pages(present)
    if "module" not in contents[0]:
        return dict(weights)
    result = {key: value if key in KEPT_KEYS else None for key, value in contents[0].items()}
    result["module"] = weights
    if "data_state" in result:
        result |= _without_trackers(result)
    if has_own_optimizer(contents[0]):
        states = [content["optimizer"] for content in contents]
        result["optimizer"] = reshard_optimizer(states, shards, size=size, rank=rank, file=file)
    if "mp_world_size" in result:
        result["mp_world_size"] = size
    return result


def _without_trackers(content: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of random states, with those of single model-parallel ranks left empty."""
    own: dict[str, Any] = {TRACKER_KEY: {}} if TRACKER_KEY in content else {}
    if content.get(ALL_RANKS_KEY):
        own[ALL_RANKS_KEY] = [{**states, TRACKER_KEY: {}} for states in content[ALL_RANKS_KEY]]
    return own


def has_own_optimizer(content: dict[str, Any]) -> bool:
    """Tell whether a file holds an optimizer state of this program's torch engine that can be cut.

    Adafactor's cannot: its means over rows and columns are those of one part.
    """
    state = content.get("optimizer")
    return "data_state" in content and isinstance(state, Mapping) and not is_factored(state)


def _compact(tensor: Tensor) -> Tensor:
    """Copy a tensor that is part of a larger storage, all of which would be written with it."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def dropped_keys(content: dict[str, Any]) -> list[str]:
    """List the keys that hold something which resharding leaves behind, and the parameters."""
    if "module" not in content:
        return [name for name in content if name in HUB_HEAD]
    keys = [
        key
        for key, value in content.items()
        if key not in KEPT_KEYS
        and key not in ("module", "mp_world_size")
        and not (key == "optimizer" and has_own_optimizer(content))
        and value not in (None, [], {})
    ]
    return keys + [name for name in content["module"] if name in HUB_HEAD]
