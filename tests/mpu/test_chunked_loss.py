"""The loss over a large vocabulary, computed in chunks: equal to the plain one, without all logits at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model import modeling_glm
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu import cross_entropy
from mpu.cross_entropy import chunked_loss_sum, vocab_parallel_cross_entropy
from mpu.initialize import ParallelTopology, initialize_model_parallel
from mpu.layers import shard_of
from mpu.mappings import copy_to_model_parallel
from tests.helpers.distributed import run

TOKENS, WIDTH, ROWS = 23, 8, 250112  # the rows are those of the multilingual model
CHUNK = 4 * ROWS


def inputs(*, weighted: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator)
    table = torch.randn(ROWS, WIDTH, generator=generator) * 0.1
    targets = torch.randint(ROWS, (TOKENS,), generator=generator)
    weights = torch.rand(TOKENS, generator=generator) if weighted else torch.ones(TOKENS)
    return hidden.requires_grad_(), table.requires_grad_(), targets, weights


def plain(smoothing: float, *, weighted: bool) -> tuple[Tensor, Tensor, Tensor]:
    hidden, table, targets, weights = inputs(weighted=weighted)
    losses = vocab_parallel_cross_entropy(
        hidden @ table.t(), targets, topology=ParallelTopology.single(), label_smoothing=smoothing
    )
    total = (losses * weights).sum()
    total.backward()
    return total.detach(), hidden.grad, table.grad


class LargestTensor(TorchDispatchMode):
    """Notes how many elements the largest tensor had that an operation made."""

    largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("own", [True, False], ids=["own", "torch"])
def test_it_is_the_plain_loss(smoothing: float, weighted: bool, own: bool, monkeypatch: pytest.MonkeyPatch):
    if own:
        monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions", raising=False)
    hidden, table, targets, weights = inputs(weighted=weighted)
    with LargestTensor() as seen:
        total = chunked_loss_sum(
            hidden, table, targets, weights, topology=ParallelTopology.single(), label_smoothing=smoothing,
            unit_weights=not weighted, chunk_elements=CHUNK,
        )  # fmt: skip
        total.backward()
    expected = plain(smoothing, weighted=weighted)
    for actual, wanted in zip((total.detach(), hidden.grad, table.grad), expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=1e-5)
    if own:
        assert seen.largest <= max(CHUNK, ROWS * WIDTH) < TOKENS * ROWS


def on_a_rank(smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    topology = initialize_model_parallel(2)
    hidden, table, targets, weights = inputs(weighted=True)
    shard = shard_of(table.detach(), topology=topology, dim=0).clone().requires_grad_()
    total = chunked_loss_sum(
        copy_to_model_parallel(hidden, topology), shard, targets, weights, topology=topology,
        label_smoothing=smoothing, chunk_elements=CHUNK // 2,
    )  # fmt: skip
    total.backward()
    return total.detach(), hidden.grad, shard.grad


def test_two_ranks_share_the_vocabulary():
    expected = plain(0.1, weighted=True)
    first, second = run(on_a_rank, 2, 0.1)
    for total, gradient, _ in (first, second):
        torch.testing.assert_close(total, expected[0], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(gradient, expected[1], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(torch.cat([first[2], second[2]]), expected[2], atol=1e-4, rtol=1e-5)


def test_the_model_takes_it_for_a_large_vocabulary(monkeypatch: pytest.MonkeyPatch):
    model = GLMModel(GLMConfig(1, 16, 2, 640, max_position_embeddings=16, output_dropout=0.0, embedding_dropout=0.0,
                               attention_dropout=0.0))  # fmt: skip
    ids = torch.arange(24).view(2, 12)
    arguments = ids, torch.zeros(2, 2, 12, dtype=torch.long), torch.tensor([4, 5])
    usual = model(*arguments, labels=ids)
    usual.mean.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    called = []
    monkeypatch.setattr(modeling_glm, "LARGE_VOCABULARY", 640)
    monkeypatch.setattr(modeling_glm, "CHUNK_ELEMENTS", 4 * 640)
    original = cross_entropy.chunked_loss_sum
    monkeypatch.setattr(
        modeling_glm, "chunked_loss_sum", lambda *a, **k: called.append(1) or original(*a, chunk_elements=4 * 640, **k)
    )
    chunked = model(*arguments, labels=ids)
    chunked.mean.backward()
    assert called
    torch.testing.assert_close(chunked.mean, usual.mean)
    assert torch.equal(chunked.weight_sum, usual.weight_sum)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=name)
