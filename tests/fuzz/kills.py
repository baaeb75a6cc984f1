"""Kill programs at random moments, start them again, and compare what they leave with a run that nobody killed.

Pre-training, fine-tuning, tokenizing, change_mp.py and the export to Hugging Face. ``python -m tests.fuzz kills``.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.fuzz.judging import digest
from tests.helpers.launching import command, environment, metrics
from tests.helpers.small_corpus import SmallCorpus, make_corpus, task_flags, write_entailment_split

ROUND = 4  # kills before a run may come to its end, for programs that do not go on where they were
PATIENCE = 10.0  # seconds in which the processes that a killed one had started have to end


@dataclass(frozen=True)
class Program:
    """A program, what it leaves, and how it is started.

    Attributes:
        name: of it.
        words: its command line, after the interpreter.
        result: what it has made in a folder, as a digest.
        resumes: it goes on where it was; otherwise it begins again.
        given: files and folders that lie in its folder before it starts.
    """

    name: str
    words: tuple[str, ...]
    result: Callable[[Path], str]
    resumes: bool = False
    given: tuple[Path, ...] = ()

    def fresh(self, folder: Path) -> Path:
        """Return ``folder``, empty but for what is given."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in self.given:
            (folder / path.name).symlink_to(path)
        return folder

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        """Start it; its output goes to ``<folder>.log``."""
        with Path(f"{folder}.log").open("wb") as log:
            return subprocess.Popen(self.words, cwd=folder, env=environment(), stdout=log, stderr=subprocess.STDOUT)


def _new_paths(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_symlink()}


def _digest_of(paths: Iterable[Path], folder: Path) -> str:
    """Return a digest of files: checkpoints by what they hold but the id of the save, others by their bytes."""
    from model.checkpoints.safe_loading import read_checkpoint_file

    found: dict[str, Any] = {}
    for path in sorted(paths):
        name = str(path.relative_to(folder))
        if path.suffix == ".pt":
            found[name] = {**read_checkpoint_file(path), "save_id": None}
        elif path.name != "SHA256SUMS":  # follows from the others
            found[name] = path.read_bytes()
    return digest(found)


def _weights(folder: Path, run: str, tags: Iterable[str]) -> str:
    from model.checkpoints.safe_loading import read_checkpoint_file

    root = folder / "c" / run
    files = [root / tag / "mp_rank_00_model_states.pt" for tag in tags]
    return digest([read_checkpoint_file(file)["module"] for file in files])


def programs(folder: Path) -> list[Program]:
    """Return the programs, with small inputs in ``folder``."""
    from model.checkpoints.reading import shard_name
    from model.checkpoints.writing import write_shard
    from model.config import GLMConfig
    from model.modeling_glm import GLMModel

    (folder / "corpus").mkdir()
    corpus = make_corpus(folder / "corpus")
    (folder / "data").mkdir()
    for name, count in (("train", 18), ("val", 7), ("test", 5)):
        write_entailment_split(folder / "data", name, count, labels=name != "test")
    large = folder / "large.jsonl"
    large.write_bytes((corpus.folder / "train.jsonl").read_bytes() * 400)
    config = GLMConfig(4, 384, 8, 8064, max_position_embeddings=256)
    (folder / "ck").mkdir()
    model = GLMModel(config, generator=torch.Generator().manual_seed(1))
    write_shard(folder / "ck" / shard_name(0), {"module": model.state_dict(), "iteration": 1})
    sizes = ("--num-attention-heads", "8", "--no-tokenizer")
    convert = "scripts/convert_glm_checkpoint_to_transformers.py"

    def pretrained(folder: Path) -> str:
        order = (folder / "runs" / "r" / "order" / "rank-00000.bin").read_bytes()
        return digest([_weights(folder, "r", ["60", "55"]), metrics(folder, "r"), order])

    def finetuned(folder: Path) -> str:
        results = (folder / "runs/k" / name for name in ("results.json", "rte-test.jsonl"))
        return digest([_weights(folder, "k", ["best"]), metrics(folder, "k"), [file.read_bytes() for file in results]])

    def all_files(name: str) -> Callable[[Path], str]:
        return lambda folder: _digest_of((p for p in (folder / name).rglob("*") if p.is_file()), folder)

    tokenizer = [
        "--tokenizer-type",
        "SentencePieceTokenizer",
        "--tokenizer-path",
        str(corpus.folder / "tokenizer.model"),
    ]
    tokenize = ["--train-data", str(large), "--output", "stores", "--num-workers", "2", *tokenizer]
    python = command("x")[0]
    finetuning = task_flags(corpus, "--save", "c", "--experiment-name", "k", "--auto-resume", "--epochs", "6")
    export = (convert, "ck", "--output", "hub", *sizes)
    data, checkpoint = (folder / "data",), (folder / "ck",)
    return [
        Program("pre-training", tuple(command("pretrain_glm.py", *_pretraining(corpus))), pretrained, resumes=True),
        Program("fine-tuning", tuple(command("finetune_glm.py", *finetuning)), finetuned, resumes=True, given=data),
        Program(
            "tokenizing", (python, "-m", "data_utils.corpora.prepare", *tokenize), all_files("stores"), resumes=True
        ),
        Program("change_mp", tuple(command("change_mp.py", "ck", "2")), all_files("ck_MP2"), given=checkpoint),
        Program("export", tuple(command(*export)), all_files("hub"), given=checkpoint),
    ]


