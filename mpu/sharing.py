"""Collect what data-parallel ranks have computed for numbered items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch.distributed as dist

from mpu.initialize import ParallelTopology

Result = TypeVar("Result")


def gather_numbered(found: Mapping[int, Result], *, topology: ParallelTopology) -> dict[int, Result]:
    """Return the results of all data ranks by number, on every rank; every rank has to call it."""
    if topology.data_parallel_group is None:
        return dict(found)
    shares: list[Mapping[int, Result]] = [{}] * topology.data_parallel_size
    dist.all_gather_object(shares, found, group=topology.data_parallel_group)
    return {number: result for share in shares for number, result in share.items()}
