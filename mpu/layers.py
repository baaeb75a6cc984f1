"""Linear layers and embeddings whose weights are cut over the model-parallel ranks.

Every rank draws the whole matrix with the same CPU generator and keeps its part, so that the initialisation does not
depend on the model-parallel size. The draw is skipped for parameters on the meta device, which hold no numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from mpu.initialize import ParallelTopology
from mpu.mappings import (
    copy_to_model_parallel,
    gather_from_model_parallel,
    reduce_from_model_parallel,
    scatter_to_model_parallel,
)
from mpu.random import ModelParallelRandomState

TensorT = TypeVar("TensorT", bound=Tensor)


@dataclass(frozen=True)
class LayerContext:
    """What every layer needs besides its input: where it runs, and how its parameters are made."""

    topology: ParallelTopology
    random_state: ModelParallelRandomState
    generator: Generator | None = None
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    def factory(self) -> dict[str, Any]:
        """Return the keyword arguments of a plain torch layer."""
        return {"device": self.device, "dtype": self.dtype}


def shard_of(full: Tensor, *, dim: int, topology: ParallelTopology, stride: int = 1) -> Tensor:
    """Return this rank's part of a full parameter.

    The tensor is cut into ``stride * t`` equal blocks along ``dim``; rank r keeps blocks r, r + t, r + 2t ... in order.
    """
    size, rank = topology.model_parallel_size, topology.model_parallel_rank
    if size == 1:
        return full
    if full.size(dim) % (stride * size):
        raise ValueError(
            f"a dimension of {full.size(dim)} cannot be cut into {stride * size} equal blocks; "
            "choose a model-parallel size that divides the heads, the hidden size and the vocabulary"
        )
    return torch.cat(full.chunk(stride * size, dim=dim)[rank::size], dim=dim)


@torch.no_grad()
def initialize_normal(
    parameter: nn.Parameter,
    full_shape: tuple[int, ...],
    *,
    std: float,
    generator: Generator | None,
    topology: ParallelTopology,
    dim: int = 0,
    stride: int = 1,
) -> None:
    """Fill ``parameter`` with this rank's part of a normal draw of ``full_shape``.

    ``generator`` is a CPU generator; None means torch's default one.
    """
    if parameter.is_meta:
        return
    full = torch.empty(full_shape, device="cpu", dtype=torch.float32).normal_(0.0, std, generator=generator)
    parameter.copy_(shard_of(full, dim=dim, topology=topology, stride=stride))


def mark_model_parallel(parameter: TensorT) -> TensorT:
    """Flag a parameter as split over the ranks: gradient norms sum it over the group."""
    parameter.model_parallel = True  # type: ignore[attr-defined]
    return parameter


class VocabParallelEmbedding(nn.Module):
    """Look up rows of a table [v,h] of which rank r owns ids [r v/t, (r+1) v/t)."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, context: LayerContext, *, initializer_std: float = 0.02
    ) -> None:
        super().__init__()
        self.topology = context.topology
        self.num_embeddings = num_embeddings
        rows = self.topology.share(num_embeddings, what="the vocabulary size")
        self.first_id = self.topology.model_parallel_rank * rows
        self.weight = mark_model_parallel(nn.Parameter(torch.empty(rows, embedding_dim, **context.factory())))
        initialize_normal(
            self.weight,
            (num_embeddings, embedding_dim),
            std=initializer_std,
            generator=context.generator,
            topology=self.topology,
        )

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the rows [...,h] of ``token_ids`` [...]; every rank gets the whole result."""
        if self.topology.model_parallel_size == 1:
            return F.embedding(token_ids, self.weight)
        local_ids = token_ids - self.first_id
        foreign = (local_ids < 0) | (local_ids >= self.weight.size(0))
        rows = F.embedding(local_ids.masked_fill(foreign, 0), self.weight)
        return reduce_from_model_parallel(rows.masked_fill(foreign.unsqueeze(-1), 0.0), self.topology, in_place=True)


class _ParallelLinear(nn.Module):
    """A linear layer whose weight [out,in] is cut along ``dim`` over the ranks: 0 with its bias, 1 without.

    ``inference_linear``, where it is set, computes the product of this rank in place of ``weight`` and the local bias
    (``mpu/kernels/prepacked.py``); it has no gradients.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    inference_linear: Callable[[Tensor], Tensor] | None = None

    def __init__(
        self, full_shape: tuple[int, int], context: LayerContext, *, dim: int, stride: int, initializer_std: float
    ) -> None:
        super().__init__()
        self.topology = context.topology
        what = f"the {('output', 'input')[dim]} width of a parallel linear layer"
        shape = list(full_shape)
        shape[dim] = self.topology.share(shape[dim], what=what)
        self.weight = mark_model_parallel(nn.Parameter(torch.empty(shape, **context.factory())))
        bias = nn.Parameter(torch.zeros(shape[0], **context.factory()))
        self.bias = mark_model_parallel(bias) if dim == 0 else bias
        initialize_normal(
            self.weight,
            full_shape,
            std=initializer_std,
            generator=context.generator,
            topology=self.topology,
            dim=dim,
            stride=stride,
        )

    @property
    def local_bias(self) -> Tensor | None:
        """Return the bias that is added to the product of this rank."""
        return self.bias

    def multiply(self, inputs: Tensor) -> Tensor:
        """Return x W^T, and the local bias, of this rank's part of W."""
        if self.inference_linear is not None:
            return self.inference_linear(inputs)
        return F.linear(inputs, self.weight, self.local_bias)


class ColumnParallelLinear(_ParallelLinear):
    """Compute x W^T + b with the rows of W [out,in] (and b) cut over the ranks."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        context: LayerContext,
        *,
        gather_output: bool = False,
        stride: int = 1,
        initializer_std: float = 0.02,
    ) -> None:
        super().__init__((out_features, in_features), context, dim=0, stride=stride, initializer_std=initializer_std)
        self.gather_output = gather_output

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [...,in], equal on all ranks, to [...,out/t], or to [...,out] with ``gather_output``."""
        outputs = self.multiply(copy_to_model_parallel(inputs, self.topology))
        return gather_from_model_parallel(outputs, self.topology) if self.gather_output else outputs


class RowParallelLinear(_ParallelLinear):
    """Compute x W^T + b with the columns of W [out,in] cut over the ranks; b is whole everywhere, added once."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        context: LayerContext,
        *,
        input_is_parallel: bool = True,
        initializer_std: float = 0.02,
    ) -> None:
        super().__init__((out_features, in_features), context, dim=1, stride=1, initializer_std=initializer_std)
        self.input_is_parallel = input_is_parallel

    @property
    def local_bias(self) -> Tensor | None:
        """Return the bias when there is one rank; with several it is added once to their sum."""
        return self.bias if self.topology.model_parallel_size == 1 else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [...,in/t] (or the whole [...,in] when the input is not parallel) to [...,out], equal on all ranks."""
        if self.topology.model_parallel_size == 1:
            return self.multiply(inputs)
        shard = inputs if self.input_is_parallel else scatter_to_model_parallel(inputs, self.topology)
        outputs = reduce_from_model_parallel(self.multiply(shard), self.topology, in_place=True)
        return outputs + self.bias.to(outputs.dtype)
