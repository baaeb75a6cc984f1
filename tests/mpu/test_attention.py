"""Attention: the mask object, equality of all ways to compute it, rows that see nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mpu import attention
from mpu.attention import attend
from mpu.masks import PrefixMask, VisibleKeys


def _reference(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Compute the original's arithmetic: scores * mask - 65504 * (1 - mask)."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.size(-1))
    mask = visible.to(scores.dtype)
    return torch.softmax(scores * mask - 65504.0 * (1.0 - mask), dim=-1) @ value


def _keys(mask: Tensor, *, query_length: int, key_length: int) -> VisibleKeys:
    """Return what the queries see by a mask in the form of model calls."""
    return PrefixMask.from_attention_mask(mask).visible_keys(
        query_length=query_length, key_length=key_length, device="cpu"
    )


def _inputs(seed: int, *, batch: int = 3, length: int = 6, cached: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = (length, length + cached, length + cached)
    return tuple(torch.randn(batch, 2, size, 8, generator=generator) for size in lengths)


@given(
    seed=st.integers(0, 2**31),
    length=st.integers(1, 7),
    cached=st.integers(0, 4),
    scale=st.sampled_from([1.0, 8.0]),
    fused=st.booleans(),
    rows=st.sampled_from(["all", "one"]),
)
@settings(max_examples=40, deadline=None)
def test_free_masks_match_the_original_arithmetic(
    seed: int, length: int, cached: int, scale: float, fused: bool, rows: str
) -> None:
    query, key, value = _inputs(seed, length=length, cached=cached)
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 1, length if rows == "all" else 1, length + cached + 1)  # one column too many, in front
    visible = torch.rand(shape, generator=generator) < 0.4
    mask = _keys(visible.long(), query_length=length, key_length=length + cached)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_fused_is_better", lambda *_: fused)
        actual = attend(query, key, value, mask, attention_scale=scale)
    torch.testing.assert_close(actual, _reference(query, key, value, visible[..., 1:]), atol=2e-5, rtol=1e-4)


@given(prefix_lengths=st.lists(st.integers(0, 8), min_size=1, max_size=3), cached=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_separators(prefix_lengths: list[int], cached: int) -> None:
    length = 6
    expected = torch.zeros(len(prefix_lengths), 1, length, cached + length, dtype=torch.bool)
    for sample, prefix_length in enumerate(prefix_lengths):
        for row in range(length):
            for column in range(-cached, length):
                expected[sample, 0, row, cached + column] = column <= row or column < prefix_length
    for shape in ([len(prefix_lengths)], [len(prefix_lengths), 1]):
        given_mask = torch.tensor(prefix_lengths).view(shape)
        mask = _keys(given_mask, query_length=length, key_length=cached + length)
        if mask.visible is None:
            assert expected.all()
        else:
            assert torch.equal(mask.visible, expected)
        assert mask.causal == (cached == 0 and max(prefix_lengths) <= 1)
        assert mask.fully_masked is None


def test_rank_decides_not_the_number_of_elements() -> None:
    four = torch.tensor([[1, 0], [1, 1]]).view(1, 1, 2, 2)  # as many elements as a batch of four
    mask = _keys(four, query_length=2, key_length=2)
    assert torch.equal(mask.visible, four.bool())


@pytest.mark.parametrize("shape", [(2, 3), (2, 2, 2), (1, 2, 4, 4), (1, 1, 3, 4), (1, 1, 4, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="attention_mask has shape"):
        _keys(torch.ones(shape), query_length=4, key_length=4)


@pytest.mark.parametrize("form", ["prefix_lengths", "one prefix_length", "matrix", "one row", "additive", "everything"])
def test_masks_of_chosen_queries(form: str) -> None:
    query, key, value = _inputs(4)
    positions = torch.tensor([[5, 0], [1, 1], [2, 4]])
    free = torch.rand(3, 1, 6, 8, generator=torch.Generator().manual_seed(4)) < 0.3
    free[0, :, 5] = False  # a chosen row that sees nothing
    given_masks = {
        "prefix_lengths": torch.tensor([1, 3, 6]),
        "one prefix_length": torch.tensor(3),
        "matrix": free,
        "one row": torch.tensor([1, 0, 1, 1, 0, 0, 1, 0]).view(1, 1, 1, 8),
    }
    if form in given_masks:
        mask = _keys(given_masks[form], query_length=6, key_length=8)
    else:
        additive = torch.linspace(-3.0, 0.0, 3 * 6 * 8).view(3, 1, 6, 8) if form == "additive" else None
        mask = VisibleKeys(visible=None, additive=additive)
    everywhere = attend(query, key, value, mask)  # [b,n,s,d]
    index = positions.view(3, 1, 2, 1).expand(-1, 2, -1, 8)
    actual = attend(query.gather(2, index), key, value, mask.at(positions))
    torch.testing.assert_close(actual, everywhere.gather(2, index))


def test_one_new_position_needs_no_mask() -> None:
    mask = _keys(torch.zeros(1), query_length=1, key_length=9)
    assert mask.visible is None
    query, key, value = _inputs(0, length=1, cached=8)
    everything = torch.ones(1, 1, 1, 9, dtype=torch.bool)
    torch.testing.assert_close(attend(query, key, value, mask), _reference(query, key, value, everything))
    half = attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), mask).float()
    torch.testing.assert_close(half, _reference(query, key, value, everything), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_both_ways_agree(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for fused in (True, False):
        monkeypatch.setattr(attention, "_fused_is_better", lambda *_, fused=fused: fused)
        inputs = [tensor.to(dtype).requires_grad_() for tensor in _inputs(1)]
        mask = _keys(torch.tensor([1, 3, 6]), query_length=6, key_length=8)
        attend(*inputs, mask).float().square().sum().backward()
        results.append([tensor.grad for tensor in inputs])
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    for fused, explicit in zip(*results):
        torch.testing.assert_close(fused, explicit, atol=tolerance, rtol=tolerance)


def test_attention_dropout_keeps_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    query, key, value = _inputs(2)
    mask = _keys(torch.tensor([4]), query_length=6, key_length=8)
    expected = attend(query, key, value, mask)
    for fast in (True, False):
        draws = [attend(query, key, value, mask, dropout_probability=0.25, fast_dropout=fast) for _ in range(4000)]
        torch.testing.assert_close(torch.stack(draws).mean(dim=0), expected, atol=0.08, rtol=0.0)


def test_constructors_make_the_masks_of_the_tensor_forms() -> None:
    generator = torch.Generator().manual_seed(5)
    segment_ids = torch.tensor([[1, 1, 2, 2, 0], [1, 1, 1, 1, 1]])
    in_prefix = torch.tensor([[1, 0, 1, 0, 0], [1, 1, 0, 0, 0]])
    visible = torch.rand(2, 1, 5, 5, generator=generator) < 0.5
    pairs = [
        (PrefixMask.prefix(torch.tensor([1, 4])), torch.tensor([1, 4])),
        (PrefixMask.packed(segment_ids, in_prefix), torch.stack([segment_ids, in_prefix], dim=1)),
        (PrefixMask.matrix(visible), visible),
    ]
    for mask, tensor in pairs:
        made = mask.to(torch.device("cpu")).visible_keys(query_length=5, key_length=5, device="cpu")
        assert torch.equal(made.visible, _keys(tensor, query_length=5, key_length=5).visible)
