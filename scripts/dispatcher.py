"""Fine-tune on a task for every setting of a grid, several runs at a time, and summarize.

    python scripts/dispatcher.py --gpu 0,1,2,3 --n_gpu 1 --model blocklm-roberta-large --task rte
    python scripts/dispatcher.py --gpu cpu --model config_tasks/model_blocklm_tiny.sh --task config_tasks/task_cb.sh \\
        --grid '{"lr": [1e-5], "batch-size": [16], "epochs": [2], "seed": [1, 2, 3]}'

The GPUs are cut into groups of ``--n_gpu``; each group takes the next run that is not done. Start it again and it goes
on: runs with results are skipped, unless ``--overwrite``. Results and a table with mean and deviation go to
``logs/<model>-<task>.txt``. A signal (Ctrl-C, SIGTERM) ends the runs of that moment, and there is no further one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from process_grid import checked_results, table

from files.errors import run_main
from files.reading import described, parse_json, value_of

REPOSITORY = Path(__file__).resolve().parent.parent
LAUNCH = REPOSITORY / "scripts" / "launch.py"
WORD = r"[A-Za-z0-9][A-Za-z0-9._,+-]*"  # of a grid: it becomes a part of a folder's name
GRID: dict[str, list[Any]] = {
    "lr": [1e-5, 2e-5],
    "batch-size": [16, 32],
    "epochs": [20, 40],
    "warmup": [0.1],
    "weight-decay": [0.1],
    "seed": [1, 2, 3],
}
LARGE = "--num-layers 24 --hidden-size 1024 --num-attention-heads 16 --max-position-embeddings 512"
BASE = "--num-layers 12 --hidden-size 768 --num-attention-heads 12 --max-position-embeddings 512"
ROBERTA = "--tokenizer-model-type roberta --tokenizer-type GPT2BPETokenizer"
BERT = "--tokenizer-model-type bert-base-uncased --tokenizer-type BertWordPieceTokenizer"
# The models and tasks that the original's dispatcher knows by name: size and vocabulary, checkpoint; folder, length.
MODELS = {
    "blocklm-roberta-large": (f"{LARGE} {ROBERTA}", "blocklm-roberta-large/250000"),
    "blocklm-base-na": (f"{BASE} {BERT}", "blocklm-base-len6-na03-12-21-21"),
}
TASKS = {"rte": ("RTE", 256), "cb": ("CB", 256), "multirc": ("MultiRC", 430)}
COMMON = "--save-interval 10000 --log-interval 50 --eval-interval 1000 --eval-iters 100"


def configurations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of a grid; names in alphabetical order, the last varies fastest."""
    names = sorted(grid)
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(grid[name] for name in names))]


def as_flags(options: Mapping[str, Any]) -> list[str]:
    """Write options as the words of flags: True is a switch, False and None are left out."""
    words = []
    for name, value in options.items():
        if value is not None and value is not False:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def read_grid(text: str, *, n_gpu: int) -> dict[str, list[Any]]:
    """Return the grid of ``--grid``; raise ValueError for what is no object of lists of numbers, words and switches."""
    grid = parse_json(text, place="--grid")
    if not isinstance(grid, dict):
        raise ValueError(f"--grid: an object of lists is needed, found {described(grid)}")
    for name in grid:
        for value in value_of(grid, name, list, place="--grid"):
            if value is not None and not isinstance(value, bool | int | float) and not re.fullmatch(WORD, str(value)):
                raise ValueError(f"--grid: {name} has {described(value)}; a number, a word, true or false is needed")
        if not grid[name] or not re.fullmatch(WORD, name):
            raise ValueError(f"--grid: {described(name)} needs the name of a flag, and a list of one value at least")
    for value in grid.get("batch-size", ()):
        value_of({"batch-size": value}, "batch-size", int, place="--grid", at_least=n_gpu)
    return grid


