"""The run of an understanding task: examples become cloze questions or pairs, answers are chosen."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from data_utils.objective.block_infilling import BlankInfillingCollator
from data_utils.objective.packing import Sample
from data_utils.tokenizers.tokenizer import Tokenizer
from data_utils.whole_files import write_whole
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from tasks.collation import TaskBatch
from tasks.network import HeadSettings, add_head, check_prompt, freeze_transformer, initialize_prompt
from tasks.objective import TaskCriterion
from tasks.prediction import average_scores, score_rows
from tasks.predictions import prediction_lines
from tasks.registry import find_task
from tasks.run import Score, TaskRun
from tasks.samples import EncodingOptions, TaskSample
from tasks.settings import FinetuningSettings
from tasks.task_data import EvaluationSet, TaskData
from training.data import blank_infilling
from training.engine import Engine


def encoding_options(configuration: FinetuningSettings) -> EncodingOptions:
    """Return how examples become samples."""
    task, prompt = configuration.task, configuration.prompt
    return EncodingOptions(
        seq_length=configuration.batch.seq_length,
        cloze=task.cloze_eval,
        pattern_id=task.pattern_id,
        multi_token=task.multi_token,
        fast_decode=task.fast_decode,
        segment_length=task.segment_length,
        continuous_prompt=prompt.continuous_prompt,
        num_prompt_tokens=prompt.num_prompt_tokens,
        prefix_prompt=prompt.prefix_prompt,
        wsc_negative=task.wsc_negative,
        loss_func=task.loss_func,
        block_positions=not configuration.blank.no_block_position,
        masked_lm=configuration.model.masked_lm,
        sentinel_token=configuration.blank.sentinel_token,
        max_position_embeddings=configuration.model.max_position_embeddings,
        unidirectional=task.unidirectional,
        reserve_position=task.pool_token == "start",
        compatible=task.compatible,
    )


class UnderstandingRun(TaskRun):
    """One run of a task of ``tasks/registry.py``."""

    def __init__(
        self,
        configuration: FinetuningSettings,
        *,
        tokenizer: Tokenizer,
        topology: ParallelTopology,
    ) -> None:
        super().__init__(configuration, tokenizer=tokenizer, topology=topology)
        self.task = find_task(configuration.task.name)
        self.name, self.metrics = self.task.name, self.task.metrics
        self.encoding = encoding_options(configuration)
        self.data = TaskData(self.task, configuration, tokenizer=tokenizer, encoding=self.encoding)
        tuning, splits = configuration.tuning, configuration.data
        self.training = self.data.samples("train") if tuning.epochs else ()
        self.validation = [] if tuning.no_validation else self.data.evaluation_sets(splits.valid_data, default="dev")
        if tuning.epochs and self.validation:
            self.loss_samples = self.data.samples((splits.valid_data or ("dev",))[0])
        test = [] if configuration.task.eval_valid else self.data.evaluation_sets(splits.test_data, default="test")
        self.test = test or self.validation

    def build_network(self) -> nn.Module:
        """Build the GLM with the weights of ``--load-pretrained``, its prompt encoder, and the head of the samples."""
        configuration = self.configuration
        settings, prompt = configuration.task, configuration.prompt
        vocab_size = self.tokenizer.padded_size(configuration.tokenizer.make_vocab_size_divisible_by)
        config = configuration.model.config(vocab_size=vocab_size)
        if prompt.continuous_prompt:
            length = self.task.prompt_length(self.encoding)
            config = replace(config, prompt_length=length, prompt_function=prompt.prompt_func)
        kind = (self.training or self.test[0].samples)[0].kind
        check_prompt(config, kind=kind)
        model = GLMModel(config, topology=self.topology)
        head = HeadSettings(
            kind=kind,
            num_classes=1 if self.task.choice_head else len(self.task.labels),
            pool_token=settings.pool_token,
            dropout=settings.output_dropout,
            length_penalty=configuration.generation.length_penalty,
            adapet=settings.adapet,
        )
        network = add_head(model, head)
        self.load_start_weights(network, model)
        if prompt.prompt_init:
            words = self.task.prompt_init_tokens(self.tokenizer, self.encoding)
            initialize_prompt(model, task_token_ids=words, generator=random.Random(configuration.run.seed))
        if prompt.freeze_transformer:
            freeze_transformer(model, tuned_layers=prompt.tune_prefix_layers or 0)
        return network

    def criterion(self) -> TaskCriterion:
        """Return the loss of choices."""
        return TaskCriterion(function=self.configuration.task.loss_func, adapet=self.configuration.task.adapet)

    def collate(self, samples: Sequence[TaskSample]) -> TaskBatch:
        """Stack samples of one kind."""
        return self.data.collate(samples)

    def batches(self, first_batch: int) -> Iterator[Any]:
        """Yield the micro batches of the run, with ``--block-lm-ratio`` updates of blanks in its texts among them."""
        batches, ratio = super().batches(first_batch), self.configuration.task.block_lm_ratio
        if ratio <= 0.0:
            yield from batches
            return
        blanks = self._infilling_batches()
        for number, batch in enumerate(batches, start=first_batch):
            # The same choice for all micro batches of an update, on all ranks, and after a resume.
            update = number // self.configuration.batch.gradient_accumulation_steps
            drawn = random.Random(f"mixture {self.configuration.run.seed} {update}").random()
            yield blanks(number) if drawn < ratio / (1.0 + ratio) else batch

    def evaluate(self, engine: Engine, split: EvaluationSet, *, folder: Path | None) -> Score:
        """Choose answers for a split; with several patterns their probabilities are averaged."""
        batch_size = self.configuration.batch.evaluation_batch_size
        scores = [
            score_rows(engine, samples, batch_size=batch_size, pad_id=self.data.pad_id)
            for samples in split.pattern_samples
        ]
        kind = split.samples[0].kind
        rows = [int(row.argmax()) for row in average_scores(scores)]
        predictions = [self.task.predicted_class(kind, row) for row in rows]
        settings = self.configuration.task
        if folder is not None and self.topology.rank == 0:
            lines = prediction_lines(
                self.task, split.examples, predictions, index_key=settings.index_key, compatible=settings.compatible
            )
            write_whole(folder / f"{split.name}.jsonl", "".join(f"{line}\n" for line in lines))
        counted = self.task.counted_rows(split.examples)
        if not counted:
            return Score(split.name, len(rows), None, {})
        examples = [split.examples[number] for number in counted]
        metrics = self.task.evaluate([predictions[number] for number in counted], examples)
        return Score(split.name, len(counted), metrics, self.task.majority_baseline(examples))

    def _infilling_batches(self) -> Callable[[int], Any]:
        """Return what makes blank-infilling batches of the task's texts with their answers filled in."""
        configuration, topology = self.configuration, self.topology
        examples = self.data.examples("train", for_training=True)
        texts = self.task.priming_texts(examples, self.tokenizer, self.encoding)
        collator = BlankInfillingCollator(
            self.tokenizer,
            blank_infilling(configuration),
            max_seq_length=configuration.batch.seq_length,
            rank=topology.data_parallel_rank,
            world_size=topology.data_parallel_size,
            pack=configuration.batch.pack_samples,
        )

        def batch(number: int) -> Any:
            generator = random.Random(f"texts {configuration.run.seed} {number} {topology.data_parallel_rank}")
            chosen = (np.array(generator.choice(texts), dtype=np.int64) for _ in range(configuration.batch.batch_size))
            return collator([Sample(tokens, np.ones_like(tokens)) for tokens in chosen], batch_index=number)

        return batch
