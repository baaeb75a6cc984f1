"""scripts/launch.sh and ds_pretrain_nvidia.sh: the command for some machines, processes, logs, signals, error lines.

Other machines are this one: ``ssh``, ``pdsh``, ``srun``, ``scontrol`` and ``nvidia-smi`` are small programs on the PATH
that run the command here or print what the real ones would.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY

# Prints what a rank is given, in one line; as a plan with --dry-run. Its first word says how it ends.
REPORT = """
import json, os, signal, sys, time
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GLM_PLAN_WORLD_SIZE", "GLM_TOLD", "OMP_NUM_THREADS", "NCCL_DEBUG")
report = {"words": sys.argv[1:], **{n: os.environ[n] for n in names if n in os.environ}}
if "echo" in sys.argv:
    report["stdin"] = sys.stdin.read()
if "wait" in sys.argv:
    signal.signal(signal.SIGUSR1, lambda *_: (print("saved", flush=True), os._exit(0)))
print(json.dumps(report) + "\\n", end="", flush=True)
if "wait" in sys.argv:
    time.sleep(120)
if "fail" in sys.argv:
    print("it went wrong", file=sys.stderr)
    sys.exit(7)
if "die" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
"""
LAUNCH = 'source scripts/launch.sh; launch_distributed "$@"'
VARIABLES = re.compile(
    r"(NUM_|NODE_|MASTER_|HOST_FILE|LAUNCHER|LOG_NAME|DRY_RUN|RANKS_|SLURM_|GLM_|NCCL_|OMP_|CUDA_VIS|RANK|WORLD|LOCAL_|TORCH_)"
)


class Workplace:
    """A copy of the repository in links, where logs and programs of a test go, and other machines' programs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder / "glm", folder / "bin"
        self.folder.mkdir()
        self.programs.mkdir()
        for path in REPOSITORY.iterdir():
            if path.name in {"scripts", "config", "model", "mpu", "data_utils", "files", "training", "pretrain_glm.py"}:
                (self.folder / path.name).symlink_to(path)
        self.write("report.py", REPORT)

    def write(self, name: str, text: str) -> str:
        """Write a file of the workplace and return its path."""
        (self.folder / name).write_text(text, encoding="utf-8")
        return str(self.folder / name)

    def provide(self, name: str, script: str) -> None:
        """Put a program on the PATH."""
        path = self.programs / name
        path.write_text(f"#!/usr/bin/env bash\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    def start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        """Start a command with ``variables`` and none of the caller's that mean something to the launcher."""
        environment = {n: v for n, v in os.environ.items() if not VARIABLES.match(n)}
        environment |= {"PATH": f"{self.programs}:{os.environ['PATH']}", "PYTHON": sys.executable, **variables}
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, text=True, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *command: str, code: int = 0, stdin: str = "", **variables: str) -> tuple[str, str]:
        """Run a command to its end; assert its exit code and return its output and its errors."""
        process = self.start(*command, **variables)
        output, errors = process.communicate(stdin, timeout=300)
        assert process.returncode == code, output + errors
        return output, errors

    def launch(self, *words: str, **options: str | int) -> tuple[str, str]:
        """Run ``report.py`` under ``launch_distributed``."""
        return self.run("bash", "-c", LAUNCH, "-", "report.py", *words, **options)

    def log(self) -> str:
        """Return the content of the only log."""
        (log,) = (self.folder / "logs").glob("log-*.txt")
        return log.read_text(encoding="utf-8")


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


def reports(output: str) -> list[dict[str, str]]:
    """Return what the ranks reported, by rank."""
    found = [json.loads(line) for line in output.splitlines() if line.startswith('{"words"')]
    return sorted(found, key=lambda report: int(report.get("RANK", 0)))


def plan(output: str) -> tuple[list[str], dict[str, str]]:
    """Split the output of a dry run into the command, without the variables before it, and the program's report."""
    first, last = output.splitlines()
    sign, *words = shlex.split(first)
    assert sign == "+"
    return list(itertools.dropwhile(re.compile(r"[A-Z_]+=").match, words)), json.loads(last)


def option(command: list[str], name: str) -> str:
    """Return the value after ``name``."""
    return command[command.index(name) + 1]


