"""The run of an understanding task: examples become cloze questions or pairs, answers are chosen."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data_utils.objective.block_infilling import BlankInfillingCollator
from data_utils.objective.packing import Sample
from data_utils.tokenizers.tokenizer import Tokenizer
from files.writing import write_whole
from model.heads import MultiTokenCloze, MultiTokenClozeFast, SequenceClassification, SingleTokenCloze
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from mpu.mappings import gather_from_model_parallel
from tasks.metrics import METRICS
from tasks.readers import MissingFileError
from tasks.registry import find_task
from tasks.run import Score, TaskRun
from tasks.settings import FinetuningSettings
from tasks.superglue.batches import WIDTH_MULTIPLE, TaskBatch, collate
from tasks.superglue.objective import TaskCriterion, average_scores, score_rows
from tasks.superglue.readers import DataOptions, InputExample
from tasks.superglue.samples import EncodingOptions, Kind, TaskSample
from tasks.superglue.task import Task
from training.data import blank_infilling
from training.engine import Engine

logger = logging.getLogger("glm")


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
        settings, files = configuration.task, configuration.data
        self.task = with_metrics(self.find_task(), settings.metrics or ())
        if files.data_dir is None and self.task.needs_folder:
            raise ValueError("no --data-dir: give the folder of the task's files")
        self.name, self.metrics = self.task.name, self.task.metrics
        self.encoding = configuration.select(
            EncodingOptions,
            block_positions=not configuration.blank.no_block_position,
            prefix_prompt=configuration.prompt.prefix_prompt if configuration.prompt.continuous_prompt else 0,
        )
        self.pattern_ids = self._ensemble() or (self.encoding.pattern_id,)
        self.data_options = configuration.select(DataOptions, languages=settings.languages or ())
        self.read_data()

    def find_task(self) -> Task:
        """Return the configured task."""
        return find_task(self.configuration.task.name)

    def read_data(self) -> None:
        """Read the splits of the run."""
        settings, files, tuning = self.configuration.task, self.configuration.data, self.configuration.tuning
        self.training = self._loss_samples("train", needs_labels=True) if tuning.epochs else ()
        self.validation = [] if tuning.no_validation else self._evaluation_sets(files.valid_data, default="dev")
        if tuning.epochs and self.validation:
            self.loss_samples = self._loss_samples((files.valid_data or ("dev",))[0], needs_labels=False)
            if not any(self.task.counted_rows(split.examples) for split in self.validation):
                names = ", ".join(split.name for split in self.validation)
                raise ValueError(
                    f"no labels in {names}, so no epoch is the best: give labelled --valid-data, or --no-validation"
                )
        test = [] if settings.eval_valid else self._evaluation_sets(files.test_data, default="test")
        self.test = test or self.validation

    def examples(self, split: str, *, for_training: bool, needs_labels: bool = False) -> Sequence[InputExample]:
        """Read a split, or with ``--limit`` some examples of each of its languages."""
        options = replace(self.data_options, for_training=for_training, needs_labels=needs_labels)
        folder, limit = self.configuration.data.data_dir, self.configuration.task.limit
        examples = self.task.examples(folder, split, options)
        languages = dict.fromkeys(example.language for example in examples)
        parts = [[one for one in examples if one.language == language] for language in languages]
        return [example for part in parts for example in limited(part, limit)]

    def _ensemble(self) -> tuple[int, ...]:
        """Return the patterns of ``--pattern-ensemble``, all where it names none; nothing without the flag."""
        settings = self.configuration.task
        if settings.pattern_ensemble is None or not settings.cloze_eval:
            return ()
        known = self.task.patterns.pattern_ids
        if unknown := sorted(set(settings.pattern_ensemble) - set(known)):
            raise ValueError(
                f"--pattern-ensemble {unknown[0]}: {self.name} has the patterns {', '.join(map(str, known))}"
            )
        return tuple(settings.pattern_ensemble) or known

    def _loss_samples(self, split: str, *, needs_labels: bool) -> Sequence[TaskSample]:
        """Return the samples of a split for a loss, those of all patterns; say how many texts were shortened.

        Unlabelled examples are refused where labels are needed, and left out otherwise.
        """
        examples = self.examples(split, for_training=True, needs_labels=needs_labels)
        examples = [examples[number] for number in self.task.counted_rows(examples)]
        return list(itertools.chain.from_iterable(self._encoded(examples, split, for_training=True)))

    def _evaluation_sets(self, names: Sequence[str] | None, *, default: str) -> list[EvaluationSet]:
        """Return the splits called ``names`` for a metric.

        Without names it is the ``default`` one; when the task has no such split, or its file is not there, none.
        """
        if names:
            return [self._evaluation_set(split) for split in self.task.splits(names)]
        if not self.task.has_split(default, self.data_options):
            logger.info(f"{self.name} has no split {default!r}")
            return []
        try:
            return [self._evaluation_set(default)]
        except MissingFileError as error:
            logger.info(f"note: {error}")
            return []

    def _evaluation_set(self, split: str) -> EvaluationSet:
        examples = self.examples(split, for_training=False)
        return EvaluationSet(self.task.output_name(split), examples, self._encoded(examples, split, for_training=False))

    def _encoded(
        self, examples: Sequence[InputExample], split: str, *, for_training: bool
    ) -> list[Sequence[TaskSample]]:
        """Return the samples of the examples in every pattern."""
        options = [replace(self.encoding, pattern_id=pattern_id) for pattern_id in self.pattern_ids]
        sets = [self.task.build_samples(examples, self.tokenizer, one, for_training=for_training) for one in options]
        count, truncated = sum(len(one.samples) for one in sets), sum(one.num_truncated for one in sets)
        shortened = f", {truncated} shortened" if truncated else ""
        logger.info(f"{self.name} {split}: {len(examples):,} examples, {count:,} samples{shortened}")
        return [one.samples for one in sets]

    def build_network(self) -> nn.Module:
        """Build the GLM with the weights of ``--load-pretrained``, its prompt encoder, and the head of the samples."""
        configuration = self.configuration
        settings, prompt = configuration.task, configuration.prompt
        vocab_size = self.tokenizer.padded_size(configuration.tokenizer.make_vocab_size_divisible_by)
        config = configuration.network(vocab_size=vocab_size)
        kind = (self.training or self.test[0].samples)[0].kind
        if prompt.continuous_prompt:
            self.encoding.check_prompt()
            if kind in ("fast_decode", "classification"):
                raise ValueError(
                    f"--continuous-prompt does not go with {kind.replace('_', ' ')} samples; use --cloze-eval without "
                    "--fast-decode"
                )
            config = replace(config, prompt_length=self.encoding.prompt_length, prompt_function=prompt.prompt_func)
        model = GLMModel(config, topology=self.topology)
        network = add_head(
            model,
            kind,
            num_classes=1 if self.task.choice_head else len(self.task.labels),
            pool_token=settings.pool_token,
            dropout=settings.output_dropout,
            length_penalty=configuration.generation.length_penalty,
            adapet=settings.adapet,
        )
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
        """Stack samples, padded to the longest of them or to ``--seq-length``, or in rows that they share."""
        settings = self.configuration.batch
        return collate(
            samples,
            pad_id=self.tokenizer.special.pad,
            pad_to=settings.seq_length if settings.pad_to_max else None,
            multiple_of=WIDTH_MULTIPLE,
            share_rows=self.share_rows,
        )

    @property
    def share_rows(self) -> bool:
        """Tell whether samples share rows in training."""
        return self.configuration.batch.pack_samples

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
        batch_size, pad_id = self.configuration.batch.evaluation_batch_size, self.tokenizer.special.pad
        scores = [
            score_rows(engine, samples, batch_size=batch_size, pad_id=pad_id) for samples in split.pattern_samples
        ]
        kind = split.samples[0].kind
        best_rows = [int(row.argmax()) for row in average_scores(scores)]
        predictions = [self.task.predicted_class(kind, row) for row in best_rows]
        settings = self.configuration.task
        if folder is not None and self.topology.rank == 0:
            lines = self.task.prediction_lines(
                split.examples, predictions, index_key=settings.index_key, compatible=settings.compatible
            )
            write_whole(folder / f"{split.name}.jsonl", "".join(f"{line}\n" for line in lines))
        counted = self.task.counted_rows(split.examples)
        if not counted:
            return Score(split.name, len(predictions), None, {})
        examples = [split.examples[number] for number in counted]
        metrics = self.task.evaluate([predictions[number] for number in counted], examples)
        return Score(split.name, len(counted), metrics, self.task.majority_baseline(examples))

    def _infilling_batches(self) -> Callable[[int], Any]:
        """Return what makes blank-infilling batches of the task's texts with their answers filled in."""
        configuration, topology = self.configuration, self.topology
        texts = self.task.labelled_texts(
            self.examples("train", for_training=True, needs_labels=True), self.tokenizer, self.encoding
        )
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
            drawn = (np.array(generator.choice(texts), dtype=np.int64) for _ in range(configuration.batch.batch_size))
            return collator([Sample(tokens, np.ones_like(tokens)) for tokens in drawn], batch_index=number)

        return batch


