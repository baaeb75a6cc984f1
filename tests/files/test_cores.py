"""The number of usable cores: affinity mask and quotas of both versions of control groups."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from files.cores import allowed_cores, others_run, quotas, set_threads, usable_cores

V2 = "0::/user.slice/job\n"
V1 = "12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/docker/abc\n"


def v1(group: str, quota: str) -> dict[str, str]:
    return {f"sys/fs/cgroup/{group}/cpu.cfs_{n}_us": f"{v}\n" for n, v in (("quota", quota), ("period", "100000"))}


def machine(root: Path, cgroup: str, files: dict[str, str], loadavg: str = "0.5 0.5 0.5 1/100 7\n") -> Path:
    """Write the files of a kernel below ``root``."""
    for name, content in {"proc/self/cgroup": cgroup, "proc/loadavg": loadavg, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        (V2, {"sys/fs/cgroup/user.slice/job/cpu.max": "max 100000\n"}, []),
        (V2, {"sys/fs/cgroup/user.slice/job/cpu.max": "150000 100000\n"}, [1.5]),
        (V2, {"sys/fs/cgroup/user.slice/cpu.max": "400000 100000\n"}, [4.0]),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, [0.5]),
        (V1, v1("cpu,cpuacct", "200000"), [2.0]),
        (V1, v1("cpu/docker/abc", "-1"), []),
        ("", {}, []),
    ],
)  # fmt: skip
def test_quotas(cgroup: str, files: dict[str, str], expected: list[float], tmp_path: Path):
    root = machine(tmp_path, cgroup, files)
    assert list(quotas(root)) == expected
    assert usable_cores(root) == max(1, min([allowed_cores(), *map(math.ceil, expected)]))


def test_no_files_no_quota(tmp_path: Path):
    assert usable_cores(tmp_path) == allowed_cores()
    assert not others_run(tmp_path)


def test_threads_follow_the_quota_and_the_user(tmp_path: Path):
    root = machine(tmp_path, V2, {"sys/fs/cgroup/cpu.max": "50000 100000\n"})
    expected = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"} if allowed_cores() > 1 else {}
    environment: dict[str, str] = {}
    set_threads(environment, root)
    assert environment == expected
    own = {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "active"}
    set_threads(own, root)
    assert own == {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "active"}


def test_threads_wait_passively_beside_other_programs(tmp_path: Path):
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    machine(alone, "", {}, loadavg="9.0 9.0 9.0 1/100 7\n")
    machine(beside, "", {}, loadavg=f"0.0 0.0 0.0 {1 + (os.cpu_count() or 1)}/100 7\n")
    found: list[dict[str, str]] = [{}, {}]
    for environment, root in zip(found, (alone, beside)):
        set_threads(environment, root)
    expected = {} if allowed_cores() == os.cpu_count() else {"OMP_WAIT_POLICY": "passive"}
    assert found[0] in ({}, expected)
    assert found[1] == {"OMP_WAIT_POLICY": "passive"}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_an_affinity_mask_counts():
    program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    program += "from files.cores import usable_cores; print(usable_cores())"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed == "1\n"
