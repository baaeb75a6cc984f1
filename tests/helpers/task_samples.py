"""Made-up samples of tasks, and small heads for them."""

from __future__ import annotations

import numpy as np
import torch

from data_utils.rows import Row
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from tasks.superglue.run import add_head
from tasks.superglue.samples import Kind, TaskSample

VOCABULARY, LONGEST, PAD = 64, 24, 3


def make_model(kind: Kind, *, one_row: bool = False, pool_token: str = "cls", topology: ParallelTopology | None = None):
    config = GLMConfig(
        2, 16, 2, VOCABULARY, max_position_embeddings=32, initializer_std=0.3, block_position_encoding=not one_row,
        embedding_dropout=0.0, attention_dropout=0.0, output_dropout=0.0,
    )  # fmt: skip
    model = GLMModel(config, topology=topology, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    head = add_head(model, kind, num_classes=1, pool_token=pool_token, dropout=0.0, length_penalty=0.5)
    return head.double()


def make_row(generator: np.random.Generator, width: int, *, kind: Kind, one_row: bool) -> Row:
    """Return a row of at most ``width`` positions: context, then an answer."""
    context = int(generator.integers(1, width - 1))
    length = context + 1 if kind == "single_token" else int(generator.integers(context + 1, width + 1))
    values = np.zeros((5, length), dtype=np.int32)
    values[:2] = generator.integers(0, VOCABULARY, (2, length))
    values[2, context:] = 1
    values[3] = np.minimum(np.arange(length), context)
    values[4, context:] = np.arange(1, length - context + 1)
    return Row(values[:4] if one_row else values, context)


def make_samples(kind: Kind, count: int, seed: int, *, choices: bool, one_row: bool) -> list[TaskSample]:
    generator = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        num_rows = int(generator.integers(1, 4)) if choices else 1
        width = int(generator.integers(3, LONGEST))
        rows = tuple(make_row(generator, width, kind=kind, one_row=one_row) for _ in range(num_rows))
        label_ids = tuple(generator.integers(0, VOCABULARY, 3)) if kind == "single_token" else ()
        label = int(generator.integers(0, num_rows if choices else 1))
        samples.append(TaskSample(kind, number, label, rows, choices=choices, label_ids=label_ids))
    return samples
