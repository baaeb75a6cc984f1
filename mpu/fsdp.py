"""Parameters that are spread over the data ranks (torch's FSDP2), layer by layer.

Each rank holds the rows of its own of every parameter, gradient and moment. A layer's whole parameters exist while it
is computed. A spread tensor is a ``DTensor`` cut along its first dimension; whatever is not spread passes unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mpu.initialize import ParallelTopology


def spread_parameters(
    model: nn.Module,
    units: Iterable[nn.Module],
    *,
    topology: ParallelTopology,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> None:
    """Spread the parameters of ``model`` over the data ranks, those of each of its ``units`` together.

    They are moved to ``device``, one unit at a time, so that no device ever holds the whole model. With ``dtype`` the
    units' parameters are of that type where they are whole (autocast would keep a copy of each of them to the end of
    the backward pass); the ranks' own rows, and the sums of gradients, stay in fp32.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    assert topology.data_parallel_group is not None
    mesh = DeviceMesh.from_group(topology.data_parallel_group, device.type)
    flags = {name: dict(parameter.__dict__) for name, parameter in model.named_parameters()}
    policy = MixedPrecisionPolicy(dtype, None if dtype is None else torch.float32, cast_forward_inputs=False)
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    for name, parameter in model.named_parameters():
        parameter.__dict__.update(flags[name])  # the model-parallel flag


def is_spread(tensor: Any) -> bool:
    """Tell whether a tensor is spread over the data ranks."""
    return hasattr(tensor, "to_local")


def own_rows(tensor: Tensor) -> Tensor:
    """Return this rank's rows of a tensor, in the same memory."""
    return tensor.to_local() if is_spread(tensor) else tensor  # type: ignore[attr-defined]  # of a DTensor


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor of all ranks' rows; every data rank has to ask."""
    return tensor.full_tensor() if is_spread(tensor) else tensor  # type: ignore[attr-defined]  # of a DTensor


def _rows_of_rank(tensor: Any, rows: Tensor) -> Tensor:
    """Return those of ``rows``, the first ones of the whole ``tensor``, that this rank holds."""
    mesh = tensor.device_mesh
    size = -(-len(tensor) // mesh.size())  # as ``torch.chunk`` cuts
    first = mesh.get_local_rank() * size
    return rows[first : first + size]


@torch.no_grad()
def fill_rows(tensor: Tensor, rows: Tensor) -> None:
    """Copy ``rows`` into the first rows of ``tensor``, each rank its own."""
    rows = _rows_of_rank(tensor, rows) if is_spread(tensor) else rows
    own_rows(tensor)[: len(rows)].copy_(rows)


def spread_like(value: Tensor, tensor: Tensor) -> Tensor:
    """Return ``value``, whole on every rank, spread as ``tensor`` of the same shape is."""
    if not is_spread(tensor):
        return value
    from torch.distributed.tensor import DTensor

    like: Any = tensor
    rows = _rows_of_rank(like, value).to(own_rows(tensor).device, copy=True)
    shape, stride = value.shape, value.contiguous().stride()
    return DTensor.from_local(rows, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride)


def release(model: nn.Module) -> None:
    """Let go of whole parameters that an evaluation has left."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
