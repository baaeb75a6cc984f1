"""Attention by blocks equals attention with the whole mask: prefix_lengths, shared rows, gradients, whole models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu import transformer
from mpu.attention import attend
from mpu.kernels import flex as flex_attention
from mpu.kernels.flex import attend_blocks, make_block_mask, prefers_blocks
from mpu.masks import PrefixMask, VisibleKeys

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler, which the kernel needs")


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run FlexAttention in plain torch operations, which have a backward pass on a CPU.

    torch refuses gradients on a CPU because its compiled kernel has none there; this check of torch is left out.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_flex, "_validate_device", lambda *_: None)
        patch.setattr(flex_attention, "_compiled", lambda: torch_flex.flex_attention)
        yield


def shared_rows(rows: list[list[tuple[int, int]]], width: int) -> Tensor:
    """Return the mask [b,2,s] of rows that hold samples of (length, length of part A)."""
    segment_ids = torch.zeros(len(rows), 2, width, dtype=torch.long)
    for row, samples in enumerate(rows):
        start = 0
        for number, (length, prefix) in enumerate(samples, start=1):
            segment_ids[row, 0, start : start + length] = number
            segment_ids[row, 1, start : start + prefix] = 1
            start += length
    return segment_ids


def both_ways(mask: Tensor, *, batch: int, length: int, seed: int) -> list[tuple[Tensor, ...]]:
    """Return the output and the gradients of query, key and value: with the whole mask, and by blocks."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(batch, 2, length, 16, generator=generator, requires_grad=True) for _ in range(3)]
    weights = torch.randn(batch, 2, length, 16, generator=generator)
    whole = PrefixMask.from_attention_mask(mask).visible_keys(query_length=length, key_length=length, device=CPU)
    blocks = make_block_mask(PrefixMask.from_attention_mask(mask), batch_size=batch, length=length, device=CPU)
    results = []
    for used in (whole, VisibleKeys(visible=None, blocks=blocks)):
        output = attend(*inputs, used)
        results.append((output, *torch.autograd.grad((output * weights).sum(), inputs)))
    return results


def assert_equal_both_ways(mask: Tensor, *, batch: int, length: int, seed: int) -> None:
    with uncompiled():
        whole, blocks = both_ways(mask, batch=batch, length=length, seed=seed)
    for expected, actual in zip(whole, blocks, strict=True):
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@given(prefix_lengths=st.lists(st.integers(0, 300), min_size=1, max_size=3), length=st.integers(1, 300))
@settings(max_examples=8, deadline=None)
def test_separators(prefix_lengths: list[int], length: int) -> None:
    assert_equal_both_ways(torch.tensor(prefix_lengths), batch=len(prefix_lengths), length=length, seed=length)


@pytest.mark.parametrize("mask", [torch.tensor(9), torch.tensor([140]), torch.tensor([[3], [150]])])
def test_every_form_of_separators(mask: Tensor) -> None:
    assert_equal_both_ways(mask, batch=2, length=160, seed=1)


@given(data=st.data(), num_rows=st.integers(1, 3))
@settings(max_examples=12, deadline=None)
def test_samples_that_share_rows(data: st.DataObject, num_rows: int) -> None:
    sample = st.integers(1, 150).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))
    rows = [data.draw(st.lists(sample, min_size=1, max_size=3)) for _ in range(num_rows)]
    padding = data.draw(st.integers(0, 70))
    width = max(sum(length for length, _ in row) for row in rows) + padding
    assert_equal_both_ways(shared_rows(rows, width), batch=num_rows, length=width, seed=num_rows)


def test_blocks_in_which_nothing_is_visible_are_left_out() -> None:
    rows = shared_rows([[(128, 100), (128, 5), (128, 128)]], 384)
    blocks = make_block_mask(PrefixMask.from_attention_mask(rows), batch_size=1, length=384, device=CPU)
    assert torch.equal(blocks.to_dense()[0, 0].int(), torch.eye(3, dtype=torch.int))
    causal = make_block_mask(PrefixMask.prefix(torch.tensor([0])), batch_size=1, length=384, device=CPU)
    assert torch.equal(causal.to_dense()[0, 0].int(), torch.ones(3, 3, dtype=torch.int).tril())


