"""What an engine minimises: the loss of a batch, and how much the batch weighs."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from data_utils.batches import Batch
from model.modeling_glm import LanguageModelLoss
from mpu.kernels.host_memory import send


class Objective(Protocol):
    """The loss of one kind of batches. Engines divide its sum by the weights of all micro batches and data ranks."""

    def loss(self, model: nn.Module, batch: Any, *, device: torch.device) -> LanguageModelLoss:
        """Run ``model`` on ``batch`` and return the sums of losses and of weights."""

    def weight(self, batch: Any) -> float:
        """Return the sum of weights, known before the model runs."""

    def mode(self, batch: Any) -> str:
        """Return the name under which the loss is reported, one of ``training.metrics.OBJECTIVES``."""

    def num_tokens(self, batch: Any) -> int:
        """Return the input tokens, padding included."""


class BlankInfilling:
    """Predict the tokens of blanks: cross entropy over the padded vocabulary, computed only where targets are.

    ``label_smoothing`` is the share of the loss that every id of the vocabulary gets.
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, model: nn.Module, batch: Batch, *, device: torch.device) -> LanguageModelLoss:
        """Return the sums over target positions."""
        tensors = batch.tensors()
        return model(
            send(tensors.input_ids, device),
            send(tensors.position_ids, device),
            send(tensors.attention_mask, device),
            labels=send(tensors.target_ids, device),
            loss_mask=tensors.loss_mask,  # on the host, where its targets are counted without a wait
            label_smoothing=self.label_smoothing,
        )

    def weight(self, batch: Batch) -> float:
        """Return the number of target positions."""
        return float(batch.loss_mask.sum())

    def mode(self, batch: Batch) -> str:
        """Return the kind of blanks."""
        return batch.mode

    def num_tokens(self, batch: Batch) -> int:
        """Return the size of the input."""
        return batch.input_ids.size
