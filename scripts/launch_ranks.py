"""Start a program in as many processes as the environment says, on one machine or several, with a log.

python scripts/launch_ranks.py pretrain_glm.py ARGUMENTS...        (scripts/launch.sh calls it)

NUM_GPUS_PER_WORKER  processes on each machine  (default: its GPUs; without any, 1)
NUM_WORKERS          machines                   (default: those of the hostfile or of SLURM, else 1)
HOST_FILE_PATH       file of "host slots=n" lines: machines that this one reaches by ssh
NODE_RANK            number of this machine, when the script is started on each machine by hand
MASTER_ADDR          the first machine          (default: the first of the hostfile or of SLURM, else localhost)
MASTER_PORT          a free port on it          (default: one that is free here; under SLURM from the job's number)
LAUNCHER             torchrun or deepspeed      (default: deepspeed with a hostfile, else torchrun)
LOG_NAME             the log is logs/log-LOG_NAME-MM-DD-hh-mm.txt  (default: the program's name)
DRY_RUN=1            the same as --dry-run among the arguments: print the command of every machine and the plan of
                     the run, start nothing
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_utils.errors import run_main

DRY_RUN = "--dry-run"
LAUNCHERS = ("torchrun", "deepspeed")


@dataclass(frozen=True)
class Machines:
    """Where the processes run.

    Attributes:
        hosts: names of all machines; empty for this one alone or when each is started by hand.
        num_nodes: machines.
        num_ranks: processes on each of them.
        node_rank: this machine's number when each one starts its own processes, else None.
        address: the first machine.
        port: a port on it.
        launcher: ``torchrun`` or ``deepspeed``.
        hostfile: what DeepSpeed's launcher reads the hosts from.
    """

    hosts: tuple[str, ...]
    num_nodes: int
    num_ranks: int
    node_rank: int | None
    address: str
    port: int
    launcher: str
    hostfile: str | None

    @property
    def world_size(self) -> int:
        """Return the number of processes."""
        return self.num_nodes * self.num_ranks


def read_hostfile(path: str) -> dict[str, int]:
    """Return {host: slots} of an OpenMPI-style hostfile; raise ValueError with file and line for what is not one."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"HOST_FILE_PATH {path}: {error.strerror}; give a file of 'host slots=n' lines") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        name, *rest = words
        slots = [word.removeprefix("slots=") for word in rest if word.startswith("slots=")]
        if len(slots) != 1 or len(rest) != 1 or not slots[0].isdecimal() or slots[0] == "0":
            raise ValueError(f"{path} line {number}: {line.strip()!r} is not 'host slots=n'")
        if name in hosts:
            raise ValueError(f"{path} line {number}: {name} is listed twice")
        hosts[name] = int(slots[0])
    if not hosts:
        raise ValueError(f"HOST_FILE_PATH {path}: no host in it; write one 'host slots=n' a line")
    return hosts


def count_gpus(environment: Mapping[str, str]) -> int:
    """Return the number of GPUs that this process may use, without loading torch."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return sum(bool(name.strip()) and name.strip() != "-1" for name in visible.split(","))
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU") for line in listed.stdout.splitlines())


def _count(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal() or text == "0":
        raise ValueError(f"{name} is {text!r}; give a number of at least 1")
    return int(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _slurm_hosts(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the machines of the SLURM allocation; none outside one, or when the script runs outside ``srun``."""
    if int(environment.get("SLURM_JOB_NUM_NODES", 1)) < 2 or "SLURM_PROCID" not in environment:
        return ()
    listed = subprocess.run(
        ["scontrol", "show", "hostnames", environment["SLURM_JOB_NODELIST"]], capture_output=True, text=True, check=True
    )
    return tuple(listed.stdout.split())


