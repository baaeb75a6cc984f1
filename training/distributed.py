"""Processes and devices: join the launcher's world, seed the random generators, leave without a crash.

What ends a long run - memory, disk, lost ranks - becomes one line that says what to do.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from files.cores import usable_cores
from files.errors import USER_ERROR_EXIT_CODE, error_line, start_logging
from files.reading import described
from mpu.initialize import ParallelTopology, initialize_model_parallel
from training.settings import DeviceSettings, spelling
from training.signals import StoppedError, StopRequest

# How torch and its collectives say it, in lower case.
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
LOST_RANK = ("connection closed by peer", "connection reset", "broken pipe", "socket timeout", "timed out", "nccl",
             "gloo", "remote process exited", "read error", "write error")  # fmt: skip

# Options that may have another value on each rank: places on its own disk, and what only one of them does.
OF_ONE_RANK = (
    "local_rank", "rank", "experiment_name", "vocab_dir", "cache_dir", "data_cache_dir", "tokenizer_path", "data_dir",
    "train_data", "valid_data", "test_data", "load_splits", "save_splits", "save_test_data", "deepspeed_config",
    "summary_dir", "metrics_file", "no_progress", "wandb",
)  # fmt: skip
NO_COMPILER = ("no working c++ compiler", "failed to find c compiler", "working triton installation")


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
    return torch.device("cuda", (settings.local_rank or 0) % torch.cuda.device_count())


def start_distributed(
    settings: DeviceSettings, *, shared: Mapping[str, Any] | None = None
) -> tuple[ParallelTopology, torch.device]:
    """Join the world that the launcher describes, choose the device, and let the first rank alone log.

    A single process needs no launcher and no process group. Several ranks on one CPU share its cores unless
    OMP_NUM_THREADS says otherwise. NCCL works on GPUs only; on a CPU the backend is gloo. ``shared`` are the values of
    the command line. Raises ValueError where they differ among the ranks, a rank does not come or the port is taken.
    """
    start_logging(first_rank=settings.rank == 0)
    device = choose_device(settings)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # It plans anew for every shape, and with a mask its gradients are NaN at some lengths (pytorch issue 196678).
        torch.backends.cuda.enable_cudnn_sdp(False)
    if settings.world_size == 1:
        return ParallelTopology.single(), device
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", settings.world_size))
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # unset, or set by torchrun
        torch.set_num_threads(max(1, usable_cores() // local_world_size))
    on_gpu = device.type == "cuda"
    # Objects and host tensors take gloo: no copy to the GPU and back, and nothing waits for what the GPU has to do.
    backend = f"cpu:gloo,cuda:{settings.distributed_backend}" if on_gpu else "gloo"
    minutes = settings.distributed_timeout_minutes
    timeout = None if minutes is None else timedelta(minutes=minutes)
    try:
        dist.init_process_group(
            backend,
            rank=settings.rank,
            world_size=settings.world_size,
            timeout=timeout,
            device_id=device if on_gpu else None,
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise ValueError(explain_start(error, settings)) from error
    own = {name: value for name, value in (shared or {}).items() if name not in OF_ONE_RANK}
    compare_ranks({spelling(name): value for name, value in own.items()})
    return initialize_model_parallel(settings.model_parallel_size), device


def explain_start(error: Exception, settings: DeviceSettings) -> str:
    """Return one line about an error while the ranks were looking for each other."""
    place = f"{os.environ.get('MASTER_ADDR', 'MASTER_ADDR')}:{os.environ.get('MASTER_PORT', 'MASTER_PORT')}"
    text = " ".join(str(error).split())
    words = text.lower()
    if "address already in use" in words or "eaddrinuse" in words:
        reason = "another program has that port: choose another one (MASTER_PORT, torchrun --master-port)"
    elif any(phrase in words for phrase in ("timed out", "timeout")):
        reason = (
            "not all ranks came in time: see the messages of the others, start those that are missing, or give them "
            "longer (--distributed-timeout-minutes)"
        )
    else:
        reason = "are MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE set as torchrun does"
    who = f"rank {settings.rank} of {settings.world_size}"
    return f"{who} could not join the others at {place}: {reason}. It was: {text[:160]}"


def compare_ranks(values: Mapping[str, Any]) -> None:
    """Raise ValueError on every rank, naming what differs, when ``values`` are not the same on all.

    Every rank has to ask.
    """
    if not several_ranks():
        return
    given = {name: described(value, width=200) for name, value in values.items()}
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, given)
    first = gathered[0]
    for rank, other in enumerate(gathered):
        names = [name for name in [*first, *other] if first.get(name) != other.get(name)]
        if names:
            differences = "; ".join(
                f"{name}: {first.get(name, 'missing')} on rank 0, {other.get(name, 'missing')} on rank {rank}"
                for name in dict.fromkeys(names)
            )
            raise ValueError(f"the ranks do not belong together: {differences}. Start all of them with one command")


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


def several_ranks() -> bool:
    """Tell whether this process has joined others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def how_to_go_on(checkpoints: Path | None) -> str:
    """Return what to do after a run died whose folder is ``checkpoints``."""
    return f"continue from {checkpoints} (--load or --auto-resume)" if checkpoints else "start again"


