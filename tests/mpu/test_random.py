"""Dropout, the model-parallel random state, and activation checkpointing."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from mpu.random import MODEL_PARALLEL_STATE, ModelParallelRandomState, checkpoint_activations, dropout, seeded_dropout

CPU = torch.device("cpu")


def _rank(rank: int, size: int = 2) -> ParallelTopology:
    return replace(ParallelTopology.single(), model_parallel_size=size, model_parallel_rank=rank)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fast_dropout(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs = torch.full(
        (513, 127), 2.0, dtype=dtype
    ).requires_grad_()  # a number of elements that eight does not divide
    outputs = dropout(inputs, probability, training=True, fast=True)
    quantised = round(256 * probability) / 256
    dropped = outputs == 0
    assert dropped.float().mean().item() == pytest.approx(quantised, abs=0.01)
    kept = torch.full_like(inputs, 2.0 / (1.0 - quantised))
    torch.testing.assert_close(outputs, kept.masked_fill(dropped, 0.0))
    columns = dropped.float().mean(dim=0)
    assert (columns - quantised).abs().max() < 0.12, "some byte of the random words is not uniform"
    outputs.sum().backward()
    torch.testing.assert_close(inputs.grad, outputs.detach() / 2.0)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_by_a_seed(probability: float) -> None:
    """The seed alone decides; places and seeds drop independently of each other."""
    inputs = torch.full((300, 512), 2.0, requires_grad=True)
    seeds = torch.randint(2**62, (40,), generator=torch.Generator().manual_seed(1))
    outputs = [seeded_dropout(inputs, probability, seed) for seed in seeds]
    assert torch.equal(outputs[0], seeded_dropout(inputs, probability, seeds[0]))
    kept = torch.stack([output != 0 for output in outputs]).float() - (1.0 - probability)
    deviation = (probability * (1.0 - probability) / inputs.numel()) ** 0.5
    assert kept.mean(dim=(1, 2)).abs().max() < 4.5 * deviation
    variance = probability * (1.0 - probability)
    pairs = [(one.roll(shift, 1), one) for one in kept[:4] for shift in (1, 2, 7, 64, 256)]
    pairs += itertools.pairwise(kept)
    for one, other in pairs:
        assert abs(float((one * other).mean())) / variance < 5.0 / inputs.numel() ** 0.5
    outputs[0].sum().backward()
    assert torch.equal(inputs.grad * 2.0, outputs[0].detach())
    assert not seeded_dropout(inputs, 1.0, seeds[0]).any()


@pytest.mark.parametrize("fast", [True, False])
def test_dropout_limits(fast: bool) -> None:
    inputs = torch.randn(40, 5, requires_grad=True)
    assert dropout(inputs, 0.0, training=True, fast=fast) is inputs
    assert dropout(inputs, 0.7, training=False, fast=fast) is inputs
    gone = dropout(inputs, 1.0, training=True, fast=fast)
    gone.sum().backward()
    assert not gone.any()
    assert not inputs.grad.any()


def test_ranks_draw_differently_and_leave_the_default_state_alone() -> None:
    draws = []
    for rank in (0, 1):
        state = ModelParallelRandomState(_rank(rank))
        state.seed(1234)
        torch.manual_seed(7)
        before = torch.get_rng_state()
        with state.fork(CPU):
            draws.append(torch.rand(4))
        assert torch.equal(torch.get_rng_state(), before)
        with state.fork(CPU):
            assert not torch.equal(torch.rand(4), draws[-1]), "the state has to move on"
    assert not torch.equal(*draws)


def test_one_rank_uses_the_default_state() -> None:
    state = ModelParallelRandomState(ParallelTopology.single())
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with state.fork(CPU):
        assert torch.equal(torch.rand(3), expected)


def test_state_dict_round_trip() -> None:
    first, second = ModelParallelRandomState(_rank(1)), ModelParallelRandomState(_rank(1), seed=99)
    with first.fork(CPU):
        torch.rand(5)
    second.load_state_dict(first.state_dict())
    for state in (first, second):
        with state.fork(CPU):
            draws = torch.rand(5)
        if state is first:
            expected = draws
    assert torch.equal(draws, expected)
    with pytest.raises(ValueError, match=MODEL_PARALLEL_STATE):
        second.load_state_dict({})


def test_recomputation_repeats_both_states() -> None:
    state = ModelParallelRandomState(_rank(1))
    seen: list[Tensor] = []

    def function(inputs: Tensor) -> Tensor:
        outside = torch.rand(3)
        with state.fork(CPU):
            inside = torch.rand(3)
        seen.append(torch.cat([outside, inside]))
        return (inputs * outside).sin() * inside

    inputs = torch.randn(3, requires_grad=True)
    outputs = checkpoint_activations(function, inputs, random_state=state)
    with state.fork(CPU):
        later = torch.rand(3)  # the state has moved on when the function is run again
    after = state.state_dict()[MODEL_PARALLEL_STATE]
    outputs.sum().backward()
    assert torch.equal(*seen)
    assert not torch.equal(later, seen[0][3:])
    assert torch.equal(state.state_dict()[MODEL_PARALLEL_STATE], after)


@pytest.mark.parametrize("relative", [False, True])
def test_checkpointed_model_has_the_same_gradients(relative: bool) -> None:
    ids = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    positions = torch.stack([torch.arange(9), torch.zeros(9, dtype=torch.long)]).unsqueeze(0)
    gradients = []
    for chunk in (0, 1, 2, 5):
        config = GLMConfig(
            3,
            16,
            num_attention_heads=2,
            vocab_size=64,
            relative_encoding=relative,
            checkpoint_activations=chunk > 0,
            checkpoint_num_layers=max(1, chunk),
        )
        model = GLMModel(config, generator=torch.Generator().manual_seed(5)).train()
        torch.manual_seed(11)
        model(ids, positions, torch.tensor([4, 6]), labels=ids).mean.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for others in gradients[1:]:
        for expected, actual in zip(gradients[0], others):
            assert torch.equal(expected, actual)
