"""Adafactor: factored second moments, updates scaled by the size of the parameter (Shazeer and Stern, 2018).

r rows, c columns of a matrix
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Constants of the paper: what is added to squared gradients, the least size of a parameter, the largest root mean
# square of an update, and the exponent of the second moment's decay.
GRADIENT_EPS = 1e-30
PARAMETER_EPS = 1e-3
CLIP_THRESHOLD = 1.0
DECAY_EXPONENT = -0.8


class Adafactor(Optimizer):
    """Minimise with memory for r + c numbers per matrix; ``lr`` is relative to the root mean square of a parameter.

    There is no first moment, and the rate is the schedule's (the paper's time-dependent rate is off), as the original
    used it.
    """

    def __init__(
        self, parameters: Iterable[Tensor] | Iterable[dict[str, Any]], *, lr: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient; call ``closure`` first when it is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, lr=group["lr"], weight_decay=group["weight_decay"])
        return loss

    def _update(self, parameter: Tensor, *, lr: float, weight_decay: float) -> None:
        gradient = parameter.grad.float()
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            if gradient.dim() >= 2:
                state["exp_avg_sq_row"] = gradient.new_zeros(gradient.shape[:-1])  # [r]
                state["exp_avg_sq_col"] = gradient.new_zeros(gradient.shape[:-2] + gradient.shape[-1:])  # [c]
            else:
                state["exp_avg_sq"] = torch.zeros_like(gradient)
        state["step"] += 1
        rate = lr * _root_mean_square(parameter).clamp(min=PARAMETER_EPS)
        keep = 1.0 - float(state["step"]) ** DECAY_EXPONENT
        square = gradient.square() + GRADIENT_EPS
        if gradient.dim() >= 2:
            rows = state["exp_avg_sq_row"].lerp_(square.mean(dim=-1), 1.0 - keep)
            columns = state["exp_avg_sq_col"].lerp_(square.mean(dim=-2), 1.0 - keep)
            row_factor = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt().unsqueeze(-1)  # [r,1]
            update = gradient * row_factor * columns.rsqrt().unsqueeze(-2)
        else:
            update = gradient * state["exp_avg_sq"].lerp_(square, 1.0 - keep).rsqrt()
        update /= (_root_mean_square(update) / CLIP_THRESHOLD).clamp(min=1.0)
        parameter.mul_(1.0 - weight_decay * rate).sub_((update * rate).to(parameter.dtype))


def _root_mean_square(values: Tensor) -> Tensor:
    return values.float().square().mean().sqrt()
