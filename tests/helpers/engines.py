"""Engines of tiny models, and made-up batches for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from data_utils.batches import Batch
from data_utils.objective import Objective
from model.checkpoints.reading import master_of
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from training.engine import TorchEngine
from training.optimizer import DynamicLossScaler, build_optimizer, keep_masters
from training.schedule import AnnealingLR
from training.settings import OptimizerSettings

VOCABULARY = 64
LENGTH = 12


def make_engine(
    *,
    dropout: float = 0.0,
    precision: str = "fp32",
    seed: int = 1,
    name: str = "adam",
    clip_grad: float = 1.0,
    topology: ParallelTopology | None = None,
    device: str = "cpu",
    hidden_size: int = 16,
    bf16_params: bool = False,
    **extra: object,
) -> TorchEngine:
    torch.manual_seed(seed)
    config = GLMConfig(
        2, hidden_size, 2, VOCABULARY, max_position_embeddings=32,
        embedding_dropout=dropout, attention_dropout=dropout, output_dropout=dropout, **extra,
    )  # fmt: skip
    model = GLMModel(config, topology=topology).to(device)
    if bf16_params:
        keep_masters(model)
    if name == "sgd":  # moves by the gradient itself
        optimizer = torch.optim.SGD(map(master_of, model.parameters()), lr=1.0)
    else:
        optimizer = build_optimizer(model, OptimizerSettings(name, 1e-2, 0.1, 0.9, 0.98, 1e-6))
    scheduler = AnnealingLR(
        optimizer, start_lr=1e-2, warmup_iters=2.0, num_iters=20, decay_style="cosine", decay_ratio=0.1
    )
    scaler = DynamicLossScaler() if precision == "fp16" else None
    return TorchEngine(
        model, optimizer=optimizer, scheduler=scheduler, precision=precision, loss_scaler=scaler, clip_grad=clip_grad,
        topology=topology, device=device,
    )  # fmt: skip


def make_batch(seed: int, *, rows: int = 4, targets: int = 5, mode: str = "bert") -> Batch:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, VOCABULARY, (rows, LENGTH))
    mask = np.zeros((rows, LENGTH), dtype=np.int64)
    mask[:, LENGTH - targets :] = 1
    positions = np.stack([np.tile(np.arange(LENGTH), (rows, 1)), np.zeros((rows, LENGTH), dtype=np.int64)], axis=1)
    return Batch(
        input_ids=tokens,
        target_ids=np.roll(tokens, -1, axis=1),
        loss_mask=mask,
        position_ids=positions,
        attention_mask=np.full(rows, LENGTH - targets),
        objective=Objective(mode),
    )


def scoring_engine(head: nn.Module, *, topology: ParallelTopology | None = None, device: str = "cpu") -> TorchEngine:
    """Return an engine that only evaluates ``head``."""
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    scheduler = AnnealingLR(
        optimizer, start_lr=1.0, warmup_iters=1.0, num_iters=2, decay_style="linear", decay_ratio=0.1
    )
    return TorchEngine(
        head, optimizer=optimizer, scheduler=scheduler, precision="fp32", loss_scaler=None, clip_grad=1.0,
        topology=topology, device=device,
    )  # fmt: skip
