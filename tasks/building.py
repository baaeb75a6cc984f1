"""Build what all families of tasks share in a fine-tuning run: starting weights, engine, starting point."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model.checkpoints.reading import load_model_weights, read_weight_file, resolve_checkpoint
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from tasks.adapters import add_run_adapters
from tasks.configuration import FinetuningConfiguration
from tasks.finetuning import Progress
from training.build import EngineSettings, checkpoint_to_load, seed_model, wrap_model
from training.configurations import ScheduleSettings
from training.engine import Engine
from training.objectives import Objective

logger = logging.getLogger("glm")


def load_start_weights(
    network: torch.nn.Module,
    model: GLMModel,
    configuration: FinetuningConfiguration,
    *,
    topology: ParallelTopology,
) -> None:
    """Give ``network``, which holds ``model``, seeded weights, those of ``--load-pretrained``, and its adapters."""
    seed_model(model, configuration.run.seed, topology=topology)
    logger.info(f"model: {model.num_parameters():,} parameters on this rank, vocabulary {model.config.vocab_size}")
    if configuration.checkpoint.load_pretrained is not None:
        report = load_model_weights(network, configuration.checkpoint.load_pretrained, topology=topology)
        logger.info(report.summary())
    elif configuration.checkpoint.load is None:
        logger.info("weights: random (no --load-pretrained, no --load)")
    add_run_adapters(network, model, configuration, topology=topology)


def build_engine(
    network: torch.nn.Module,
    configuration: FinetuningConfiguration,
    *,
    objective: Objective,
    num_updates: int,
    topology: ParallelTopology,
    device: torch.device,
) -> Engine:
    """Build the engine around ``network``; the schedule is ``num_updates`` long."""
    schedule = configuration.schedule
    settings = EngineSettings(
        optimizer=configuration.optimizer,
        schedule=ScheduleSettings(
            decay_style=schedule.decay_style,
            num_iters=max(1, num_updates),
            warmup=schedule.warmup,
            decay_ratio=schedule.decay_ratio,
            switch_linear=False,
        ),
        precision=configuration.precision,
        batch_size=configuration.tuning.batch_size,
        accumulation_steps=configuration.tuning.accumulation_steps,
        deepspeed_content=configuration.deepspeed_content,
        universal=configuration.checkpoint.universal,
        kernels=configuration.kernels,
    )
    return wrap_model(network, settings, topology=topology, device=device, objective=objective)


def find_progress(engine: Engine, configuration: FinetuningConfiguration, task_name: str) -> Progress:
    """Restore the run that ``--load`` or ``--auto-resume`` names; another checkpoint gives its weights alone."""
    settings = configuration.checkpoint
    folder = checkpoint_to_load(settings)
    if folder is None:
        return Progress()
    state = _data_state(folder)
    goes_on = state.get("task") == task_name and configuration.tuning.epochs > 0 and not settings.finetune
    restored = engine.load(folder, settings if goes_on else replace(settings, finetune=True))
    logger.info(restored.report.summary())
    if not goes_on:
        return Progress()
    progress = Progress(**restored.data_state["progress"])
    logger.info(f"continuing after {progress.epochs} epochs and {progress.updates} updates")
    return progress


def _data_state(folder: Path) -> dict[str, Any]:
    return read_weight_file(resolve_checkpoint(folder).shard_files()[0]).get("data_state") or {}
