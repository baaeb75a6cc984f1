"""The norm of gradients that are partly cut over the model-parallel ranks, or spread over the data ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from mpu.fsdp import is_spread, own_rows
from mpu.initialize import ParallelTopology


@torch.no_grad()
def gradient_norm(
    parameters: Iterable[torch.nn.Parameter], *, topology: ParallelTopology, norm_type: float = 2.0
) -> Tensor:
    """Return the norm over the whole model, an fp32 scalar that is equal on all ranks of a model-parallel group.

    Parameters flagged ``model_parallel`` count on every rank, replicated ones once. Parameters without a gradient are
    left out; without any the norm is 0. Those of spread parameters (``mpu/fsdp.py``) are added up over the data ranks.
    ``norm_type`` is a positive number or infinity (the largest element).
    """
    parameters = list(parameters)
    groups = [topology.data_parallel_group] * any(is_spread(parameter) for parameter in parameters)
    groups += [topology.model_parallel_group] * (topology.model_parallel_size > 1)
    gradients = [
        own_rows(parameter.grad)
        for parameter in parameters
        if parameter.grad is not None
        and (topology.model_parallel_rank == 0 or getattr(parameter, "model_parallel", False))
    ]
    gradients = [gradient for gradient in gradients if gradient.numel()]
    if gradients:
        norms = torch.stack(_norms(gradients, norm_type))
        total = torch.linalg.vector_norm(norms, norm_type).float()
    else:
        total = torch.zeros((), device=parameters[0].device if parameters else None)
    for group in groups:
        if math.isinf(norm_type):
            dist.all_reduce(total, op=dist.ReduceOp.MAX, group=group)
        else:
            power = total**norm_type
            dist.all_reduce(power, group=group)
            total = power ** (1.0 / norm_type)
    return total


def _norms(gradients: list[Tensor], norm_type: float) -> list[Tensor]:
    """Return the norm of every gradient, 0-dim.

    On a CPU a large tensor is added up in one running fp32 sum, which loses up to 1e-4 of the norm when few elements
    are large (word embeddings): rows are taken first there, and their norms added in double precision.
    """
    if gradients[0].device.type != "cpu":
        return [norm.float() for norm in torch._foreach_norm(gradients, norm_type)]
    rows = [torch.linalg.vector_norm(g, norm_type, dim=-1) if g.dim() > 1 else g for g in gradients]
    return [torch.linalg.vector_norm(row, norm_type, dtype=torch.float64) for row in rows]