@needs_compiler
@pytest.mark.slow
def test_the_compiled_kernel() -> None:
    """Forward alone: torch has no backward pass of it on a CPU."""
    torch.compiler.reset()
    mask = shared_rows([[(80, 50), (90, 20)], [(190, 3)]], 190)
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, 2, 190, 16, generator=generator) for _ in range(3))
    whole = PrefixMask.from_attention_mask(mask).visible_keys(query_length=190, key_length=190, device=CPU)
    blocks = make_block_mask(PrefixMask.from_attention_mask(mask), batch_size=2, length=190, device=CPU)
    with torch.no_grad():
        actual = attend_blocks(query, key, value, blocks)
        torch.testing.assert_close(actual, attend(query, key, value, whole), atol=2e-5, rtol=1e-4)
    torch.compiler.reset()


def test_where_blocks_are_taken() -> None:
    prefix_lengths, matrix = PrefixMask.prefix(torch.zeros(2)), PrefixMask.matrix(torch.zeros(2, 1, 8, 8))
    rows = PrefixMask.packed(torch.zeros(2, 8), torch.zeros(2, 8))
    gpu = torch.device("cuda")
    free = {"dropout_probability": 0.0}
    assert not prefers_blocks("sdpa", rows, device=gpu, **free)
    assert prefers_blocks("auto", rows, device=gpu, **free)
    assert not prefers_blocks("auto", rows, device=CPU, **free)
    assert not prefers_blocks("auto", prefix_lengths, device=gpu, **free)
    assert prefers_blocks("flex", prefix_lengths, device=gpu, **free)
    assert prefers_blocks("flex", rows, device=CPU, **free)
    assert not prefers_blocks("flex", matrix, device=gpu, **free)
    assert not prefers_blocks("flex", rows, device=gpu, dropout_probability=0.1)


def make_model(dropout: float = 0.0) -> GLMModel:
    config = GLMConfig(
        3, 32, 2, 64, max_position_embeddings=64,
        embedding_dropout=0.0, attention_dropout=dropout, output_dropout=0.0,
    )  # fmt: skip
    return GLMModel(config, generator=torch.Generator().manual_seed(1))


def loss_and_gradients(model: GLMModel, mask: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(64, (2, 40), generator=generator)
    positions = torch.stack([torch.arange(40), torch.arange(40)]).expand(2, 2, 40)
    targets = (torch.arange(40) % 3 == 0).long().expand(2, 40)
    model.zero_grad()
    loss = model(ids, positions, mask, labels=ids.flip(1), loss_mask=targets).mean
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("mask", [torch.tensor([7, 30]), shared_rows([[(20, 9), (15, 2)], [(33, 30)]], 40)])
def test_a_model_by_blocks_has_the_same_loss_and_gradients_and_makes_them_once(mask: Tensor, monkeypatch) -> None:
    model = make_model().train()
    expected = loss_and_gradients(model, mask)
    made: list[int] = []

    def counted(*args, **options):
        made.append(options["length"])
        return make_block_mask(*args, **options)

    monkeypatch.setattr(transformer, "make_block_mask", counted)
    model.transformer.choose_kernels(attention="flex")
    with uncompiled():
        actual = loss_and_gradients(model, mask)
    assert made == [40]
    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mask", [torch.tensor([7, 30]), shared_rows([[(20, 9), (15, 2)], [(33, 30)]], 40)])
def test_compiled_layers_by_blocks(mask: Tensor) -> None:
    """Evaluation, for which a CPU has all it takes."""
    torch.compiler.reset()
    model = make_model(dropout=0.5).eval()
    ids = torch.randint(64, (2, 40), generator=torch.Generator().manual_seed(2))
    positions = torch.stack([torch.arange(40), torch.arange(40)]).expand(2, 2, 40)
    with torch.no_grad():
        expected = model(ids, positions, mask)
        model.transformer.choose_kernels(attention="flex", compiled=True, backend="aot_eager")
        actual = model(ids, positions, mask)
    inside = torch.ones(2, 40, dtype=torch.bool) if mask.dim() == 1 else mask[:, 0] > 0  # padding means nothing
    torch.testing.assert_close(actual[inside], expected[inside], atol=1e-5, rtol=1e-5)
    torch.compiler.reset()


def test_training_with_attention_dropout_does_without_blocks(monkeypatch) -> None:
    monkeypatch.setattr(transformer, "make_block_mask", lambda *_, **__: pytest.fail("blocks with dropout"))
    model = make_model(dropout=0.5).train()
    model.transformer.choose_kernels(attention="flex")
    loss, _ = loss_and_gradients(model, torch.tensor([7, 30]))
    assert torch.isfinite(loss)