def test_one_process_needs_no_launcher(workplace: Workplace):
    output, _ = workplace.launch("a b", "--flag", "echo", stdin="typed")
    (report,) = reports(output)
    assert report["words"] == ["a b", "--flag", "echo"]
    assert report["stdin"] == "typed"
    assert "WORLD_SIZE" not in report
    assert output.splitlines()[0] == f"+ {sys.executable} report.py 'a b' --flag echo"
    assert reports(workplace.log()) == [report]
    (log,) = (workplace.folder / "logs").iterdir()
    assert re.fullmatch(r"log-report-\d\d-\d\d-\d\d-\d\d\.txt", log.name)


def test_the_exit_code_and_the_errors_of_the_program_pass(workplace: Workplace):
    output, _ = workplace.launch("fail", code=7, LOG_NAME="mine")
    assert "it went wrong" in output
    assert "it went wrong" in workplace.log()
    assert (workplace.folder / "logs" / next((workplace.folder / "logs").iterdir())).name.startswith("log-mine-")
    workplace.launch("die", code=-signal.SIGKILL)
    workplace.launch("fail", code=7, LOG_NAME="task_11-21-09-05")
    assert (workplace.folder / "logs" / "log-task_11-21-09-05.txt").is_file(), "one date is enough"


def test_a_reader_that_leaves_does_not_stop_the_run(workplace: Workplace):
    command = 'source scripts/launch.sh; (launch_distributed report.py fail) | head -n 1; exit "${PIPESTATUS[0]}"'
    workplace.run("bash", "-c", command, code=7)
    assert "it went wrong" in workplace.log()


@pytest.mark.parametrize("ranks", [1, 3])
def test_dry_run_on_one_machine(workplace: Workplace, ranks: int):
    for words, variables in ((["--dry-run"], {}), ([], {"DRY_RUN": "1"})):
        variables["NUM_GPUS_PER_WORKER"] = str(ranks)
        output, _ = workplace.launch("x", *words, **variables)
        command, report = plan(output)
        launcher = ["-m", "training.torchrun", "--nnodes", "1", "--nproc_per_node", "3", "--standalone"]
        assert command == [sys.executable, *(launcher if ranks > 1 else []), "report.py", "x"]
        assert report["words"] == ["x", "--dry-run"]
        assert report["GLM_PLAN_WORLD_SIZE"] == str(ranks)
        assert not (workplace.folder / "logs").exists(), "a dry run leaves nothing behind"


def test_a_port_and_deepspeeds_launcher_on_one_machine(workplace: Workplace):
    variables = {"NUM_GPUS_PER_WORKER": "2", "MASTER_PORT": "1234"}
    command, _ = plan(workplace.launch("--dry-run", **variables)[0])
    assert option(command, "--master_port") == "1234" and "--standalone" not in command
    for visible, devices in (("", [0, 1]), ("3,5,7", [3, 5])):
        variables |= {"LAUNCHER": "deepspeed", "CUDA_VISIBLE_DEVICES": visible}
        command, _ = plan(workplace.launch("--dry-run", **variables)[0])
        assert "deepspeed.launcher.launch" in command and option(command, "--master_port") == "1234"
        (world,) = (word.removeprefix("--world_info=") for word in command if word.startswith("--world_info="))
        assert json.loads(base64.urlsafe_b64decode(world)) == {"localhost": devices}


