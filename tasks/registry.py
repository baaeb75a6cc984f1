"""The one list of tasks: where a task's data is, how an example becomes a sample, its metrics.

The command line, the fine-tuning loop and the tests all start from ``TASKS``.
"""

from __future__ import annotations

import difflib
import runpy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.examples import DataOptions, InputExample
from tasks.metrics import evaluate
from tasks.multichoice import MultichoiceProcessor, expand_files, file_title
from tasks.patterns import PVP
from tasks.processors import DEFAULT_OPTIONS, DataProcessor
from tasks.settings import LANGUAGE_MODEL_TASKS, SEQ2SEQ_TASKS
from tasks.superglue.dataset import PROCESSORS
from tasks.superglue.pvp import PVPS

if TYPE_CHECKING:
    from tasks.cloze import TaskTokenizer
    from tasks.samples import EncodingOptions, Kind, SampleSet

ACCURACY = ("accuracy",)


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: in lower case; names predictions and is what ``--task`` says.
        processor: reads the files: called with the name and ``DataOptions``.
        pvp: patterns and verbalizers: called with the name and the labels; None where there are none.
        metrics: names in ``tasks.metrics.METRICS``; the first selects the best checkpoint.
        multi_token: verbalizers are scored as sequences even without ``--multi-token``.
        varying_choices: the number of answers differs from example to example.
        choice_head: a classification head scores every answer with one output, instead of every class.
        head_texts: what a classification head reads of an example; see ``tasks.classification``, which also has what
            the tasks without this read.
    """

    name: str
    processor: Callable[[str, DataOptions], DataProcessor]
    pvp: Callable[[str, Sequence[Any]], PVP] | None = None
    metrics: tuple[str, ...] = ACCURACY
    multi_token: bool = False
    varying_choices: bool = False
    choice_head: bool = False
    head_texts: Callable[[InputExample], Any] | None = None

    @property
    def labels(self) -> tuple[Any, ...]:
        """Return the class names in the order of the classes."""
        return self.processor(self.name, DataOptions()).labels

    @property
    def patterns(self) -> PVP:
        """Return the patterns. Raise ValueError for a task without any."""
        if self.pvp is None:
            raise ValueError(f"{self.name} has no patterns: leave out --cloze-eval")
        return self.pvp(self.name, self.labels)

    @property
    def pattern_ids(self) -> tuple[int, ...]:
        """Return the ids that a pattern ensemble uses."""
        return self.patterns.pattern_ids

    def has_varying_choices(self, options: DataOptions) -> bool:
        """Return whether the number of answers differs from example to example."""
        return self.varying_choices or (self.name == "wsc" and options.wsc_negative)

    def examples(self, data_dir: str | Path, split: str, options: DataOptions = DEFAULT_OPTIONS) -> list[InputExample]:
        """Read a split. Raises ValueError as ``DataProcessor.examples``, and for a split without examples."""
        found = self.processor(self.name, options).examples(data_dir, split)
        if not found:
            raise ValueError(f"{self.name}: no examples in the split {split!r} of {data_dir}")
        return found

    def has_split(self, split: str, options: DataOptions = DEFAULT_OPTIONS) -> bool:
        """Return whether the task has such a split (AG News has no test set, the diagnostics have no dev set)."""
        return self.processor(self.name, options).has_split(split)

    def splits(self, names: Sequence[str]) -> list[str]:
        """Return the splits that ``names`` stand for; multichoice takes files and patterns of files."""
        return expand_files(names) if self.name == "multichoice" else list(names)

    def output_name(self, split: str) -> str:
        """Return what the results of a split are called: ``rte-dev``."""
        return f"{self.name}-{file_title(split) if self.name == 'multichoice' else split}"

    def build_samples(
        self,
        examples: Sequence[InputExample],
        tokenizer: TaskTokenizer,
        options: EncodingOptions,
        *,
        for_training: bool = False,
    ) -> SampleSet:
        """Return one sample per example; see ``tasks.encoding.build_samples``."""
        from tasks import encoding

        return encoding.build_samples(self, examples, tokenizer, options, for_training=for_training)

    def priming_texts(
        self, examples: Sequence[InputExample], tokenizer: TaskTokenizer, options: EncodingOptions
    ) -> list[list[int]]:
        """Return the examples with their answers filled in; see ``tasks.encoding.labelled_texts``."""
        from tasks import encoding

        return encoding.labelled_texts(self, examples, tokenizer, options)

    def label_indices(self, examples: Sequence[InputExample]) -> list[int]:
        """Return the classes (or right choices) of examples that have labels."""
        if self.name == "multichoice":
            return [int(example.label) for example in examples]
        return [self.labels.index(example.label) for example in examples]

    def predicted_class(self, kind: Kind, best_row: int) -> int:
        """Return the class that the best score stands for.

        WSC's candidates are rows, the first of which is the span that the label is about: 1 when it is the best.
        """
        if self.name == "wsc" and kind in ("multi_token", "fast_decode"):
            return int(best_row == 0)
        return best_row

    def has_labels(self, examples: Sequence[InputExample]) -> bool:
        """Return whether a metric makes sense: every example has a label (ReCoRD: answers)."""
        if self.name == "record":
            return any(example.meta["answers"] for example in examples)
        return all(example.labelled and example.label is not None for example in examples)

    def counted_rows(self, examples: Sequence[InputExample]) -> list[int]:
        """Return which examples metrics are about: all or, without labels, none; of multichoice those with a label."""
        if self.name == "multichoice":
            return [number for number, example in enumerate(examples) if example.label is not None]
        return list(range(len(examples))) if self.has_labels(examples) else []

    def evaluate(self, predictions: Sequence[int], examples: Sequence[InputExample]) -> dict[str, float]:
        """Return the task's metrics by name. ``predictions`` are classes (or choices) in the order of the examples."""
        return evaluate(self.metrics, predictions, self.label_indices(examples), examples)

    def majority_baseline(self, examples: Sequence[InputExample]) -> dict[str, float]:
        """Return the metrics of always predicting the most frequent class of these examples.

        There is none where the number of answers differs from example to example.
        """
        if self.varying_choices:
            return {}
        [(majority, _)] = Counter(self.label_indices(examples)).most_common(1)
        return self.evaluate([majority] * len(examples), examples)

    def prompt_length(self, options: EncodingOptions) -> int:
        """Return the length of the continuous prompt. Raise ValueError for options that exclude each other."""
        from tasks.cloze import check_prompt_options

        check_prompt_options(options)
        return options.num_prompt_tokens + options.prefix_prompt if options.continuous_prompt else 0

    def prompt_init_tokens(self, tokenizer: TaskTokenizer, options: EncodingOptions) -> list[int]:
        """Return the ids of the labels' words, which start a continuous prompt; none for a task without words."""
        from tasks.cloze import verbalizer_token_ids

        return verbalizer_token_ids(self.patterns, options.pattern_id, tokenizer)


