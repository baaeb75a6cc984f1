"""A small model with adapters, whose weights do not depend on the number of tensor-parallel ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from model.checkpoints.format import rule_for, split_tensor
from model.config import LORA_TARGETS, GLMConfig, LoraSettings
from model.lora import adapted_layers, add_adapters, low_rank_product
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology

ALL = tuple(LORA_TARGETS)
SETTINGS = LoraSettings(rank=4, alpha=8.0, targets=ALL)
CONFIG = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 64, "initializer_std": 0.2}


def build(*, topology: ParallelTopology | None = None, **changes: Any) -> GLMModel:
    """Return a small model without dropout whose weights do not depend on the topology."""
    dropout = {f"{name}_dropout": 0.0 for name in ("embedding", "attention", "output")}
    config = GLMConfig(**{**CONFIG, "max_position_embeddings": 16, **dropout, **changes})
    return GLMModel(config, topology=topology, generator=Generator().manual_seed(3)).eval()


def adapt(model: GLMModel, settings: LoraSettings = SETTINGS, *, filled: bool = False) -> GLMModel:
    """Add adapters; ``filled`` ones are not zero, and the same whatever the model-parallel size."""
    add_adapters(model, settings, generator=Generator().manual_seed(5))
    if filled:
        generator, size = Generator().manual_seed(7), model.topology.model_parallel_size
        rank = model.topology.model_parallel_rank
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B.weight"):
                rows = parameter.size(0) * (size if rule_for(name).dim == 0 else 1)
                whole = torch.randn(rows, parameter.size(1), generator=generator) * 0.1
                parameter.data.copy_(split_tensor(name, whole, size)[rank])
    return model


@torch.no_grad()
def merge_adapters(model: GLMModel) -> None:
    """Add the adapters to the weights they belong to; the adapters then add nothing more."""
    for layer in adapted_layers(model):
        layer.weight += low_rank_product(layer.lora_A.weight, layer.lora_B.weight, scale=layer.settings.scale)
        layer.lora_B.weight.zero_()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids [3,10], positions [3,2,10] and prefix_lengths [3]."""
    generator = Generator().manual_seed(1)
    ids = torch.randint(64, (3, 10), generator=generator)
    return ids, torch.randint(16, (3, 2, 10), generator=generator), torch.tensor([4, 6, 5])
