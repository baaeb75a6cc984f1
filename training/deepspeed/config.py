"""What DeepSpeed is told: the user's JSON file with the values of this run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from training.engine import supported_precision
from training.settings import Settings

ADAM_TYPES = ("adam", "adamw", "fusedadam", "cpuadam")


@dataclass(frozen=True)
class DeepSpeedPlan:
    """A configuration for ``deepspeed.initialize``.

    Attributes:
        config: the dictionary.
        stage: the ZeRO stage, 0 to 3.
        precision: ``fp32``, ``bf16`` or ``fp16``: the type of the parameters; masters are fp32.
        notices: lines to print once.
    """

    config: dict[str, Any]
    stage: int
    precision: str
    notices: tuple[str, ...]


def deepspeed_plan(settings: Settings, *, device: torch.device) -> DeepSpeedPlan:
    """Resolve the JSON file of a run for this device.

    Batch size, accumulation, clipping and precision are the run's, which already hold the values of the file. The
    optimizer is ours on both engines (fused AdamW needs no compiler). With ``--universal-checkpoint`` the engine can
    load a universal checkpoint. Raises ValueError for an optimizer or a ZeRO stage that is not provided.
    """
    content = settings.deepspeed_content or {}
    config = copy.deepcopy(dict(content))
    notices: list[str] = []
    kind = (_known(config.pop("optimizer", None)).get("type")) or "AdamW"
    if kind.lower() not in ADAM_TYPES:
        raise ValueError(f"the DeepSpeed file asks for the optimizer {kind!r}; Adam and AdamW are provided")
    if config.pop("scheduler", None) is not None:
        notices.append("warning: the scheduler of the DeepSpeed file has no effect; --lr-decay-style chooses it")
    zero = _known(config.get("zero_optimization"))
    if zero.pop("cpu_offload", False):  # its name until DeepSpeed 0.4
        zero.setdefault("offload_optimizer", {"device": "cpu"})
    stage = zero.get("stage") or 0
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"the DeepSpeed file asks for ZeRO stage {stage!r}; 0, 1, 2 and 3 exist")
    arithmetic, reason = supported_precision(settings.precision, device=device)
    notices += [reason] if reason else []
    if arithmetic != "fp32" and stage == 0:
        # Its half-precision wrappers of stage 0 keep no norm, and that of bf16 takes a step at construction.
        stage = 1
        notices.append(f"DeepSpeed: {arithmetic} runs with ZeRO stage 1, the file asks for none")
    for name in ("train_batch_size", "fp16", "bf16", "bfloat16"):
        config.pop(name, None)
    if arithmetic == "fp16":
        precision = settings.precision
        flags = {
            "loss_scale": precision.loss_scale or 0,  # 0: dynamic
            "loss_scale_window": precision.loss_scale_window,
            "hysteresis": precision.hysteresis,
            "min_loss_scale": precision.min_scale,
        }
        config["fp16"] = {**flags, **_known(content.get("fp16")), "enabled": True}
    elif arithmetic == "bf16":
        config["bf16"] = {**_known(content.get("bf16")), "enabled": True}
    config["zero_optimization"] = {**zero, "stage": stage}
    config |= {
        "train_micro_batch_size_per_gpu": settings.batch.batch_size,
        "gradient_accumulation_steps": settings.batch.gradient_accumulation_steps,
        "gradient_clipping": settings.optimizer.clip_grad if stage > 0 else 0.0,  # without ZeRO the engine clips
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,  # the run's own lines report
    }
    if settings.checkpoint.universal_checkpoint:
        config["checkpoint"] = {**_known(config.get("checkpoint")), "load_universal": True}
    return DeepSpeedPlan(config, stage, arithmetic, tuple(notices))


def _known(block: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Return the values of a block that are not left to us ("auto"), none of one that is missing or left to us."""
    return {name: value for name, value in block.items() if value != "auto"} if isinstance(block, Mapping) else {}
