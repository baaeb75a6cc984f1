"""What the fine-tuning program asks of every family of tasks: understanding, sequence to sequence, language modelling.

``finetune_glm.py`` prepares a ``TaskRun`` (a task with its data read), builds the engine around the run's network and
objective, and hands both to ``tasks/finetuning.py``. A new family is a subclass of ``TaskRun``, its tasks' names in
``tasks/configuration.py`` and a line in ``prepare_task``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpu.initialize import ParallelTopology
from tasks.configuration import FinetuningConfiguration
from tasks.task_data import batches_per_epoch, training_batches

if TYPE_CHECKING:
    from torch import nn

    from data_utils.tokenizers.tokenizer import Tokenizer
    from training.engine import Engine
    from training.objectives import Objective


@dataclass(frozen=True)
class TrainingSet:
    """Micro batches of all epochs from a batch number on, how many make an epoch, and other batches mixed in.

    Attributes:
        batches: makes the iterator.
        batches_per_epoch: of one data rank.
        valid: batches for the loss on the development split; None without validation.
        mixed_in: makes the micro batch of a number, for updates that ``mixed_ratio`` chooses; None without.
        mixed_ratio: probability that an update is made of them.
    """

    batches: Callable[[int], Iterator[Any]]
    batches_per_epoch: int
    valid: Callable[[], Iterator[Any]] | None = None
    mixed_in: Callable[[int], Any] | None = None
    mixed_ratio: float = 0.0


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
        training: samples to train on; empty where ``--epochs 0`` trains nothing.
        loss_samples: samples of the development split for a loss (``--eval-interval``); may be empty.
        validation: splits to evaluate after an epoch, in the form ``evaluate`` takes.
        test: splits to evaluate at the end.
    """

    name: str
    metrics: tuple[str, ...]
    training: Sequence[Any] = ()
    loss_samples: Sequence[Any] = ()
    validation: Sequence[Any] = ()
    test: Sequence[Any] = ()

    def __init__(
        self,
        configuration: FinetuningConfiguration,
        *,
        tokenizer: Tokenizer,
        topology: ParallelTopology,
    ) -> None:
        """Read the data."""
        self.configuration = configuration
        self.tokenizer = tokenizer
        self.topology = topology

    @abstractmethod
    def build_network(self) -> nn.Module:
        """Return the network with the weights to start from."""

    @abstractmethod
    def objective(self) -> Objective:
        """Return what an update minimises."""

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> Any:
        """Stack samples into the batch that ``objective`` takes."""

    @abstractmethod
    def evaluate(self, engine: Engine, split: Any, *, folder: Path | None) -> Score:
        """Evaluate one of the splits. Every rank calls it and gets the result.

        Predictions are written into ``folder`` on the first rank; None writes nothing.
        """

    def training_set(self) -> TrainingSet:
        """Return the micro batches of the run."""
        tuning, seed, topology = self.configuration.tuning, self.configuration.run.seed, self.topology

        def batches(first_batch: int) -> Iterator[Any]:
            return training_batches(
                self.training,
                epochs=tuning.epochs,
                batch_size=tuning.batch_size,
                seed=seed,
                topology=topology,
                first_batch=first_batch,
                collate_samples=self.collate,
            )

        def valid_batches() -> Iterator[Any]:
            starts = range(0, len(self.loss_samples), tuning.eval_batch_size)
            ranks, rank = topology.data_parallel_size, topology.data_parallel_rank
            for turn in range(-(-len(starts) // ranks)):  # the same number of batches on every rank
                start = starts[(turn * ranks + rank) % len(starts)]
                yield self.collate(self.loss_samples[start : start + tuning.eval_batch_size])

        return TrainingSet(
            batches=batches,
            batches_per_epoch=self.batches_per_epoch,
            valid=valid_batches if self.loss_samples else None,
        )

    @property
    def batches_per_epoch(self) -> int:
        """Return the micro batches of one data rank in an epoch."""
        return batches_per_epoch(
            len(self.training), batch_size=self.configuration.tuning.batch_size, topology=self.topology
        )


def prepare_task(
    configuration: FinetuningConfiguration,
    *,
    tokenizer: Tokenizer,
    topology: ParallelTopology,
) -> TaskRun:
    """Read the data of the configured task and return its run.

    Raises:
        ValueError: no such task, files that are missing or malformed, or nothing to do.
    """
    from tasks.language_model.run import LanguageModelRun
    from tasks.seq2seq.run import Seq2SeqRun
    from tasks.superglue.run import UnderstandingRun

    families: dict[str, type[TaskRun]] = {
        "understanding": UnderstandingRun,
        "seq2seq": Seq2SeqRun,
        "language_model": LanguageModelRun,
    }
    run = families[configuration.task.family](configuration, tokenizer=tokenizer, topology=topology)
    if not (run.training or run.test):
        raise ValueError(f"{run.name}: nothing to train on and nothing to evaluate; see --epochs and --test-data")
    return run
