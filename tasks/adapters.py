"""Low-rank adapters in a fine-tuning run: put into the network at the start, written whenever it is best."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn

from model.hub.adapters import load_adapter, read_adapter, save_adapter
from model.lora import adapted_layers, add_adapters
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from tasks.configuration import FinetuningConfiguration
from training.engine import Engine

logger = logging.getLogger("glm")

ADAPTER_FOLDER = "adapter"


def add_run_adapters(
    network: nn.Module,
    model: GLMModel,
    configuration: FinetuningConfiguration,
    *,
    topology: ParallelTopology,
) -> None:
    """Freeze ``model`` and add new adapters (``--lora-rank``) or those of ``--lora-adapter``; without both do nothing.

    ``network`` is the head around the model, whose own layers stay trained, or the model itself. Raises ValueError
    when the adapter does not fit the model, or DeepSpeed would spread the weights (ZeRO stage 3).
    """
    settings, folder = configuration.lora, configuration.lora_adapter
    if settings is None and folder is None:
        return
    zero = (configuration.deepspeed_content or {}).get("zero_optimization") or {}
    if zero.get("stage") == 3:
        raise ValueError("adapters (--lora-rank, --lora-adapter) do not go with ZeRO stage 3; choose stage 0, 1 or 2")
    if folder is not None:
        report = load_adapter(network, model, read_adapter(folder), topology=topology)
        logger.info(f"adapter of {folder}: {len(report.loaded)} parameters loaded")
    else:
        assert settings is not None
        add_adapters(model, settings, generator=torch.Generator().manual_seed(configuration.run.seed))
    used = adapted_layers(network)[0].settings
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    every = sum(parameter.numel() for parameter in network.parameters())
    logger.info(
        f"LoRA: rank {used.rank}, alpha {used.alpha:g} on {', '.join(used.targets)}: {trained:,} of {every:,} "
        f"parameters are trained ({trained / every:.2%})"
    )


def keep_adapter(engine: Engine, root: Path, *, base_model: Path | None) -> None:
    """Write the adapters of the engine's network, if it has any, to ``<root>/adapter``; every rank has to call it."""
    if adapted_layers(engine.model):
        base = None if base_model is None else str(base_model)
        save_adapter(root / ADAPTER_FOLDER, engine.model, topology=engine.topology, base_model=base)
