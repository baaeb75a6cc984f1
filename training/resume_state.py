"""Check what a run goes on from before any of it is used: the file and the key are named where a value cannot be.

What is wrong here is wrong in the file, so an earlier checkpoint may be used instead.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from files.reading import described, value_of
from model.checkpoints.checks import check_finite, check_tensors
from model.checkpoints.reading import ALL_RANKS_KEY
from model.checkpoints.safe_loading import UnreadableCheckpointError

STATE_WORDS = 624  # of the Mersenne twister
LOSS_SCALER_KEYS = ("scale", "num_updates", "last_overflow", "remaining_hysteresis")


def check_resume_state(
    content: Mapping[str, Any], *, file: Path, optimizer: bool, schedule: bool, random_states: bool
) -> None:
    """Raise ``UnreadableCheckpointError`` for values of another kind in the parts that are used of ``content``.

    Parts that are missing are left to those who need them.
    """
    try:
        if "data_state" in content:
            _check_data_state(value_of(content, "data_state", dict, place=str(file)), place=str(file))
        if schedule:
            _check_schedule(content, place=str(file))
        if random_states:
            for states in _all_random_states(content, place=str(file)):
                _check_random_states(states, place=str(file))
        state = content.get("optimizer")
        if optimizer and isinstance(state, Mapping):
            check_optimizer_state(state, file=file)
    except UnreadableCheckpointError:
        raise
    except ValueError as error:
        raise UnreadableCheckpointError(str(error)) from error


def _check_data_state(state: dict[str, Any], *, place: str) -> None:
    value_of(state, "samples", int, place=place, default=None, at_least=0)
    interval = value_of(state, "interval", dict, place=place, default={})
    scaler = value_of(state, "loss_scaler", dict, place=place, default={})
    if interval:
        value_of(interval, "num_steps", int, place=place, at_least=0)
    for size in value_of(interval, "sizes", list, place=place, default=[]):
        if not isinstance(size, int) or size < 0:
            raise ValueError(f"{place}: sizes holds {described(size)}; whole numbers of at least 0 are needed")
    for number in value_of(interval, "sums", list, place=place, default=[]):
        if not isinstance(number, float):
            raise ValueError(f"{place}: sums holds {described(number)}; numbers are needed")
    for name in LOSS_SCALER_KEYS if scaler else ():
        value_of(scaler, name, float, place=place)


def _check_schedule(content: Mapping[str, Any], *, place: str) -> None:
    for key in ("lr_scheduler", "client_lr_scheduler"):
        state = content.get(key)
        if not isinstance(state, Mapping):
            continue
        for name in ("warmup_iter", "num_iters"):
            value_of(state, name, float, place=f"{place}: {key}", default=None, at_least=0)
        line = value_of(state, "switched", dict, place=f"{place}: {key}", default={})
        for name in ("start_lr", "end_iter") if line else ():
            value_of(line, name, float, place=f"{place}: {key}")


def _all_random_states(content: Mapping[str, Any], *, place: str) -> Iterator[Mapping[str, Any]]:
    yield content
    for states in value_of(content, ALL_RANKS_KEY, list, place=place, default=[]):
        if not isinstance(states, Mapping):
            raise ValueError(f"{place}: {ALL_RANKS_KEY} holds {type(states).__name__} where random states belong")
        yield states


def _check_random_states(states: Mapping[str, Any], *, place: str) -> None:
    """Put the states into generators of no use; what these take, the run's own will."""
    hint = "use another checkpoint, or continue without random states (--no-load-rng)"
    setters: dict[str, Callable[[Any], Any]] = {
        "random_rng_state": random.Random().setstate,
        "np_rng_state": _check_numpy_state,
        "torch_rng_state": torch.Generator().set_state,
    }
    for key, use in setters.items():
        if states.get(key) is None:
            continue
        try:
            use(states[key])
        except (ValueError, TypeError, RuntimeError, AttributeError, OverflowError, IndexError, KeyError) as error:
            raise ValueError(f"{place}: {key} is no state of a random generator; {hint}") from error
    tracked = states.get("rng_tracker_states")
    tensors = [states.get("cuda_rng_state")]
    if tracked is not None and not isinstance(tracked, Mapping):
        raise ValueError(f"{place}: rng_tracker_states is no table of random states; {hint}")
    for state in [*filter(lambda s: s is not None, tensors), *(tracked or {}).values()]:
        if not (isinstance(state, Tensor) and state.dtype == torch.uint8 and state.dim() == 1 and state.is_cpu):
            raise ValueError(f"{place}: rng_tracker_states or cuda_rng_state is no state of a generator; {hint}")


