"""Tiny DeepSpeed engines beside tests/helpers/engines.py's, for tests that run in several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mpu.initialize import ParallelTopology, initialize_model_parallel
from tests.helpers.engines import make_batch, make_engine
from training.deepspeed.config import deepspeed_plan
from training.deepspeed.engine import DeepSpeedEngine
from training.engine import Engine
from training.settings import BatchSettings, CheckpointSettings, OptimizerSettings, PrecisionSettings, Settings

GLOBAL_BATCHES = 4  # micro batches of one update, over all data ranks


def make_deepspeed(
    stage: int, *, topology: ParallelTopology, precision: str = "fp32", seed: int = 1, **zero: Any
) -> DeepSpeedEngine:
    """Return an engine with the weights of ``make_engine(seed=seed)``; ``zero`` goes into zero_optimization."""
    universal = zero.pop("universal", False)
    plain = make_engine(seed=seed, topology=topology)
    settings = Settings(
        batch=BatchSettings(batch_size=4, gradient_accumulation_steps=GLOBAL_BATCHES // topology.data_parallel_size),
        optimizer=OptimizerSettings("adam", 1e-2, 0.1, 0.9, 0.98, 1e-6, 1.0),
        precision=PrecisionSettings(fp16=precision == "fp16", bf16=precision == "bf16"),
        checkpoint=CheckpointSettings(universal_checkpoint=universal),
        deepspeed_content={"zero_optimization": {"stage": stage, **zero}},
    )
    plan = deepspeed_plan(settings, device=torch.device("cpu"))
    return DeepSpeedEngine(
        plain.model,
        optimizer=plain.optimizer,
        scheduler=plain.scheduler,
        plan=plan,
        clip_grad=1.0,
        topology=topology,
        device="cpu",
    )


def checkpoint_settings(root: Path, **changes: Any) -> CheckpointSettings:
    """Return settings that save everything to ``root``."""
    return CheckpointSettings(**{"save": root, "save_interval": 0, **changes})


def train(engine: Engine, first: int, last: int) -> list[tuple[float, float]]:
    """Make updates ``first`` to ``last - 1``; return the loss and the gradient norm of each.

    The global batch is the same whatever the number of data ranks.
    """
    topology, measured = engine.topology, []
    own = GLOBAL_BATCHES // topology.data_parallel_size
    for step in range(first, last):
        batches = [make_batch(100 * step + index, targets=3 + index) for index in range(GLOBAL_BATCHES)]
        result = engine.train_step(batches[topology.data_parallel_rank * own :][:own])
        loss = result.loss.clone()
        if topology.data_parallel_group is not None:
            dist.all_reduce(loss, group=topology.data_parallel_group)
        measured.append((loss.item(), result.grad_norm.item()))
    return measured


def train_and_save(
    size: int, stage: int | None, precision: str, root: Path | None, steps: tuple[int, int, int], **zero: Any
) -> list[tuple[float, float]]:
    """Train from ``steps[0]`` to ``steps[2]`` and save after ``steps[1]`` updates; stage None is the torch engine."""
    engine = build(size, stage, precision=precision, **zero)
    measured = train(engine, steps[0], steps[1])
    if root is not None:
        engine.save(checkpoint_settings(root), iteration=steps[1], data_state={"samples": 16 * steps[1]})
    return measured + train(engine, steps[1], steps[2])


def load_and_train(
    size: int, stage: int | None, precision: str, root: Path, last: int, settings: dict[str, Any], **zero: Any
) -> tuple[int, dict[str, Any], list[tuple[float, float]]]:
    """Continue from ``root`` in an engine of other weights; return iteration, data state and what was measured."""
    engine = build(
        size, stage, precision=precision, seed=2, universal=settings.get("universal_checkpoint", False), **zero
    )
    state = engine.load(root, checkpoint_settings(root, **settings))
    return state.iteration, state.data_state, train(engine, state.iteration, last)


def build(size: int, stage: int | None, *, precision: str, seed: int = 1, **zero: Any) -> Engine:
    """Return an engine of tensor-parallel ``size`` in this process's world."""
    topology = initialize_model_parallel(size)
    if stage is None:
        return make_engine(precision=precision, seed=seed, topology=topology)
    return make_deepspeed(stage, topology=topology, precision=precision, seed=seed, **zero)


def curves(size: int, cases: list[tuple[int, str, dict[str, Any]]], steps: int) -> list[list[tuple[float, float]]]:
    """Train from the start under each (stage, precision, ZeRO options) in turn."""
    return [train_and_save(size, stage, kind, None, (0, 0, steps), **zero) for stage, kind, zero in cases]
