"""Load a checkpoint for generation with little memory."""

from __future__ import annotations

from pathlib import Path

import torch

from model.checkpoint_format import LoadReport, load_model_weights
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology


def load_model(
    config: GLMConfig,
    checkpoint: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    topology: ParallelTopology | None = None,
) -> tuple[GLMModel, LoadReport]:
    """Return the model of ``checkpoint`` in evaluation mode, and what was loaded.

    The model is built without memory of its own: the tensors of the file, mapped into memory, become its weights,
    converted only where ``dtype`` (None: fp32) differs. Shards of a model-parallel checkpoint are merged, or with a
    ``topology`` of several model-parallel ranks cut for them.

    Raises:
        ValueError: no checkpoint, or one of another architecture or vocabulary, or one without all parameters.
    """
    model = GLMModel(config, topology=topology, device="meta", dtype=dtype)
    report = load_model_weights(model, checkpoint, topology=topology, grow_positions=False)
    if report.missing:
        raise ValueError(
            f"{report.file} lacks {len(report.missing)} parameters of the model ({report.missing[0]}, ...): it cannot "
            "generate by itself; give the checkpoint of a whole model"
        )
    return model.to(device).eval().requires_grad_(False), report
