"""Learning rate schedule: linear warm-up, then decay (spec: model 10.3)."""

from __future__ import annotations

import math
from typing import Any

import torch

DECAY_STYLES = ("constant", "linear", "cosine", "exponential")


class AnnealingLR:
    """Set the learning rate of every parameter group before each update.

    With t updates done, w the warm-up and e the length of the decay, the next update uses

        lr0 * t / w                                   while t <= w (the very first update has rate 0)
        linear    lr0 * (1 - (1 - ratio) * x)         with x = (t - w) / e, at most 1
        cosine    lr0 * (ratio + (1 - ratio) * (1 + cos(pi x)) / 2)
        constant  lr0 (exponential too: the original never implemented it)

    The original lets the linear rate fall below its end, even below zero, when training goes on; ``clamp=False`` does
    that, too.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        start_lr: float,
        num_iters: int,
        warmup_iters: float = 0.0,
        decay_style: str = "linear",
        decay_ratio: float = 0.1,
        clamp: bool = True,
    ) -> None:
        """Start a schedule of ``num_iters`` updates, ``warmup_iters`` of them (a float) warm-up.

        Raises ValueError for an unknown style or a warm-up of more than half the schedule.
        """
        if decay_style not in DECAY_STYLES:
            raise ValueError(f"learning rate decay style {decay_style!r}; choose one of {', '.join(DECAY_STYLES)}")
        if not 0 <= warmup_iters <= num_iters - warmup_iters:
            raise ValueError(f"a warm-up of {warmup_iters} of {num_iters} updates; at most half is possible")
        if not 0.0 <= decay_ratio <= 1.0:
            raise ValueError(f"--lr-decay-ratio is {decay_ratio}; a number between 0 and 1 is needed")
        self.optimizer = optimizer
        self.start_lr = start_lr
        self.warmup_iter = float(warmup_iters)
        self.end_iter = num_iters - float(warmup_iters)
        self.decay_style = decay_style
        self.decay_ratio = decay_ratio
        self.clamp = clamp
        self.num_iters = 0
        self._apply()

    def learning_rate(self) -> float:
        """Return the rate of the next update."""
        if self.warmup_iter > 0 and self.num_iters <= self.warmup_iter:
            return self.start_lr * self.num_iters / self.warmup_iter
        progress = (self.num_iters - self.warmup_iter) / self.end_iter if self.end_iter > 0 else 1.0
        if self.decay_style == "linear":
            if self.clamp:
                progress = min(1.0, progress)
            return self.start_lr * (1.0 - (1.0 - self.decay_ratio) * progress)
        progress = min(1.0, progress)
        if self.decay_style == "cosine":
            half_wave = (math.cos(math.pi * progress) + 1.0) / 2.0
            return self.start_lr * (self.decay_ratio + (1.0 - self.decay_ratio) * half_wave)
        return self.start_lr

    def step(self) -> None:
        """Count one update and set the rate of the next."""
        self.num_iters += 1
        self._apply()

    def switch_linear(self, remaining_iters: int) -> None:
        """Go on linearly from the current rate over ``remaining_iters`` updates, without a second warm-up."""
        self.start_lr = self.learning_rate()
        self.end_iter = float(max(1, remaining_iters))
        self.warmup_iter, self.num_iters, self.decay_style = 0.0, 0, "linear"
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Return the state under the names of the original; its decay ratio is the inverse of ours."""
        return {
            "warmup_iter": self.warmup_iter,
            "num_iters": self.num_iters,
            "decay_style": self.decay_style,
            "end_iter": self.end_iter,
            "decay_ratio": 1.0 / self.decay_ratio if self.decay_ratio else math.inf,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the warm-up and the number of updates; everything else stays as the flags say."""
        self.warmup_iter = float(state["warmup_iter"])
        self.num_iters = int(state["num_iters"])
        self._apply()

    def _apply(self) -> None:
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
