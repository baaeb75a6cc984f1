"""Recorded schedules, loss scales and a training curve: lr_schedule.json, loss_scaler.json, train_curve.pt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mpu.initialize import ParallelTopology
from tests.helpers.golden_index import GoldenFolder
from tests.helpers.golden_models import build_model, load_vectors
from training.optimizer import DynamicLossScaler, build_optimizer, clip_gradients
from training.schedule import AnnealingLR
from training.settings import OptimizerSettings

ARGUMENTS = {
    "lr": 1e-4, "warmup": 0.01, "lr_decay_iters": None, "train_iters": 1, "finetune": False,
    "gradient_accumulation_steps": 1, "lr_decay_style": "linear", "lr_decay_ratio": 0.1,
}  # fmt: skip
SCALER_OPTIONS = {
    "init_scale": "initial_scale",
    "scale_window": "window",
    "min_scale": "min_scale",
    "delayed_shift": "hysteresis",
    "consecutive_hysteresis": "consecutive_hysteresis",
}


def make_schedule(arguments: dict[str, Any], **options: Any) -> AnnealingLR:
    """Build the schedule that the recorded command line describes."""
    assert set(arguments) <= set(ARGUMENTS), arguments
    values = {**ARGUMENTS, **arguments}
    num_iters = values["lr_decay_iters"] or values["train_iters"]
    if values["finetune"]:
        num_iters //= values["gradient_accumulation_steps"]
    num_iters = max(1, num_iters)
    return AnnealingLR(
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=values["lr"]),
        start_lr=values["lr"],
        warmup_iters=values["warmup"] * num_iters,
        num_iters=num_iters,
        decay_style=values["lr_decay_style"],
        decay_ratio=values["lr_decay_ratio"],
        **options,
    )


def present_rate(schedule: AnnealingLR) -> float:
    return schedule.optimizer.param_groups[0]["lr"]


def close(value: float) -> Any:
    return pytest.approx(value, rel=1e-9, abs=1e-15)


def test_learning_rates_of_the_multilingual_release(golden: GoldenFolder) -> None:
    for case in golden.json("multilingual/lr_schedule.json")["cases"]:
        names = {"lr_decay_iters": "num_iters", "lr_decay_style": "style"}
        arguments = {name: case[names.get(name, name)] for name in ("lr", "warmup", "lr_decay_ratio", *names)}
        schedule = make_schedule(arguments)
        for step, expected in zip(case["steps"], case["lrs"], strict=True):
            assert schedule.rate(step) == pytest.approx(expected, rel=1e-12, abs=1e-18), (case, step)


def test_learning_rates(golden: GoldenFolder) -> None:
    recorded = load_vectors(golden, "lr_schedule.json")
    assert set(recorded) == {"cases", "errors", "switch_linear", "resume"}
    assert recorded["cases"]
    for case in recorded["cases"]:
        assert set(case) == {"args", "lr_before_step", "state_dict"}
        schedule, clamped = make_schedule(case["args"], clamp=False), make_schedule(case["args"])
        end = schedule.warmup_iters + schedule.decay_iters
        for step, expected in enumerate(case["lr_before_step"]):
            assert present_rate(schedule) == close(expected), (case["args"], step)
            if step <= end:
                assert present_rate(clamped) == close(expected), (case["args"], step)
            else:
                assert present_rate(clamped) == close(clamped.rate(end))
            if step < case["state_dict"]["num_iters"]:
                schedule.step()
                clamped.step()
        state = schedule.state_dict()
        assert list(state) == list(case["state_dict"])
        for key, expected in case["state_dict"].items():
            assert state[key] == (expected if isinstance(expected, str) else pytest.approx(expected)), key


def test_refused_schedules(golden: GoldenFolder) -> None:
    for case in load_vectors(golden, "lr_schedule.json")["errors"]:
        with pytest.raises(ValueError, match="warm-up"):
            make_schedule(case["args"])


def test_resumed_schedule(golden: GoldenFolder) -> None:
    case = load_vectors(golden, "lr_schedule.json")["resume"]
    assert set(case) == {"saved_state", "new_args", "lr_after_load_then_each_step"}
    schedule = make_schedule(case["new_args"], clamp=False)
    schedule.load_state_dict(case["saved_state"])
    for expected in case["lr_after_load_then_each_step"]:
        assert present_rate(schedule) == close(expected)
        schedule.step()


def test_switch_to_linear_without_the_second_warm_up(golden: GoldenFolder) -> None:
    """The original keeps the warm-up of w updates: its rate at w + t is ours at t, and before that it climbs again."""
    case = load_vectors(golden, "lr_schedule.json")["switch_linear"]
    assert set(case) == {"args", "steps_before", "lr_at_switch", "state_dict_at_switch", "lr_after_each_step"}
    schedule = make_schedule(case["args"], clamp=False)
    for _ in range(case["steps_before"]):
        schedule.step()
    assert present_rate(schedule) == close(case["lr_at_switch"])
    assert schedule.state_dict() == pytest.approx(case["state_dict_at_switch"])
    warmup = schedule.warmup_iters
    schedule.switch_linear(case["args"]["train_iters"] - case["steps_before"])
    assert present_rate(schedule) == close(case["lr_at_switch"])
    for step, expected in enumerate(case["lr_after_each_step"], start=1):
        if step <= warmup:
            assert expected == close(case["lr_at_switch"] * step / warmup)
        else:
            assert schedule.rate(step - warmup) == close(expected)


def test_loss_scales(golden: GoldenFolder) -> None:
    recorded = load_vectors(golden, "loss_scaler.json")
    assert recorded
    for case in recorded:
        assert set(case) == {"kwargs", "overflow", "scale_after", "last_overflow_iter", "cur_iter", "cur_hysteresis"}
        # The recorded class has no hysteresis unless told; the command line's default, and ours, is 2.
        options = {"delayed_shift": 1, **case["kwargs"]}
        scaler = DynamicLossScaler(**{SCALER_OPTIONS[name]: value for name, value in options.items()})
        for step, overflow in enumerate(case["overflow"]):
            scaler.update(overflow)
            assert scaler.scale == case["scale_after"][step], (case["kwargs"], step)
        counters = (scaler.last_overflow, scaler.num_updates, scaler.remaining_hysteresis)
        assert counters == (case["last_overflow_iter"], case["cur_iter"], case["cur_hysteresis"])


def test_training_curve(golden: GoldenFolder) -> None:
    recorded = load_vectors(golden, "train_curve.pt")
    assert set(recorded) == {
        "config", "initial_weights", "hyper", "batches", "loss", "lr", "grad_norm", "final_params",
        "lr_after_last_step",
    }  # fmt: skip
    file, variant = recorded["initial_weights"].split(":")
    assert file == "weights.pt"
    none = {"embedding_dropout": 0.0, "attention_dropout": 0.0, "output_dropout": 0.0}
    model = build_model(golden, variant, **none).train()
    hyper = recorded["hyper"]
    assert set(hyper) == {"lr", "wd", "betas", "eps", "warmup", "style", "ratio", "clip", "iterations"}
    optimizer = build_optimizer(
        model, OptimizerSettings("adam", hyper["lr"], hyper["wd"], *hyper["betas"], hyper["eps"])
    )
    schedule = AnnealingLR(
        optimizer,
        start_lr=hyper["lr"],
        warmup_iters=hyper["warmup"] * hyper["iterations"],
        num_iters=hyper["iterations"],
        decay_style=hyper["style"],
        decay_ratio=hyper["ratio"],
    )
    assert len(recorded["batches"]) == hyper["iterations"]
    for step, batch in enumerate(recorded["batches"]):
        assert set(batch) == {"text", "target", "loss_mask", "attention_mask", "position_id"}
        rate = optimizer.param_groups[0]["lr"]
        assert {group["lr"] for group in optimizer.param_groups} == {rate}
        assert rate == pytest.approx(recorded["lr"][step].item(), abs=1e-12)
        loss = model(
            batch["text"],
            batch["position_id"],
            batch["attention_mask"],
            labels=batch["target"],
            loss_mask=batch["loss_mask"],
        ).mean
        optimizer.zero_grad()
        loss.backward()
        norm = clip_gradients(model.parameters(), hyper["clip"], topology=ParallelTopology.single())
        assert loss.item() == pytest.approx(recorded["loss"][step].item(), abs=1e-3), step
        assert norm.item() == pytest.approx(recorded["grad_norm"][step].item(), abs=1e-3), step
        optimizer.step()
        schedule.step()
    assert present_rate(schedule) == pytest.approx(recorded["lr_after_last_step"], abs=1e-12)
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(recorded["final_params"])
    for name, expected in recorded["final_params"].items():
        actual = parameters[name].detach()
        if name.endswith("query_key_value.bias"):  # the key part has no gradient but rounding noise
            (query, _, value), (expected_query, _, expected_value) = actual.chunk(3), expected.chunk(3)
            actual, expected = torch.cat([query, value]), torch.cat([expected_query, expected_value])
        torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)