def test_a_hostfile_is_for_deepspeeds_launcher(workplace: Workplace):
    hosts = workplace.write("hosts", "# ours\n\nnode-a slots=4  # the first\n  node-b   slots=4\nnode-c slots=4\n")
    runner = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", hosts]
    command, report = plan(workplace.launch("x", "--dry-run", HOST_FILE_PATH=hosts)[0])
    where = ["--master_addr", "node-a", "--master_port", "29500"]
    assert command == [*runner, "--num_nodes", "3", "--num_gpus", "4", *where, "report.py", "x"]
    assert report["GLM_PLAN_WORLD_SIZE"] == "12"

    fewer = {"NUM_WORKERS": "2", "NUM_GPUS_PER_WORKER": "3", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
    command, report = plan(workplace.launch("--dry-run", HOST_FILE_PATH=hosts, **fewer)[0])
    where = ["--master_addr", "10.0.0.1", "--master_port", "1234"]
    assert command == [*runner, "--num_nodes", "2", "--num_gpus", "3", *where, "report.py"]
    assert report["GLM_PLAN_WORLD_SIZE"] == "6"

    command, report = plan(workplace.launch("--dry-run", HOST_FILE_PATH=hosts, NUM_WORKERS="1")[0])
    assert "--standalone" in command, "one machine: this one"
    assert report["GLM_PLAN_WORLD_SIZE"] == "4"


def test_by_hand_every_machine_has_its_torchrun(workplace: Workplace):
    variables = {"NUM_WORKERS": "2", "NUM_GPUS_PER_WORKER": "4", "NODE_RANK": "1"}
    command, report = plan(workplace.launch("--dry-run", **variables, MASTER_ADDR="a", MASTER_PORT="1234")[0])
    where = ["--node_rank", "1", "--master_addr", "a", "--master_port", "1234"]
    sizes = ["--nnodes", "2", "--nproc_per_node", "4"]
    assert command == [sys.executable, "-m", "training.torchrun", *sizes, *where, "report.py"]
    assert report["GLM_PLAN_WORLD_SIZE"] == "8"
    hosts = workplace.write("hosts", "node-a slots=4\nnode-b slots=4\n")
    command, _ = plan(workplace.launch("--dry-run", NODE_RANK="1", HOST_FILE_PATH=hosts, MASTER_PORT="1234")[0])
    assert option(command, "--master_addr") == "node-a" and option(command, "--node_rank") == "1"


def test_slots_that_differ_give_the_smallest_number_everywhere(workplace: Workplace):
    hosts = workplace.write("hosts", "node-a slots=8\nnode-b slots=2\n")
    _, report = plan(workplace.launch("--dry-run", HOST_FILE_PATH=hosts)[0])
    assert report["GLM_PLAN_WORLD_SIZE"] == "4"


def test_hostfiles_of_other_systems(workplace: Workplace):
    """A byte order mark, ends of lines as Windows has them, no end of the last line."""
    hosts = workplace.write("hosts", "\ufeffnode-a slots=2\r\n# c\r\n\r\nnode-b slots=02 # d")
    command, _ = plan(workplace.launch("--dry-run", HOST_FILE_PATH=hosts)[0])
    assert (option(command, "--master_addr"), option(command, "--num_gpus")) == ("node-a", "2")


def test_slurm_without_its_programs(workplace: Workplace):
    for name in ("bash", "dirname"):
        (workplace.programs / name).symlink_to(Path("/usr/bin") / name)
    variables = {**SLURM, "PATH": str(workplace.programs)}
    _, errors = workplace.launch(code=2, **variables)
    assert errors.splitlines() == [
        "error: scontrol, which names the machines of the job, is not installed here; set MASTER_ADDR"
    ]
    _, errors = workplace.launch(code=2, **variables, MASTER_ADDR="a")
    assert errors.splitlines() == ["error: srun, which starts the program on every machine, is not installed here"]


def test_the_sample_hostfile_is_one(workplace: Workplace):
    command, _ = plan(workplace.launch("--dry-run", HOST_FILE_PATH="config/hostfile.sample")[0])
    assert int(option(command, "--num_nodes")) > 1


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({}, "3"),
        ({"CUDA_VISIBLE_DEVICES": "0,2"}, "2"),
        ({"CUDA_VISIBLE_DEVICES": "", "RANKS_WITHOUT_GPU": "5"}, "5"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "1"),
        ({"NUM_GPUS_PER_WORKER": "2"}, "2"),
        ({"RANKS_WITHOUT_GPU": "5"}, "3"),
    ],
)
def test_gpus_are_counted(workplace: Workplace, variables: dict[str, str], ranks: str):
    workplace.provide("nvidia-smi", 'for i in 0 1 2; do echo "GPU $i: some model"; done')
    _, report = plan(workplace.launch("--dry-run", **variables)[0])
    assert report["GLM_PLAN_WORLD_SIZE"] == ranks