def find_machines(environment: Mapping[str, str]) -> Machines:
    """Resolve the variables above; raise ValueError for what cannot be."""
    hostfile = environment.get("HOST_FILE_PATH") or None
    node_rank = environment.get("NODE_RANK")
    slots = read_hostfile(hostfile) if hostfile else {}
    hosts, port = tuple(slots), 0
    if not hosts and node_rank is None and (hosts := _slurm_hosts(environment)):
        node_rank, port = environment["SLURM_NODEID"], 10000 + int(environment["SLURM_JOB_ID"]) % 50000
    num_nodes = _count(environment, "NUM_WORKERS", len(hosts) or 1)
    if hosts and num_nodes > len(hosts):
        raise ValueError(f"NUM_WORKERS is {num_nodes}, but there are {len(hosts)} hosts ({', '.join(hosts)})")
    hosts = hosts[:num_nodes]
    num_ranks = _count(
        environment, "NUM_GPUS_PER_WORKER", min(slots[h] for h in hosts) if slots else count_gpus(environment) or 1
    )
    for host in hosts:
        if slots and slots[host] < num_ranks:
            raise ValueError(f"NUM_GPUS_PER_WORKER is {num_ranks}, but {hostfile} gives {host} {slots[host]} slots")
    if num_nodes > 1 and not hosts and node_rank is None:
        raise ValueError(
            f"NUM_WORKERS is {num_nodes}: name the machines (HOST_FILE_PATH), or start this on each of them with "
            "NODE_RANK, MASTER_ADDR and MASTER_PORT; see docs/launching.md"
        )
    by_hand = num_nodes > 1 and node_rank is not None
    if by_hand and not hosts and not (environment.get("MASTER_ADDR") and environment.get("MASTER_PORT")):
        raise ValueError(f"NODE_RANK is {node_rank}: MASTER_ADDR and MASTER_PORT are needed, the same on all machines")
    launcher = environment.get("LAUNCHER") or ("deepspeed" if num_nodes > 1 and not by_hand else "torchrun")
    if launcher not in LAUNCHERS:
        raise ValueError(f"LAUNCHER is {launcher!r}; {' and '.join(LAUNCHERS)} exist")
    if num_nodes > 1 and launcher == "torchrun" and not by_hand:
        raise ValueError("LAUNCHER is torchrun: it starts the processes of one machine; set NODE_RANK on each of them")
    return Machines(
        hosts=hosts,
        num_nodes=num_nodes,
        num_ranks=num_ranks,
        node_rank=int(node_rank) if by_hand else None,
        address=environment.get("MASTER_ADDR") or (hosts[0] if hosts else "localhost"),
        port=_count(environment, "MASTER_PORT", port or _free_port()),
        launcher=launcher,
        hostfile=hostfile,
    )


def command_line(machines: Machines, words: Sequence[str], *, node: int = 0) -> list[str]:
    """Return the command that machine number ``node`` is started with, for the program and its arguments ``words``."""
    python = sys.executable
    if machines.launcher == "deepspeed":
        launcher = [python, "-m", "deepspeed.launcher.runner", "--num_gpus", str(machines.num_ranks)]
        if machines.num_nodes > 1:
            assert machines.hostfile is not None, machines
            launcher += ["--hostfile", machines.hostfile, "--num_nodes", str(machines.num_nodes)]
            launcher += ["--master_addr", machines.address]
        return [*launcher, "--master_port", str(machines.port), *words]
    if machines.world_size == 1:
        return [python, *words]
    return [
        python, "-m", "torch.distributed.run", "--nnodes", str(machines.num_nodes), "--node_rank", str(node),
        "--nproc_per_node", str(machines.num_ranks), "--master_addr", machines.address,
        "--master_port", str(machines.port), *words,
    ]  # fmt: skip


def describe(machines: Machines, words: Sequence[str]) -> list[str]:
    """Return a line per machine: its name and the command that starts its processes."""
    names = machines.hosts or tuple(f"machine {node}" for node in range(machines.num_nodes))
    if machines.launcher == "deepspeed" and machines.num_nodes > 1:
        launch = shlex.join(command_line(machines, words))
        ranks = (f"ranks {n * machines.num_ranks} to {(n + 1) * machines.num_ranks - 1}" for n in range(len(names)))
        return [f"{names[0]}: {launch}", *(f"{name}: {own}, by ssh" for name, own in zip(names, ranks))]
    return [f"{name}: {shlex.join(command_line(machines, words, node=node))}" for node, name in enumerate(names)]


def run_logged(command: Sequence[str], log: Path, *, environment: Mapping[str, str]) -> int:
    """Run ``command``, copy its output to the standard output and to ``log``, and return its exit code.

    SIGTERM and SIGUSR1 are passed on; the program saves and leaves.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(environment))
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda received, _: process.send_signal(received))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the program, too
        assert process.stdout is not None
        while chunk := os.read(process.stdout.fileno(), 65536):
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
            file.write(chunk)
        return process.wait()


def main() -> int:
    """Start the program, or print how it would be started."""
    words = sys.argv[1:]
    if not words or words[0].startswith("-"):
        raise ValueError("no program to start; give its file first: scripts/launch_ranks.py PROGRAM ARGUMENTS...")
    environment = dict(os.environ)
    machines = find_machines(environment)
    if DRY_RUN in words or environment.get("DRY_RUN") == "1":
        words = [word for word in words if word != DRY_RUN]
        print(*describe(machines, words), sep="\n", flush=True)
        environment["GLM_PLAN_WORLD_SIZE"] = str(machines.world_size)
        return subprocess.run([sys.executable, *words, DRY_RUN], env=environment, check=False).returncode
    if machines.world_size > 1:
        # Left alone, every process would take all cores (spec: platform 3.2).
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // machines.num_ranks)))
    command = command_line(machines, words, node=machines.node_rank or 0)
    name = environment.get("LOG_NAME") or Path(words[0]).stem
    log = Path("logs") / f"log-{name}-{time.strftime('%m-%d-%H-%M')}.txt"
    print("+ " + shlex.join(command), f"log: {log}", sep="\n", flush=True)
    return run_logged(command, log, environment=environment)


if __name__ == "__main__":
    run_main(main)
