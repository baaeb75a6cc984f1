"""What the fine-tuning program asks of every family of tasks: understanding, sequence to sequence, language modelling.

``finetune_glm.py`` chooses the ``TaskRun`` (a task with its data read), builds the engine around the run's network and
criterion, and hands both to ``tasks/finetuning.py``. A new family is a subclass of ``TaskRun``, its tasks' names in
``tasks/settings.py`` and a line in ``finetune_glm.py``.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from model.checkpoints.reading import load_model_weights
from model.hub.adapters import load_adapter, read_adapter
from model.lora import adapted_layers, add_adapters
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from tasks.settings import FinetuningSettings
from training.build import seed_model
from training.loop import TrainingData

if TYPE_CHECKING:
    from data_utils.tokenizers.tokenizer import Tokenizer
    from training.engine import Criterion, Engine
    from training.settings import ModelSettings

logger = logging.getLogger("glm")

CHECKED_SAMPLES = 64  # that are part of the checksum of a task's training data


@dataclass(frozen=True)
class Score:
    """The result of one split.

    Attributes:
        name: of the split in lines and files, ``rte-dev``.
        count: examples; how much the split weighs in the overall metrics.
        metrics: by name; None for a split without labels, which has predictions only.
        baseline: the same metrics of the simplest guess (the most frequent class); empty where there is none.
    """

    name: str
    count: int
    metrics: Mapping[str, float] | None
    baseline: Mapping[str, float]


class TaskRun(ABC):
    """A task with its data read, for one run of the fine-tuning program.

    Attributes:
        name: of the task, in files and tables.
        metrics: names of its metrics; the first selects the best checkpoint.
        unit: what reports call its samples.
        training: samples to train on; empty where ``--epochs 0`` trains nothing.
        loss_samples: samples of the development split for a loss (``--eval-interval``); may be empty.
        validation: splits to evaluate after an epoch, in the form ``evaluate`` takes.
        test: splits to evaluate at the end.
    """

    name: str
    metrics: tuple[str, ...]
    unit: str = "samples"
    training: Sequence[Any] = ()
    loss_samples: Sequence[Any] = ()
    validation: Sequence[Any] = ()
    test: Sequence[Any] = ()

    def __init__(self, configuration: FinetuningSettings, *, tokenizer: Tokenizer, topology: ParallelTopology) -> None:
        """Read the data."""
        self.configuration = configuration
        self.tokenizer = tokenizer
        self.topology = topology

    @abstractmethod
    def build_network(self) -> nn.Module:
        """Return the network with the weights to start from."""

    @abstractmethod
    def criterion(self) -> Criterion:
        """Return what an update minimises."""

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> Any:
        """Stack samples into the batch that ``criterion`` takes."""

    @abstractmethod
    def evaluate(self, engine: Engine, split: Any, *, folder: Path | None) -> Score:
        """Evaluate one of the splits. Every rank calls it and gets the result.

        Predictions are written into ``folder`` on the first rank; None writes nothing.
        """

    @property
    def sizes(self) -> Mapping[str, str]:
        """Return how much there is of every split, in words."""
        limit = self.configuration.task.limit
        limited = "" if limit is None else f" (--limit {limit} of every split)"
        counts = {"training": len(self.training)}
        counts |= {
            name: sum(map(self.split_size, splits))
            for name, splits in (("validation", self.validation), ("test", self.test))
        }
        return {name: f"{count:,} examples of {self.name}{limited}" for name, count in counts.items() if count}

    def split_size(self, split: Any) -> int:
        """Return the examples of a split that ``evaluate`` takes."""
        return len(split.examples)

    @property
    def rules(self) -> Mapping[str, str]:
        """Return how metrics are made where there are several ways; printed and written with them."""
        return {}

    @property
    def batches_per_epoch(self) -> int:
        """Return the micro batches of one data rank in an epoch."""
        return batches_per_epoch(
            len(self.training), batch_size=self.configuration.batch.batch_size, topology=self.topology
        )

    @property
    def num_updates(self) -> int:
        """Return the updates of all epochs; micro batches that do not fill one are left out."""
        steps = self.configuration.batch.gradient_accumulation_steps
        return self.configuration.tuning.num_epochs * self.batches_per_epoch // steps

    @property
    def schedule_length(self) -> int:
        """Return the updates of the learning rate schedule."""
        return self.configuration.schedule.lr_decay_iters or self.num_updates

    def training_data(self) -> TrainingData:
        """Return where the run's micro batches come from."""
        batch, run, topology = self.configuration.batch, self.configuration.run, self.topology

        def valid_batches() -> Iterator[Any]:
            starts = range(0, len(self.loss_samples), batch.evaluation_batch_size)
            ranks, rank = topology.data_parallel_size, topology.data_parallel_rank
            for turn in range(-(-len(starts) // ranks)):  # the same number of batches on every rank
                start = starts[(turn * ranks + rank) % len(starts)]
                yield self.collate(self.loss_samples[start : start + batch.evaluation_batch_size])

        return TrainingData(
            train=self.batches,
            samples_per_batch=batch.batch_size * topology.data_parallel_size,
            valid=(lambda: islice(valid_batches(), run.eval_iters)) if self.loss_samples and run.eval_iters else None,
            identity=self._identity(),
            sizes=self.sizes,
        )

    def _identity(self) -> dict[str, Any]:
        """Return what the number of a batch stands for, by option or name."""
        batch, run = self.configuration.batch, self.configuration.run
        digest, count = hashlib.sha256(), len(self.training)
        for index in range(0, count, max(1, count // CHECKED_SAMPLES)):
            digest.update(repr(self.training[index]).encode("utf-8", "surrogatepass"))
        return {
            "the training samples": f"{count:,} samples, checksum {digest.hexdigest()[:12]}",
            "--batch-size times data ranks": batch.batch_size * self.topology.data_parallel_size,
            "--seq-length": batch.seq_length,
            "--seed": run.seed,
        }

    def batches(self, first_batch: int) -> Iterator[Any]:
        """Yield this data rank's micro batches of all epochs, from number ``first_batch`` on."""
        return training_batches(
            self.training,
            epochs=self.configuration.tuning.num_epochs,
            batch_size=self.configuration.batch.batch_size,
            seed=self.configuration.run.seed,
            topology=self.topology,
            first_batch=first_batch,
            collate_samples=self.collate,
        )

    def build_glm(self, settings: ModelSettings) -> GLMModel:
        """Build a GLM of these sizes with the weights to start from."""
        vocab_size = self.tokenizer.padded_size(self.configuration.tokenizer.make_vocab_size_divisible_by)
        model = GLMModel(self.configuration.network(vocab_size=vocab_size, model=settings), topology=self.topology)
        self.load_start_weights(model, model)
        prompt = self.configuration.prompt
        if prompt.freeze_transformer:
            if not prompt.key_value_prefix:
                raise ValueError("--freeze-transformer leaves nothing to train here; add --prefix-prompt")
            model.freeze_transformer()
        return model

    def load_start_weights(self, network: nn.Module, model: GLMModel) -> None:
        """Give ``network``, which holds ``model``, seeded weights, those of ``--load-pretrained``, and its adapters."""
        configuration, topology = self.configuration, self.topology
        seed_model(model, configuration.run.seed, topology=topology)
        if configuration.checkpoint.load_pretrained is not None:
            report = load_model_weights(network, configuration.checkpoint.load_pretrained, topology=topology)
            logger.info(report.summary())
        elif configuration.checkpoint.load is None:
            logger.info("weights: random (no --load-pretrained, no --load)")
        if configuration.adapters.flag is not None:
            self._add_adapters(network, model)

    def _add_adapters(self, network: nn.Module, model: GLMModel) -> None:
        """Freeze ``model`` and add new adapters (``--lora-rank``) or those of ``--lora-adapter``.

        The layers of a head around it stay trained. Raises ValueError when the adapter does not fit the model, or
        DeepSpeed would spread the weights (ZeRO stage 3).
        """
        configuration, adapters = self.configuration, self.configuration.adapters
        if configuration.zero_stage == 3:
            raise ValueError(
                "adapters (--lora-rank, --lora-adapter) do not go with ZeRO stage 3; choose stage 0, 1 or 2"
            )
        if adapters.lora_adapter is not None:
            report = load_adapter(network, model, read_adapter(adapters.lora_adapter), topology=self.topology)
            logger.info(f"adapter of {adapters.lora_adapter}: {len(report.loaded)} parameters loaded")
        else:
            new = adapters.new_adapters()
            assert new is not None
            add_adapters(model, new, generator=torch.Generator().manual_seed(configuration.run.seed))
        used = adapted_layers(network)[0].settings
        trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        every = sum(parameter.numel() for parameter in network.parameters())
        logger.info(
            f"LoRA: rank {used.rank}, alpha {used.alpha:g} on {', '.join(used.targets)}: {trained:,} of {every:,} "
            f"parameters are trained ({trained / every:.2%})"
        )


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
    per_rank = -(-num_samples // topology.data_parallel_size)
    return -(-per_rank // batch_size)


def training_batches(
    samples: Sequence[Any],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    topology: ParallelTopology,
    first_batch: int,
    collate_samples: Callable[[Sequence[Any]], Any],
) -> Iterator[Any]:
    """Yield this data rank's micro batches of all epochs in order, from number ``first_batch`` on."""
    each = batches_per_epoch(len(samples), batch_size=batch_size, topology=topology)
    for epoch in range(first_batch // each, epochs):
        order = epoch_order(len(samples), epoch=epoch, seed=seed, topology=topology)
        start = first_batch % each if epoch == first_batch // each else 0
        for number in range(start, each):
            numbers = order[number * batch_size : (number + 1) * batch_size]
            yield collate_samples([samples[index] for index in numbers])
