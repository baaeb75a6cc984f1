"""Start a program in as many processes as the environment says, on one machine or several, with a log.

python scripts/launch_ranks.py pretrain_glm.py ARGUMENTS...        (scripts/launch.sh calls it)

NUM_GPUS_PER_WORKER  processes on each machine  (default: slots of the hostfile, else the GPUs here, else the next)
RANKS_WITHOUT_GPU    the same without any GPU   (default: 1)
NUM_WORKERS          machines                   (default: those of the hostfile or of srun, else 1)
HOST_FILE_PATH       file of "host slots=n" lines: machines that this one reaches by ssh
NODE_RANK            number of this machine, when the script is started on each machine by hand
MASTER_ADDR          the first machine          (default: the first of the hostfile or of srun, else localhost)
MASTER_PORT          a free port on it          (default: one that is free here; under srun from the job's number)
LAUNCHER             torchrun, deepspeed, slurm (default: slurm under srun, deepspeed with several hosts, else torchrun)
LOG_NAME             the log is logs/log-LOG_NAME-MM-DD-hh-mm.txt  (default: the program's name;
                     a name that ends in such a date stays as it is)
DRY_RUN=1            the same as --dry-run among the arguments: print the command of every machine and the plan of
                     the run, start nothing
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch_machines import (
    Machines,
    check_launcher,
    count_gpus,
    deepspeed_environment_file,
    find_machines,
    is_this_machine,
    variables_to_pass_on,
)

from data_utils.errors import run_main

DRY_RUN = "--dry-run"
COUNT_GPUS = "--count-gpus"  # print how many there are, at most the number that follows
LOGS = Path("logs")
DATED = re.compile(r"[-_]\d\d-\d\d-\d\d-\d\d$")
PATIENCE = 30.0  # seconds that the other machines get to end by themselves after one has failed
# A terminal on the other side: its processes end with the connection.
SSH = ("ssh", "-tt", "-o", "BatchMode=yes")


def node_command(machines: Machines, words: Sequence[str], *, node: int) -> list[str]:
    """Return what runs on machine number ``node`` for the program and its arguments ``words``."""
    python = sys.executable
    if machines.launcher == "deepspeed":
        ranks = {name: list(range(machines.num_ranks)) for name in machines.names}
        world = base64.urlsafe_b64encode(json.dumps(ranks).encode()).decode()
        return [
            python, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={world}", f"--node_rank={node}",
            f"--master_addr={machines.address}", f"--master_port={machines.port}", *words,
        ]  # fmt: skip
    if machines.world_size == 1:
        return [python, *words]
    return [
        python, "-m", "torch.distributed.run", "--nnodes", str(machines.num_nodes), "--node_rank", str(node),
        "--nproc_per_node", str(machines.num_ranks), "--master_addr", machines.address,
        "--master_port", str(machines.port), *words,
    ]  # fmt: skip


def by_ssh(host: str, command: Sequence[str], *, environment: Mapping[str, str]) -> list[str]:
    """Return the command that runs ``command`` on ``host``, in this folder (a shared file system) and environment."""
    variables = [f"{name}={value}" for name, value in variables_to_pass_on(environment).items()]
    return [*SSH, host, f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(['env', *variables, *command])}"]


def deepspeed_runner(machines: Machines, *, environment: Mapping[str, str]) -> list[str]:
    """Return the call of DeepSpeed's launcher, which starts the processes of all machines."""
    hostfile = machines.hostfile if machines.num_nodes > 1 and machines.hostfile else os.devnull
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")[: machines.num_ranks]
    if machines.num_nodes == 1 and len(visible) == machines.num_ranks and all(map(str.isdecimal, visible)):
        where = [f"--include=localhost:{','.join(visible)}"]  # it would take the first GPUs instead
    else:
        where = ["--num_nodes", str(machines.num_nodes), "--num_gpus", str(machines.num_ranks)]
    return [
        sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", hostfile, *where,
        "--master_addr", machines.address, "--master_port", str(machines.port),
    ]  # fmt: skip


def commands_here(machines: Machines, words: Sequence[str], *, environment: Mapping[str, str]) -> list[list[str]]:
    """Return what this machine starts: its own processes, and those of the machines that it reaches by ssh."""
    if machines.launcher == "deepspeed":
        return [[*deepspeed_runner(machines, environment=environment), *words]]
    if machines.node_rank is not None or not machines.hosts:
        return [node_command(machines, words, node=machines.node_rank or 0)]
    commands = [node_command(machines, words, node=node) for node in range(machines.num_nodes)]
    return [
        command if is_this_machine(host) else by_ssh(host, command, environment=environment)
        for host, command in zip(machines.hosts, commands)
    ]


