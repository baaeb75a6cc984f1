"""Update rules, clipping, loss scale, and optimizer states of other origin."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mpu.initialize import ParallelTopology
from tests.helpers import distributed
from training.optimizer import (
    Adafactor,
    DynamicLossScaler,
    build_optimizer,
    build_parameter_groups,
    clip_gradients,
    load_optimizer_state,
)
from training.settings import OptimizerSettings

SINGLE = ParallelTopology.single()


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.LSTM(4, 2))


def build(model: nn.Module, name: str = "adam", *, fused: bool = True) -> torch.optim.Optimizer:
    return build_optimizer(model, OptimizerSettings(name, 0.1, 0.2, 0.8, 0.95, 1e-6), fused=fused)


def fill_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_groups():
    model = small_model()
    model[0].bias.requires_grad_(False)
    decay, no_decay = build_parameter_groups(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names[id(p)] for p in no_decay["params"]] == ["1.weight", "1.bias"]
    assert [names[id(p)] for p in decay["params"]] == ["0.weight"] + [n for n in names.values() if n.startswith("2.")]
    assert no_decay["weight_decay"] == 0.0 and "weight_decay" not in decay


def test_shared_parameters_count_once():
    model = small_model()
    model.append(model[0])
    assert sum(len(group["params"]) for group in build_parameter_groups(model)) == len(list(model.parameters()))


@pytest.mark.parametrize("fused", [True, False])
def test_adam_is_decoupled_with_bias_correction(fused: bool):
    model = small_model()
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    decays = [0.0 if i in (1, 2, 3) else 0.2 for i in range(len(expected))]
    first, second = ([torch.zeros_like(p) for p in expected] for _ in range(2))
    optimizer = build(model, fused=fused)
    for step in range(1, 5):
        fill_gradients(model, step)
        for i, parameter in enumerate(model.parameters()):
            first[i] = 0.8 * first[i] + 0.2 * parameter.grad
            second[i] = 0.95 * second[i] + 0.05 * parameter.grad**2
            mean, variance = first[i] / (1 - 0.8**step), second[i] / (1 - 0.95**step)
            expected[i] = expected[i] * (1 - 0.1 * decays[i]) - 0.1 * mean / (variance.sqrt() + 1e-6)
        optimizer.step()
    for parameter, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value)


def test_adafactor_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    model, reference = small_model(), small_model()
    ours = build(model, name="adafactor")
    theirs = transformers.Adafactor(
        build_parameter_groups(reference), lr=0.1, weight_decay=0.2, relative_step=False, warmup_init=False
    )
    for step in range(5):
        for both in (model, reference):
            fill_gradients(both, step)
        ours.step()
        theirs.step()
    for left, right in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(left, right)


def test_adafactor_state_survives_saving():
    model, other = small_model(), small_model(1)
    first, second = (build(m, name="adafactor") for m in (model, other))
    assert isinstance(first, Adafactor)
    for step in range(2):
        fill_gradients(model, step)
        first.step()
    other.load_state_dict(model.state_dict())
    load_optimizer_state(second, first.state_dict())
    for both, optimizer in ((model, first), (other, second)):
        fill_gradients(both, 7)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_refused_optimizers():
    with pytest.raises(ValueError, match="choose one of"):
        build(small_model(), name="sgd")
    with pytest.raises(ValueError, match="no trainable"):
        build(small_model().requires_grad_(False))


def test_clipping_scales_the_global_norm():
    model = small_model()
    fill_gradients(model, 0)
    before = [parameter.grad.clone() for parameter in model.parameters()]
    norm = torch.cat([gradient.flatten() for gradient in before]).norm()
    assert clip_gradients(model.parameters(), 0.0, topology=SINGLE).item() == pytest.approx(norm.item(), rel=1e-6)
    assert clip_gradients(model.parameters(), 1e3, topology=SINGLE).item() == pytest.approx(norm.item(), rel=1e-6)
    assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True))
    clip_gradients(model.parameters(), 0.5, topology=SINGLE)
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, gradient * 0.5 / (norm + 1e-6))


def test_clipping_without_gradients_and_with_bad_ones():
    model = small_model()
    assert clip_gradients(model.parameters(), 1.0, topology=SINGLE).item() == 0.0
    fill_gradients(model, 0)
    model[0].weight.grad[0, 0] = float("inf")
    assert not torch.isfinite(clip_gradients(model.parameters(), 1.0, topology=SINGLE))


def _clip_on_two_ranks() -> tuple[float, Tensor, Tensor]:
    from mpu.initialize import initialize_model_parallel

    topology = initialize_model_parallel(2)
    split, copied = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    split.model_parallel = True
    split.grad = torch.full((2,), 1.0 + topology.model_parallel_rank)
    copied.grad = torch.full((2,), 3.0)
    norm = clip_gradients([split, copied], 1.0, topology=topology)
    return norm.item(), split.grad, copied.grad


def test_clipping_over_model_parallel_ranks_counts_copies_once():
    expected = (2 * 1.0 + 2 * 4.0 + 2 * 9.0) ** 0.5
    for rank, (norm, split, copied) in enumerate(distributed.run(_clip_on_two_ranks, 2)):
        assert norm == pytest.approx(expected)
        torch.testing.assert_close(split, torch.full((2,), (1.0 + rank) / expected), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(copied, torch.full((2,), 3.0 / expected), atol=1e-5, rtol=1e-5)


def test_loss_scale_state_and_constant_scale():
    first = DynamicLossScaler(initial_scale=8.0, window=2)
    for overflow in (False, True, True, False, False):
        first.update(overflow)
    second = DynamicLossScaler(initial_scale=8.0, window=2)
    second.load_state_dict(first.state_dict())
    for overflow in (True, False, False, True, True):
        first.update(overflow)
        second.update(overflow)
        assert first.state_dict() == second.state_dict()
    constant = DynamicLossScaler(loss_scale=128.0)
    for _ in range(3):
        constant.update(True)
    assert constant.scale == 128.0
    assert DynamicLossScaler(loss_scale=0.0).dynamic


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = small_model()
    optimizer = build(model)
    for step in range(3):
        fill_gradients(model, step)
        optimizer.step()
    return model, optimizer


def goes_on_alike(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Assert that an optimizer restored from ``state`` makes the same next update."""
    other = small_model(5)
    other.load_state_dict(model.state_dict())
    restored = build(other)
    load_optimizer_state(restored, state)
    for both, chosen in ((model, optimizer), (other, restored)):
        fill_gradients(both, 9)
        chosen.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_state_of_the_same_kind_goes_on_exactly():
    model, optimizer = trained()
    goes_on_alike(model, optimizer, copy.deepcopy(optimizer.state_dict()))


def test_a_state_with_the_step_in_the_group_goes_on_exactly():
    model, optimizer = trained()
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group["step"] = 3
    for moments in state["state"].values():
        del moments["step"]
    goes_on_alike(model, optimizer, state)


def test_an_fp16_state_brings_its_masters():
    model, optimizer = trained()
    masters = [[p.detach().clone() for p in group["params"]] for group in optimizer.param_groups]
    state = {"optimizer_state_dict": copy.deepcopy(optimizer.state_dict()), "fp32_from_fp16": masters}
    rounded = small_model(5)
    rounded.load_state_dict({name: tensor.half().float() for name, tensor in model.state_dict().items()})
    load_optimizer_state(build(rounded), state)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), rounded.parameters(), strict=True))


def test_foreign_states_are_refused():
    _, optimizer = trained()
    with pytest.raises(ValueError, match="unknown layout"):
        load_optimizer_state(optimizer, {"loss_scaler": object()})
    state = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="groups of"):
        load_optimizer_state(build(nn.Linear(2, 2)), state)
    state["state"][0]["exp_avg"] = torch.zeros(5, 5)
    with pytest.raises(ValueError, match=r"\(5, 5\)"):
        load_optimizer_state(optimizer, state)
