"""A prefix mask as two calls of FlashAttention, which has no mask: the same attention and the same gradients.

The kernel runs on GPUs alone. Here one sample after the other is attended to by torch's own attention, with the
kernel's rule for causal samples; the kernel itself gets tensors without memory, which shows what it takes and returns.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mpu import attention
from mpu.attention import attend
from mpu.config import TransformerConfig
from mpu.initialize import ParallelTopology
from mpu.kernels.flash import attend_in_two_calls, can_run_flash
from mpu.layers import LayerContext
from mpu.masks import PrefixMask, TwoCalls
from mpu.random import ModelParallelRandomState
from mpu.transformer import Transformer

HEADS, HEAD_DIM = 2, 8


def sample_by_sample(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    *,
    longest: int,
    causal: bool,
    dropout_probability: float,
) -> Tensor:
    """Return what the kernel returns; causal from the last query and the last key on."""
    assert dropout_probability == 0.0
    outputs = [query.new_zeros(0, HEADS, HEAD_DIM)]
    for first, last, key_first, key_last in zip(query_starts, query_starts[1:], key_starts, key_starts[1:]):
        queries, keys = int(last - first), int(key_last - key_first)
        assert max(queries, keys) <= longest
        if queries:
            seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries) if causal else None
            parts = (query[first:last], key[key_first:key_last], value[key_first:key_last])
            output = F.scaled_dot_product_attention(*(part.transpose(0, 1) for part in parts), attn_mask=seen)
            outputs.append(output.transpose(0, 1))
    return torch.cat(outputs)


def assert_equal(mask: PrefixMask, *, batch: int, length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    shape, double = (batch, HEADS, length, HEAD_DIM), torch.float64
    inputs = [torch.randn(shape, generator=generator, dtype=double, requires_grad=True) for _ in range(3)]
    weights = torch.randn(shape, generator=generator, dtype=double)
    visible = mask.visible_keys(query_length=length, key_length=length, device="cpu")
    calls = mask.two_calls(batch_size=batch, length=length)
    assert calls is not None
    outputs = (attend(*inputs, visible), attend_in_two_calls(*inputs, calls, kernel=sample_by_sample))
    expected, actual = ((output, *torch.autograd.grad((output * weights).sum(), inputs)) for output in outputs)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-9)


@given(prefix_lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4), length=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_prefix_lengths(prefix_lengths: list[int], length: int) -> None:
    assert_equal(PrefixMask.prefix(torch.tensor(prefix_lengths)), batch=len(prefix_lengths), length=length)


def test_one_prefix_length_for_all_rows() -> None:
    assert_equal(PrefixMask.prefix(torch.tensor(5)), batch=3, length=12)
    assert_equal(PrefixMask.prefix(torch.tensor([[0], [12], [4]])), batch=3, length=12)


samples = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=4)


@given(rows=st.lists(samples, min_size=1, max_size=3), padding=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_rows_that_samples_share(rows: list[list[tuple[int, int]]], padding: int) -> None:
    width = max(sum(length for length, _ in row) for row in rows) + padding
    segment_ids, in_prefix = torch.zeros(2, len(rows), width, dtype=torch.int64)
    for row, lengths in enumerate(rows):
        start = 0
        for number, (length, prefix) in enumerate(lengths, start=1):
            segment_ids[row, start : start + length] = number
            in_prefix[row, start : start + min(prefix, length)] = 1
            start += length
    mask = PrefixMask.packed(segment_ids, in_prefix)
    assert_equal(mask, batch=len(rows), length=width)
    assert_equal(mask.padded(3), batch=len(rows), length=width + 3)


@pytest.mark.parametrize(
    "mask",
    [
        PrefixMask.matrix(torch.ones(1, 1, 6, 6)),
        PrefixMask.packed(torch.tensor([[1, 1, 2, 2, 1, 1]]), torch.zeros(1, 6)),  # sample 1 in two places
        PrefixMask.packed(torch.tensor([[1, 1, 1, 2, 2, 2]]), torch.tensor([[0, 1, 0, 1, 0, 0]])),  # a late prefix
    ],
)
def test_other_masks_are_no_two_calls(mask: PrefixMask) -> None:
    assert mask.two_calls(batch_size=1, length=6) is None


PACKED = PrefixMask.packed(
    torch.tensor([[1] * 5 + [2] * 7 + [0] * 4, [1] * 16]),
    torch.tensor([[1, 1, 1, 0, 0] + [1] * 7 + [0] * 4, [1, 1, 1] + [0] * 13]),
)
FORMS = {
    "prefix lengths": PrefixMask.prefix(torch.tensor([3, 16])),
    "packed": PACKED,
    "matrix": PrefixMask.matrix(torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1)) < 0.5),
    "matrix of ones": PrefixMask.matrix(torch.ones(1, 1, 16, 16)),
    "all visible": PrefixMask.prefix(torch.tensor([16, 40])),
    "causal": PrefixMask.prefix(torch.tensor([0, 1])),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chosen", [False, True], ids=["all queries", "queries of targets"])
def test_a_model_with_two_calls_or_without_a_mask_is_one_with_a_mask(
    form: str, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients in fp32; the device is no GPU, so the form is taken by hand."""
    mask, length = FORMS[form], 16
    dense = mask.visible_keys(query_length=length, key_length=length, device="cpu", by_rule=False)
    config = TransformerConfig(
        3,
        HEADS * HEAD_DIM,
        HEADS,
        max_position_embeddings=32,
        embedding_dropout=0.0,
        attention_dropout=0.0,
        output_dropout=0.0,
    )
    generator = torch.Generator().manual_seed(2)
    context = LayerContext(ParallelTopology.single(), ModelParallelRandomState(ParallelTopology.single()), generator)
    model = Transformer(config, context)
    words = torch.randn(2, length, HEADS * HEAD_DIM, generator=generator).requires_grad_()
    positions = torch.stack([torch.arange(length), torch.zeros(length, dtype=torch.int64)]).expand(2, 2, length)
    queries = torch.tensor([[3, 15, 0], [9, 9, 14]]) if chosen else None
    taken = []

    def two_calls(self: Transformer, given: PrefixMask, states: Tensor) -> TwoCalls | None:
        taken.append(given.two_calls(batch_size=2, length=length))
        return taken[-1]

    def by_samples(*inputs: Any, **options: Any) -> Tensor:
        return attend_in_two_calls(*inputs, kernel=sample_by_sample, **options)

    monkeypatch.setattr(Transformer, "_two_calls", two_calls)
    monkeypatch.setattr(attention, "attend_in_two_calls", by_samples)
    results = []
    for used in (dense, mask):
        output = model(words, positions, used, query_positions=queries)
        results.append((output, *torch.autograd.grad(output.square().sum(), [words, *model.parameters()])))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, atol=1e-6 * max(1.0, float(one.detach().abs().max())), rtol=0.0)
    assert [calls is not None for calls in taken] == {
        "prefix lengths": [True],
        "packed": [True],
        "matrix": [False],
    }.get(form, []), "a mask that is a rule of the kernel needs no calls"


