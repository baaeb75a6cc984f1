"""A prefix mask as two calls of FlashAttention, which has no mask: the same attention and the same gradients.

The kernel runs on GPUs alone. Here one sample after the other is attended to by torch's own attention, with the
kernel's rule for causal samples; the kernel itself gets tensors without memory, which shows what it takes and returns.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mpu.attention import attend
from mpu.kernels.flash import attend_in_two_calls, can_run_flash
from mpu.masks import PrefixMask

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
