"""The learning rate over the updates: a linear warm-up, then a decay."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer

from files.reading import value_of
from training.settings import ScheduleSettings

# ``exponential`` keeps the rate after the warm-up, as in the original, whose old configurations rely on it.
DECAY_STYLES = ("linear", "cosine", "constant", "exponential")


class AnnealingLR:
    """Set the rate of every parameter group; ``step`` is called once for each update that was made.

    The update with index t (0 is the first) uses the rate ``rate(t)``. With a warm-up the first update has rate 0.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        start_lr: float,
        warmup_iters: float,
        num_iters: int,
        decay_style: str = "linear",
        decay_ratio: float = 0.1,
        clamp: bool = True,
    ) -> None:
        """Describe the schedule and set the rate of the first update.

        ``start_lr`` is the rate after ``warmup_iters`` updates, which may be a fraction. At ``num_iters`` updates the
        decay ends at ``decay_ratio`` times it. From there on the rate stays; that of the linear decay without ``clamp``
        goes on falling through zero, as in the original. Raises ValueError when the warm-up is longer than half of the
        schedule or a value is out of range.
        """
        num_iters = max(1, num_iters)
        if decay_style not in DECAY_STYLES:
            raise ValueError(f"learning rate decay {decay_style!r} is unknown; choose one of {', '.join(DECAY_STYLES)}")
        if not 0.0 <= warmup_iters <= num_iters - warmup_iters:
            raise ValueError(
                f"a warm-up of {warmup_iters:g} updates does not fit a schedule of {num_iters}: it can take up to half "
                "of it (--warmup 0 to 0.5)"
            )
        if not 0.0 <= decay_ratio <= 1.0:
            raise ValueError(f"the decay ratio is {decay_ratio:g}; it has to lie between 0 and 1 (--lr-decay-ratio)")
        self.optimizer = optimizer
        self.start_lr = start_lr
        self.warmup_iters = float(warmup_iters)
        self.decay_iters = num_iters - self.warmup_iters
        self.decay_style = decay_style
        self.decay_ratio = decay_ratio
        self.clamp = clamp
        self.num_iters = 0
        self._switched = False
        self._write()

    @classmethod
    def of(cls, settings: ScheduleSettings, optimizer: Optimizer, *, num_iters: int) -> AnnealingLR:
        """Return the schedule of the flags, ``num_iters`` updates long, from the optimizer's present rate on."""
        return cls(
            optimizer,
            start_lr=optimizer.param_groups[0]["lr"],
            warmup_iters=settings.warmup * num_iters,
            num_iters=num_iters,
            decay_style=settings.lr_decay_style,
            decay_ratio=settings.lr_decay_ratio,
        )

    def rate(self, num_iters: float) -> float:
        """Return the rate of the update that follows ``num_iters`` updates."""
        if self.warmup_iters > 0.0 and num_iters <= self.warmup_iters:
            return self.start_lr * num_iters / self.warmup_iters
        progress = (num_iters - self.warmup_iters) / self.decay_iters
        if self.decay_style == "linear":
            progress = min(1.0, progress) if self.clamp else progress
            return self.start_lr * (1.0 - (1.0 - self.decay_ratio) * progress)
        if self.decay_style == "cosine":
            height = (math.cos(math.pi * min(1.0, progress)) + 1.0) / 2.0
            return self.start_lr * (self.decay_ratio + (1.0 - self.decay_ratio) * height)
        return self.start_lr

    def step(self) -> None:
        """Count one update and set the rate of the next."""
        self.num_iters += 1
        self._write()

    def switch_linear(self, remaining_iters: int) -> None:
        """Go down on a straight line from the present rate over ``remaining_iters`` updates, without a warm-up.

        A schedule that was switched already (before the checkpoint it was restored from) stays on its line, so that
        the same command continues a run. The original warmed up again here; that is not kept.
        """
        if self._switched:
            return
        self._follow_line(self.rate(self.num_iters), max(1, remaining_iters))
        self.warmup_iters, self.num_iters = 0.0, 0
        self._write()

    def state_dict(self) -> dict[str, Any]:
        """Return the state under the original's keys, and the line of a switched schedule under ``switched``."""
        state: dict[str, Any] = {
            "warmup_iter": self.warmup_iters,
            "num_iters": self.num_iters,
            "decay_style": self.decay_style,
            "end_iter": self.decay_iters,
            "decay_ratio": 1.0 / self.decay_ratio if self.decay_ratio else math.inf,
        }
        if self._switched:
            state["switched"] = {"start_lr": self.start_lr, "end_iter": self.decay_iters}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the warm-up and the update count of ``state``.

        Style, length, ratio and start rate stay those of this schedule, except on the line of a switched schedule.
        Raises ValueError for a state that holds neither.
        """
        place = "the learning rate state, which --no-load-lr-scheduler leaves out"
        self.warmup_iters = value_of(state, "warmup_iter", float, place=place, at_least=0)
        self.num_iters = int(value_of(state, "num_iters", float, place=place, at_least=0))
        switched = value_of(state, "switched", dict, place=place, default=None)
        if switched is not None:
            start_lr, end_iter = (value_of(switched, name, float, place=place) for name in ("start_lr", "end_iter"))
            self._follow_line(start_lr, end_iter)
        self._write()

    def _follow_line(self, start_lr: float, end_iter: float) -> None:
        self.start_lr, self.decay_iters, self.decay_style, self._switched = start_lr, end_iter, "linear", True

    def _write(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.num_iters)
