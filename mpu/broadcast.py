"""Hand the batch that one rank has read to the other ranks of its model-parallel group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mpu.initialize import ParallelTopology

# The sizes travel in one table of this many columns per tensor, after a column for the number of dimensions.
MAX_DIMENSIONS = 8


def broadcast_tensors(
    tensors: Mapping[str, Tensor] | None,
    names: Sequence[str],
    *,
    topology: ParallelTopology,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Return ``{name: tensor}`` of the group's first rank on every rank of the group.

    ``tensors`` holds int64 tensors of any shape on the first rank and is not looked at on the others; ``names`` is the
    same list everywhere. Two broadcasts: the shapes, then all elements as one flat buffer.
    """
    if topology.model_parallel_size == 1:
        assert tensors is not None
        return {name: tensors[name].to(device) for name in names}
    source = topology.model_parallel_source_rank
    table = torch.zeros(len(names), 1 + MAX_DIMENSIONS, dtype=torch.int64)
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
        flat = torch.cat([tensors[name].to(device).flatten() for name in names])
    else:
        flat = torch.empty(sum(map(math.prod, shapes)), dtype=torch.int64, device=device)
    if flat.numel():
        dist.broadcast(flat, source, group=topology.model_parallel_group)
    parts = flat.split([math.prod(shape) for shape in shapes])
    return {name: part.view(shape) for name, part, shape in zip(names, parts, shapes)}
