"""Where a run's processes go: from the environment, a hostfile or SLURM to machines (docs/launching.md).

``launch_ranks.py`` lists the variables and starts the processes. Imports no torch.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LAUNCHERS = ("torchrun", "deepspeed", "slurm")
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Machines:
    """Where the processes run.

    Attributes:
        hosts: names of all machines; empty for this one alone, or when each is started by hand.
        num_nodes: machines.
        num_ranks: processes on each of them.
        node_rank: this machine's number where each one starts its own processes (by hand, SLURM), else None.
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

    @property
    def names(self) -> tuple[str, ...]:
        """Return a name for every machine."""
        if self.hosts:
            return self.hosts
        if self.node_rank is None:
            return (socket.gethostname(),)
        return tuple(f"machine-{node}" for node in range(self.num_nodes))


def is_this_machine(host: str) -> bool:
    """Tell whether ``host`` is a name of the machine that this process runs on."""
    own = socket.gethostname()
    return host in (*LOCAL_NAMES, own, own.split(".")[0], socket.getfqdn())


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
        if len(slots) != 1 or len(rest) != 1 or not slots[0].isdecimal() or int(slots[0]) == 0:
            raise ValueError(f"{path} line {number}: {line.strip()!r} is not 'host slots=n' with n of at least 1")
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


