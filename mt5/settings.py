"""The command line of the mT5 baseline: a task and a subtask, and options for what the original had fixed.

Imports neither torch nor transformers, so that ``--help`` and mistakes are quick.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from training.arguments import FlagParser

REPOSITORY = Path(__file__).resolve().parent.parent
DESCRIPTION = """Finetune mT5 on summaries, and evaluate it by ROUGE after each epoch.

    python3 finetune_mt5.py scisummnet simple
    accelerate launch finetune_mt5.py scisummnet simple     several processes (after: accelerate config); two on a CPU:
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 finetune_mt5.py scisummnet simple
    python3 finetune_mt5.py scisummnet simple --model FOLDER --epochs 3

Needs transformers and rouge-score; accelerate (several processes) and wandb (tracking; wandb offline) where they are
installed. A run that was killed goes on where it last saved.
"""


@dataclass(frozen=True)
class Part:
    """Rows of a data set: ``dataset:language`` or ``dataset:language:size``.

    Attributes:
        dataset: ncls, scisummnet or mtgcrosssum.
        language: of the summaries; of mtgcrosssum both, ``en2zh``.
        size: None is all rows; below 1 a share, else a number of rows; negative ones count from the end.
    """

    dataset: str
    language: str
    size: float | None = None

    @classmethod
    def parse(cls, text: str) -> Part:
        """Return the part that a text of the table of tasks names."""
        dataset, language, *size = text.split(":")
        return cls(dataset, language, float(size[0]) if size else None)


@dataclass(frozen=True)
class Task:
    """What a subtask trains on and what it is evaluated on, as texts for ``Part.parse``."""

    train: tuple[str, ...]
    valid: tuple[str, ...]


TASKS: dict[str, dict[str, Task]] = {
    "ncls": {
        "multitask": Task(("ncls:zh", "ncls:en"), ("ncls:zh",)),
        "sum2zh": Task(("ncls:zh",), ("ncls:zh",)),
        "sum2en": Task(("ncls:en",), ("ncls:en",)),
        "sci_eval": Task(("ncls:zh",), ("scisummnet:zh",)),
    },
    "scisummnet": {
        "simple": Task(("scisummnet:zh:0.8",), ("scisummnet:zh:-0.2",)),
        "ncls_mixed": Task(("scisummnet:zh:0.8", "ncls:zh:19200"), ("scisummnet:zh:-0.2",)),
    },
    "mtgcrosssum": {
        "S-en-T-zh-V-all": Task(
            ("mtgcrosssum:en2zh",),
            ("mtgcrosssum:de2zh", "mtgcrosssum:fr2zh", "mtgcrosssum:es2zh", "mtgcrosssum:zh2zh"),
        ),
    },
}


@dataclass(frozen=True)
class Settings:
    """A run of the baseline; every field but the first two is an option of the same name."""

    task: str
    subtask: str
    model: str = "google/mt5-large"
    data_dir: str = ""
    epochs: int = 40
    batch_size: int = 8
    eval_batch_size: int = 8
    lr: float = 5e-4
    max_len: int = 768
    summary_len: int = 160
    seed: int = 42
    limit: int = 0
    num_beams: int = 5
    max_length: int = 110
    save_dir: str = "saved"
    save_interval: int = 500
    output: str = "predictions.csv"
    wandb_project: str = "mt5-ncls"
    wandb_entity: str = ""
    legacy: bool = False
    restart: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError, in the words of the command line, for what there is not."""
        if self.task not in TASKS:
            raise ValueError(f"task {self.task!r} is unknown; the tasks are {task_list()}")
        if self.subtask not in TASKS[self.task]:
            raise ValueError(f"{self.task} has no subtask {self.subtask!r}; it has {', '.join(TASKS[self.task])}")
        for name, least in (
            ("epochs", 1), ("batch_size", 1), ("eval_batch_size", 1), ("max_len", 16), ("summary_len", 2),
            ("num_beams", 1), ("max_length", 1), ("save_interval", 0), ("limit", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; at least {least} is needed")
        if not 0.0 < self.lr < 1.0:
            raise ValueError(f"--lr is {self.lr}; give a number between 0 and 1")

    @property
    def parts(self) -> Task:
        return TASKS[self.task][self.subtask]

    def decisive(self) -> dict[str, object]:
        """Return what a run that goes on must have in common with the one it continues."""
        free = ("epochs", "eval_batch_size", "save_dir", "save_interval", "output", "wandb_project", "wandb_entity",
                "restart", "data_dir")  # fmt: skip
        return {name: value for name, value in asdict(self).items() if name not in free}

    def folders(self) -> list[Path]:
        """Return where data sets are looked for, the first place first: the option, the environment, ``data/``."""
        if self.data_dir:
            roots = [Path(self.data_dir)]
        elif os.environ.get("DATA_ROOT"):
            roots = [Path(os.environ["DATA_ROOT"])]
        else:
            roots = [REPOSITORY / "data"]
        return [folder for root in roots for folder in (root, root / "multilingual")]


_HELP = {
    "model": "folder or name of an mT5 (default: $MT5_MODEL, else google/mt5-large)",
    "data_dir": "folder of ncls/, scisummnet/, mtg_sum/ (default: $DATA_ROOT, else data/ in the repository)",
    "batch_size": "of one process",
    "eval_batch_size": "of one process",
    "max_len": "longest source in tokens, the prompt included",
    "summary_len": "longest summary in tokens",
    "limit": "of each data set only so many rows (0: all)",
    "max_length": "longest generated summary in tokens",
    "save_dir": "folder of the best weights and of the state to go on from",
    "save_interval": "updates between two states to go on from (0: only after epochs)",
    "output": "csv file of the validation summaries of the best epoch",
    "legacy": "as in the original: the first target token is never learned, sources are cut by characters, ROUGE "
    "counts the end token",
    "restart": "begin anew, although there is a state to go on from",
}


def task_list() -> str:
    """Return all tasks with their subtasks, on one line."""
    return "; ".join(f"{task} ({', '.join(subtasks)})" for task, subtasks in TASKS.items())


def parse_settings(argv: Sequence[str] | None = None) -> Settings:
    """Return the settings of a command line; raise ValueError with one line for mistakes."""
    rows = [
        f"  {f'{task} {name}':28} train: {', '.join(one.train)}; valid: {', '.join(one.valid)}"
        for task, subtasks in TASKS.items()
        for name, one in subtasks.items()
    ]
    parser = FlagParser(
        prog="finetune_mt5.py",
        description=DESCRIPTION,
        epilog="tasks and subtasks:\n" + "\n".join(rows),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", help=f"one of {', '.join(TASKS)}")
    parser.add_argument("subtask", help="one of the task's, see below")
    for one in fields(Settings):
        if one.name in ("task", "subtask"):
            continue
        default = os.environ.get("MT5_MODEL") or one.default if one.name == "model" else one.default
        flag, text = f"--{one.name.replace('_', '-')}", _HELP.get(one.name, "")
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true", help=text)
            continue
        shown = "" if "default" in text or default == "" else f" (default: {default})"
        parser.add_argument(flag, type=type(default), default=default, help=f"{text}{shown}".strip())
    return Settings(**vars(parser.parse_args(argv)))
