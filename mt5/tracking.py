"""Figures of a run in wandb, where it is installed; ``wandb offline`` or WANDB_MODE=offline keeps them here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mt5.settings import Settings


class Tracker:
    """Sends figures to a run of wandb, or nowhere.

    Attributes:
        notice: what to tell the user about it.
    """

    def __init__(self, settings: Settings, *, enabled: bool, model: Any = None) -> None:
        """Begin a run in the process that is ``enabled``; ``model``: its gradients are watched."""
        self._run, self.notice = None, ""
        if not enabled:
            return
        try:
            import wandb
        except ImportError:
            self.notice = "tracking: off (wandb is not installed; pip install wandb)"
            return
        config = {
            "TRAIN_BATCH_SIZE": settings.batch_size,
            "VALID_BATCH_SIZE": settings.eval_batch_size,
            "TRAIN_EPOCHS": settings.epochs,
            "VAL_EPOCHS": 1,
            "LEARNING_RATE": settings.lr,
            "SEED": settings.seed,
            "MAX_LEN": settings.max_len,
            "SUMMARY_LEN": settings.summary_len,
            "MODEL": settings.model,
            "TASK": f"{settings.task} {settings.subtask}",
        }
        try:
            self._run = wandb.init(
                project=settings.wandb_project, entity=settings.wandb_entity or None, config=config, reinit=True
            )
            if model is not None:
                self._run.watch(model, log="gradients", log_freq=100)
        except Exception as error:  # no account, no network: the run is what matters
            reason = " ".join(str(error).split())[:150]
            self.notice = f"tracking: off ({reason}); wandb login, or wandb offline"
            return
        self.notice = f"tracking: {self._run.dir}"

    def log(self, figures: Mapping[str, float]) -> None:
        """Record figures."""
        if self._run is not None:
            self._run.log(dict(figures))

    def end(self) -> None:
        """End the run of wandb."""
        if self._run is not None:
            self._run.finish()
