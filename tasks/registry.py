"""The one list of tasks: where a task's data is, how an example becomes a sample, its metrics (spec: superglue 1).

The command line, the fine-tuning loop and the tests all start from ``TASKS``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.examples import DataOptions, InputExample
from tasks.patterns import PVP
from tasks.processors import DEFAULT_OPTIONS, DataProcessor
from tasks.superglue.dataset import PROCESSORS
from tasks.superglue.pvp import PVPS

if TYPE_CHECKING:
    from tasks.cloze import TaskTokenizer
    from tasks.samples import EncodingOptions, SampleSet

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
    """

    name: str
    processor: Callable[[str, DataOptions], DataProcessor]
    pvp: Callable[[str, Sequence[Any]], PVP] | None = None
    metrics: tuple[str, ...] = ACCURACY
    multi_token: bool = False
    varying_choices: bool = False
    choice_head: bool = False

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

    def labelled_texts(
        self, examples: Sequence[InputExample], tokenizer: TaskTokenizer, options: EncodingOptions
    ) -> list[list[int]]:
        """Return the examples with their answers filled in; see ``tasks.encoding.labelled_texts``."""
        from tasks import encoding

        return encoding.labelled_texts(self, examples, tokenizer, options)


def _task(name: str, **options: Any) -> Task:
    return Task(name, PROCESSORS[name], PVPS.get(name), **options)


_SPECIAL: dict[str, dict[str, Any]] = {
    "cb": {"metrics": ("accuracy", "f1-macro")},
    "multirc": {"metrics": ("f1a", "em", "acc")},
    "record": {"metrics": ("EM", "F1"), "varying_choices": True, "choice_head": True},
    "copa": {"choice_head": True},
    "race": {"varying_choices": True},
    "tnews": {"multi_token": True},  # one of its words is two tokens of the released vocabulary (trap T10)
}

TASKS: dict[str, Task] = {name: _task(name, **_SPECIAL.get(name, {})) for name in PROCESSORS}


def find_task(name: str) -> Task:
    """Return the task called ``name``, in any case. Raise ValueError that offers the nearest names."""
    if name.lower() in TASKS:
        return TASKS[name.lower()]
    near = difflib.get_close_matches(name.lower(), TASKS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(sorted(TASKS))}"
    raise ValueError(f"--task {name}: no such task; {hint}")
