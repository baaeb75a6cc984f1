"""Training a rival for a given time, on the samples that ``pretrain_glm.py`` would take for the same command line.

The clock is the processor's: seconds of this process divided by its threads, which is what a watch shows on an idle
machine. Some updates are timed first; so many as fit into the time are then made, with a learning rate that falls over
them. Everything is kept, and what is there is not made again.

b samples, s tokens
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import REPOSITORY
from benchmarks.infilling.blanks import LONGEST, Blank
from data_utils.objective.packing import Sample
from data_utils.tokenizers.tokenizer import Tokenizer
from data_utils.train_tokenizer import train as train_tokenizer
from files.reading import lines_of, parse_json, read_json
from files.writing import whole_file, write_whole
from mpu.initialize import ParallelTopology
from mpu.kernels.host_memory import keep_freed_memory
from training.arguments import parse_settings
from training.data import PretrainingDocuments, build_run_tokenizer, loader_of_rank
from training.engine import AUTOCAST_TYPES, supported_precision
from training.logging import json_text
from training.optimizer import build_optimizer, clip_gradients
from training.schedule import AnnealingLR
from training.settings import PretrainingSettings

TIMED = (10, 50)  # updates of the two runs whose difference tells the time of one; start-up cancels out
POINTS = 40  # of a curve
SAVE_SECONDS = 120.0
MARGIN = 4  # tokens: a context and the longest answer are that much shorter than a sample of training


@dataclass(frozen=True)
class Experiment:
    """What all rivals have in common.

    Attributes:
        folder: where the tokenizer, the blanks and a folder for each rival are.
        train_data, valid_data: files of text.
        minutes: of training, by the processor's clock; ``updates`` takes their place where it is given.
        layers, hidden: of GLM; rivals have as many parameters.
        rates: learning rates; the best after ``sweep_minutes`` (or ``sweep_updates``) each is used for the training.
        count: blanks of each kind.
        seeds: of decoding, which draws from the ``top_k`` best tokens after dividing by ``temperature``.
    """

    folder: Path
    train_data: str
    valid_data: str
    minutes: float = 30.0
    updates: int | None = None
    layers: int = 6
    hidden: int = 256
    seq_length: int = 128
    batch_size: int = 16
    vocab_size: int = 8000
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    sweep_minutes: float = 1.0
    sweep_updates: int | None = None
    bf16: bool = False
    count: int = 200
    seeds: tuple[int, ...] = (1, 2, 3)
    temperature: float = 0.7
    top_k: int = 20
    threads: int = 1

    @property
    def tokenizer_path(self) -> Path:
        """Return the file of the shared vocabulary."""
        return self.folder / "tokenizer.model"

    @property
    def room(self) -> int:
        """Return the tokens of a held-out context."""
        return self.seq_length - LONGEST - MARGIN

    def prepare(self) -> None:
        """Train the shared vocabulary and tokenize the text with it, unless that is done: it is no rival's time."""
        if not self.tokenizer_path.is_file():
            train_tokenizer([self.train_data], self.tokenizer_path, vocab_size=self.vocab_size, fit=True)
        settings = self.settings(rate=1e-3, updates=1)
        PretrainingDocuments(
            settings, tokenizer=build_run_tokenizer(settings), topology=ParallelTopology.single()
        ).parts()

    def settings(self, *, rate: float, updates: int) -> PretrainingSettings:
        """Return the settings that ``flags`` are."""
        return parse_settings(PretrainingSettings, self.flags(rate=rate, updates=updates), environment={})

    def flags(self, *, rate: float, updates: int) -> list[str]:
        """Return the command line of ``pretrain_glm.py`` that all rivals take model size, text and optimizer from."""
        return [
            "--block-lm", "--num-layers", str(self.layers), "--hidden-size", str(self.hidden),
            "--num-attention-heads", str(max(1, self.hidden // 64)), "--seq-length", str(self.seq_length),
            "--max-position-embeddings", str(self.seq_length), "--hidden-dropout", "0", "--attention-dropout", "0",
            "--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-path", str(self.tokenizer_path),
            "--train-data", self.train_data, "--split", "1", "--data-cache-dir", str(self.folder / "cache"),
            "--batch-size", str(self.batch_size), "--num-workers", "0", "--lr", str(rate), "--adam-beta2", "0.98",
            "--weight-decay", "0.05", "--warmup", "0.1", "--lr-decay-style", "cosine", "--train-iters", str(updates),
            *(["--bf16"] if self.bf16 else []), "--device", "cpu", "--no-progress",
        ]  # fmt: skip

    def described(self) -> dict[str, Any]:
        """Return everything that a result depends on, as plain values."""
        data = {"train_data": Path(self.train_data).name, "valid_data": Path(self.valid_data).name}
        values = asdict(self) | data | {"rates": list(self.rates), "seeds": list(self.seeds)}
        return {name: value for name, value in values.items() if name != "folder"}


@dataclass(frozen=True)
class Training:
    """What came of a training.

    Attributes:
        curve: updates made, and the mean loss since the point before.
        seconds: of the processor, start-up included; None where a part of it was another process's.
    """

    curve: list[tuple[int, float]]
    seconds: float | None


class Rival(ABC):
    """A way to fill blanks: how it is trained and asked.

    Attributes:
        title: its name in the table.
        note: how it finds the length of an answer.
    """

    title = ""
    note = ""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    @abstractmethod
    def train(self, folder: Path, *, rate: float, updates: int) -> Training:
        """Make ``updates`` in ``folder``, or go on with them."""

    @abstractmethod
    def load(self, folder: Path) -> Answers:
        """Return the trained model, ready to answer."""


class Answers(ABC):
    """A trained model that fills blanks."""

    num_parameters: int

    @abstractmethod
    def answer(self, blanks: Sequence[Blank], *, seed: int) -> list[list[int]]:
        """Return the ids of an answer to every blank, ``LONGEST`` at most."""

    @abstractmethod
    def losses(self, blanks: Sequence[Blank]) -> list[float] | None:
        """Return minus the log-probability of the truth and its end, a sum per blank; None where there is none."""

    def variants(self) -> dict[str, Answers]:
        """Return the same model asked in other ways, each under what the table says of it."""
        return {}


def processor_seconds(threads: int) -> float:
    """Return the time that this process has computed."""
    return time.process_time() / threads


class TransformersRival(Rival):
    """A model of transformers, trained here: a loop over the samples of our own pre-training."""

    @abstractmethod
    def build(self, tokenizer: Tokenizer) -> nn.Module:
        """Return the model with random weights."""

    @abstractmethod
    def collate(self, samples: Sequence[Sample], generator: random.Random, tokenizer: Tokenizer) -> dict[str, Tensor]:
        """Turn samples into what ``loss`` takes."""

    @abstractmethod
    def answers(self, model: nn.Module, tokenizer: Tokenizer) -> Answers:
        """Return the trained model, ready to answer."""

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss that is minimised: the model's own."""
        return model(**batch).loss

    def tokenizer(self) -> Tokenizer:
        """Return the shared vocabulary with the command tokens of GLM."""
        return build_run_tokenizer(self.experiment.settings(rate=1e-3, updates=1))

    def _batches(self, settings: PretrainingSettings, tokenizer: Tokenizer, start: int) -> Iterator[dict[str, Tensor]]:
        _, loader = loader_of_rank(settings, tokenizer=tokenizer, num_batches=settings.run.train_iters)

        def collator(samples: Sequence[Sample], *, batch_index: int) -> Any:
            return self.collate(samples, random.Random(batch_index), tokenizer)

        return replace(loader, collator=collator).batches(start)  # type: ignore[return-value]  # of our own kind

    def train(self, folder: Path, *, rate: float, updates: int) -> Training:
        """Make the updates and keep a checkpoint every two minutes."""
        settings, threads = self.experiment.settings(rate=rate, updates=updates), self.experiment.threads
        torch.manual_seed(settings.run.seed)
        keep_freed_memory()
        tokenizer = build_run_tokenizer(settings)
        model = self.build(tokenizer).train()
        optimizer = build_optimizer(model, settings.optimizer)
        schedule = AnnealingLR.of(settings.schedule, optimizer, num_iters=updates)
        kept, done, before = folder / "checkpoint.pt", 0, 0.0
        curve: list[tuple[int, float]] = []
        losses: list[float] = []
        if kept.is_file():
            state = torch.load(kept, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            torch.set_rng_state(state["random"])
            curve, losses = [(at, loss) for at, loss in state["curve"]], state["losses"]
            done, before = state["updates"], state["seconds"]
        precision, _ = supported_precision(settings.precision, device=torch.device("cpu"))
        batches = self._batches(settings, tokenizer, done)
        topology, saved, began = ParallelTopology.single(), time.monotonic(), processor_seconds(threads) - before
        for number in range(done + 1, updates + 1):
            with torch.autocast("cpu", dtype=AUTOCAST_TYPES.get(precision), enabled=precision in AUTOCAST_TYPES):
                loss = self.loss(model, next(batches))
            loss.backward()
            clip_gradients(model.parameters(), settings.optimizer.clip_grad, topology=topology)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            if number % max(1, updates // POINTS) == 0 or number == updates:
                curve.append((number, sum(losses) / len(losses)))
                losses = []
            if number == updates or time.monotonic() - saved > SAVE_SECONDS:
                saved = time.monotonic()
                with whole_file(kept) as file:
                    torch.save(
                        {
                            "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                            "schedule": schedule.state_dict(), "random": torch.get_rng_state(),
                            "curve": curve, "losses": losses, "updates": number,
                            "seconds": processor_seconds(threads) - began,
                        },
                        file,
                    )  # fmt: skip
        return Training(curve, processor_seconds(threads) - began)

    def load(self, folder: Path) -> Answers:
        """Return the trained model of ``folder``."""
        tokenizer = self.tokenizer()
        model = self.build(tokenizer)
        model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["model"])
        return self.answers(model.eval(), tokenizer)


class TransformersAnswers(Answers):
    """A trained model of transformers."""

    def __init__(self, model: Any, tokenizer: Tokenizer, experiment: Experiment) -> None:
        self.model, self.tokenizer, self.experiment = model, tokenizer, experiment
        self.num_parameters = model.num_parameters()


def rows_for(tokenizer: Tokenizer, added: int = 0) -> int:
    """Return the rows of an embedding table with ``added`` ids behind those of the tokenizer."""
    return -(-(tokenizer.num_tokens + added) // 128) * 128


def padded(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Tensor:
    """Return rows of different lengths as one tensor [b,s]."""
    width = max(map(len, rows))
    filled = [[value] * (width - len(row)) + [*row] if left else [*row] + [value] * (width - len(row)) for row in rows]
    return torch.tensor(filled)


def inputs_of(rows: Sequence[Sequence[int]], tokenizer: Tokenizer, *, left: bool = False) -> dict[str, Tensor]:
    """Return ids and attention mask [b,s] of rows that are padded behind their end, or ``left`` of their start."""
    ones = padded([[1] * len(row) for row in rows], 0, left=left)
    return {"input_ids": padded(rows, tokenizer.special.pad, left=left), "attention_mask": ones}


def until(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Return the ids before the first of the ``ends``."""
    return list(ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))])


def token_losses(logits: Tensor, labels: Tensor) -> list[float]:
    """Return the sums of cross entropy of every row: logits [b,s,v], labels [b,s] with -100 where nothing counts."""
    losses = nn.functional.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return losses.sum(dim=1).tolist()


def batches_of(blanks: Sequence[Blank], size: int = 32) -> Iterator[Sequence[Blank]]:
    """Cut a list into batches, in order."""
    return (blanks[start : start + size] for start in range(0, len(blanks), size))


def run_program(words: Sequence[str], *, threads: int) -> float:
    """Run a program of the repository and return the processor's seconds that it took.

    Raises ValueError with the last line of what it said when it fails.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *words], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        said = lines_of(done.stderr.strip()) or [f"exit code {done.returncode}"]
        raise ValueError(f"python {' '.join(words)}: {said[-1]}")
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / threads


class Record:
    """What is known of a rival so far: ``run.json``, written again with every new entry."""

    def __init__(self, file: Path, experiment: Experiment) -> None:
        """Read it. Raises ValueError when it belongs to an experiment with other values."""
        self.file = file
        self.values: dict[str, Any] = read_json(file) if file.is_file() else {"experiment": experiment.described()}
        now = parse_json(json_text(experiment.described()), place="experiment")
        changed = [name for name, value in now.items() if self.values["experiment"].get(name) != value]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{file} was made with {name} {self.values['experiment'].get(name)}, now it is {now[name]}; "
                "give what it was made with, or another --folder"
            )

    def put(self, **entries: Any) -> None:
        """Add entries and write the file."""
        self.values |= entries
        write_whole(self.file, json_text(self.values))
