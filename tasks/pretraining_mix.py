"""Downstream tasks among the batches of pre-training."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

from data_utils.batches import Batch
from data_utils.loaders import BatchLoader, BatchPlan, random_sample_numbers
from data_utils.mixtures import downstream_draw
from data_utils.tokenizers.tokenizer import Tokenizer
from mpu.initialize import ParallelTopology
from tasks.mixture import FOLDERS, DownstreamCollator, task_mixture
from tasks.registry import TASKS
from tasks.samples import EncodingOptions
from training.loop import TrainingData
from training.settings import PretrainingSettings

logger = logging.getLogger("glm")


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
    tasks = [TASKS[name.lower()] for name in mixture.multi_task_data]
    assert configuration.data.data_dir is not None
    items = task_mixture(tasks, configuration.data.data_dir, "train", tokenizer=tokenizer, options=options)
    for task, examples, weight in zip(tasks, items.datasets, items.weights, strict=True):
        logger.info(f"mixed in: {task.name}, {len(examples):,} examples in all patterns, weight {weight:.3f}")
    batch_size = mixture.multi_batch_size or batch.batch_size
    rank, ranks = topology.data_parallel_rank, topology.data_parallel_size
    num_batches = configuration.run.train_iters * batch.gradient_accumulation_steps
    plan = BatchPlan(
        num_samples=batch_size * ranks * max(num_batches, 1),
        global_batch_size=batch_size * ranks,
        rank=rank,
        world_size=ranks,
        order=random_sample_numbers(len(items), batch_size * ranks * max(num_batches, 1)),
        drop_last=ranks > 1,
    )
    collator = DownstreamCollator(tokenizer.command_id("pad"))
    loader = BatchLoader(items, collator, plan, num_workers=batch.num_workers)

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