def _pretraining(corpus: SmallCorpus) -> list[str]:
    given = corpus.words()
    given[given.index("--log-interval") + 1] = "1"
    given[given.index("--eval-interval") + 1] = "0"
    return [
        *given, "--train-iters", "60", "--save", "c", "--save-interval", "5", "--no-progress",
        "--experiment-name", "r", "--auto-resume", "--keep-checkpoints", "3", "--record-order",
    ]  # fmt: skip


@dataclass
class Figures:
    """What came of a program: kills, finished runs that were compared, findings."""

    kills: int = 0
    compared: int = 0
    findings: int = 0


def kill_program(program: Program, number: int, *, folder: Path, generator: random.Random) -> Figures:
    """Kill a program ``number`` times and compare; print what differs."""
    figures = Figures()
    straight = program.fresh(folder / "straight")
    before, start, first = _new_paths(straight), time.monotonic(), 0.0
    process = program.start(straight)
    while process.poll() is None:
        if not first and _new_paths(straight) != before:
            first = time.monotonic() - start
        time.sleep(0.01)
    duration = time.monotonic() - start
    if process.returncode:
        raise ValueError(f"{program.name} fails: {_tail(straight)}")
    expected, left = program.result(straight), {str(path.relative_to(straight)) for path in _new_paths(straight)}
    print(f"{program.name}: {duration:.1f} s, the first file after {first:.1f} s", flush=True)

    def compare(work: Path) -> None:
        figures.compared += 1
        try:
            same, said = program.result(work) == expected, "another result"
        except Exception as error:
            same, said = False, f"no result ({type(error).__name__}: {error})"
        more = {str(path.relative_to(work)) for path in _new_paths(work)} - left
        more = {name for name in more if "events.out" not in name}  # one for each start
        if not same or more:
            figures.findings += 1
            print(f"FINDING {program.name}: {said if not same else f'left behind: {sorted(more)}'}; {work}", flush=True)

    runs = 0
    work = program.fresh(folder / f"killed-{runs}")
    since = 0
    while figures.kills < number:
        process = program.start(work)
        early = generator.random() < 0.2
        moment = generator.uniform(0, first) if early else generator.uniform(first, duration)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            figures.kills += 1
            since += 1
            _, alive = psutil.wait_procs(children, PATIENCE)
            if alive:
                figures.findings += 1
                print(f"FINDING {program.name}: {len(alive)} processes outlive it", flush=True)
                for child in alive:
                    child.kill()
            if program.resumes or since < ROUND:
                continue
            program.start(work).wait()  # its code: whole files of a killed run may be refused as there already
        if process.returncode > 0:
            print(f"{program.name}: {_tail(work)}", flush=True)
        compare(work)
        runs, since = runs + 1, 0
        work = program.fresh(folder / f"killed-{runs}")
    if since:
        process = program.start(work)
        process.wait()
        compare(work)
    return figures


def _tail(folder: Path) -> str:
    return " | ".join(Path(f"{folder}.log").read_text(encoding="utf-8", errors="replace").strip().split("\n")[-3:])


def kill_programs(number: int, *, seed: int) -> int:
    """Kill all programs, ``number`` times altogether, and print a table; return 1 when something was found."""
    folder, generator = Path(tempfile.mkdtemp(prefix="glm-kills-")), random.Random(seed)
    known = programs(folder)
    lines = ["| program | kills | runs compared | findings |", "|---|---|---|---|"]
    findings = 0
    for place, program in enumerate(known):
        share = number // len(known) + (place < number % len(known))
        figures = kill_program(program, share, folder=folder / program.name, generator=generator)
        findings += figures.findings
        lines.append(f"| {program.name} | {figures.kills} | {figures.compared} | {figures.findings} |")
    print(*lines, sep="\n", flush=True)
    if not findings:
        shutil.rmtree(folder, ignore_errors=True)
    return int(findings > 0)
