"""Run a function in several gloo processes and hand back what each of them returned.

Processes come from a fork server that has torch loaded, meet through a file (no ports), use one thread each and end
with ``os._exit`` (gloo's threads sometimes abort a normal exit). The first failing rank's traceback is raised at once.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

PRELOADED = ["pytest", "torch", "torch._dynamo", "torch.distributed", "model.modeling_glm"]


class RankFailedError(AssertionError):
    """A process raised, died or did not answer in time."""


def run(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """Call ``function(*args)`` in ``world_size`` processes of one gloo group; return the results by rank.

    ``function`` has to be importable from a module; arguments and results travel by ``torch.save``. Raises
    ``RankFailedError`` with the traceback of the first rank that fails, after ``timeout`` seconds in any case.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    packed = _pack(args)
    with TemporaryDirectory() as folder:
        receivers, processes = [], []
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (function, rank, world_size, Path(folder) / "store", packed, sender)
            process = context.Process(target=_child, args=arguments, daemon=True)
            process.start()
            sender.close()
            receivers.append(receiver)
            processes.append(process)
        try:
            return _collect(receivers, timeout)
        finally:
            for process in processes:
                process.join(timeout=0.0 if sys.exc_info()[0] else 10.0)
                if process.is_alive():
                    process.kill()
                    process.join()


def _collect(receivers: list[Connection], timeout: float) -> list[Any]:
    """Wait for one message per rank and return the unpacked results."""
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    while len(results) < len(receivers):
        pending = {receiver: rank for rank, receiver in enumerate(receivers) if rank not in results}
        ready = wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankFailedError(f"ranks {sorted(pending.values())} did not answer within {timeout:g} s")
        for receiver in ready:
            rank = pending[receiver]
            try:
                succeeded, payload = receiver.recv()
            except EOFError:
                raise RankFailedError(f"rank {rank} died without a word") from None
            if not succeeded:
                raise RankFailedError(f"rank {rank} failed:\n{payload}")
            results[rank] = torch.load(io.BytesIO(payload), weights_only=False)
    return [results[rank] for rank in range(len(receivers))]


def _child(
    function: Callable[..., Any], rank: int, world_size: int, store: Path, packed: bytes, sender: Connection
) -> None:
    """Join the group, call the function, send (succeeded, result or traceback) and leave without clean-up."""
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
        result = function(*torch.load(io.BytesIO(packed), weights_only=False))
        dist.barrier()
        dist.destroy_process_group()
        sender.send((True, _pack(result)))
        status = 0
    except BaseException:
        sender.send((False, traceback.format_exc()))
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _pack(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