def descendants(root: int) -> list[int]:
    """Return the processes that ``root`` has started, directly or not (none without /proc)."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
    found = [root]
    for parent in found:
        found += [process for process, above in parents.items() if above == parent]
    return found[1:]


def show(chunk: bytes) -> None:
    """Write to the standard output; if whoever read it has left, write to nothing from then on (the log goes on)."""
    try:
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def copy_output(source: int, log: Path, *, from_terminal: bool) -> None:
    """Copy what arrives at the file descriptor ``source`` to the standard output and to ``log``, until its end."""
    with log.open("ab", buffering=0) as file:
        while chunk := os.read(source, 65536):
            if from_terminal:
                chunk = chunk.replace(b"\r\n", b"\n")
            file.write(chunk)
            show(chunk)


def wait_for_all(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all processes and return the exit code of the first that failed, or 0; end the others after it."""
    code, deadline = 0, float("inf")
    means = [subprocess.Popen.terminate, subprocess.Popen.kill]
    while None in (codes := [process.poll() for process in processes]):
        failed = [c for c in codes if c]
        if failed and code == 0:
            code, deadline = failed[0], time.monotonic() + PATIENCE
        if means and time.monotonic() > deadline:
            for process in processes:
                means[0](process)
            means, deadline = means[1:], time.monotonic() + PATIENCE
        time.sleep(0.05)
    code = code or next((c for c in codes if c), 0)
    return code if code >= 0 else 128 - code


def run_logged(commands: Sequence[Sequence[str]], log: Path, *, environment: Mapping[str, str], ssh: bool) -> int:
    """Run ``commands`` at the same time, copy their output to the standard output and to ``log``, return the exit code.

    SIGTERM is passed on to them. So is SIGUSR1 (save and leave), to all processes on this machine: they start with it
    ignored, so that a launcher which knows nothing of it survives and a program that does installs its handler.
    SIGINT reaches them from the terminal by itself.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts what is not in its foreground with it ignored
    source, sink = os.pipe()
    stdin = None if len(commands) == 1 else subprocess.DEVNULL
    processes: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    def save_and_leave(number: int, _: object) -> None:
        for process in descendants(os.getpid()):
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue

    for command in commands:
        output = {"stdout": sink, "stderr": subprocess.STDOUT, "stdin": stdin}
        processes.append(subprocess.Popen(command, env=dict(environment), **output))
    os.close(sink)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGUSR1, save_and_leave)
    copier = threading.Thread(target=copy_output, args=(source, log), kwargs={"from_terminal": ssh}, daemon=True)
    copier.start()
    code = wait_for_all(processes)
    copier.join(timeout=5.0)  # a process left behind may hold the pipe open
    return code


def show_plan(machines: Machines, words: Sequence[str], *, environment: Mapping[str, str]) -> int:
    """Print the command of every machine, then let the program print its plan in one process; return its exit code."""
    for node, name in enumerate(machines.names):
        print(f"{name}: {shlex.join(node_command(machines, words, node=node))}", flush=True)
    if machines.node_rank:
        return 0  # the first machine shows it
    plan = {**environment, "GLM_PLAN_WORLD_SIZE": str(machines.world_size)}
    return subprocess.run([sys.executable, *words, DRY_RUN], env=plan, check=False).returncode


def main() -> int:
    """Start the program, or print how it would be started."""
    words = sys.argv[1:]
    if words[:1] == [COUNT_GPUS]:
        print(min(count_gpus(os.environ) or 1, int(words[1])))
        return 0
    if not words or words[0].startswith("-"):
        raise ValueError("no program to start; give its file first: scripts/launch_ranks.py PROGRAM ARGUMENTS...")
    # One date for all ranks: it names the run's folder.
    environment = {"GLM_DATE": time.strftime("%m-%d-%H-%M"), **os.environ}
    machines = find_machines(environment)
    if DRY_RUN in words or environment.get("DRY_RUN") == "1":
        return show_plan(machines, [word for word in words if word != DRY_RUN], environment=environment)
    check_launcher(machines)
    if machines.world_size > 1:
        # Left alone, every process would take all cores.
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // machines.num_ranks)))
    passed_on = None
    if machines.launcher == "deepspeed" and machines.num_nodes > 1 and "DS_ENV_FILE" not in environment:
        passed_on = deepspeed_environment_file(environment, LOGS)
        environment["DS_ENV_FILE"] = str(passed_on)
    commands = commands_here(machines, words, environment=environment)
    node = "" if machines.node_rank is None else f"-node{machines.node_rank}"
    name = environment.get("LOG_NAME") or Path(words[0]).stem
    if not DATED.search(name):
        name += time.strftime("-%m-%d-%H-%M")
    log = LOGS / f"log-{name}{node}.txt"
    LOGS.mkdir(parents=True, exist_ok=True)
    announcement = "".join(f"+ {shlex.join(command)}\n" for command in commands)
    with log.open("a", encoding="utf-8") as file:
        file.write(announcement)
    show(f"{announcement}log: {log}\n".encode())
    ssh = any(command[: len(SSH)] == list(SSH) for command in commands)
    try:
        return run_logged(commands, log, environment=environment, ssh=ssh)
    finally:
        if passed_on is not None:
            passed_on.unlink(missing_ok=True)


if __name__ == "__main__":
    run_main(main)