def with_metrics(task: Task, names: Sequence[str]) -> Task:
    """Return ``task`` with further metrics. Raise ValueError for one that does not exist."""
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"--metrics {unknown[0]}: there is no such metric; choose among {', '.join(METRICS)}")
    return replace(task, metrics=(*task.metrics, *(name for name in names if name not in task.metrics)))


def limited(examples: Sequence[Any], limit: int | None) -> Sequence[Any]:
    """Return ``limit`` of the examples in their order, drawn at random: files are often sorted by class.

    The choice depends on the two numbers only, so that runs with other seeds are compared on the same examples.
    """
    if limit is None or limit >= len(examples):
        return examples
    numbers = sorted(random.Random(f"limit {limit} of {len(examples)}").sample(range(len(examples)), limit))
    return [examples[number] for number in numbers]


def add_head(
    model: GLMModel,
    kind: Kind,
    *,
    num_classes: int = 1,
    pool_token: str = "cls",
    dropout: float = 0.1,
    length_penalty: float = 0.0,
    adapet: bool = False,
) -> nn.Module:
    """Return ``model`` inside the head that scores its kind of samples; a bare one predicts tokens.

    Args:
        model: the language model.
        kind: of the samples.
        num_classes: outputs of a classification head; 1 where choices are scored.
        pool_token: the position that feeds it.
        dropout: before its last layer.
        length_penalty: answers' scores are divided by length ** penalty.
        adapet: single tokens are scored by log-probability over the vocabulary.
    """
    if kind == "single_token":
        return SingleTokenCloze(model, take_softmax=adapet)
    if kind == "multi_token":
        return MultiTokenCloze(model, length_penalty=length_penalty)
    if kind == "fast_decode":
        return MultiTokenClozeFast(model, length_penalty=length_penalty)
    if kind == "classification":
        return SequenceClassification(model, num_classes, pool_token=pool_token, dropout_probability=dropout)
    return model


def freeze_transformer(model: GLMModel, *, tuned_layers: int = 0) -> None:
    """Train the prompt encoder and the heads only, and with ``tuned_layers`` the first layers.

    Raises:
        ValueError: nothing is left to train, or there are fewer layers.
    """
    if tuned_layers > model.config.num_layers:
        raise ValueError(
            f"--tune-prefix-layers is {tuned_layers}, the model has {model.config.num_layers} layers; give no more"
        )
    model.word_embeddings.requires_grad_(False)
    model.transformer.requires_grad_(False)
    model.transformer.layers[:tuned_layers].requires_grad_(True)


def initialize_prompt(model: GLMModel, *, task_token_ids: Sequence[int], generator: random.Random) -> None:
    """Start the continuous prompt from word embeddings (``--prompt-init``), the same on all ranks."""
    assert model.prompt_spell is not None, "no prompt encoder"
    with torch.no_grad():
        # Rows are cut over the ranks; gathering works on the last dimension.
        rows = gather_from_model_parallel(model.word_embeddings.weight.t().contiguous(), model.topology).t()
    model.prompt_spell.initialize_from_words(rows, task_token_ids=task_token_ids, generator=generator)
