"""The examples and samples of a fine-tuning run, and its batches in order."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from data_utils.tokenizers.tokenizer import Tokenizer
from mpu.initialize import ParallelTopology
from tasks.collation import TaskBatch, collate
from tasks.examples import DataOptions, InputExample
from tasks.readers import MissingFileError
from tasks.registry import Task
from tasks.samples import EncodingOptions, TaskSample
from tasks.settings import FinetuningSettings
from training.settings import TaskSettings

logger = logging.getLogger("glm")

WIDTH_MULTIPLE = 8  # batches are padded to a multiple of this many positions


@dataclass(frozen=True)
class EvaluationSet:
    """A split to choose answers for: its name in files, its examples in order, and their samples in every pattern."""

    name: str
    examples: Sequence[InputExample]
    pattern_samples: Sequence[Sequence[TaskSample]]

    @property
    def samples(self) -> Sequence[TaskSample]:
        """Return the samples in the first pattern."""
        return self.pattern_samples[0]


def limited(examples: Sequence[Any], limit: int | None) -> Sequence[Any]:
    """Return ``limit`` of the examples in their order, drawn at random: files are often sorted by class.

    The choice depends on the two numbers only, so that runs with other seeds are compared on the same examples.
    """
    if limit is None or limit >= len(examples):
        return examples
    chosen = sorted(random.Random(f"limit {limit} of {len(examples)}").sample(range(len(examples)), limit))
    return [examples[index] for index in chosen]


class TaskData:
    """Read and encode the splits of one task."""

    def __init__(
        self,
        task: Task,
        settings: FinetuningSettings,
        *,
        tokenizer: Tokenizer,
        encoding: EncodingOptions,
    ) -> None:
        if settings.data.data_dir is None and task.name != "multichoice":
            raise ValueError("no --data-dir: give the folder of the task's files")
        self.task = task
        self.settings = settings
        self.tokenizer = tokenizer
        self.encoding = encoding
        self.pad_id = tokenizer.command_id("pad")
        self.pattern_ids = _ensemble(task, settings.task) or (encoding.pattern_id,)
        self.options = DataOptions(
            few_superglue=settings.task.few_superglue,
            cloze=settings.task.cloze_eval,
            wsc_negative=settings.task.wsc_negative,
        )

    def examples(self, split: str, *, for_training: bool) -> Sequence[InputExample]:
        """Read a split, or with ``--limit`` some of its examples."""
        options = replace(self.options, for_training=for_training)
        return limited(self.task.examples(self.settings.data.data_dir, split, options), self.settings.task.limit)

    def samples(self, split: str) -> Sequence[TaskSample]:
        """Return the samples of a split for a loss, those of all patterns; say how many texts were shortened."""
        examples = self.examples(split, for_training=True)
        return list(itertools.chain.from_iterable(self._encode(examples, split, for_training=True)))

    def evaluation_sets(self, names: Sequence[str] | None, *, default: str) -> list[EvaluationSet]:
        """Return the splits called ``names`` for a metric.

        Without names it is the ``default`` one; when the task has no such split, or its file is not there, none.
        """
        if names:
            return [self.evaluation_set(split) for split in self.task.splits(names)]
        if not self.task.has_split(default, self.options):
            logger.info(f"{self.task.name} has no split {default!r}")
            return []
        try:
            return [self.evaluation_set(default)]
        except MissingFileError as error:
            logger.info(f"note: {error}")
            return []

    def evaluation_set(self, split: str) -> EvaluationSet:
        """Return a split for a metric."""
        examples = self.examples(split, for_training=False)
        return EvaluationSet(self.task.output_name(split), examples, self._encode(examples, split, for_training=False))

    def collate(self, samples: Sequence[TaskSample]) -> TaskBatch:
        """Stack samples, padded to the longest of them or to ``--seq-length``, or in rows that they share."""
        return collate(
            samples,
            pad_id=self.pad_id,
            pad_to=self.settings.batch.seq_length if self.settings.batch.pad_to_max else None,
            multiple_of=WIDTH_MULTIPLE,
            share_rows=self.settings.batch.pack_samples,
        )

    def _encode(
        self, examples: Sequence[InputExample], split: str, *, for_training: bool
    ) -> list[Sequence[TaskSample]]:
        """Return the samples of the examples in every pattern."""
        options = [replace(self.encoding, pattern_id=pattern_id) for pattern_id in self.pattern_ids]
        found = [
            self.task.build_samples(examples, self.tokenizer, option, for_training=for_training) for option in options
        ]
        count, truncated = sum(len(one.samples) for one in found), sum(one.num_truncated for one in found)
        shortened = f", {truncated} shortened" if truncated else ""
        logger.info(f"{self.task.name} {split}: {len(examples):,} examples, {count:,} samples{shortened}")
        return [one.samples for one in found]


def _ensemble(task: Task, settings: TaskSettings) -> tuple[int, ...]:
    """Return the patterns of ``--pattern-ensemble``, all where it names none; nothing without the flag."""
    if settings.pattern_ensemble is None or not settings.cloze_eval:
        return ()
    unknown = sorted(set(settings.pattern_ensemble) - set(task.pattern_ids))
    if unknown:
        raise ValueError(
            f"--pattern-ensemble {unknown[0]}: {task.name} has the patterns {', '.join(map(str, task.pattern_ids))}"
        )
    return settings.pattern_ensemble or task.pattern_ids


def epoch_order(num_samples: int, *, epoch: int, seed: int, topology: ParallelTopology) -> list[int]:
    """Return the samples of this data rank in the order of an epoch.

    A permutation from ``seed + epoch``, made a multiple of the number of ranks by repeating its start.
    """
    generator = torch.Generator().manual_seed(seed + epoch)
    order = torch.randperm(num_samples, generator=generator).tolist()
    size = topology.data_parallel_size
    while len(order) % size:
        order += order[: size - len(order) % size]
    return order[topology.data_parallel_rank :: size]


def batches_per_epoch(num_samples: int, *, batch_size: int, topology: ParallelTopology) -> int:
    """Return the micro batches of one data rank in an epoch; the last may be smaller."""
    own = -(-num_samples // topology.data_parallel_size)
    return -(-own // batch_size)


def training_batches(
    samples: Sequence[TaskSample],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    topology: ParallelTopology,
    first_batch: int,
    collate_samples: Callable[[Sequence[TaskSample]], Any],
) -> Iterator[Any]:
    """Yield this data rank's micro batches of all epochs in order, from number ``first_batch`` on."""
    each = batches_per_epoch(len(samples), batch_size=batch_size, topology=topology)
    for epoch in range(first_batch // each, epochs):
        order = epoch_order(len(samples), epoch=epoch, seed=seed, topology=topology)
        start = first_batch % each if epoch == first_batch // each else 0
        for number in range(start, each):
            chosen = order[number * batch_size : (number + 1) * batch_size]
            yield collate_samples([samples[index] for index in chosen])