def test_a_prefill_and_a_step_have_no_mask() -> None:
    for lengths in (torch.tensor(6), torch.tensor([6, 9])):
        mask = PrefixMask.prefix(lengths)
        assert mask.visible_keys(query_length=6, key_length=6, device="cpu").visible is None
        assert mask.visible_keys(query_length=6, key_length=10, device="cpu").visible is None
        assert mask.visible_keys(query_length=1, key_length=10, device="cpu").visible is None
    causal = PrefixMask.prefix(torch.tensor([0, 1]))
    assert causal.visible_keys(query_length=6, key_length=6, device="cpu").causal
    behind_a_cache = causal.visible_keys(query_length=6, key_length=10, device="cpu")
    assert not behind_a_cache.causal and behind_a_cache.visible is not None


def test_a_mask_on_a_device_is_known_by_its_copy_on_the_host() -> None:
    meta = torch.device("meta")
    for lengths, rule in ((torch.tensor([6, 9]), "all"), (torch.tensor([0]), "causal"), (torch.tensor([3]), None)):
        assert PrefixMask.prefix(lengths).to(meta).kernel_rule(query_length=6, key_length=6) == rule
        assert PrefixMask.prefix(lengths.to(meta)).kernel_rule(query_length=6, key_length=6) is None
    seen = torch.ones(1, 1, 2, 2).tril()
    keys = PrefixMask.matrix(seen).to(meta).visible_keys(query_length=2, key_length=2, device=meta)
    assert keys.fully_masked is None, "no row sees nothing, and nobody asked the device"
    assert (
        PrefixMask.matrix(seen.to(meta)).visible_keys(query_length=2, key_length=2, device=meta).fully_masked
        is not None
    )


def test_the_kernel_takes_what_it_is_given() -> None:
    """Shapes, types and the derivative, on tensors without memory."""
    meta = torch.device("meta")
    calls = PrefixMask.prefix(torch.tensor([3, 0, 16])).two_calls(batch_size=3, length=16)
    assert calls is not None
    inputs = [torch.empty(3, 4, 16, 64, dtype=torch.bfloat16, device=meta, requires_grad=True) for _ in range(3)]
    output = attend_in_two_calls(*inputs, calls.to(meta), dropout_probability=0.1)
    assert output.shape == (3, 4, 16, 64)
    output.sum().backward()
    assert all(tensor.grad is not None and tensor.grad.shape == tensor.shape for tensor in inputs)


def test_a_mask_made_on_the_host_stays_known_there() -> None:
    mask = PrefixMask.prefix(torch.tensor([3, 5])).to(torch.device("meta"))
    assert mask.on_host is not None
    assert mask.on_host.two_calls(batch_size=2, length=8) is not None
    assert PrefixMask.prefix(torch.tensor([3, 5], device="meta")).to(torch.device("meta")).on_host is None


def test_processors_have_another_kernel() -> None:
    assert not can_run_flash(device=torch.device("cpu"), dtype=torch.bfloat16, head_dim=64)
    assert not can_run_flash(device=torch.device("cuda"), dtype=torch.float32, head_dim=64)
    assert not can_run_flash(device=torch.device("cuda"), dtype=torch.bfloat16, head_dim=20)