def _number(environment: Mapping[str, str], name: str, default: int, *, least: int = 1) -> int:
    text = environment.get(name) or str(default)
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise ValueError(f"{name} is {text!r}; give a number of at least {least}")
    return int(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _slurm_hosts(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the machines that ``srun`` started this script on; none outside ``srun`` and on one machine.

    Raises:
        ValueError: the allocation has several machines and the script runs on one of them only, or ``srun`` started
            it more than once on a machine.
    """
    num_nodes = int(environment.get("SLURM_STEP_NUM_NODES") or 0)
    advice = "start the script with srun --ntasks-per-node=1, once on each machine"
    if num_nodes == 0:
        allocated = int(environment.get("SLURM_JOB_NUM_NODES") or 1)
        if environment.get("LAUNCHER") == "slurm" or (allocated > 1 and not environment.get("NUM_WORKERS")):
            raise ValueError(f"this is a SLURM job of {allocated} machines, but not under srun: {advice}")
        return ()
    num_tasks = int(environment.get("SLURM_STEP_NUM_TASKS") or num_nodes)
    if num_tasks != num_nodes:
        raise ValueError(f"srun started {num_tasks} tasks on {num_nodes} machines: {advice}")
    if num_nodes == 1:
        return ()
    given = _number(environment, "NUM_WORKERS", num_nodes)
    if given != num_nodes:
        raise ValueError(f"NUM_WORKERS is {given}, but srun started {num_nodes} machines: {advice}")
    command = ["scontrol", "show", "hostnames", environment["SLURM_STEP_NODELIST"]]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        raise ValueError(f"{' '.join(command)} failed: {listed.stderr.strip()}; set MASTER_ADDR and NODE_RANK yourself")
    return tuple(listed.stdout.split())


def _choose_launcher(environment: Mapping[str, str], *, hosts: tuple[str, ...], by_hand: bool) -> str:
    """Return ``torchrun`` or ``deepspeed``: the latter by default where it starts other machines."""
    given = environment.get("LAUNCHER") or ""
    if given not in ("", *LAUNCHERS):
        raise ValueError(f"LAUNCHER is {given!r}; {', '.join(LAUNCHERS)} exist")
    if given == "deepspeed" and by_hand:
        raise ValueError("LAUNCHER is deepspeed: it starts all machines itself (HOST_FILE_PATH); here use torchrun")
    if given:
        return "torchrun" if given == "slurm" else given
    return "deepspeed" if len(hosts) > 1 and not by_hand else "torchrun"


def find_machines(environment: Mapping[str, str]) -> Machines:
    """Resolve the variables; raise ValueError in one line for what cannot be."""
    hostfile = environment.get("HOST_FILE_PATH") or None
    slots = read_hostfile(hostfile) if hostfile else {}
    hosts = tuple(slots)
    by_hand = bool(environment.get("NODE_RANK"))
    node_rank = _number(environment, "NODE_RANK", 0, least=0) if by_hand else None
    port = 0
    if not hosts and not by_hand and (hosts := _slurm_hosts(environment)):
        by_hand, node_rank = True, int(environment["SLURM_NODEID"])
        step = int(environment["SLURM_JOB_ID"]) + int(environment.get("SLURM_STEP_ID") or 0)
        port = 10000 + step % 50000  # the same on all machines
    num_nodes = _number(environment, "NUM_WORKERS", len(hosts) or 1)
    if hosts and num_nodes > len(hosts):
        raise ValueError(f"NUM_WORKERS is {num_nodes}, but there are {len(hosts)} hosts ({', '.join(hosts)})")
    if num_nodes > 1 and not hosts and not by_hand:
        raise ValueError(
            f"NUM_WORKERS is {num_nodes}: name the machines (HOST_FILE_PATH), or start this on each of them with "
            "NODE_RANK, MASTER_ADDR and MASTER_PORT; see docs/launching.md"
        )
    if node_rank is not None and node_rank >= num_nodes:
        raise ValueError(f"NODE_RANK is {node_rank}, but NUM_WORKERS is {num_nodes}: ranks count from 0")
    hosts = hosts[:num_nodes]
    if slots:
        default_ranks = min(slots[host] for host in hosts)
    else:
        default_ranks = count_gpus(environment) or _number(environment, "RANKS_WITHOUT_GPU", 1)
    num_ranks = _number(environment, "NUM_GPUS_PER_WORKER", default_ranks)
    for host in hosts:
        if slots and slots[host] < num_ranks:
            raise ValueError(f"NUM_GPUS_PER_WORKER is {num_ranks}, but {hostfile} gives {host} {slots[host]} slots")
    address = environment.get("MASTER_ADDR") or (hosts[0] if hosts else "localhost")
    agreed = bool(environment.get("MASTER_PORT")) or port > 0
    if by_hand and num_nodes > 1 and not (agreed and (hosts or environment.get("MASTER_ADDR"))):
        raise ValueError(f"NODE_RANK is {node_rank}: MASTER_ADDR and MASTER_PORT are needed, the same on all machines")
    if len(hosts) > 1 and address == hosts[0] in LOCAL_NAMES:
        raise ValueError(f"the other hosts cannot reach {address!r}: set MASTER_ADDR to a name of the first machine")
    return Machines(
        hosts=hosts,
        num_nodes=num_nodes,
        num_ranks=num_ranks,
        node_rank=node_rank if num_nodes > 1 else None,
        address=address,
        port=_number(environment, "MASTER_PORT", port or _free_port()),
        launcher=_choose_launcher(environment, hosts=hosts, by_hand=by_hand),
        hostfile=hostfile,
    )


def check_launcher(machines: Machines) -> None:
    """Raise ValueError when what starts the processes is not installed here."""
    remote = [host for host in machines.hosts if not is_this_machine(host)] if machines.node_rank is None else []
    if machines.launcher == "deepspeed":
        import importlib.util

        if importlib.util.find_spec("deepspeed") is None:
            raise ValueError(
                "LAUNCHER is deepspeed, which is not installed (pip install deepspeed); torchrun needs nothing"
            )
        if machines.num_nodes > 1 and shutil.which("pdsh") is None:
            raise ValueError(
                "DeepSpeed reaches other machines by pdsh, which is not installed here; install it (apt-get install "
                "pdsh), or set LAUNCHER=torchrun, which needs ssh only"
            )
    elif remote and shutil.which("ssh") is None:
        raise ValueError(f"ssh is not installed here; it is needed to reach {', '.join(remote)}")


def variables_to_pass_on(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that processes on other machines need, too; secrets stay here."""
    prefixes = ("GLM_", "NCCL_", "GLOO_", "OMP_")
    names = {"HF_HOME", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "LD_LIBRARY_PATH", "PYTHONPATH"}
    return {name: value for name, value in environment.items() if name.startswith(prefixes) or name in names}


def deepspeed_environment_file(environment: Mapping[str, str], folder: Path) -> Path:
    """Write the variables to pass on where DeepSpeed's launcher reads them, after the user's own of that kind."""
    own = [Path.home() / ".deepspeed_env", Path(".deepspeed_env")]
    lines = [line for path in own if path.is_file() for line in path.read_text(encoding="utf-8").splitlines() if line]
    lines += [f"{name}={value}" for name, value in variables_to_pass_on(environment).items() if "\n" not in value]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"deepspeed-environment-{os.getpid()}"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path.resolve()
