"""The run of the benchmark: training on its files and their accuracy, in one of two ways with the same scores.

shared     the passage of a question once, its candidates after it, no padding computed
padded     as the original, with ``--pad-to-max``: a row per candidate, padded to the length of the file's rows
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from model.heads import MultiTokenCloze
from tasks.cloze_benchmark.prepare import FILES
from tasks.cloze_benchmark.questions import ClozeQuestion
from tasks.cloze_benchmark.scoring import num_correct, padded_scores
from tasks.cloze_benchmark.store import StoredQuestions
from tasks.registry import find_task
from tasks.run import Score
from tasks.settings import CLOZE_BENCHMARK
from tasks.superglue.objective import score_rows
from tasks.superglue.run import UnderstandingRun, limited
from tasks.superglue.samples import TaskSample
from tasks.superglue.task import Task
from training.engine import Engine

T = TypeVar("T")


class MadeWhenAsked(Sequence[T]):
    """A sequence whose members are made when they are asked for, from their numbers."""

    def __init__(self, numbers: Sequence[int], make: Callable[[int], T]) -> None:
        self._numbers, self._make = numbers, make

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: int) -> T:  # type: ignore[override]  # slices are not asked for
        return self._make(self._numbers[place])


@dataclass(frozen=True)
class StoredSplit:
    """Questions to choose answers for, and their samples."""

    name: str
    examples: Sequence[ClozeQuestion]
    samples: Sequence[TaskSample]


class ClozeBenchmarkRun(UnderstandingRun):
    """A run of the task ``record`` on the HDF5 files in ``--data-dir``."""

    unit = "questions"

    def find_task(self) -> Task:
        return replace(find_task("record"), name=CLOZE_BENCHMARK, metrics=("accuracy",))

    def read_data(self) -> None:
        """Read the files of the splits that are needed. Raises ValueError for one that does not fit the model."""
        self.training, self.validation = (), []
        if self.configuration.tuning.epochs:
            self.training = self._split("train").samples
        if not (self.training and self.configuration.tuning.no_validation):
            self.validation = [self._split("dev")]
        # Where there is training its last evaluation is the result.
        self.test = [] if self.training else self.validation

    def _split(self, name: str) -> StoredSplit:
        configuration = self.configuration
        assert configuration.data.data_dir is not None  # the settings refuse that
        stored = StoredQuestions(Path(configuration.data.data_dir) / "ReCoRD" / FILES[name])
        vocab_size = self.tokenizer.padded_size(configuration.tokenizer.make_vocab_size_divisible_by)
        stored.check_model(vocab_size=vocab_size, num_positions=configuration.model.max_position_embeddings)
        if stored.seq_length != configuration.batch.seq_length:
            raise ValueError(
                f"{stored.path} has rows of {stored.seq_length} positions, --seq-length is "
                f"{configuration.batch.seq_length}; give that length"
            )
        numbers = limited(range(len(stored)), configuration.task.limit)
        samples = MadeWhenAsked(numbers, lambda number: stored[number].sample)
        return StoredSplit(self.task.output_name(name), MadeWhenAsked(numbers, stored.__getitem__), samples)

    @property
    def schedule_length(self) -> int:
        """Return the updates of an epoch, unless ``--lr-decay-iters`` gives another number."""
        steps = self.configuration.batch.gradient_accumulation_steps
        return self.configuration.schedule.lr_decay_iters or -(-self.batches_per_epoch // steps)

    @property
    def share_rows(self) -> bool:
        return not self.configuration.batch.pad_to_max

    def evaluate(self, engine: Engine, split: Any, *, folder: Path | None) -> Score:
        """Choose a candidate for every question of a ``StoredSplit``; the accuracy is a fraction, as the original's."""
        batch = self.configuration.batch
        if not self.share_rows:
            network = engine.network
            assert isinstance(network, MultiTokenCloze)
            with engine.autocast():
                scores = padded_scores(
                    network.model, split.examples, width=batch.seq_length, batch_size=batch.evaluation_batch_size,
                    topology=self.topology,
                )  # fmt: skip
        else:
            scores = score_rows(engine, split.samples, batch_size=batch.evaluation_batch_size, pad_id=0)
        count = len(split.examples)
        return Score(split.name, count, {"accuracy": num_correct(scores, split.examples) / count}, {})
