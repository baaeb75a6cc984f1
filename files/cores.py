"""How many cores this process may use, and how its OpenMP threads wait for each other: the one place that decides.

A container's quota is read as the kernel states it: ``cpu.max`` of cgroup v2, ``cpu.cfs_quota_us`` of v1
(https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/scheduler/sched-bwc.html).
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path

ROOT = Path("/")


def usable_cores(root: Path = ROOT) -> int:
    """Return how many cores this process can keep busy: those it may run on, or fewer where a quota allows fewer.

    A part of a core counts as one: with a quota of 1.5, two threads train a fifth faster than one.
    """
    return max(1, min([allowed_cores(), *map(math.ceil, quotas(root))]))


def allowed_cores() -> int:
    """Return the cores of the affinity mask; of the machine where there is none (macOS, Windows)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quotas(root: Path = ROOT) -> Iterator[float]:
    """Yield the quota in cores of every control group that this process is in, up to the root; none where none has one.

    ``root`` holds ``proc/self/cgroup`` and ``sys/fs/cgroup``.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        for mount in [""] if not controllers else [controllers, "cpu"] if "cpu" in controllers.split(",") else []:
            top = root / "sys/fs/cgroup" / mount
            parts = [part for part in group.split("/") if part]
            # A container may see the name that its group has outside, and its own group at the top.
            for folder in (top.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)):
                with contextlib.suppress(OSError, ValueError):
                    if controllers:
                        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                    else:
                        quota, period = (folder / "cpu.max").read_text().split()
                    if quota != "max" and int(quota) > 0:
                        yield int(quota) / int(period)


def others_run(root: Path = ROOT) -> bool:
    """Tell whether other programs run now that leave this one no core for each of its threads."""
    found = []
    for _ in range(3):
        with contextlib.suppress(OSError, ValueError, IndexError):
            running = (root / "proc/loadavg").read_text(encoding="utf-8").split()[3]  # "3/412", this one among them
            found.append(int(running.split("/")[0]) - 1)
        time.sleep(0.005)
    return bool(found) and min(found) + usable_cores(root) > (os.cpu_count() or 1)


def set_threads(environment: MutableMapping[str, str], root: Path = ROOT) -> None:
    """Set what OpenMP reads when torch or numpy is loaded, unless the user has.

    By itself it starts a thread for every core of the affinity mask, whatever the quota, and a thread that waits keeps
    its core busy: the fastest where this process is alone, several times slower where another needs the core.
    """
    cores, allowed = usable_cores(root), allowed_cores()
    if cores < allowed:
        environment.setdefault("OMP_NUM_THREADS", str(cores))
    if "OMP_WAIT_POLICY" not in environment and (min(quotas(root), default=allowed) < allowed or others_run(root)):
        environment["OMP_WAIT_POLICY"] = "passive"  # looking at others takes a moment: only where nobody has decided
