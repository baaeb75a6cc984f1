"""What ends a long run: memory, disk, lost ranks. Each becomes one line that says what to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from data_utils.errors import USER_ERROR_EXIT_CODE, error_line

# How torch and its collectives say it, in lower case.
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
LOST_RANK = ("connection closed by peer", "connection reset", "broken pipe", "socket timeout", "timed out", "nccl",
             "gloo", "remote process exited", "read error", "write error")  # fmt: skip

NO_COMPILER = ("no working c++ compiler", "failed to find c compiler", "working triton installation")


def explain_fault(error: BaseException, *, batch_size: int, checkpoints: Path | None) -> str | None:
    """Return one line for an error of the machine, or None when ``error`` is something else.

    ``checkpoints`` is the run's folder, from which it goes on.
    """
    text = " ".join(str(error).split())
    words = text.lower()
    resume = f"continue from {checkpoints} (--load or --auto-resume)" if checkpoints else "start again"
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
    if distributed and dist.is_initialized() and dist.get_world_size() > 1:
        return f"another rank was lost, see its own message; {resume}. It was: {text[:160]}"
    return None


@contextmanager
def faults_in_one_line(*, batch_size: int, checkpoints: Path | None) -> Iterator[None]:
    """Turn errors of the machine in the body into a ``ValueError`` with one line; a world of several ranks ends here.

    There the process leaves at once: its peers may wait in a collective, and an orderly exit would wait for them.
    ``GLM_TRACEBACK=1`` leaves errors as they are.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get("GLM_TRACEBACK") == "1":
            raise
        line = explain_fault(error, batch_size=batch_size, checkpoints=checkpoints)
        if line is None and not isinstance(error, ValueError | OSError):
            raise
        if not (dist.is_initialized() and dist.get_world_size() > 1):
            raise error if line is None else ValueError(line) from error
        print(error_line(line or str(error), rank=dist.get_rank()), file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(USER_ERROR_EXIT_CODE)
