"""Downstream tasks as language modelling among the batches of pre-training (``--multi-task-data``).

b batch, s sequence
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_utils.batches import Batch
from data_utils.loaders import BatchLoader, BatchPlan, RandomSampleNumbers
from data_utils.mixtures import MixedDataset, downstream_draw
from data_utils.objective import Objective
from data_utils.rows import Row
from data_utils.tokenizers.tokenizer import Tokenizer
from mpu.initialize import ParallelTopology
from tasks.registry import TASKS
from tasks.superglue.batches import collate
from tasks.superglue.readers import DataOptions, InputExample
from tasks.superglue.samples import EncodingOptions, TaskSample
from tasks.superglue.task import Task
from training.loop import TrainingData
from training.settings import PretrainingSettings

logger = logging.getLogger("glm")

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
    label = sample.label
    assert label is not None, sample.uid
    if sample.kind == "single_token":
        [row] = sample.rows
        values = row.values.copy()
        values[1] = values[2] * sample.label_ids[label]
        row = Row(values, row.prefix_length)
    else:
        assert sample.kind == "multi_token", sample.kind
        row = sample.rows[label]
    return TaskSample("language_model", sample.uid, sample.label, (row,))


class PatternEnsemble:
    """A task's examples in each of its patterns, as language modelling; made when they are asked for.

    Item i is example ``i % n`` in the pattern number ``i // n``.
    """

    def __init__(
        self, task: Task, examples: Sequence[InputExample], tokenizer: Tokenizer, options: EncodingOptions
    ) -> None:
        """Take the examples; raise ValueError for words that are not one token (give ``multi_token`` for those)."""
        self.task = task
        self.examples = examples
        self.options = [replace(options, pattern_id=pattern_id) for pattern_id in task.patterns.pattern_ids]
        self.encoders = [task.encoder(tokenizer, each) for each in self.options]

    def __len__(self) -> int:
        return len(self.examples) * len(self.encoders)

    def __getitem__(self, index: int) -> TaskSample:
        """Return item ``index``."""
        pattern, number = divmod(index, len(self.examples))
        example, options = self.examples[number], self.options[pattern]
        label = self.task.sample_label(example, options, for_training=True)
        return language_model_form(self.encoders[pattern].sample(example, label=label))


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
        batch = collate(samples, pad_id=self.pad_id, pad_to=self.pad_to)
        return Batch(
            batch.input_ids,
            batch.target_ids,
            batch.loss_mask,
            batch.position_ids,
            batch.prefix_lengths,
            Objective.DOWNSTREAM,
        )


def mix_downstream(
    data: TrainingData,
    configuration: PretrainingSettings,
    *,
    tokenizer: Tokenizer,
    topology: ParallelTopology,
) -> TrainingData:
    """Return ``data`` with the tasks of ``--multi-task-data`` among its training batches; as it is without any.

    Each micro batch of a rank is drawn to be one of the tasks' with probability ``--multi-task-ratio``. The number of
    the micro batch decides, so that a resumed run draws as an unbroken one. Validation stays that of the text.
    """
    mixture, batch = configuration.mixture, configuration.batch
    if mixture.multi_task_ratio == 0.0 or mixture.multi_task_data is None:
        return data
    options = EncodingOptions(
        seq_length=mixture.multi_seq_length or batch.seq_length,
        max_position_embeddings=configuration.model.max_position_embeddings,
    )
    unknown = [name for name in mixture.multi_task_data if name.lower() not in FOLDERS]
    if unknown:
        raise ValueError(f"--multi-task-data {unknown[0]}: no such task to mix in; choose among {', '.join(FOLDERS)}")
    folder = configuration.data.data_dir
    assert folder is not None
    ensembles = []
    for name in map(str.lower, mixture.multi_task_data):
        examples = TASKS[name].examples(Path(folder) / FOLDERS[name], "train", DataOptions(needs_labels=True))
        ensembles.append(PatternEnsemble(TASKS[name], examples, tokenizer, options))
    items = MixedDataset(ensembles)
    for ensemble, weight in zip(ensembles, items.weights, strict=True):
        logger.info(f"mixed in: {ensemble.task.name}, {len(ensemble):,} examples in all patterns, weight {weight:.3f}")
    batch_size = mixture.multi_batch_size or batch.batch_size
    rank, ranks = topology.data_parallel_rank, topology.data_parallel_size
    num_batches = configuration.run.train_iters * batch.gradient_accumulation_steps
    plan = BatchPlan(
        num_samples=batch_size * ranks * max(num_batches, 1),
        global_batch_size=batch_size * ranks,
        rank=rank,
        world_size=ranks,
        order=RandomSampleNumbers(len(items), batch_size * ranks * max(num_batches, 1)),
        drop_last=ranks > 1,
    )
    collator = DownstreamCollator(tokenizer.command_id("pad"))
    records_origin = configuration.run.record_order
    loader = BatchLoader(items, collator, plan, num_workers=batch.num_workers, records_origin=records_origin)

    def is_downstream(number: int) -> bool:
        return downstream_draw(number, rank=rank, world_size=ranks) < mixture.multi_task_ratio

    def batches(first_batch: int) -> Iterator[Batch]:
        before = sum(map(is_downstream, range(first_batch)))
        text, downstream = iter(data.train(first_batch - before)), iter(loader.batches(before))
        number = first_batch
        while True:
            yield next(downstream if is_downstream(number) else text)
            number += 1

    return replace(data, train=batches)