def _check_numpy_state(state: Any) -> None:
    kind, words, place, *_ = state
    if (
        kind != "MT19937"
        or not isinstance(words, np.ndarray)
        or words.shape != (STATE_WORDS,)
        or words.dtype.kind != "u"
    ):
        raise ValueError("no Mersenne twister")
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place <= STATE_WORDS:
        raise ValueError("a place outside of the state")  # NumPy reads there all the same
    np.random.RandomState(0).set_state(state)


def check_optimizer_state(state: Mapping[str, Any], *, file: Path) -> None:
    """Raise ValueError for an optimizer's state, ours or the original's for fp16, that no optimizer can have had.

    Moments are finite and have the shape of each other, and either all parameters or none have them.
    """
    hint = "use another checkpoint, or continue without it (--no-load-optim)"
    inner = state.get("optimizer_state_dict", state)
    if not (isinstance(inner, Mapping) and isinstance(inner.get("state"), Mapping)):
        return  # of an unknown layout, which is said where it is needed
    groups, moments, place = inner.get("param_groups"), inner["state"], f"{file}: the optimizer's state"
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        raise ValueError(f"{place} has no groups of parameters; {hint}")
    numbers = [number for group in groups for number in value_of(group, "params", list, place=place)]
    lacking = [number for number in numbers if not isinstance(number, int) or number not in moments]
    if moments and lacking:
        raise ValueError(f"{place} lacks the moments of {len(lacking)} of {len(numbers)} parameters; {hint}")
    steps_of_groups = all(isinstance(group.get("step"), int) for group in groups)  # where the original counts them
    tensors: dict[str, Tensor] = {}
    for number, entry in moments.items():
        values = entry.values() if isinstance(entry, Mapping) else [entry]
        if not isinstance(entry, Mapping) or not all(isinstance(v, Tensor | int | float | None) for v in values):
            raise ValueError(f"{place} of parameter {described(number)} holds something else than numbers; {hint}")
        if "exp_avg_sq" in entry and not (steps_of_groups and "step" not in entry) and not _is_count(entry.get("step")):
            raise ValueError(f"{place} of parameter {number} has no count of updates under 'step'; {hint}")
        tensors |= {
            f"{key} of parameter {number}": value
            for key, value in entry.items()
            if isinstance(value, Tensor) and key != "step"
        }
    keys = {key for entry in moments.values() for key in entry}
    if "exp_avg" in keys and "exp_avg_sq_row" not in keys:  # those of Adafactor have other shapes
        for number, entry in moments.items():
            shapes = [getattr(entry.get(key), "shape", None) for key in ("exp_avg", "exp_avg_sq")]
            if None in shapes or shapes[0] != shapes[1]:
                raise ValueError(f"{place} of parameter {number} has no two moments of one shape; {hint}")
    masters = state.get("fp32_from_fp16") or []
    if not isinstance(masters, list) or not all(isinstance(part, list) for part in masters):
        raise ValueError(f"{place}: fp32_from_fp16 holds no weights; {hint}")
    for group, part in enumerate(masters):
        if not all(isinstance(master, Tensor) for master in part):
            raise ValueError(f"{place}: fp32_from_fp16 holds no weights; {hint}")
        tensors |= {f"fp32_from_fp16 {group}.{number}": master for number, master in enumerate(part)}
    check_tensors(tensors, file=file)
    check_finite(tensors, file=file)


def _is_count(step: Any) -> bool:
    """Tell whether a value is a number of updates, as optimizers keep it: a number, or a tensor of one."""
    if isinstance(step, Tensor):
        plain = step.layout == torch.strided and step.is_cpu and not step.is_quantized
        if not plain or step.numel() != 1 or step.is_complex():
            return False
        step = step.item()
    return isinstance(step, int | float) and not isinstance(step, bool) and 0 <= step < math.inf
