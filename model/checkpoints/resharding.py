"""Cut the files of a checkpoint, the optimizer's state among them, for another model-parallel size.

Optimizer states number their parameters; which is which follows from the order of the names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoints.checks import FILE_NAME_KEY, SAVE_ID_KEY
from model.checkpoints.format import HUB_HEAD, canonical_name, reshard_tensor, rule_for
from model.checkpoints.reading import ALL_RANKS_KEY, weights_in
from model.checkpoints.safe_loading import release_pages

# Everything else but the weights and our own optimizer state becomes None.
KEPT_KEYS = frozenset({
    "lr_scheduler", "client_lr_scheduler", "iteration", "total_iters", "skipped_steps", "global_steps",
    "global_samples", "dp_world_size", "random_rng_state", "np_rng_state", "torch_rng_state", "cuda_rng_state",
    "rng_tracker_states", "data_state", ALL_RANKS_KEY,
})  # fmt: skip
TRACKER_KEY = "rng_tracker_states"
WITHOUT_OPTIMIZER = "continue without it (--no-load-optim)"


def reshard_content(contents: Sequence[dict[str, Any]], *, size: int, rank: int, file: Path) -> dict[str, Any]:
    """Return the content of shard ``rank`` of ``size`` from the contents of all present shards, in rank order.

    Names keep their order, tensors their dtype. Optimizer states of the torch engine are cut along; the other keys are
    those of the first present shard. Of this program's own checkpoints the random states of single model-parallel ranks
    are left out, which would give several ranks the same dropout masks. ``file`` names the checkpoint in messages.
    Pages of the present shards are released once they are read: memory holds the new shard alone. Raises ValueError
    when a parameter is unknown or cannot be cut evenly.
    """
    shards = [weights_in(content, file=file) for content in contents]
    if any(list(shard) != list(shards[0]) for shard in shards):
        raise ValueError(f"the files in {file} hold different parameters; they are not shards of one model")
    weights = {}
    for name in shards[0]:
        if name in HUB_HEAD:
            continue
        present = [shard[name] for shard in shards]
        part = reshard_tensor(name, present, size=size, rank=rank)
        # Of a part of a larger storage all of that would be written.
        weights[name] = part.clone() if part.untyped_storage().nbytes() > part.nbytes else part
        release_pages(present)
    if "module" not in contents[0]:
        return dict(weights)
    result = {key: value if key in KEPT_KEYS else None for key, value in contents[0].items()}
    result["module"] = weights
    if "data_state" in result:
        result |= _without_trackers(result)
    if has_torch_optimizer(contents[0]):
        states = [content["optimizer"] for content in contents]
        result["optimizer"] = reshard_optimizer(states, shards, size=size, rank=rank, file=file)
    if "mp_world_size" in result:
        result["mp_world_size"] = size
    return result


def _without_trackers(content: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of random states, with those of single model-parallel ranks left empty."""
    states: dict[str, Any] = {TRACKER_KEY: {}} if TRACKER_KEY in content else {}
    if content.get(ALL_RANKS_KEY):
        states[ALL_RANKS_KEY] = [{**rank, TRACKER_KEY: {}} for rank in content[ALL_RANKS_KEY]]
    return states


def has_torch_optimizer(content: dict[str, Any]) -> bool:
    """Tell whether a file holds an optimizer state of this program's torch engine that can be cut.

    Adafactor's cannot: its means over rows and columns belong to one way of cutting.
    """
    state = content.get("optimizer")
    if "data_state" not in content or not isinstance(state, Mapping):
        return False
    moments = state.get("state")
    return not isinstance(moments, Mapping) or not any("exp_avg_sq_row" in moment for moment in moments.values())


def dropped_keys(content: dict[str, Any]) -> list[str]:
    """List the keys that hold something which resharding leaves behind, and the parameters."""
    if "module" not in content:
        return [name for name in content if name in HUB_HEAD]
    keys = [
        key
        for key, value in content.items()
        if key not in KEPT_KEYS
        and key not in ("module", "mp_world_size", SAVE_ID_KEY, FILE_NAME_KEY)
        and not (key == "optimizer" and has_torch_optimizer(content))
        and value not in (None, [], {})
    ]
    return keys + [name for name in content["module"] if name in HUB_HEAD]


