"""Collectives over the groups of a topology; with a group of size one each of them returns its argument untouched.

Four conjugate pairs stand at the borders of a tensor-parallel region:

========  ==========================  ==========================
name      forward                     backward
========  ==========================  ==========================
copy      identity                    all-reduce
reduce    all-reduce                  identity
scatter   chunk of the last dim       concatenate the last dim
gather    concatenate the last dim    chunk of the last dim
========  ==========================  ==========================

c width of the last dimension, t tensor-parallel size
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from files.progress import with_progress
from mpu.initialize import ParallelTopology

MAX_DIMENSIONS = 8  # of a tensor that ``broadcast_tensors`` hands on
Result = TypeVar("Result")

# ------------------------------------------------------------------------------------------------------ one pass


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
    part = tensor.detach().contiguous()
    parts = [torch.empty_like(part) for _ in range(topology.model_parallel_size)]
    dist.all_gather(parts, part, group=topology.model_parallel_group)
    return torch.cat(parts, dim=-1)


def chunk_of_last_dim(tensor: Tensor, topology: ParallelTopology) -> Tensor:
    """Return this rank's [..., c/t] of a tensor [..., c]."""
    width = topology.share(tensor.size(-1), what="the last dimension of a tensor to scatter")
    return tensor.narrow(-1, topology.model_parallel_rank * width, width).contiguous()


def any_rank(flag: bool, *, topology: ParallelTopology, device: torch.device | str | None = None) -> bool:
    """Return whether any rank of the world has ``flag`` set; every rank has to ask.

    The vote is taken on ``device``, by the group of the training step; without one on the host, by a group that waits
    for as long as one of the ranks has something else to do.
    """
    if topology.world_size == 1:
        return flag
    votes = torch.tensor(float(flag), device=device)
    dist.all_reduce(votes, group=topology.host_group if device is None else None)
    return bool(votes.item() > 0)


def wait_for_ranks(topology: ParallelTopology) -> None:
    """Wait until every rank of the world is here, however long that takes; every rank has to call it."""
    any_rank(False, topology=topology)


def gathered(value: Result, *, topology: ParallelTopology, world: bool = False) -> list[Result]:
    """Return ``value`` of every rank of the model-parallel group, or of the ``world``; every rank has to call it.

    The world waits on the host for as long as one of its ranks has something else to do.
    """
    size = topology.world_size if world else topology.model_parallel_size
    if size == 1 or not (world or topology.model_parallel_group is not None):
        return [value]
    values = [value] * size
    dist.all_gather_object(values, value, group=topology.host_group if world else topology.model_parallel_group)
    return values


def of_first_rank(value: Result, *, topology: ParallelTopology) -> Result:
    """Return the first rank's ``value`` on every rank, however long that takes; every rank has to ask."""
    if topology.world_size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=topology.host_group)
    return values[0]


