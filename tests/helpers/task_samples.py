"""Made-up samples of tasks, and small heads for them."""

from __future__ import annotations

import numpy as np
import torch

from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from tasks.network import HeadSettings, add_head
from tasks.samples import Kind, TaskSample

VOCABULARY, LONGEST, PAD = 64, 24, 3


def make_model(kind: Kind, *, one_row: bool = False, pool_token: str = "cls", topology: ParallelTopology | None = None):
    config = GLMConfig(
        2, 16, 2, VOCABULARY, max_position_embeddings=32, initializer_std=0.3, block_position_encoding=not one_row,
        embedding_dropout=0.0, attention_dropout=0.0, output_dropout=0.0,
    )  # fmt: skip
    model = GLMModel(config, topology=topology, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    head = add_head(model, HeadSettings(kind, num_classes=1, pool_token=pool_token, dropout=0.0, length_penalty=0.5))
    return head.double()


def make_row(generator: np.random.Generator, width: int, *, one_row: bool, room: bool) -> dict[str, np.ndarray]:
    """Return a row of random length below ``width``, padded to it: context, then an answer."""
    context = int(generator.integers(1, width - 1))
    length = int(generator.integers(context + 1, width + 1)) if room else context + 1
    values = {name: np.zeros(width, dtype=np.int32) for name in ("input_ids", "target_ids", "loss_mask")}
    values["input_ids"][:] = PAD
    values["input_ids"][:length] = generator.integers(0, VOCABULARY, length)
    values["target_ids"][context:length] = generator.integers(0, VOCABULARY, length - context)
    values["loss_mask"][context:length] = 1
    positions = np.zeros((2, width), dtype=np.int32)
    positions[0, :length] = np.minimum(np.arange(length), context)
    positions[1, context:length] = np.arange(1, length - context + 1)
    return {**values, "position_ids": positions[0] if one_row else positions, "attention_mask": np.int32(context)}


def make_samples(kind: Kind, count: int, seed: int, *, choices: bool, one_row: bool) -> list[TaskSample]:
    generator = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        num_rows = int(generator.integers(1, 4)) if choices else 1
        width = int(generator.integers(3, LONGEST))
        rows = [make_row(generator, width, one_row=one_row, room=kind != "single_token") for _ in range(num_rows)]
        fields = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        if not choices:
            fields = {name: value[0] for name, value in fields.items()}
        if kind == "single_token":
            fields["target_ids"] = generator.integers(0, VOCABULARY, 3)
        if kind == "classification":
            del fields["target_ids"], fields["loss_mask"]
        labels = num_rows if choices else 1
        samples.append(TaskSample(kind, number, int(generator.integers(0, labels)), **fields))
    return samples
