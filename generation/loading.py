"""Load a checkpoint for generation with little memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from model.checkpoints.reading import LoadReport, load_model_weights
from model.checkpoints.safe_loading import release_pages
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from mpu.kernels.int8 import Int8Linear
from mpu.kernels.prepacked import PrepackedLinear, can_prepack, replace_weights


def load_model(
    config: GLMConfig,
    checkpoint: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    topology: ParallelTopology | None = None,
    prepack: bool = True,
    int8: bool = False,
) -> tuple[GLMModel, LoadReport]:
    """Return the model of ``checkpoint`` in evaluation mode, and what was loaded.

    The model is built without memory of its own: the tensors of the file, mapped into memory, become its weights,
    converted only where ``dtype`` (None: fp32) differs. Shards of a model-parallel checkpoint are merged, or with a
    ``topology`` of several model-parallel ranks cut for them. On the CPU they are brought into the form that is read
    fastest (``prepack_for_inference``), unless ``prepack`` is False. ``int8`` is half as large as bf16: weights of 8
    bits, everything else in bf16, on the CPU.

    Raises:
        ValueError: no checkpoint, or one of another architecture or vocabulary, or one without all parameters; weights
            of 8 bits elsewhere than on the CPU or with another type.
    """
    on_cpu = torch.device(device).type == "cpu"
    if int8 and not (on_cpu and dtype in (None, torch.bfloat16)):
        raise ValueError(
            f"weights of 8 bits are for the CPU, with bf16 for everything else, not for {dtype or torch.float32} on "
            f"{device}; leave --int8 (int8=True) out there"
        )
    dtype = torch.bfloat16 if int8 else dtype
    model = GLMModel(config, topology=topology, device="meta", dtype=dtype)
    report = load_model_weights(model, checkpoint, topology=topology, grow_positions=False)
    if report.missing:
        raise ValueError(
            f"{report.file} lacks {len(report.missing)} parameters of the model ({report.missing[0]}, ...): it cannot "
            "generate by itself; give the checkpoint of a whole model"
        )
    model = model.to(device).eval().requires_grad_(False)
    if on_cpu and (prepack or int8):
        prepack_for_inference(model, int8=int8)
    return model, report


def prepack_for_inference(model: GLMModel, *, int8: bool = False) -> None:
    """Reorder the weights of a model on the CPU; it computes the same, but has no state dict and no gradients anymore.

    The word table, which is also looked up, keeps its own form beside the reordered one; where it is mapped from a file
    only the rows that are used stay in memory. Weights of a type that cannot be reordered stay as they are. With
    ``int8`` the weights are rounded to 8 bits instead, and it computes nearly the same.
    """
    table = model.word_embeddings.weight
    if not int8 and not can_prepack(table.dtype):
        return
    make = Int8Linear if int8 else PrepackedLinear
    replace_weights(model, make, release=lambda weight: release_pages([weight]))
    model.inference_head = make(table, None)
    release_pages([table.detach()])
    model.register_state_dict_pre_hook(_refuse_state_dict)


def _refuse_state_dict(*_: Any) -> None:
    raise ValueError(
        "this model's weights are reordered for inference; load it with prepack=False, and without int8, to save or "
        "train it"
    )
