"""An update never asks the device for a value, so that the host can run ahead of a GPU.

The device of these tests is torch's "meta", whose tensors have no values: whatever waits for one (``item``, ``bool``,
``nonzero``, a choice by a mask) raises, and so does mixing tensors of the host with those of the device.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from mpu.kernels.host_memory import send
from tasks.seq2seq.samples import Seq2SeqSample
from tasks.seq2seq.samples import collate as collate_texts
from tasks.superglue.batches import collate
from tasks.superglue.objective import TaskCriterion, mask_scores
from tests.helpers.engines import make_batch, make_engine
from tests.helpers.task_samples import PAD, make_model, make_samples
from training.engine import BlankInfilling, Criterion, TorchEngine
from training.metrics import IntervalMetrics, StepResult

META = torch.device("meta")


class SkippingSGD(torch.optim.SGD):
    """An optimizer that takes the flag to skip on the device, as the fused AdamW does, which "meta" has not."""

    _step_supports_amp_scaling = True
    found_inf: torch.Tensor | None = None

    def step(self, closure: Any = None) -> None:
        assert self.found_inf is not None and self.found_inf.device == META
        del self.found_inf
        super().step(closure)


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """Leave autocast out, which does not know the device."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


def update(model: torch.nn.Module, batches: list[Any], criterion: Criterion | None = None) -> StepResult:
    """Make one update of ``model`` on the device without values."""
    model = model.to(META).train()
    scheduler = make_engine().scheduler
    optimizer = SkippingSGD(model.parameters(), lr=0.1)
    engine = TorchEngine(model, optimizer=optimizer, scheduler=scheduler, criterion=criterion, device=META)
    result = engine.train_step(batches)
    IntervalMetrics(META, topology=ParallelTopology.single()).add(result)
    assert result.loss.device == result.grad_norm.device == META
    return result


def test_pretraining():
    update(make_engine(dropout=0.1).model, [make_batch(1), make_batch(2, targets=7)])


def test_pretraining_with_recomputed_layers():
    update(make_engine(dropout=0.1, checkpoint_activations=True).model, [make_batch(1)])


def test_pretraining_in_shared_rows():
    owners = np.zeros((4, 2, 12), dtype=np.int64)
    owners[:, 0, :6], owners[:, 0, 6:], owners[:, 1, :3] = 1, 2, 1
    update(make_engine(dropout=0.1).model, [replace(make_batch(1), attention_mask=owners, layout="packed")])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("kind", "choices"),
    [("single_token", False), ("multi_token", True), ("language_model", False), ("classification", True)],
)
def test_finetuning(kind: Any, choices: bool, shared: bool):
    samples = make_samples(kind, 5, 3, choices=choices, one_row=False)
    batch = collate(samples, pad_id=PAD, share_rows=shared)
    assert (batch.shared_rows is not None) == shared
    update(make_model(kind), [batch], TaskCriterion())


def test_texts_to_write():
    samples = []
    for number in range(3):
        values = np.arange(8, dtype=np.int64) + number
        samples.append(
            Seq2SeqSample(
                input_ids=values, position_ids=np.stack([values, values]), prefix_length=5, context_length=4,
                target_ids=values, loss_mask=(values > number + 4).astype(np.int64), mask_positions=(1,),
                uid=str(number),
            )
        )  # fmt: skip
    model = make_engine(dropout=0.1).model
    assert isinstance(model, GLMModel)
    update(model, [collate_texts(samples, pad_id=PAD)], BlankInfilling(label_smoothing=0.1))


def test_segments_of_answers():
    scores = torch.randn(2, 3, device=META)
    rows = torch.tensor([[0, 0, 1], [0, 1, 2]])
    assert mask_scores(scores, torch.ones(2, 3, device=META), rows).shape == (2, 3)


def test_a_wait_would_be_seen():
    with pytest.raises(RuntimeError):
        torch.ones(3, device=META).nonzero()
    with pytest.raises(RuntimeError):
        bool(torch.ones((), device=META) > 0)
    with pytest.raises(RuntimeError):
        torch.ones(3, device=META) + torch.ones(3)


def test_tensors_that_are_there_are_not_copied():
    here = torch.ones(3)
    assert send(here, torch.device("cpu")) is here
