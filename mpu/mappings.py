"""The four conjugate collectives at the borders of a tensor-parallel region.

========  ==========================  ==========================
name      forward                     backward
========  ==========================  ==========================
copy      identity                    all-reduce
reduce    all-reduce                  identity
scatter   own chunk of the last dim   concatenate the last dim
gather    concatenate the last dim    own chunk of the last dim
========  ==========================  ==========================

With a group of size one each of them returns its argument untouched.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from mpu.initialize import ParallelTopology


def all_reduce(tensor: Tensor, topology: ParallelTopology, *, operation: Any = None) -> Tensor:
    """Return the sum (or ``operation``) of ``tensor`` over the model-parallel group, as a new tensor."""
    if topology.model_parallel_size == 1:
        return tensor
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    operation = dist.ReduceOp.SUM if operation is None else operation
    dist.all_reduce(total, op=operation, group=topology.model_parallel_group)
    return total


def concatenate_last_dim(tensor: Tensor, topology: ParallelTopology) -> Tensor:
    """Return the tensors [..., c/t] of the model-parallel group side by side: [..., c]."""
    if topology.model_parallel_size == 1:
        return tensor
    own = tensor.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(topology.model_parallel_size)]
    dist.all_gather(parts, own, group=topology.model_parallel_group)
    return torch.cat(parts, dim=-1)


def own_chunk_of_last_dim(tensor: Tensor, topology: ParallelTopology) -> Tensor:
    """Return this rank's [..., c/t] of a tensor [..., c]."""
    width = topology.share(tensor.size(-1), what="the last dimension of a tensor to scatter")
    return tensor.narrow(-1, topology.model_parallel_rank * width, width).contiguous()


class _CopyTo(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, topology: ParallelTopology) -> Tensor:
        ctx.topology = topology
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_reduce(gradient, ctx.topology), None


class _ReduceFrom(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, topology: ParallelTopology) -> Tensor:
        return all_reduce(tensor, topology)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _ScatterTo(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, topology: ParallelTopology) -> Tensor:
        ctx.topology = topology
        return own_chunk_of_last_dim(tensor, topology)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return concatenate_last_dim(gradient, ctx.topology), None


class _GatherFrom(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, topology: ParallelTopology) -> Tensor:
        ctx.topology = topology
        return concatenate_last_dim(tensor, topology)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return own_chunk_of_last_dim(gradient, ctx.topology), None


def copy_to_model_parallel(tensor: Tensor, topology: ParallelTopology) -> Tensor:
    """Enter a parallel region: identity forward, all-reduce of the gradient backward."""
    return tensor if topology.model_parallel_size == 1 else _CopyTo.apply(tensor, topology)


def reduce_from_model_parallel(tensor: Tensor, topology: ParallelTopology) -> Tensor:
    """Leave a parallel region by summing the ranks' partial results; the gradient passes unchanged."""
    return tensor if topology.model_parallel_size == 1 else _ReduceFrom.apply(tensor, topology)


def scatter_to_model_parallel(tensor: Tensor, topology: ParallelTopology) -> Tensor:
    """Enter a parallel region with this rank's chunk of the last dimension; backward concatenates."""
    return tensor if topology.model_parallel_size == 1 else _ScatterTo.apply(tensor, topology)


def gather_from_model_parallel(tensor: Tensor, topology: ParallelTopology) -> Tensor:
    """Leave a parallel region by concatenating over the last dimension; backward takes the own chunk."""
    return tensor if topology.model_parallel_size == 1 else _GatherFrom.apply(tensor, topology)