def _task(name: str, **options: Any) -> Task:
    return Task(name, PROCESSORS[name], PVPS.get(name), **options)


_SPECIAL: dict[str, dict[str, Any]] = {
    "cb": {"metrics": ("accuracy", "f1-macro")},
    "multirc": {"metrics": ("f1a", "em", "acc")},
    "record": {"metrics": ("EM", "F1"), "varying_choices": True, "choice_head": True},
    "copa": {"choice_head": True},
    # What their benchmarks report comes after the accuracy, which selects as in the original.
    "cola": {"metrics": ("accuracy", "matthews")},
    "mrpc": {"metrics": ("accuracy", "f1")},
    "qqp": {"metrics": ("accuracy", "f1")},
    "ax-b": {"metrics": ("accuracy", "matthews")},
    "ax-g": {"metrics": ("accuracy", "parity")},
    "race": {"varying_choices": True},
    "tnews": {"multi_token": True},  # one of its words is two tokens of the released vocabulary
}

MULTICHOICE = Task("multichoice", MultichoiceProcessor, varying_choices=True, choice_head=True)

# Tasks made by ``tasks.declaration.declare``.
DECLARED: tuple[Task, ...] = ()

TASKS: dict[str, Task] = {name: _task(name, **_SPECIAL.get(name, {})) for name in PROCESSORS}
TASKS |= {task.name: task for task in (MULTICHOICE, *DECLARED)}


def find_task(name: str) -> Task:
    """Return the task called ``name``, in any case, or the one that a Python file declares as ``TASK``.

    Raise ValueError that offers the nearest names.
    """
    if name.endswith(".py"):
        return _declared_in(name)
    if name.lower() == "squad":
        raise ValueError("--task squad: with one answer to choose from nothing is learnt; it only serves pre-training")
    if name.lower() in TASKS:
        return TASKS[name.lower()]
    known = sorted({*TASKS, *SEQ2SEQ_TASKS, *LANGUAGE_MODEL_TASKS})
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(known)}"
    raise ValueError(f"--task {name}: no such task; {hint}")


def _declared_in(path: str) -> Task:
    """Run a Python file and return its ``TASK``."""
    if not Path(path).is_file():
        raise ValueError(f"--task {path}: no such file")
    task = runpy.run_path(path).get("TASK")
    if not isinstance(task, Task):
        raise ValueError(f"--task {path}: the file has no TASK = declare(...); see tasks/superglue/README.md")
    return task
