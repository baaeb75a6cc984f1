"""Which processes share one model, and which share the data.

With tensor-parallel size t the world is cut into model-parallel groups of t consecutive ranks; the data-parallel groups
join the ranks that hold the same shard. Nothing here is global: the topology is a value that is handed to the layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import ProcessGroup

HOST_TIMEOUT = timedelta(days=1)


@dataclass(frozen=True)
class ParallelTopology:
    """Name this process's place in the grid of model-parallel and data-parallel groups.

    A group of ``None`` means a group of size one: the collectives over it do nothing. ``host_group`` has all ranks and
    speaks gloo: there they wait, for a day if need be, while one of them tokenizes, has something typed or writes, and
    no device waits with them. The methods answer the questions DeepSpeed asks of an ``mpu`` object.
    """

    rank: int
    world_size: int
    model_parallel_size: int
    model_parallel_rank: int
    data_parallel_size: int
    data_parallel_rank: int
    model_parallel_group: ProcessGroup | None = None
    data_parallel_group: ProcessGroup | None = None
    host_group: ProcessGroup | None = None
    model_parallel_source_rank: int = 0

    @classmethod
    def single(cls) -> ParallelTopology:
        """Return the topology of one process that holds the whole model and all the data."""
        return cls(
            rank=0,
            world_size=1,
            model_parallel_size=1,
            model_parallel_rank=0,
            data_parallel_size=1,
            data_parallel_rank=0,
        )

    def share(self, size: int, *, what: str) -> int:
        """Return ``size / model_parallel_size``; raise ValueError when it does not divide evenly.

        ``what`` names the quantity in the message.
        """
        if size % self.model_parallel_size:
            raise ValueError(
                f"{what} is {size}, which the model-parallel size {self.model_parallel_size} does not divide; "
                "choose a model-parallel size that divides it"
            )
        return size // self.model_parallel_size

    # The names below are those DeepSpeed calls on an ``mpu`` object.
    def get_model_parallel_rank(self) -> int:
        return self.model_parallel_rank

    def get_model_parallel_world_size(self) -> int:
        return self.model_parallel_size

    def get_model_parallel_group(self) -> ProcessGroup | None:
        return self.model_parallel_group

    def get_model_parallel_src_rank(self) -> int:
        return self.model_parallel_source_rank

    def get_data_parallel_rank(self) -> int:
        return self.data_parallel_rank

    def get_data_parallel_world_size(self) -> int:
        return self.data_parallel_size

    def get_data_parallel_group(self) -> ProcessGroup | None:
        return self.data_parallel_group

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group
    get_tensor_model_parallel_src_rank = get_model_parallel_src_rank


def initialize_model_parallel(model_parallel_size: int = 1) -> ParallelTopology:
    """Build the groups of this world and return this rank's topology.

    Every rank has to call it, in the same order as its other group constructions. Without an initialised
    ``torch.distributed`` the world is this process alone. A size above the world size is lowered to it. Raises
    ValueError when the size is not positive or does not divide the world size.
    """
    if model_parallel_size < 1:
        raise ValueError(f"--model-parallel-size is {model_parallel_size}; give a number of at least 1")
    if not (dist.is_available() and dist.is_initialized()):
        return ParallelTopology.single()
    world_size, rank = dist.get_world_size(), dist.get_rank()
    size = min(model_parallel_size, world_size)
    if world_size % size:
        raise ValueError(
            f"{world_size} processes cannot be cut into model-parallel groups of {size}; "
            "start a multiple of --model-parallel-size processes"
        )
    first = rank // size * size
    model_group = _group_of(list(range(first, first + size)))
    data_group = _group_of(list(range(rank % size, world_size, size)))
    return ParallelTopology(
        rank=rank,
        world_size=world_size,
        model_parallel_size=size,
        model_parallel_rank=rank % size,
        data_parallel_size=world_size // size,
        data_parallel_rank=rank // size,
        model_parallel_group=model_group,
        data_parallel_group=data_group,
        host_group=new_host_group() if world_size > 1 else None,
        model_parallel_source_rank=first,
    )


def new_host_group() -> ProcessGroup:
    """Join a group of all ranks on the host that is patient; every rank has to call it."""
    return dist.new_group(backend="gloo", timeout=HOST_TIMEOUT)


def _group_of(ranks: list[int]) -> ProcessGroup | None:
    """Join the group of these ranks, this one among them, or return None for a group of one.

    Only its members make a group: no rank waits for the others once for every group of the world. Every rank is in one
    group of each kind, so that all of them come together where NCCL splits its communicator.
    """
    return dist.new_group(ranks, use_local_synchronization=True) if len(ranks) > 1 else None