@dataclass(frozen=True)
class Experiment:
    """A model and a task, as flags of finetune_glm.py.

    Attributes:
        name: ``<model>-<task>``.
        model_flags, task_flags: what both need, word by word.
        save: folder of checkpoints.
    """

    name: str
    model_flags: list[str]
    task_flags: list[str]
    save: str

    def run_name(self, config: Mapping[str, Any]) -> str:
        return f"{self.name}/{'-'.join(f'{name}-{value}' for name, value in sorted(config.items()))}"

    def result_path(self, config: Mapping[str, Any]) -> Path:
        return Path("runs") / self.run_name(config) / "results.json"

    def flags(self, config: Mapping[str, Any], *, n_gpu: int, overwrite: bool) -> list[str]:
        """Return the command line of one run; each of ``n_gpu`` processes takes its share of the batch."""
        options = {name: value // n_gpu if name == "batch-size" else value for name, value in sorted(config.items())}
        options["overwrite"] = overwrite
        evaluation = [] if "--eval-batch-size" in self.task_flags else ["--eval-batch-size", "16"]
        where = ["--experiment-name", self.run_name(config), "--save", self.save, "--checkpoint-activations"]
        return ["--finetune", *self.model_flags, *self.task_flags, *where, *evaluation, *as_flags(options)]


def find_experiment(model: str, task: str) -> Experiment:
    """Return the experiment of a known model and task, or of two files of config_tasks/.

    Raises:
        ValueError: an unknown name.
    """
    checkpoints, data = os.environ.get("CHECKPOINT_PATH", "checkpoints"), os.environ.get("DATA_ROOT", "data")
    save = os.environ.get("SAVE_PATH", "checkpoints/finetuned")
    if model.endswith(".sh") or task.endswith(".sh"):
        return _experiment_of_files(model, task, save)
    if model not in MODELS or task not in TASKS:
        raise ValueError(
            f"--model {model} --task {task}: known are {', '.join(MODELS)} and {', '.join(TASKS)}; or give two files "
            "of config_tasks/"
        )
    size, checkpoint = MODELS[model]
    folder, length = TASKS[task]
    return Experiment(
        name=f"{model}-{task}",
        model_flags=["--block-lm", "--cloze-eval", *size.split(), "--load-pretrained", f"{checkpoints}/{checkpoint}"],
        task_flags=["--task", task, "--data-dir", f"{data}/{folder}", "--seq-length", str(length), *COMMON.split()],
        save=save,
    )


# Prints the words of a model file and a task file. An empty word stands between them.
READ_FILES = r"""
set -euo pipefail
model="$1" task="$2" launch="$3"
set --
source "$launch"
source "$model"
DATA_ROOT="${DATA_ROOT:-data}"
source "$task"
as_lists MODEL_ARGS TRAIN_ARGS COMMON_ARGS TASK_ARGS
printf "%s\0" "$EXPERIMENT_NAME" "${GLM_VOCAB_DIR:-}" --cloze-eval "${MODEL_ARGS[@]}" ""
printf "%s\0" --task "$TASK_NAME" --data-dir "$DATA_PATH" ${MAX_SEQ_LEN:+--seq-length "$MAX_SEQ_LEN"} \
    "${TRAIN_ARGS[@]}" "${COMMON_ARGS[@]}" "${TASK_ARGS[@]}"
"""


def _experiment_of_files(model: str, task: str, save: str) -> Experiment:
    for file in (model, task):
        if not Path(file).is_file():
            raise ValueError(f"{file}: no such file; give a model and a task file of config_tasks/")
    files = [str(Path(file).resolve()) for file in (model, task)]
    run = subprocess.run(
        ["bash", "-c", READ_FILES, "-", *files, str(REPOSITORY / "scripts" / "launch.sh")],
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
    )
    if run.returncode:
        raise ValueError(f"{model} and {task} cannot be read by bash: {run.stderr.strip()[:200]}")
    name, vocabularies, *words = run.stdout.split("\0")[:-1]
    if vocabularies:
        os.environ.setdefault("GLM_VOCAB_DIR", vocabularies)
    end = words.index("")
    return Experiment(name, words[:end], words[end + 1 :], save)


def check_places(experiment: Experiment) -> None:
    """Raise ValueError when the data or the weights that every run needs are not there."""
    for words, flag, variable in (
        (experiment.task_flags, "--data-dir", "DATA_PATH, or DATA_ROOT for the folder above"),
        (experiment.model_flags, "--load-pretrained", "CHECKPOINT_PATH for the folder above"),
    ):
        place = words[words.index(flag) + 1] if flag in words else None
        if place is not None and not Path(place).exists():
            raise ValueError(f"{flag} {place}: no such file or folder; set {variable}")


def last_error(output: str) -> str:
    """Return the last line of a run's output that tells an error; its last line where none does."""
    lines = [line for line in output.splitlines() if line.strip()] or ["it printed nothing"]
    return next((line for line in reversed(lines) if line.startswith("error")), lines[-1])


def run_to_end(
    command: list[str], environment: dict[str, str], *, running: set[subprocess.Popen[str]], signals: list[int]
) -> tuple[int, str]:
    """Return the exit code and the output of a command, which is one of ``running`` for that long."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    running.add(process)
    if signals:  # it came before this process could be told
        process.terminate()
    output, _ = process.communicate()
    running.discard(process)
    return process.returncode, output


def run_grid(
    experiment: Experiment, grid: Mapping[str, Sequence[Any]], *, groups: Sequence[str], n_gpu: int, overwrite: bool
) -> dict[str, Any]:
    """Make all runs, one at a time in each group of GPUs, and return their results by run name.

    A run that fails is reported with its last error and left out. Raises ``SystemExit`` after a signal.
    """
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    results: dict[str, Any] = {}
    running: set[subprocess.Popen[str]] = set()
    signals: list[int] = []
    for config in configurations(grid):
        name, path = experiment.run_name(config), experiment.result_path(config)
        if path.is_file() and not overwrite:
            print(f"{name} is done", flush=True)
            results[name] = checked_results(path)
        else:
            waiting.put(config)

    def stop(number: int, _: object) -> None:
        signals.append(number)
        for process in list(running):
            process.terminate()

    def work(group: str) -> None:
        environment = {**os.environ, "NUM_GPUS_PER_WORKER": str(n_gpu)}
        environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [environment.get("PYTHONPATH")])])
        if group != "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = group
        while not signals:
            try:
                config = waiting.get_nowait()
            except queue.Empty:
                return
            name = experiment.run_name(config)
            environment["LOG_NAME"] = name.replace("/", "-")
            command = [sys.executable, str(LAUNCH), str(REPOSITORY / "finetune_glm.py")]
            command += experiment.flags(config, n_gpu=n_gpu, overwrite=overwrite)
            code, output = run_to_end(command, environment, running=running, signals=signals)
            path = experiment.result_path(config)
            if code or not path.is_file():
                log = f"logs/log-{environment['LOG_NAME']}-*.txt"
                print(f"{name} failed on {group}: {last_error(output)} (all of it: {log})", flush=True)
                continue
            try:
                results[name] = checked_results(path)
            except ValueError as error:
                print(f"{name} failed on {group}: {error}", flush=True)
                continue
            print(f"{name} on {group}: {json.dumps(results[name])}", flush=True)
            with open(f"logs/{experiment.name}.txt", "a", encoding="utf-8") as summary:
                summary.write(f"Config: {config}\n{json.dumps(results[name])}\n")

    Path("logs").mkdir(exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    threads = [threading.Thread(target=work, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if signals:
        print(f"stopped at {len(results)} of {len(configurations(grid))} runs; run the same command to go on")
        raise SystemExit(128 + signals[0])
    return results


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="0", help="numbers of GPUs, separated by commas; or cpu")
    parser.add_argument("--n_gpu", type=int, default=1, help="GPUs of each run")
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--grid", help="JSON object of lists instead of the original's 24 settings")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--debug", action="store_true", help="print the commands, start nothing")
    arguments = parser.parse_args()
    experiment = find_experiment(arguments.model, arguments.task)
    if arguments.n_gpu < 1:
        raise ValueError(f"--n_gpu is {arguments.n_gpu}; give a number of at least 1")
    grid = read_grid(arguments.grid, n_gpu=arguments.n_gpu) if arguments.grid else GRID
    if arguments.debug:
        for config in configurations(grid):
            print(shlex.join(experiment.flags(config, n_gpu=arguments.n_gpu, overwrite=arguments.overwrite)))
        return 0
    check_places(experiment)
    numbers = arguments.gpu.split(",")
    groups = [",".join(numbers[i : i + arguments.n_gpu]) for i in range(0, len(numbers), arguments.n_gpu)]
    results = run_grid(experiment, grid, groups=groups, n_gpu=arguments.n_gpu, overwrite=arguments.overwrite)
    if not results:
        raise ValueError("no run has results; see logs/")
    print(*table(dict(sorted(results.items()))), sep="\n")
    return 0 if len(results) == len(configurations(grid)) else 1


if __name__ == "__main__":
    run_main(main, computes=False)