def explain_fault(error: BaseException, *, batch_size: int, checkpoints: Path | None) -> str | None:
    """Return one line for an error of the machine, or None when ``error`` is something else.

    ``checkpoints`` is the run's folder, from which it goes on.
    """
    text = " ".join(str(error).split())
    words = text.lower()
    resume = how_to_go_on(checkpoints)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(phrase in words for phrase in OUT_OF_MEMORY):
        return (
            f"out of memory with --batch-size {batch_size}: make it smaller and --gradient-accumulation-steps larger, "
            "add --checkpoint-activations, raise --model-parallel-size, or choose a higher ZeRO stage (--dry-run shows "
            f"what is needed); then {resume}. It was: {text[:160]}"
        )
    if any(phrase in words for phrase in NO_COMPILER):
        return (
            "compiled layers (--compile) and FlexAttention (--attention flex) need a C++ compiler, on a GPU Triton as "
            "well: install g++ or name one in CXX, or leave --compile out (and give --attention sdpa)"
        )
    distributed = isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(phrase in words for phrase in LOST_RANK)
    )
    if distributed and several_ranks():
        return f"another rank was lost, see its own message; {resume}. It was: {text[:160]}"
    return None


@contextmanager
def faults_in_one_line(*, batch_size: int, checkpoints: Path | None) -> Iterator[StopRequest]:
    """Turn errors of the machine in the body into a ``ValueError`` with one line; a world of several ranks ends here.

    There the process leaves at once: its peers may wait in a collective, and an orderly exit would wait for them.
    The body gets what the signals of this program are remembered in. ``GLM_TRACEBACK=1`` leaves errors as they are.
    """

    def hangs() -> str | None:
        if not several_ranks():
            return None
        return error_line(
            f"another rank was lost or hangs, see its own message; {how_to_go_on(checkpoints)}", rank=dist.get_rank()
        )

    with StopRequest(hangs=hangs, remembering=False) as stop:
        try:
            yield stop
        except (Exception, StoppedError) as error:
            stop.leave()
            stopped = isinstance(error, StoppedError)
            if os.environ.get("GLM_TRACEBACK") == "1" and not stopped:
                raise
            # A launcher's signal comes while the error that it follows from is on its way here.
            cause = error.__context__ if stopped else error
            line = None if cause is None else explain_fault(cause, batch_size=batch_size, checkpoints=checkpoints)
            code = USER_ERROR_EXIT_CODE
            if isinstance(error, StoppedError) and line is None:
                line, code = error.line, 128 + error.number
            elif line is None and not isinstance(error, ValueError | OSError):
                raise
            if several_ranks():
                stop.say(error_line(line or str(error), rank=dist.get_rank()))
                os._exit(code)
            if stopped and line is not None:
                stop.say(error_line(line))
                raise SystemExit(code) from None
            raise error if line is None else ValueError(line) from error