def parameter_groups(names: Sequence[str]) -> list[list[str]]:
    """Return the names of the decayed parameters and of the others, in the order in which optimizers number them.

    ``names`` are those of the weights of a checkpoint, in its order; buffers are left out.
    """
    decay: list[str] = []
    no_decay: list[str] = []
    for name in names:
        canonical = canonical_name(name)
        kind = canonical.rsplit(".", 1)[-1]
        if kind == "inv_freq":
            continue
        (no_decay if kind == "bias" or "layernorm" in canonical else decay).append(name)
    return [decay, no_decay]


def reshard_optimizer(
    states: Sequence[Mapping[str, Any]],
    weights: Sequence[Mapping[str, Tensor]],
    *,
    size: int,
    rank: int,
    file: Path,
) -> dict[str, Any]:
    """Return the optimizer state of shard ``rank`` of ``size`` from those of all present shards, in rank order.

    ``weights`` are the parameters of the present shards. Moments are cut as their parameters are; steps and options are
    those of the first shard. Also takes the original's wrapper for fp16 with its fp32 masters. What was read of
    mapped files is released at once.

    Raises:
        ValueError: the state is of other parameters, or its moments are not of their shape (Adafactor).
    """
    if "optimizer_state_dict" in states[0]:
        inner = [state["optimizer_state_dict"] for state in states]
        result = {
            "optimizer_state_dict": reshard_optimizer(inner, weights, size=size, rank=rank, file=file),
            "fp32_from_fp16": _reshard_masters(states, weights, size=size, rank=rank),
        }
        return {**{key: value for key, value in states[0].items() if key not in result}, **result}
    if not all(isinstance(state.get("state"), Mapping) and state.get("param_groups") for state in states):
        raise ValueError(f"{file} has an optimizer state of an unknown layout; {WITHOUT_OPTIMIZER}")
    # Groups without parameters count for nothing: DeepSpeed leaves them out.
    groups = [group for group in states[0]["param_groups"] if group["params"]]
    names = [group for group in parameter_groups(list(weights[0])) if group]
    if [len(group["params"]) for group in groups] != [len(group) for group in names]:
        raise ValueError(
            f"{file} has an optimizer state for groups of {[len(group['params']) for group in groups]} parameters, "
            f"its weights make groups of {[len(group) for group in names]}; {WITHOUT_OPTIMIZER}"
        )
    moments = {}
    for group, group_names in zip(groups, names, strict=True):
        for index, name in zip(group["params"], group_names, strict=True):
            if index in states[0]["state"]:
                present = [state["state"][index] for state in states]
                shapes = [shard[name].shape for shard in weights]
                moments[index] = _reshard_moments(name, present, shapes, size=size, rank=rank, file=file)
    return {"state": moments, "param_groups": groups}


def _reshard_moments(
    name: str, present: Sequence[Mapping[str, Any]], shapes: Sequence[Any], *, size: int, rank: int, file: Path
) -> dict[str, Any]:
    moments: dict[str, Any] = {}
    replicated = rule_for(name).dim is None
    for key, value in present[0].items():
        parts = [state[key] for state in present]
        if replicated or not isinstance(value, Tensor) or value.dim() == 0:
            moments[key] = value
        elif all(part.shape == shape for part, shape in zip(parts, shapes, strict=True)):
            moments[key] = reshard_tensor(name, parts, size=size, rank=rank)
            release_pages(parts)
        else:
            raise ValueError(
                f"{file} has an optimizer state whose {key!r} is not of the shape of its parameter (Adafactor); it "
                f"cannot be cut for another model-parallel size: {WITHOUT_OPTIMIZER}"
            )
    return moments


def _reshard_masters(
    states: Sequence[Mapping[str, Any]], weights: Sequence[Mapping[str, Tensor]], *, size: int, rank: int
) -> list[list[Tensor]]:
    present = [state["fp32_from_fp16"] for state in states]
    masters: list[list[Tensor]] = []
    for group, names in enumerate(parameter_groups(list(weights[0]))):
        masters.append([])
        for index, name in enumerate(names):
            parts = [shard[group][index] for shard in present]
            masters[-1].append(reshard_tensor(name, parts, size=size, rank=rank))
            release_pages(parts)
    return masters
