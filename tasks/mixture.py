"""Downstream tasks as language modelling, for multi-task pre-training.

b batch, s sequence
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_utils.batches import Batch
from data_utils.mixtures import MixedDataset
from data_utils.objective import Objective
from tasks.encoding import make_encoder, sample_of
from tasks.examples import InputExample
from tasks.samples import EncodingOptions, TaskSample

if TYPE_CHECKING:
    from tasks.cloze import TaskTokenizer
    from tasks.registry import Task

# The tasks that may be mixed in, and where each is below the folder of all data.
FOLDERS = {
    "mnli": "MNLI",
    "cola": "CoLA",
    "mrpc": "MRPC",
    "qnli": "QNLI",
    "qqp": "QQP",
    "sst2": "SST-2",
    "agnews": "Agnews",
    "yelp-polarity": "yelp_review_polarity_csv",
    "yelp-full": "yelp_review_full_csv",
    "yahoo": "Yahoo",
    "squad": "SQuAD",
    "race": "RACE",
}


def language_model_form(sample: TaskSample) -> TaskSample:
    """Return a cloze sample as plain language modelling of its right answer.

    Of several rows that of the label is left; a single token is predicted where the answer starts.
    """
    if sample.kind == "language_model":
        return sample
    assert sample.position_ids is not None and sample.target_ids is not None, sample.kind
    assert sample.loss_mask is not None and sample.attention_mask is not None
    if sample.kind == "single_token":
        target = np.full_like(sample.input_ids, sample.target_ids[sample.label])
        return replace(sample, kind="language_model", target_ids=target)
    assert sample.kind == "multi_token", sample.kind
    row = sample.label
    prompts = None if sample.prompt_positions is None else sample.prompt_positions[row]
    return replace(
        sample,
        kind="language_model",
        input_ids=sample.input_ids[row],
        position_ids=sample.position_ids[row],
        attention_mask=sample.attention_mask[row],
        target_ids=sample.target_ids[row],
        loss_mask=sample.loss_mask[row],
        prompt_positions=prompts,
    )


class PatternEnsemble:
    """A task's examples in each of its patterns, as language modelling; made when they are asked for.

    Item i is example ``i % n`` in the pattern number ``i // n``.
    """

    def __init__(
        self, task: Task, examples: Sequence[InputExample], tokenizer: TaskTokenizer, options: EncodingOptions
    ) -> None:
        """Take the examples; raise ValueError for words that are not one token (give ``multi_token`` for those)."""
        self.task = task
        self.examples_of_task = examples
        self.options = [replace(options, pattern_id=pattern_id) for pattern_id in task.pattern_ids]
        self.encoders = [make_encoder(task, tokenizer, each) for each in self.options]

    def __len__(self) -> int:
        return len(self.examples_of_task) * len(self.encoders)

    def __getitem__(self, index: int) -> TaskSample:
        """Return item ``index``."""
        pattern, number = divmod(index, len(self.examples_of_task))
        example = self.examples_of_task[number]
        sample = sample_of(self.task, example, self.encoders[pattern], self.options[pattern], for_training=True)
        return language_model_form(sample)


def task_mixture(
    tasks: Sequence[Task],
    data_dir: str | Path,
    split: str,
    *,
    tokenizer: TaskTokenizer,
    options: EncodingOptions,
) -> MixedDataset:
    """Return the tasks mixed by their sizes. Raise ValueError for a task that is not among ``FOLDERS``."""
    for task in tasks:
        if task.name not in FOLDERS:
            raise ValueError(f"--multi-task-data {task.name}: not mixed into pre-training; choose {', '.join(FOLDERS)}")
    return MixedDataset(
        [
            PatternEnsemble(task, task.examples(Path(data_dir) / FOLDERS[task.name], split), tokenizer, options)
            for task in tasks
        ]
    )


@dataclass(frozen=True)
class DownstreamCollator:
    """Turn samples of a mixture into a batch of pre-training.

    Attributes:
        pad_id: fills rows up.
        pad_to: length of the rows; None is that of the longest.
    """

    pad_id: int
    pad_to: int | None = None

    def __call__(self, samples: Sequence[TaskSample], *, batch_index: int) -> Batch:
        """Stack the samples; the number of the batch does not matter."""
        from tasks.collation import collate

        batch = collate(samples, pad_id=self.pad_id, pad_to=self.pad_to)
        return Batch(
            batch.input_ids,
            batch.target_ids,
            batch.loss_mask,
            batch.position_ids,
            batch.attention_mask,
            Objective.DOWNSTREAM,
        )
