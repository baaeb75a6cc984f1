"""Low-rank adapters (LoRA) on the tensor-parallel layers of a GLM.

An adapted layer computes x W^T + b + (alpha / rank) (x A^T) B^T. W and b are frozen, A and B are trained; B starts at
zero, so that the model starts as it was. The factors lie on the ranks as the table of parameters says it for W:

=====================================  ==================  ==================
layer                                  A [r,in]            B [out,r]
=====================================  ==================  ==================
column parallel (rows of W cut)        whole everywhere    rows cut as W's
row parallel (columns of W cut)        columns cut as W's  whole everywhere
=====================================  ==================  ==================

In a column-parallel layer the [...,r] product x A^T enters the parallel region by itself, so that the gradients of A
and of x are summed over the ranks; in a row-parallel layer the [...,r] partial products are summed, and the gradient of
B is the same on all ranks. Either way one collective of width r is added to a layer, and no gradient is reduced twice.

r rank of the adapter, t tensor-parallel size
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import skip_init

from model.checkpoints.format import rule_for
from model.config import LORA_TARGETS, LoraSettings
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from mpu.layers import ColumnParallelLinear, RowParallelLinear, mark_model_parallel, shard_of
from mpu.mappings import (
    copy_to_model_parallel,
    gather_from_model_parallel,
    reduce_from_model_parallel,
    scatter_to_model_parallel,
)
from mpu.random import Dropout, ModelParallelRandomState


def low_rank_product(down: Tensor, up: Tensor, *, scale: float) -> Tensor:
    """Return scale * up @ down, fp32 [out,in], what an adapter of ``down`` [r,in] and ``up`` [out,r] adds to W."""
    return scale * (up.float() @ down.float())


class _AdaptedLinear(nn.Module):
    """What adapted layers share. Weight and bias keep their names; A and B are ``lora_A.weight``, ``lora_B.weight``."""

    topology: ParallelTopology
    settings: LoraSettings
    weight: nn.Parameter
    lora_A: nn.Linear
    lora_B: nn.Linear

    def _adapt(
        self, layer: ColumnParallelLinear | RowParallelLinear, settings: LoraSettings, *, in_features: int, fast: bool
    ) -> None:
        """Take over the parameters of ``layer`` and add factors, not filled yet, of this rank's size."""
        nn.Module.__init__(self)
        self.topology = layer.topology
        self.weight, self.bias = layer.weight, layer.bias
        self.settings = settings
        self.in_features = in_features  # of the whole layer
        self.lora_dropout = Dropout(settings.dropout, fast=fast)
        rows, columns = layer.weight.shape  # of this rank
        factory = {"bias": False, "device": layer.weight.device, "dtype": layer.weight.dtype}
        self.lora_A = skip_init(nn.Linear, columns, settings.rank, **factory)
        self.lora_B = skip_init(nn.Linear, settings.rank, rows, **factory)
        self.train(layer.training)

    @torch.no_grad()
    def start(self, *, dim: int | None, generator: Generator) -> None:
        """Draw the whole A as a linear layer's (uniform, bound 1 / sqrt(in)), keep this rank's part; B is zero.

        ``dim`` is the dimension along which A is cut.
        """
        bound = 1.0 / math.sqrt(self.in_features)
        whole = torch.empty(self.lora_A.out_features, self.in_features, dtype=torch.float32)
        whole.uniform_(-bound, bound, generator=generator)
        self.lora_A.weight.copy_(whole if dim is None else shard_of(whole, dim=dim, topology=self.topology))
        self.lora_B.weight.zero_()


class LoraColumnParallelLinear(_AdaptedLinear, ColumnParallelLinear):
    """A column-parallel layer with an adapter: A whole on every rank, B cut like the weight."""

    def __init__(self, layer: ColumnParallelLinear, settings: LoraSettings, *, fast_dropout: bool = True) -> None:
        self._adapt(layer, settings, in_features=layer.weight.size(1), fast=fast_dropout)
        self.gather_output = layer.gather_output
        mark_model_parallel(self.lora_B.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [...,in], equal on all ranks, to [...,out/t], or to [...,out] with ``gather_output``."""
        outputs = ColumnParallelLinear.forward(self, inputs)
        narrow = self.lora_A(self.lora_dropout(inputs))  # [...,r], equal on all ranks
        added = self.lora_B(copy_to_model_parallel(narrow, self.topology)) * self.settings.scale  # [...,out/t]
        return outputs + (gather_from_model_parallel(added, self.topology) if self.gather_output else added)


class LoraRowParallelLinear(_AdaptedLinear, RowParallelLinear):
    """A row-parallel layer with an adapter: A cut like the weight, B whole on every rank."""

    def __init__(
        self,
        layer: RowParallelLinear,
        settings: LoraSettings,
        *,
        random_state: ModelParallelRandomState,
        fast_dropout: bool = True,
    ) -> None:
        size = layer.topology.model_parallel_size
        self._adapt(layer, settings, in_features=layer.weight.size(1) * size, fast=fast_dropout)
        self.input_is_parallel = layer.input_is_parallel
        self.random_state = random_state
        mark_model_parallel(self.lora_A.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [...,in/t] (or the whole [...,in] when the input is not parallel) to [...,out], equal on all ranks."""
        outputs = RowParallelLinear.forward(self, inputs)
        part = inputs if self.input_is_parallel else scatter_to_model_parallel(inputs, self.topology)
        drops = self.training and self.lora_dropout.probability > 0.0
        with self.random_state.fork(part.device) if drops else nullcontext():  # ranks drop different features
            part = self.lora_dropout(part)
        narrow = reduce_from_model_parallel(self.lora_A(part), self.topology)  # [...,r], equal on all ranks
        return outputs + self.lora_B(narrow) * self.settings.scale


def add_adapters(model: GLMModel, settings: LoraSettings, *, generator: Generator) -> None:
    """Freeze ``model`` and give the chosen layers adapters, which alone are trained; heads around it stay as they are.

    The weights have to be loaded before. ``generator`` is a CPU generator in the same state on all ranks: the factors
    do not depend on the tensor-parallel size.
    """
    model.requires_grad_(False)
    fast = model.config.fast_dropout
    for name, layer in _target_layers(model, settings):
        rule = rule_for(f"{name}.lora_A.weight")
        adapted: _AdaptedLinear
        if isinstance(layer, ColumnParallelLinear):
            adapted = LoraColumnParallelLinear(layer, settings, fast_dropout=fast)
        else:
            adapted = LoraRowParallelLinear(layer, settings, random_state=model.random_state, fast_dropout=fast)
        adapted.start(dim=rule.dim, generator=generator)
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, adapted)


def _target_layers(
    model: GLMModel, settings: LoraSettings
) -> Iterator[tuple[str, ColumnParallelLinear | RowParallelLinear]]:
    """Yield the layers to adapt with their names, in the order of the model."""
    for index in range(model.config.num_layers):
        for target, place in LORA_TARGETS.items():
            if target in settings.targets:
                name = f"transformer.layers.{index}.{place}"
                layer = model.get_submodule(name)
                assert isinstance(layer, (ColumnParallelLinear, RowParallelLinear)), name
                assert not isinstance(layer, _AdaptedLinear), f"{name} has an adapter already"
                yield name, layer


def adapted_layers(network: nn.Module) -> list[_AdaptedLinear]:
    """Return the layers of ``network`` that have an adapter."""
    return [module for module in network.modules() if isinstance(module, _AdaptedLinear)]
