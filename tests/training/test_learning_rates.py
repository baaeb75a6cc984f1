"""The learning rate schedule beyond the recorded cases."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from training.schedule import DECAY_STYLES, AnnealingLR


def make(**changes: object) -> AnnealingLR:
    options: dict = {"start_lr": 1.0, "warmup_iters": 2.0, "num_iters": 20, "decay_style": "linear", "decay_ratio": 0.1}
    groups = [{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(1))]}]
    return AnnealingLR(torch.optim.SGD(groups, lr=9.0), **{**options, **changes})


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(DECAY_STYLES), st.integers(1, 60), st.floats(0, 0.5), st.floats(0, 1), st.integers(0, 80))
def test_rates_stay_between_zero_and_the_start(style: str, length: int, warmup: float, ratio: float, step: int):
    schedule = make(decay_style=style, num_iters=length, warmup_iters=warmup * length, decay_ratio=ratio)
    assert -1e-12 <= schedule.rate(step) <= 1.0 + 1e-12
    if step > warmup * length:
        assert schedule.rate(step) >= ratio - 1e-12


def test_every_group_has_the_rate():
    schedule = make()
    for expected in (0.0, 0.5, 1.0, 0.95):
        assert [group["lr"] for group in schedule.optimizer.param_groups] == pytest.approx([expected] * 2)
        schedule.step()


def test_a_ratio_of_zero_ends_at_zero():
    schedule = make(decay_ratio=0.0)
    assert schedule.rate(20) == 0.0 and schedule.state_dict()["decay_ratio"] == math.inf


def test_loading_continues_exactly():
    first, second = make(decay_style="cosine"), make(decay_style="cosine")
    for _ in range(7):
        first.step()
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        assert first.optimizer.param_groups[0]["lr"] == second.optimizer.param_groups[0]["lr"]
        first.step()
        second.step()


def test_switching_goes_straight_down_and_survives_a_restart():
    schedule = make(decay_style="cosine")
    for _ in range(8):
        schedule.step()
    at_switch = schedule.rate(8)
    schedule.switch_linear(12)
    assert schedule.rate(0) == at_switch
    assert schedule.rate(6) == pytest.approx(at_switch * 0.55)
    schedule.step()
    resumed = make(decay_style="cosine")
    resumed.load_state_dict(schedule.state_dict())
    resumed.switch_linear(11)  # the same command line again
    assert [resumed.rate(step) for step in range(13)] == [schedule.rate(step) for step in range(13)]
    assert resumed.optimizer.param_groups[0]["lr"] == schedule.optimizer.param_groups[0]["lr"]


def test_switching_at_the_very_end_is_possible():
    schedule = make()
    schedule.switch_linear(0)
    assert math.isfinite(schedule.rate(5))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"warmup_iters": 11.0}, "up to half"),
        ({"warmup_iters": -1.0}, "up to half"),
        ({"decay_style": "step"}, "choose one of"),
        ({"decay_ratio": 1.5}, "between 0 and 1"),
    ],
)
def test_refusals(changes: dict, words: str):
    with pytest.raises(ValueError, match=words):
        make(**changes)


def test_a_state_without_numbers_is_refused():
    with pytest.raises(ValueError, match=r"no-load-lr-scheduler leaves out: no .warmup_iter"):
        make().load_state_dict({"last_epoch": 3})