def test_processes_on_gpus_say_what_they_waited_for(workplace: Workplace):
    def variables(**given: str) -> dict[str, str]:
        line = workplace.launch("--dry-run", **given)[0].splitlines()[0]
        return dict(word.split("=", 1) for word in shlex.split(line) if re.match(r"(NCCL|TORCH)_\w+=", word))

    shown = variables(CUDA_VISIBLE_DEVICES="0,1")
    assert shown["NCCL_DEBUG"] == "warn" and shown["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert re.search(r"/logs/log-report-[-\d]+\.rank_$", shown["TORCH_FR_DUMP_TEMP_FILE"])
    assert "NCCL_DEBUG" not in variables(CUDA_VISIBLE_DEVICES="0,1", NCCL_DEBUG="INFO"), "the user's own counts"
    assert variables(CUDA_VISIBLE_DEVICES="0") == variables(CUDA_VISIBLE_DEVICES="", RANKS_WITHOUT_GPU="2") == {}


SLURM = {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "gpu[7,9]", "SLURM_NODEID": "0"}
SRUN = {**SLURM, "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2"}
SCONTROL = '[ "$*" = "show hostnames gpu[7,9]" ] && printf "gpu7\\ngpu9\\n"'


def test_a_slurm_job_gets_srun_torchrun(workplace: Workplace):
    workplace.provide("scontrol", SCONTROL)
    where = ["--rdzv_backend", "c10d", "--rdzv_endpoint", "gpu7:10077", "--rdzv_id", "77"]
    torchrun = [sys.executable, "-m", "training.torchrun", "--nnodes", "2", "--nproc_per_node", "4", *where]
    srun = ["srun", "--nodes", "2", "--ntasks-per-node", "1", "--kill-on-bad-exit=1"]
    batch_script = {**SLURM, "SLURM_STEP_ID": "4294967291", "SLURM_STEP_NUM_NODES": "1"}
    for variables in (SLURM, {**SLURM, "LAUNCHER": "slurm"}, batch_script):
        command, report = plan(workplace.launch("--dry-run", NUM_GPUS_PER_WORKER="4", **variables)[0])
        assert command == [*srun, *torchrun, "report.py"]
        assert report["GLM_PLAN_WORLD_SIZE"] == "8"
    command, _ = plan(workplace.launch("--dry-run", NUM_GPUS_PER_WORKER="4", **SRUN)[0])
    assert command == [*torchrun, "report.py"], "what srun has started starts its own machine"
    others = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234", "SLURM_CPUS_PER_TASK": "16"}
    command, _ = plan(workplace.launch("--dry-run", **SLURM, **others)[0])
    assert option(command, "--rdzv_endpoint") == "10.0.0.1:1234"
    assert option(command, "--cpus-per-task") == "16"


def test_one_machine_is_like_no_slurm(workplace: Workplace):
    one_of_two = {**SRUN, "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"}
    for variables in ({**SLURM, "SLURM_JOB_NUM_NODES": "1"}, {**SLURM, "NUM_WORKERS": "1"}, one_of_two):
        command, _ = plan(workplace.launch("--dry-run", **variables)[0])
        assert command == [sys.executable, "report.py"]


@pytest.mark.parametrize(
    ("variables", "hostfile", "message"),
    [
        ({}, "node-a slots=8\nnode-b 8\n", "hosts line 2: 'node-b 8' is not 'host slots=n'"),
        ({}, "node-a slots=0\n", "hosts line 1: 'node-a slots=0' is not 'host slots=n'"),
        ({}, "\n# c\na slots=2 max_slots=4\n", "hosts line 3: 'a slots=2 max_slots=4' is not 'host slots=n'"),
        ({}, "a slots=1\na slots=2\n", "hosts line 2: a is listed twice"),
        ({}, "# nobody\n", "no host in it"),
        ({}, "ann@10.0.0.1 slots=2\n", "hosts line 1: 'ann@10.0.0.1' is no name of a host"),
        ({}, "a slots=1\nb:22 slots=2\n", "hosts line 2: 'b:22' is no name of a host or IPv4 address"),
        (
            {},
            "-oProxyCommand=touch${IFS}x slots=1\n",
            "hosts line 1: '-oProxyCommand=touch${IFS}x' is no name of a host",
        ),
        ({}, "a\0b slots=1\n", "hosts line 1: 'a\\x00b' is no name of a host"),
        ({}, f"a slots={'9' * 5000}\n", "hosts line 1: 'a slots=999"),
        ({"MASTER_ADDR": "-x"}, "a slots=1\nb slots=1\n", "MASTER_ADDR is '-x'; give the name or the address"),
        ({"MASTER_PORT": "99999"}, "a slots=1\nb slots=1\n", "MASTER_PORT is '99999'; give a number of at least 1"),
        ({"NUM_GPUS_PER_WORKER": "9" * 5000}, None, "NUM_GPUS_PER_WORKER is '999"),
        ({**SLURM, "SLURM_JOB_ID": "a[$(id)]", "MASTER_ADDR": "a"}, None, "SLURM_JOB_ID is 'a[$(id)]'; give a number"),
        ({**SLURM, "SLURM_STEP_ID": "x"}, None, "SLURM_STEP_ID is 'x'; give a number"),
        ({**SLURM, "SLURM_JOB_NODELIST": "-h"}, None, "SLURM_JOB_NODELIST is '-h', no list of machines"),
        ({"NUM_WORKERS": "3"}, "a slots=1\nb slots=1\n", "NUM_WORKERS is 3, but there are 2 hosts (a, b)"),
        ({"NUM_GPUS_PER_WORKER": "2"}, "a slots=1\n", "gives a 1 slots"),
        ({}, "localhost slots=1\nb slots=1\n", "set MASTER_ADDR"),
        ({"NUM_WORKERS": "2"}, None, "name the machines (HOST_FILE_PATH)"),
        ({"LAUNCHER": "torchrun"}, "a slots=1\nb slots=1\n", "start this on each host with its NODE_RANK"),
        ({"LAUNCHER": "deepspeed", "NODE_RANK": "0"}, None, "here use torchrun"),
        ({"NUM_WORKERS": "2", "NODE_RANK": "1"}, None, "MASTER_ADDR and MASTER_PORT are needed"),
        ({"NUM_WORKERS": "2", "NODE_RANK": "2"}, None, "ranks count from 0"),
        ({"NUM_WORKERS": "two"}, None, "NUM_WORKERS is 'two'; give a number of at least 1"),
        ({"NUM_GPUS_PER_WORKER": "0"}, None, "NUM_GPUS_PER_WORKER is '0'"),
        ({"MASTER_PORT": "http", "NUM_GPUS_PER_WORKER": "2"}, None, "MASTER_PORT is 'http'"),
        ({"LAUNCHER": "mpirun"}, None, "LAUNCHER is 'mpirun'; torchrun, deepspeed, slurm exist"),
        ({"LAUNCHER": "slurm"}, None, "not a SLURM job"),
        (SLURM, None, "scontrol show hostnames 'gpu[7,9]' failed"),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "16"}, None, "srun started 16 tasks on 2 machines"),
        ({**SRUN, "NUM_WORKERS": "1"}, None, "NUM_WORKERS is 1, but srun started 2 tasks on 2 machines"),
    ],
)
def test_what_cannot_be_launched_is_said_in_one_line(
    workplace: Workplace, variables: dict[str, str], hostfile: str | None, message: str
):
    workplace.provide("scontrol", "exit 1")
    if hostfile is not None:
        variables = {**variables, "HOST_FILE_PATH": workplace.write("hosts", hostfile)}
    output, errors = workplace.launch(code=2, **variables)
    assert output == ""
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_missing_hostfile_and_a_missing_program_are_named(workplace: Workplace):
    _, errors = workplace.launch(code=2, HOST_FILE_PATH="nowhere")
    assert errors.startswith("error: HOST_FILE_PATH nowhere: no such file")
    _, errors = workplace.run("bash", "-c", LAUNCH, code=2)
    assert errors.startswith("error: no program to start")


