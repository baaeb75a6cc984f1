"""Build, show and become the one command that starts a program on one machine or several (docs/launching.md).

python scripts/launch.py pretrain_glm.py ARGUMENTS...        (scripts/launch.sh calls it)

NUM_GPUS_PER_WORKER  processes on each machine  (default: slots of the hostfile, else the GPUs here, else the next)
RANKS_WITHOUT_GPU    the same without any GPU   (default: 1)
NUM_WORKERS          machines                   (default: those of the hostfile or of the SLURM job, else 1)
HOST_FILE_PATH       file of "host slots=n" lines: the machines that DeepSpeed's launcher reaches by ssh (a name or
                     IPv4 address each; users and ports belong into ~/.ssh/config)
NODE_RANK            number of this machine, when the script is started on each machine by hand
MASTER_ADDR          the first machine          (default: the first of the hostfile or of the SLURM job)
MASTER_PORT          a free port on it          (default: on one machine any that is free; under SLURM from the job's
                     number; with a hostfile DeepSpeed's)
LAUNCHER             torchrun, deepspeed, slurm (default: deepspeed with several hosts, slurm in a job of several
                     machines, else torchrun)
LOG_NAME             the log is logs/log-LOG_NAME-MM-DD-hh-mm.txt  (default: the program's name;
                     a name that ends in such a date stays as it is)
DRY_RUN=1            the same as --dry-run among the arguments: show the command and the plan of the run, start nothing
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from files.cores import usable_cores
from files.errors import run_main
from files.reading import described, lines_of, read_text
from files.writing import write_whole

LAUNCHERS = ("torchrun", "deepspeed", "slurm")
LOGS = Path("logs")
HOST = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # nothing that ssh or pdsh takes for an option, a user or a port
# torchrun hands these to every rank, and kills a rank that has not left this many seconds later.
TORCHRUN_SIGNALS = {
    "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    "PET_SHUTDOWN_TIMEOUT": "600",
}
# Where ranks wait for each other until NCCL gives up, every rank writes what its last collectives were.
NCCL_REPORTS = {
    "NCCL_DEBUG": "warn",
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",  # its older name
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}


def read_hostfile(path: str) -> dict[str, int]:
    """Return {host: slots} of an OpenMPI-style hostfile; raise ValueError with file and line for what is not one."""
    try:
        lines = lines_of(read_text(path))
    except ValueError as error:
        raise ValueError(f"HOST_FILE_PATH {error}; give a file of 'host slots=n' lines") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not (content := line.split("#")[0].strip()):
            continue
        match = re.fullmatch(r"(\S+)\s+slots=0*([1-9]\d{0,5})", content, re.ASCII)
        if match is None:
            found = described(line.strip())
            raise ValueError(f"{path} line {number}: {found} is not 'host slots=n' with n of at least 1")
        if not re.fullmatch(HOST, match[1], re.ASCII):
            raise ValueError(
                f"{path} line {number}: {described(match[1])} is no name of a host or IPv4 address, which begin with a "
                "letter or digit and hold letters, digits, '.', '_' and '-'; a user or a port belongs into "
                "~/.ssh/config (User, Port)"
            )
        if match[1] in hosts:
            raise ValueError(f"{path} line {number}: {match[1]} is listed twice")
        hosts[match[1]] = int(match[2])
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


def number(environment: Mapping[str, str], name: str, default: int, *, least: int = 1, most: int = 10**6) -> int:
    """Return the number in a variable; raise ValueError when it holds something else."""
    text = environment.get(name) or str(default)
    if not re.fullmatch("[0-9]{1,12}", text) or not least <= int(text) <= most:
        raise ValueError(f"{name} is {described(text)}; give a number of at least {least}, at most {most}")
    return int(text)


def port_of(environment: Mapping[str, str], default: int = 0) -> int:
    """Return ``MASTER_PORT``; 0 when there is none and no default."""
    return number(environment, "MASTER_PORT", default, least=0 if default == 0 else 1, most=65535)


def address_of(environment: Mapping[str, str], default: str = "") -> str:
    """Return ``MASTER_ADDR``: a name, or an address of IPv4 or IPv6; raise ValueError for something else."""
    address = environment.get("MASTER_ADDR") or default
    if address and not re.fullmatch(rf"{HOST}|\[?[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%\w+)?\]?", address, re.ASCII):
        raise ValueError(f"MASTER_ADDR is {described(address)}; give the name or the address of the first machine")
    return address


def started_by_srun(environment: Mapping[str, str]) -> bool:
    """Tell whether this is a step of a SLURM job; the shells of sbatch and salloc are steps of a reserved number."""
    step = environment.get("SLURM_STEP_ID")
    return bool(step) and number(environment, "SLURM_STEP_ID", 0, least=0, most=2**32) < 0xFFFFFFF0


def torchrun(num_nodes: int, num_ranks: int, *meeting: str) -> list[str]:
    """Return the torchrun of one machine; ``meeting`` says where the machines find each other."""
    sizes = ["--nnodes", str(num_nodes), "--nproc_per_node", str(num_ranks)]
    return [sys.executable, "-m", "training.torchrun", *sizes, *meeting]


def torchrun_by_hand(environment: Mapping[str, str], first_host: str, *, num_nodes: int, num_ranks: int) -> list[str]:
    """Return the torchrun of the machine with the number ``NODE_RANK``."""
    node_rank, port = number(environment, "NODE_RANK", 0, least=0), port_of(environment)
    address = address_of(environment, first_host)
    if node_rank >= num_nodes:
        raise ValueError(f"NODE_RANK is {node_rank}, but NUM_WORKERS is {num_nodes}: ranks count from 0")
    if not (address and port):
        raise ValueError(f"NODE_RANK is {node_rank}: MASTER_ADDR and MASTER_PORT are needed, the same on all machines")
    meeting = ["--node_rank", str(node_rank), "--master_addr", address, "--master_port", str(port)]
    return torchrun(num_nodes, num_ranks, *meeting)


def slurm_command(environment: Mapping[str, str], *, num_nodes: int, num_ranks: int) -> list[str]:
    """Return ``srun torchrun``; in a script that ``srun`` has started on every machine, the torchrun of this one."""
    command = ["scontrol", "show", "hostnames", environment.get("SLURM_JOB_NODELIST", "")]
    address = address_of(environment)
    if not address:
        if shutil.which(command[0]) is None:
            raise ValueError("scontrol, which names the machines of the job, is not installed here; set MASTER_ADDR")
        if command[-1].startswith("-"):
            raise ValueError(f"SLURM_JOB_NODELIST is {described(command[-1])}, no list of machines; set MASTER_ADDR")
        listed = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if listed.returncode or not listed.stdout.split():
            raise ValueError(f"{shlex.join(command)} failed: {listed.stderr.strip()}; set MASTER_ADDR")
        address = address_of({"MASTER_ADDR": listed.stdout.split()[0]})
    job = str(number(environment, "SLURM_JOB_ID", 0, most=2**32))
    port = port_of(environment, 10000 + int(job) % 50000)
    meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{address}:{port}", "--rdzv_id", job]
    srun = ["srun", "--nodes", str(num_nodes), "--ntasks-per-node", "1", "--kill-on-bad-exit=1"]
    if environment.get("SLURM_CPUS_PER_TASK"):  # srun does not take it from the job by itself
        srun += ["--cpus-per-task", str(number(environment, "SLURM_CPUS_PER_TASK", 1))]
    return [*([] if started_by_srun(environment) else srun), *torchrun(num_nodes, num_ranks, *meeting)]


def deepspeed_command(environment: Mapping[str, str], hosts: Sequence[str], *, num_ranks: int) -> list[str]:
    """Return DeepSpeed's launcher: for several hosts the one that reaches them by pdsh, else the one of a machine."""
    port = ["--master_port", str(port_of(environment, 29500))]
    if len(hosts) <= 1:  # started by the other one it would not get signals
        visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.isdecimal()]
        devices = [int(name) for name in visible[:num_ranks]] if len(visible) >= num_ranks else list(range(num_ranks))
        world = base64.urlsafe_b64encode(json.dumps({"localhost": devices}).encode()).decode()
        return [sys.executable, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={world}", *port]
    address = address_of(environment, hosts[0])
    if address == hosts[0] in ("localhost", "127.0.0.1", "::1"):
        raise ValueError(f"the other hosts cannot reach {address!r}: set MASTER_ADDR to a name of the first machine")
    sizes = ["--num_nodes", str(len(hosts)), "--num_gpus", str(num_ranks), "--master_addr", address, *port]
    return [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", environment["HOST_FILE_PATH"], *sizes]


def count_machines(environment: Mapping[str, str], hosts: Sequence[str]) -> int:
    """Return how many machines take part: ``NUM_WORKERS``, where there are as many."""
    by_hand, allocated = bool(environment.get("NODE_RANK")), 1
    if "SLURM_JOB_ID" in environment and not (hosts or by_hand):
        step = started_by_srun(environment)
        allocated = number(environment, "SLURM_STEP_NUM_NODES" if step else "SLURM_JOB_NUM_NODES", 1)
        num_nodes = number(environment, "NUM_WORKERS", allocated)
        num_tasks = number(environment, "SLURM_STEP_NUM_TASKS", allocated) if step else num_nodes
        if (step and num_nodes != allocated) or num_tasks != num_nodes:
            raise ValueError(
                f"NUM_WORKERS is {num_nodes}, but srun started {num_tasks} tasks on {allocated} machines: start the "
                "script with srun --ntasks-per-node=1, or without srun"
            )
    available = len(hosts) or allocated
    num_nodes = number(environment, "NUM_WORKERS", available)
    if num_nodes > available and (hosts or not by_hand):
        known = f"{len(hosts)} hosts ({', '.join(hosts)})" if hosts else "no more than this one"
        raise ValueError(
            f"NUM_WORKERS is {num_nodes}, but there are {known}: name the machines (HOST_FILE_PATH), or start this on "
            "each of them with NODE_RANK, MASTER_ADDR and MASTER_PORT; see docs/launching.md"
        )
    return num_nodes


def build_command(environment: Mapping[str, str]) -> tuple[list[str], int, int]:
    """Return what stands before the program, machines, and processes on each; ValueError says what cannot be."""
    path, launcher = environment.get("HOST_FILE_PATH") or "", environment.get("LAUNCHER") or ""
    slots, by_hand = read_hostfile(path) if path else {}, bool(environment.get("NODE_RANK"))
    num_nodes = count_machines(environment, list(slots))
    hosts = list(slots)[:num_nodes]
    default = min(slots[host] for host in hosts) if hosts else count_gpus(environment)
    num_ranks = number(environment, "NUM_GPUS_PER_WORKER", default or number(environment, "RANKS_WITHOUT_GPU", 1))
    for host in hosts:
        if slots[host] < num_ranks:
            raise ValueError(f"NUM_GPUS_PER_WORKER is {num_ranks}, but {path} gives {host} {slots[host]} slots")
    if launcher not in ("", *LAUNCHERS):
        raise ValueError(f"LAUNCHER is {described(launcher)}; {', '.join(LAUNCHERS)} exist")
    if launcher == "deepspeed" and by_hand:
        raise ValueError("LAUNCHER is deepspeed: it starts all machines itself (HOST_FILE_PATH); here use torchrun")
    if launcher == "slurm" and "SLURM_JOB_ID" not in environment:
        raise ValueError("LAUNCHER is slurm, but this is not a SLURM job: start it with sbatch or salloc")
    if launcher == "torchrun" and len(hosts) > 1 and not by_hand:
        raise ValueError("LAUNCHER is torchrun: start this on each host with its NODE_RANK; deepspeed reaches them all")
    if launcher == "deepspeed" or (len(hosts) > 1 and not by_hand):
        command = deepspeed_command(environment, hosts, num_ranks=num_ranks)
    elif num_nodes > 1 and by_hand:
        first_host = hosts[0] if hosts else ""
        command = torchrun_by_hand(environment, first_host, num_nodes=num_nodes, num_ranks=num_ranks)
    elif num_nodes > 1:
        command = slurm_command(environment, num_nodes=num_nodes, num_ranks=num_ranks)
    elif num_ranks == 1:
        command = [sys.executable]
    elif environment.get("MASTER_PORT"):
        command = torchrun(1, num_ranks, "--master_port", str(port_of(environment, 29500)))
    else:
        command = torchrun(1, num_ranks, "--standalone")
    return command, num_nodes, num_ranks


def check_deepspeed(num_nodes: int) -> None:
    """Raise ValueError where DeepSpeed's launcher, or what it reaches other machines with, is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError("LAUNCHER is deepspeed, which is not installed (pip install deepspeed)")
    if num_nodes > 1 and shutil.which("pdsh") is None:
        raise ValueError(
            "DeepSpeed reaches other machines by pdsh, which is not installed here; install it (apt-get install pdsh), "
            "or start the script on every machine with its NODE_RANK"
        )


def write_variables(environment: Mapping[str, str], path: Path) -> None:
    """Write where DeepSpeed's launcher reads them the variables that every process needs; secrets stay here."""
    lines = [line for file in (Path.home() / ".deepspeed_env", Path(".deepspeed_env")) if file.is_file()
             for line in lines_of(read_text(file)) if line]  # fmt: skip
    names = r"(GLM|NCCL|GLOO|OMP|TORCH_FR|TORCH_NCCL)_.*|"
    names += "HF_HOME|HF_HUB_OFFLINE|TOKENIZERS_PARALLELISM|LD_LIBRARY_PATH|PYTHONPATH"
    for name, value in environment.items():
        if re.fullmatch(names, name):
            if "\n" in value:
                raise ValueError(
                    f"{name} has several lines; DeepSpeed hands on variables of one line to other machines"
                )
            lines.append(f"{name}={value}")
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def copy_output(log: Path) -> None:
    """Let what this process and its children print go to ``log`` as well, by a ``tee`` that no signal ends."""
    kept = {number: signal.signal(number, signal.SIG_IGN) for number in
            (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE)}  # fmt: skip
    tee = subprocess.Popen(["tee", "-a", str(log)], stdin=subprocess.PIPE, restore_signals=False)
    for ignored, handler in kept.items():
        signal.signal(ignored, handler)
    assert tee.stdin is not None
    os.dup2(tee.stdin.fileno(), 1)
    os.dup2(1, 2)


def main() -> None:
    """Become the program, its launcher, or with ``--dry-run`` the plan of the run."""
    words = sys.argv[1:]
    if words[:1] == ["--count-gpus"]:  # for scripts: their number, but at most the one that follows
        print(min(count_gpus(os.environ) or 1, number({"--count-gpus": "".join(words[1:])}, "--count-gpus", 1)))
        return
    if not words or words[0].startswith("-"):
        raise ValueError("no program to start; give its file first: scripts/launch.py PROGRAM ARGUMENTS...")
    launcher, num_nodes, num_ranks = build_command(os.environ)
    dry_run = "--dry-run" in words or os.environ.get("DRY_RUN") == "1"
    words = [word for word in words if word != "--dry-run"]
    name, date = os.environ.get("LOG_NAME") or Path(words[0]).stem, time.strftime("%m-%d-%H-%M")
    name = name.replace("/", "-")
    name += "" if re.search(r"[-_]\d\d-\d\d-\d\d-\d\d$", name) else f"-{date}"
    if num_nodes > 1 and (
        node := os.environ.get("NODE_RANK") or ("srun" not in launcher and os.environ.get("SLURM_NODEID"))
    ):
        name += f"-node{node}"
    log = LOGS / f"log-{name}.txt"
    additions = {}
    if num_nodes * num_ranks > 1:  # one date names the run's folder; left alone, every process would take all cores
        additions = {"GLM_DATE": date, "OMP_NUM_THREADS": str(max(1, usable_cores() // num_ranks))}
    if additions and (num_nodes > 1 or count_gpus(os.environ)):
        dumps = str(log.with_suffix(".rank_").resolve())
        additions |= {**NCCL_REPORTS, "TORCH_FR_DUMP_TEMP_FILE": dumps, "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": dumps}
    if "training.torchrun" in launcher:
        additions |= TORCHRUN_SIGNALS
    if "deepspeed.launcher.runner" in launcher:
        additions["DS_ENV_FILE"] = str(log.with_suffix(".env").resolve())
    additions = {name: value for name, value in additions.items() if name not in os.environ}
    shown = " ".join(["+", *(f"{name}={value}" for name, value in additions.items()), shlex.join([*launcher, *words])])
    os.environ.update(additions)
    if dry_run:
        print(shown, flush=True)
        os.environ["GLM_PLAN_WORLD_SIZE"] = str(num_nodes * num_ranks)
        os.execv(sys.executable, [sys.executable, *words, "--dry-run"])
    if any(word.startswith("deepspeed.") for word in launcher):
        check_deepspeed(num_nodes)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # DeepSpeed's launchers do not know it and would end
    if shutil.which(launcher[0]) is None:
        raise ValueError(f"{launcher[0]}, which starts the program on every machine, is not installed here")
    LOGS.mkdir(parents=True, exist_ok=True)
    if "DS_ENV_FILE" in additions:
        write_variables(os.environ, Path(additions["DS_ENV_FILE"]))
    if "--hostfile" in launcher:  # DeepSpeed reads it by other rules: byte order marks, comments, ends of lines
        hosts = read_hostfile(launcher[launcher.index("--hostfile") + 1])
        launcher[launcher.index("--hostfile") + 1] = str(log.with_suffix(".hosts"))
        write_whole(log.with_suffix(".hosts"), "".join(f"{host} slots={n}\n" for host, n in hosts.items()))
    copy_output(log)
    print(f"{shown}\nlog: {log}", flush=True)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts what is not in its foreground with it ignored
    os.execvp(launcher[0], [*launcher, *words])


if __name__ == "__main__":
    run_main(main, computes=False)
