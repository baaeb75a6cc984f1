"""The key/value cache: in place and with gradients, window, cropping, reordering."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mpu.cache import KeyValueCache


def _cache(capacity: int = 8, **options: object) -> KeyValueCache:
    return KeyValueCache.allocate(num_layers=2, batch_size=2, max_length=capacity, num_heads=1, head_dim=3, **options)


def _append(cache: KeyValueCache, tensor: Tensor) -> Tensor:
    """Append ``tensor`` as keys and its negative as values to both layers; return all keys."""
    for layer in range(2):
        keys, values = cache.append(layer, tensor, -tensor)
        assert torch.equal(values, -keys)
        keys = keys.clone()  # a view that the next call may overwrite
    cache.advance(tensor.size(2))
    return keys


@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    window=st.one_of(st.none(), st.integers(1, 6)),
    mode=st.sampled_from(["in place", "gradients", "differentiable"]),
)
@settings(max_examples=60, deadline=None)
def test_append_returns_the_kept_positions(lengths: list[int], window: int | None, mode: str) -> None:
    cache = _cache(30, window=window, differentiable=mode == "differentiable")
    kept = torch.empty(2, 1, 0, 3)
    for length in lengths:
        new = torch.randn(2, 1, length, 3).requires_grad_(mode != "in place")
        kept = torch.cat([kept, new], dim=2)
        assert torch.equal(_append(cache, new), kept)
        kept = kept if window is None else kept[:, :, -window:]
        assert cache.length == kept.size(2)


def test_gradients_flow_back_only_when_asked_for() -> None:
    for differentiable in (False, True):
        cache = _cache(differentiable=differentiable)
        first, second = (torch.randn(2, 1, 3, 3, requires_grad=True) for _ in range(2))
        _append(cache, first)
        _append(cache, second).sum().backward()
        assert torch.equal(second.grad, torch.ones_like(second))
        assert (first.grad is not None) == differentiable


@pytest.mark.parametrize("differentiable", [False, True])
def test_crop_and_reorder(differentiable: bool) -> None:
    cache = _cache(differentiable=differentiable)
    first = torch.randn(2, 1, 5, 3)
    _append(cache, first)
    cache.crop(4)
    assert cache.length == 4
    cache.reorder(torch.tensor([1, 1, 0]))
    assert cache.batch_size == 3
    new = torch.randn(3, 1, 1, 3)
    expected = torch.cat([first[[1, 1, 0], :, :4], new], dim=2)
    assert torch.equal(_append(cache, new), expected)
    cache.reorder(torch.tensor([2, 0, 1]))
    cache.keep_last(2)
    new = torch.randn(3, 1, 1, 3)
    assert torch.equal(_append(cache, new), torch.cat([expected[[2, 0, 1], :, -2:], new], dim=2))


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [[0, 0, 2, 3], [1, 0, 3, 3], [1, 2, 3]])
def test_positions_that_rows_share_may_stay(rows: list[int], dtype: torch.dtype, differentiable: bool) -> None:
    """Beams of two contexts: the context is the same in both rows of a pair, so moving only the rest is enough."""
    shared = torch.randn(2, 1, 3, 3)[[0, 0, 1, 1]].to(dtype)
    new = torch.arange(24.0).view(4, 1, 2, 3).to(dtype)
    found = []
    for promised in (3, 0):
        cache = KeyValueCache.allocate(
            num_layers=2,
            batch_size=4,
            max_length=8,
            num_heads=1,
            head_dim=3,
            dtype=dtype,
            differentiable=differentiable,
        )
        _append(cache, shared)
        _append(cache, new)
        cache.reorder(torch.tensor(rows), shared=promised)
        found.append(_append(cache, torch.ones(len(rows), 1, 1, 3, dtype=dtype)))
    expected = torch.cat([shared, new], dim=2)[rows]
    for keys in found:
        assert torch.equal(keys[:, :, :5], expected)


def test_entries_of_16_bits_are_kept_wider_on_the_cpu_unless_gradients_pass() -> None:
    key = torch.randn(2, 1, 3, 3).bfloat16()
    for differentiable, expected in ((False, torch.float32), (True, torch.bfloat16)):
        cache = _cache(dtype=torch.bfloat16, differentiable=differentiable)
        for tensor in cache.append(0, key, key):
            assert tensor.dtype == expected
            assert torch.equal(tensor, key.to(expected))


def test_a_full_cache_says_so() -> None:
    cache = _cache(4)
    _append(cache, torch.randn(2, 1, 3, 3))
    with pytest.raises(ValueError, match="5 positions do not fit a key/value cache for 4"):
        cache.append(0, torch.randn(2, 1, 2, 3), torch.randn(2, 1, 2, 3))
    with pytest.raises(ValueError, match="a batch of 1 rows meets a cache of 2"):
        cache.append(0, torch.randn(1, 1, 1, 3), torch.randn(1, 1, 1, 3))