# ssh and pdsh that run the command here; both get it as the words of a shell command.
FAKE_SSH = """while [ "${1#-}" != "$1" ]; do [ "$1" = -o ] && shift; shift; done; shift; exec bash -c "$*" """
FAKE_PDSH = """
while [ $# -gt 0 ]; do case "$1" in -S) shift ;; -f) shift 2 ;; -w) hosts="$2"; shift 2 ;; *) break ;; esac; done
node=0; code=0; jobs=()
for host in ${hosts//,/ }; do bash -c "${*//%n/$node}" & jobs+=($!); node=$((node + 1)); done
for job in "${jobs[@]}"; do wait "$job" || code=$?; done
exit "$code"
"""
FAKE_SRUN = """
while [ "${1#-}" != "$1" ]; do case "$1" in --*=*) shift ;; *) shift 2 ;; esac; done
"$@" & first=$!; "$@" & second=$!
wait "$first"; code=$?; wait "$second" || code=$?
exit "$code"
"""


@pytest.mark.slow
def test_two_processes_on_one_machine(workplace: Workplace):
    output, _ = workplace.launch(NUM_GPUS_PER_WORKER="2")
    found = reports(output)
    assert [report["RANK"] for report in found] == ["0", "1"]
    assert {report["WORLD_SIZE"] for report in found} == {"2"}
    assert len(reports(workplace.log())) == 2