def run_shared(
    batches: Sequence[Sequence[int]], run: Callable[[Sequence[int]], Sequence[Result]], *, topology: ParallelTopology
) -> list[Result]:
    """Return what ``run`` makes of the numbers in ``batches``, in the order of the numbers, on every rank.

    ``batches`` hold 0, 1, 2 ... once each; ``run`` returns a result for each number of a batch. The data ranks share
    them. All run as many as the others, some of them twice: a sharded model works in step. Every rank has to call it.
    """
    size, rank = topology.data_parallel_size, topology.data_parallel_rank
    results: dict[int, Result] = {}
    turns = -(-len(batches) // size)
    for turn in with_progress(range(turns), total=turns):
        batch = batches[(turn * size + rank) % len(batches)]
        results.update(zip(batch, run(batch), strict=True))
    if topology.data_parallel_group is not None:
        shares: list[dict[int, Result]] = [{}] * size
        dist.all_gather_object(shares, results, group=topology.data_parallel_group)
        results = {number: result for share in shares for number, result in share.items()}
    return [results[number] for number in range(len(results))]


def broadcast_tensors(
    tensors: Mapping[str, Tensor] | None,
    names: Sequence[str],
    *,
    topology: ParallelTopology,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Return ``{name: tensor}`` of the model-parallel group's first rank on every rank of the group.

    ``tensors`` holds int64 tensors of any shape on the first rank and is not looked at on the others; ``names`` is the
    same list everywhere. Two broadcasts: the shapes, then all elements as one flat buffer.
    """
    if topology.model_parallel_size == 1:
        assert tensors is not None
        return {name: tensors[name].to(device) for name in names}
    source = topology.model_parallel_source_rank
    table = torch.zeros(len(names), 1 + MAX_DIMENSIONS, dtype=torch.int64)  # number of dimensions, then the sizes
    if topology.model_parallel_rank == 0:
        assert tensors is not None
        for row, name in zip(table, names):
            tensor = tensors[name]
            assert tensor.dtype == torch.int64, (name, tensor.dtype)
            assert tensor.dim() <= MAX_DIMENSIONS, (name, tensor.shape)
            row[: 1 + tensor.dim()] = torch.tensor([tensor.dim(), *tensor.shape])
    table = table.to(device)
    dist.broadcast(table, source, group=topology.model_parallel_group)
    shapes = [tuple(row[1 : 1 + row[0]]) for row in table.tolist()]
    if topology.model_parallel_rank == 0:
        assert tensors is not None
        flat = torch.cat([tensors[name].to(device).flatten() for name in names])
    else:
        flat = torch.empty(sum(map(math.prod, shapes)), dtype=torch.int64, device=device)
    if flat.numel():
        dist.broadcast(flat, source, group=topology.model_parallel_group)
    parts = flat.split([math.prod(shape) for shape in shapes])
    return {name: part.view(shape) for name, part, shape in zip(names, parts, shapes)}


# ------------------------------------------------------------------------------------------------------ with gradients


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
    def forward(ctx: Any, tensor: Tensor, topology: ParallelTopology, in_place: bool) -> Tensor:
        if not (in_place and tensor.is_contiguous()):
            return all_reduce(tensor, topology)
        ctx.mark_dirty(tensor)
        dist.all_reduce(tensor, group=topology.model_parallel_group)
        return tensor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


class _ScatterTo(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, topology: ParallelTopology) -> Tensor:
        ctx.topology = topology
        return chunk_of_last_dim(tensor, topology)

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
        return chunk_of_last_dim(gradient, ctx.topology), None


def copy_to_model_parallel(tensor: Tensor, topology: ParallelTopology) -> Tensor:
    """Enter a parallel region: identity forward, all-reduce of the gradient backward."""
    return tensor if topology.model_parallel_size == 1 else _CopyTo.apply(tensor, topology)


def reduce_from_model_parallel(tensor: Tensor, topology: ParallelTopology, *, in_place: bool = False) -> Tensor:
    """Leave a parallel region by summing the ranks' partial results; the gradient passes unchanged.

    ``in_place`` puts the sum into ``tensor``, where nothing else needs it: no second tensor of its size. In
    compiled layers that is left to the compiler.
    """
    if topology.model_parallel_size == 1:
        return tensor
    return _ReduceFrom.apply(tensor, topology, in_place and not torch.compiler.is_compiling())


def scatter_to_model_parallel(tensor: Tensor, topology: ParallelTopology) -> Tensor:
    """Enter a parallel region with this rank's chunk of the last dimension; backward concatenates."""
    return tensor if topology.model_parallel_size == 1 else _ScatterTo.apply(tensor, topology)


def gather_from_model_parallel(tensor: Tensor, topology: ParallelTopology) -> Tensor:
    """Leave a parallel region by concatenating over the last dimension; backward takes this rank's chunk."""
    return tensor if topology.model_parallel_size == 1 else _GatherFrom.apply(tensor, topology)
