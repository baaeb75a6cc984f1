"""Processes and devices: join the launcher's world, seed the random generators, leave without a crash."""

from __future__ import annotations

import os
import random
import sys

import numpy as np
import torch
import torch.distributed as dist

from data_utils.errors import start_logging
from mpu.initialize import ParallelTopology, initialize_model_parallel
from training.configurations import DeviceSettings


def choose_device(settings: DeviceSettings) -> torch.device:
    """Return this process's device: its own GPU, or the CPU.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise ValueError("--device cuda: torch sees no GPU here; use --device cpu, or install a CUDA build of torch")
    if settings.device == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", settings.local_rank % torch.cuda.device_count())


def start_distributed(settings: DeviceSettings) -> tuple[ParallelTopology, torch.device]:
    """Join the world that the launcher describes, choose the device, and let the first rank alone log.

    A single process needs no launcher and no process group. Several ranks on one CPU share its cores unless
    OMP_NUM_THREADS says otherwise. NCCL works on GPUs only; on a CPU the backend is gloo.
    """
    start_logging(first_rank=settings.rank == 0)
    device = choose_device(settings)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if settings.world_size == 1:
        return ParallelTopology.single(), device
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", settings.world_size))
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # unset, or set by torchrun
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_world_size))
    backend = settings.backend if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=settings.rank, world_size=settings.world_size)
    return initialize_model_parallel(settings.model_parallel_size), device


def silence_other_ranks(topology: ParallelTopology) -> None:
    """Let the first rank alone print to the standard output."""
    if topology.rank > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # to the end of the process


def finish_distributed(code: int) -> int:
    """Leave the world and return ``code``; with several ranks, end the process at once.

    A normal interpreter exit after gloo aborts now and then in its threads.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return code
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch on all devices; zero or a negative number leaves them unseeded."""
    if seed > 0:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


def seed_data_rank(seed: int, *, topology: ParallelTopology) -> None:
    """Give each data rank dropout masks of its own, once the model is built from the seed that all ranks share."""
    if seed > 0 and topology.data_parallel_rank > 0:
        torch.manual_seed(seed + topology.data_parallel_rank)