@pytest.mark.slow
def test_torchrun_on_two_machines_by_srun(workplace: Workplace):
    workplace.provide("srun", FAKE_SRUN)
    variables = {**SLURM, "MASTER_ADDR": "127.0.0.1", "NUM_GPUS_PER_WORKER": "2", "GLM_TOLD": "a 'b' $c"}
    output, _ = workplace.launch("two words", **variables)
    ranks = [(report["RANK"], report["LOCAL_RANK"]) for report in reports(output)]
    assert ranks == [("0", "0"), ("1", "1"), ("2", "0"), ("3", "1")]
    for report in reports(output):
        assert report["words"] == ["two words"]
        assert (report["WORLD_SIZE"], report["GLM_TOLD"]) == ("4", "a 'b' $c")
    assert len(reports(workplace.log())) == 4


@pytest.mark.slow
def test_deepspeed_on_two_machines(workplace: Workplace):
    pytest.importorskip("deepspeed", reason="DeepSpeed is an extra")
    workplace.provide("ssh", FAKE_SSH)
    workplace.provide("pdsh", FAKE_PDSH)
    hosts = workplace.write("hosts", "\ufeffnode-a slots=1\r\nnode-b slots=1  # the other\r\n")
    output, _ = workplace.launch("word", HOST_FILE_PATH=hosts, MASTER_ADDR="127.0.0.1", GLM_TOLD="passed on")
    found = reports(output)
    assert [report["RANK"] for report in found] == ["0", "1"]
    for report in found:
        assert report["words"][-1] == "word"  # the launcher puts --local_rank in front
        assert (report["WORLD_SIZE"], report["GLM_TOLD"]) == ("2", "passed on")


@pytest.mark.slow
def test_deepspeed_on_one_machine(workplace: Workplace):
    pytest.importorskip("deepspeed", reason="DeepSpeed is an extra")
    output, _ = workplace.launch("word", LAUNCHER="deepspeed", NUM_GPUS_PER_WORKER="2")
    assert [report["RANK"] for report in reports(output)] == ["0", "1"]


def test_deepspeed_without_pdsh_names_two_ways_out(workplace: Workplace):
    pytest.importorskip("deepspeed", reason="DeepSpeed is an extra")
    hosts = workplace.write("hosts", "node-a slots=1\nnode-b slots=1\n")
    programs = workplace.programs
    for name in ("bash", "dirname"):
        (programs / name).symlink_to(Path("/usr/bin") / name)
    _, errors = workplace.launch(code=2, HOST_FILE_PATH=hosts, PATH=str(programs))
    (line,) = errors.splitlines()
    assert "pdsh" in line
    assert "NODE_RANK" in line


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_to_the_script_reaches_every_rank(workplace: Workplace, ranks: int):
    process = workplace.start("bash", "-c", LAUNCH, "-", "report.py", "wait", NUM_GPUS_PER_WORKER=str(ranks))
    assert process.stdout is not None
    seen = 0
    while seen < ranks:
        seen += process.stdout.readline().startswith('{"words"')
    process.send_signal(signal.SIGUSR1)
    output, errors = process.communicate(timeout=60)
    assert output.count("saved") == ranks, output + errors
    assert workplace.log().count("saved") == ranks, "the log goes on to the end"
    assert process.returncode == (0 if ranks == 1 else 128 + signal.SIGUSR1), "the program's code, or torchrun's"


