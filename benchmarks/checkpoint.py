"""Reshard a large checkpoint 1 -> N -> 1 and measure time and peak memory, and what its checksums cost.

    python -m benchmarks checkpoint [--size GLM-2B] [--ranks 4] [--folder DIR] [--json]

Random bf16 weights of a released size, change_mp.py in a process of its own for each direction, bit-for-bit comparison.
Writing with and without SHA-256, and each check of reading, are timed one after the other, the best of three.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import REPOSITORY
from files.checksums import sha256_of
from model.checkpoints.checks import check_finite, damaged_record
from model.checkpoints.pickles import check_pickles
from model.checkpoints.reading import shard_name
from model.checkpoints.safe_loading import read_checkpoint_file
from model.checkpoints.writing import write_shard, write_trackers
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from model.released import RELEASED_MODELS

TAG = "1"
# Runs change_mp.py and prints the peak of its resident memory, mapped pages included, in KiB.
CHILD = """
import sys
from pathlib import Path
import change_mp
change_mp.change_model_parallel_size(Path(sys.argv[1]), int(sys.argv[2]))
status = Path("/proc/self/status").read_text()
print("VmHWM", next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def write_random_checkpoint(root: Path, config: GLMConfig) -> int:
    """Write a checkpoint of random bf16 weights; return its bytes."""
    generator = torch.Generator().manual_seed(1)
    model = GLMModel(config, device="meta")
    weights = {
        name: torch.empty(tensor.shape, dtype=torch.bfloat16).normal_(generator=generator)
        for name, tensor in model.state_dict().items()
    }
    folder = root / TAG
    folder.mkdir(parents=True)
    write_shard(folder / shard_name(0), {"module": weights, "iteration": int(TAG), "mp_world_size": 1})
    write_trackers(root, TAG)
    return sum(tensor.nbytes for tensor in weights.values())


def best_of(action: Callable[[], object], repeats: int = 3) -> float:
    """Return the seconds of the fastest of several runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def time_checks(file: Path) -> dict[str, float]:
    """Return the seconds that it takes to write the checkpoint in ``file`` and to check it in each way."""
    content = read_checkpoint_file(file)
    content["module"] = {name: tensor.clone() for name, tensor in content["module"].items()}
    copy = file.with_name("copy.pt")

    def write_plainly() -> None:
        with copy.open("wb") as written:
            torch.save(content, written)
            written.flush()
            os.fsync(written.fileno())

    times = {
        "write, as before": best_of(write_plainly),
        "write with SHA-256": best_of(lambda: write_shard(copy, content)),
        "compare SHA-256": best_of(lambda: sha256_of(copy)),
        "compare CRC-32": best_of(lambda: damaged_record(copy)),
        "look for NaN": best_of(lambda: check_finite(read_checkpoint_file(copy)["module"], file=copy)),
        "look through the pickle": best_of(lambda: check_pickles(copy, archive=True)),
    }
    copy.unlink()
    return times


def reshard(root: Path, ranks: int, *, num_bytes: int) -> dict[str, Any]:
    """Run change_mp.py on ``root`` and return what it took."""
    start = time.perf_counter()
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(root), str(ranks)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    seconds = time.perf_counter() - start
    peak = int(child.stdout.split("VmHWM")[1]) * 1024
    return {"ranks": ranks, "seconds": seconds, "gb_per_second": num_bytes / 1e9 / seconds, "peak_gb": peak / 1e9}


def equal(first: Path, second: Path) -> bool:
    """Tell whether two checkpoints of one shard have the same weights, bit for bit."""
    one, other = (read_checkpoint_file(root / TAG / shard_name(0))["module"] for root in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def checkpoint(argv: Sequence[str]) -> int:
    """Run the measurement."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", default="GLM-2B", choices=sorted(RELEASED_MODELS))
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--folder", help="where the temporary files go; three times the checkpoint's size is needed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = Path(name) / "run"
        num_bytes = write_random_checkpoint(root, RELEASED_MODELS[options.size].config)
        times = time_checks(root / TAG / shard_name(0))
        steps = [reshard(root, options.ranks, num_bytes=num_bytes)]
        cut = root.with_name(f"{root.name}_MP{options.ranks}")
        steps.append(reshard(cut, 1, num_bytes=num_bytes))
        same = equal(root, cut.with_name(f"{cut.name}_MP1"))
    lines = [
        f"{options.size}: {num_bytes / 1e9:.2f} GB of bf16 weights; 1 -> {options.ranks} -> 1 bit-identical: {same}"
    ]
    for step in steps:
        lines.append(
            f"to {step['ranks']} file(s): {step['seconds']:.1f} s, {step['gb_per_second']:.2f} GB/s, "
            f"peak resident memory {step['peak_gb']:.2f} GB"
        )
    lines += [f"{what}: {seconds:.2f} s" for what, seconds in times.items()]
    result = {
        "size": options.size,
        "checkpoint_gb": num_bytes / 1e9,
        "steps": steps,
        "seconds": times,
        "bit_identical": same,
    }
    print(json.dumps(result) if options.json else "\n".join(lines))
    return 0 if same else 1
