"""Optimizer, gradient clipping and loss scaling (spec: model 8.8, 9, 10.1, 10.2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mpu.gradients import gradient_norm
from mpu.initialize import ParallelTopology

OPTIMIZERS = ("adam", "adafactor")
CLIP_EPSILON = 1e-6  # added to the norm that the limit is divided by (spec: model 8.8)
INITIAL_LOSS_SCALE = 2.0**32


def build_parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Split the trainable parameters into those with weight decay and those without, in module order.

    No decay: parameters of a LayerNorm and those named exactly ``bias``. Everything else decays, embeddings and the
    biases of an LSTM included, as in the original: its optimizer states are stored in this order.
    """
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            (no_decay if isinstance(module, nn.LayerNorm) or name == "bias" else decay).append(parameter)
    return [{"params": decay}, {"params": no_decay, "weight_decay": 0.0}]


def build_optimizer(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    name: str = "adam",
) -> torch.optim.Optimizer:
    """Build AdamW (``adam``: decoupled decay, bias correction, one fused kernel) or ``adafactor``.

    Raises ValueError for another name.
    """
    groups = build_parameter_groups(model)
    if name == "adam":
        return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, fused=True)
    if name == "adafactor":
        return torch.optim.Adafactor(groups, lr=lr, weight_decay=weight_decay)
    raise ValueError(f"--optimizer {name}; choose one of {', '.join(OPTIMIZERS)}")


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, *, topology: ParallelTopology) -> Tensor:
    """Scale all gradients so that their norm over the model-parallel group is at most ``max_norm`` (0: leave them).

    Returns the norm before clipping, an fp32 scalar on the device; nothing waits for it.
    """
    parameters = list(parameters)
    norm = gradient_norm(parameters, topology=topology)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if max_norm > 0.0 and gradients:
        torch._foreach_mul_(gradients, (max_norm / (norm + CLIP_EPSILON)).clamp(max=1.0))
    return norm


class DynamicLossScaler:
    """Scale fp16 losses: halve on overflow, double after ``window`` updates without one (spec: model 9).

    With ``loss_scale`` given the scale is fixed. ``hysteresis`` overflows are tolerated before the scale falls; the
    count is only restored when the scale grows, as in the original.
    """

    def __init__(
        self,
        *,
        loss_scale: float | None = None,
        initial_scale: float = INITIAL_LOSS_SCALE,
        factor: float = 2.0,
        window: float = 1000,
        min_scale: float = 1.0,
        hysteresis: int = 2,
        consecutive_hysteresis: bool = False,
    ) -> None:
        self.fixed = loss_scale is not None
        self.scale = float(initial_scale if loss_scale is None else loss_scale)
        self.factor = factor
        self.window = window
        self.min_scale = min_scale
        self.hysteresis = hysteresis
        self.consecutive_hysteresis = consecutive_hysteresis
        self.tolerance = hysteresis
        self.num_updates = 0
        self.last_overflow = -1

    def update(self, overflow: bool) -> None:
        """Adapt the scale to an update that overflowed, or did not."""
        if self.fixed:
            return
        if overflow:
            if self.hysteresis == 1 or self.tolerance == 1:
                self.scale = max(self.scale / self.factor, self.min_scale)
            else:
                self.tolerance -= 1
            self.last_overflow = self.num_updates
        else:
            grows = (self.num_updates - self.last_overflow) % self.window == 0
            if self.consecutive_hysteresis or grows:
                self.tolerance = self.hysteresis
            if grows:
                self.scale *= self.factor
        self.num_updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        names = ("scale", "tolerance", "num_updates", "last_overflow")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict()``; a fixed scale stays as the flags say."""
        for name, value in state.items():
            if not (self.fixed and name == "scale"):
                setattr(self, name, value)