@pytest.mark.slow
def test_sigterm_ends_all_ranks(workplace: Workplace):
    process = workplace.start("bash", "-c", LAUNCH, "-", "report.py", "wait", NUM_GPUS_PER_WORKER="2")
    assert process.stdout is not None
    started = 0
    while started < 2:  # torchrun does not know a rank yet that it is just starting
        started += process.stdout.readline().startswith('{"words"')
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    assert process.returncode not in (0, None)


def test_ds_pretrain_passes_the_configuration_then_the_flags(workplace: Workplace):
    (workplace.folder / "pretrain_glm.py").unlink()
    workplace.write("pretrain_glm.py", REPORT)
    script = ["bash", "scripts/ds_pretrain_nvidia.sh", "config/ds_block_large.sh"]
    output, _ = workplace.run(*script, "--load", "a folder", MP_SIZE="2", CHECKPOINT_PATH="/weights", NCCL_DEBUG="WARN")
    (report,) = reports(output)
    words = report["words"]
    assert words[-5:] == ["--deepspeed", "--deepspeed_config", "config/config_block_large.json", "--load", "a folder"]
    assert option(words, "--model-parallel-size") == "2"
    assert option(words, "--save") == "/weights"
    assert report["NCCL_DEBUG"] == "WARN"
    (log,) = (workplace.folder / "logs").iterdir()
    assert log.name.startswith("log-ds_block_large-")


def test_a_configuration_may_set_the_number_of_processes(workplace: Workplace):
    (workplace.folder / "pretrain_glm.py").unlink()
    workplace.write("pretrain_glm.py", REPORT)
    own = 'NUM_GPUS_PER_WORKER="${NUM_GPUS_PER_WORKER:-4}"\ngpt_options="--block-lm"\n'
    config = workplace.write("own.sh", own)
    script = ["bash", "scripts/ds_pretrain_nvidia.sh", config, "--dry-run"]
    assert plan(workplace.run(*script)[0])[1]["GLM_PLAN_WORLD_SIZE"] == "4"
    assert plan(workplace.run(*script, NUM_GPUS_PER_WORKER="2")[0])[1]["GLM_PLAN_WORLD_SIZE"] == "2"


@pytest.mark.parametrize("given", [[], ["config/none.sh"]])
def test_ds_pretrain_asks_for_a_configuration(workplace: Workplace, given: list[str]):
    _, errors = workplace.run("bash", "scripts/ds_pretrain_nvidia.sh", *given, code=2)
    (line,) = errors.splitlines()
    assert "name one of config/ds_*.sh" in line


@pytest.mark.slow
def test_the_tiny_configuration_trains_with_two_ranks_and_resumes(workplace: Workplace):
    script = ["bash", "scripts/ds_pretrain_nvidia.sh", "config/ds_block_tiny.sh"]
    flags = ["--save-interval", "2", "--eval-iters", "1", "--log-interval", "1", "--no-progress"]
    without_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    output, _ = workplace.run(*script, *flags, "--train-iters", "4", **without_gpu)
    log = workplace.log()
    assert "\n".join(log.splitlines()[1:]) in output
    assert "--nproc_per_node 2" in log
    assert re.search(r"engine +.*2 processes of \d+ threads? on the CPU = 2 data x 1 tensor parallel", log)
    assert "config/config_block_tiny.json sets batch_size = 8" in log
    assert re.search(r"iteration +4/ +4 \|.*lm loss \d", log)
    run = workplace.folder / "checkpoints" / "ds-block-tiny"
    assert (run / "4").is_dir()
    for path in (workplace.folder / "logs").iterdir():
        path.unlink()
    workplace.run(*script, *flags, "--train-iters", "6", **without_gpu)
    log = workplace.log()
    assert "iteration        1/" not in log, "the second run goes on from the first"
    assert re.search(r"iteration +6/ +6 \|", log)
