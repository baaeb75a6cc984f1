"""The check of a first run on a GPU, at a tiny size on the CPU; what fails in it is a line, and the rest goes on."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check import ALL_SECONDS, PARTS, Found, OnlyOnGPUError, Part, Place, gpu_check, run_part, table
from tests.helpers import REPOSITORY

CPU = Place(torch.device("cpu"), tiny=True)
SKIPPED = {"waits for the GPU", "flash", "mfu large, compiled", "kernels, flex", "mfu 2b, compiled"}


@pytest.mark.slow
def test_every_part_runs_on_the_cpu_or_says_why_not(tmp_path: Path):
    command = ["bash", "scripts/gpu_check.sh", "--device", "cpu", "--tiny", "--output", str(tmp_path / "check.json")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))
    parts = {part["part"]: part for part in content["parts"]}
    assert list(parts) == [part.name for part in PARTS]
    assert {name for name, part in parts.items() if part["skipped"]} == SKIPPED
    assert all(part["error"] is None and bool(part["found"]) != bool(part["skipped"]) for part in parts.values())
    for name in ("mfu large", "mfu 2b"):
        found = parts[name]["found"]
        assert found["real_tokens_per_second"] > 0 and found["operations_per_second"] > 0
        assert found["memory_gb"] > 0 and found["planned_memory_gb"] > 0 and 0 < found["padding_share"] < 1
    assert parts["record"]["found"]["samples_per_second"] > 0
    assert any("aten::" in name for name in parts["kernels"]["found"]["update"])
    assert "| flash | - | only on a GPU: neither kernel exists on a CPU |" in done.stdout
    assert f"{tmp_path}/check.log" in done.stdout and "== record\n" in (tmp_path / "check.log").read_text("utf-8")


def sleep(place: Place) -> Found:
    child = os.fork()
    if child:
        Path(os.environ["CHILD_OF_PART"]).write_text(str(child), encoding="utf-8")
    time.sleep(600)
    return {}


def fail(place: Place) -> Found:
    print("what it says before")
    raise RuntimeError("too much of it\nand a second line")


def refuse(place: Place) -> Found:
    raise OnlyOnGPUError("only on a GPU: no reason")


def die(place: Place) -> Found:
    os._exit(7)


def test_what_goes_wrong_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log, child = tmp_path / "log", tmp_path / "child"
    monkeypatch.setenv("CHILD_OF_PART", str(child))
    outcomes = [
        run_part(Part(name, 60, work), CPU, seconds=60 if work is not sleep else 2, log=log)
        for name, work in {
            "a": fail,
            "b": sleep,
            "c": die,
            "d": refuse,
            "e": lambda place: {"x": 2.0, "y": [1, 2]},
        }.items()
    ]
    lines = [line for line in table(outcomes)[2:] if "| seconds |" not in line]
    assert lines[0].startswith("| a | FAILED | RuntimeError: too much of it (tests/benchmarks/test_gpu_check.py:")
    assert lines[1:] == [
        "| b | FAILED | not done in 2 seconds |",
        f"| c | FAILED | the process ended with code 7 (see {log}) |",
        "| d | - | only on a GPU: no reason |",
        "| e | x | 2 |",
        "| e | y | 1; 2 |",
    ]
    written = log.read_text(encoding="utf-8")
    assert "== a\nwhat it says before\n" in written and "and a second line" in written and "== e\n" in written
    state = Path(f"/proc/{child.read_text(encoding='utf-8')}/stat")
    assert not state.exists() or state.read_text(encoding="utf-8").split()[2] == "Z", "its processes end with it"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_one_line(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^no GPU that torch \S+ can use; --device cpu --tiny tries the check"):
        gpu_check(["--output", str(tmp_path / "x.json")])
    with pytest.raises(ValueError, match="--device cpu goes with --tiny"):
        gpu_check(["--device", "cpu", "--output", str(tmp_path / "x.json")])


def test_the_most_important_parts_fit_into_eight_minutes():
    seconds = {part.name: part.seconds for part in PARTS}
    assert ALL_SECONDS <= 480
    assert sum(seconds[name] for name in seconds if "2b" not in name and "flex" not in name) <= ALL_SECONDS
