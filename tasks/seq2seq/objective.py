"""The loss of a batch of sources and targets."""

from __future__ import annotations

import torch
from torch import nn

from model.modeling_glm import LanguageModelLoss
from mpu.kernels.host_memory import send
from tasks.seq2seq.collation import Seq2SeqBatch


class Seq2SeqObjective:
    """Cross entropy of the target ids over the padded vocabulary, smoothed; computed only where they are."""

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, model: nn.Module, batch: Seq2SeqBatch, *, device: torch.device) -> LanguageModelLoss:
        """Return the sums over target ids; ``model`` is a bare GLM, possibly wrapped."""
        inputs = (batch.input_ids, batch.position_ids, batch.prefix_lengths, batch.target_ids)
        input_ids, position_ids, prefix_lengths, labels = (send(torch.from_numpy(array), device) for array in inputs)
        return model(
            input_ids,
            position_ids,
            prefix_lengths,
            labels=labels,
            loss_mask=torch.from_numpy(batch.loss_mask),  # on the host, where its targets are counted without a wait
            label_smoothing=self.label_smoothing,
        )

    def weight(self, batch: Seq2SeqBatch) -> float:
        """Return the number of target ids."""
        return float(batch.loss_mask.sum())

    def mode(self, batch: Seq2SeqBatch) -> str:
        """Return the name of the loss in reports."""
        return "multi-task"

    def num_tokens(self, batch: Seq2SeqBatch) -> int:
        """Return the size of the input."""
        return batch.input_ids.size
