"""The fine-tuning loop: update, evaluate after each epoch, keep the best, write predictions."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mpu.mappings import any_rank
from tasks.adapters import keep_adapter
from tasks.configuration import FinetuningSettings
from tasks.run import TaskRun, TrainingSet
from training.configurations import CheckpointSettings, RunSettings
from training.engine import Engine
from training.evaluation import evaluate
from training.logging import RunLog, store_json
from training.loop import STOP_INTERVAL, StopRequest
from training.metrics import (
    IntervalMetrics,
    dense_line,
    evaluation_lines,
    iteration_line,
    iteration_scalars,
)

RESULTS_FILE = "results.json"
TEST_RESULTS_FILE = "test_results.json"
BEST_TRACKER = "best_checkpointed_iteration.txt"
BEST_TAG = "best"


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        batches: micro batches of this data rank taken so far.
        updates: made so far.
        epochs: finished so far.
        best: the best value of the selecting metric, None before the first evaluation.
        best_update, best_epoch: when it was reached.
        waiting: evaluations since then.
    """

    batches: int = 0
    updates: int = 0
    epochs: int = 0
    best: float | None = None
    best_update: int = 0
    best_epoch: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class Result:
    """Overall metrics, and those of the simplest guess, by name."""

    metrics: Mapping[str, float]
    baseline: Mapping[str, float]


class FineTuner:
    """One fine-tuning run over one engine."""

    def __init__(
        self,
        engine: Engine,
        task: TaskRun,
        *,
        settings: FinetuningSettings,
        run: RunSettings,
        checkpoint: CheckpointSettings,
        log: RunLog,
        notes: Mapping[str, Any],
    ) -> None:
        """``notes`` are written into every results file (``{"limit": 100}``)."""
        self.engine = engine
        self.task = task
        self.settings = settings
        self.run = run
        self.checkpoint = checkpoint
        self.log = log
        self.notes = notes
        self.metrics = IntervalMetrics(engine.device, topology=engine.topology)
        self.first = engine.topology.rank == 0
        self.best = Result({}, {})  # of the best epoch on the validation splits, once there is one

    def train(self, data: TrainingSet, validation: Sequence[Any], start: Progress) -> Progress:
        """Train for the epochs of the settings and return where the run ended.

        A signal saves and leaves after an update; the run goes on from there.
        """
        settings, progress = self.settings, start
        batches = data.batches(start.batches)
        total = data.batches_per_epoch * settings.epochs // settings.accumulation_steps
        clock = time.perf_counter()
        with StopRequest() as stop:
            while progress.updates < total:
                fetched = time.perf_counter()
                micro_batches = self._next(data, batches, progress)
                fetch_ms = 1000.0 * (time.perf_counter() - fetched)
                self.metrics.add(self.engine.train_step(micro_batches), fetch_ms=fetch_ms)
                progress = replace(
                    progress,
                    updates=progress.updates + 1,
                    batches=progress.batches + settings.accumulation_steps,
                )
                self.log.console.step()
                if progress.updates % self.run.log_interval == 0:
                    self._report(progress.updates, total, seconds=time.perf_counter() - clock)
                    clock = time.perf_counter()
                if data.valid and self.run.eval_interval and progress.updates % self.run.eval_interval == 0:
                    self._validation_loss(data.valid, progress.updates)
                finished = progress.batches // data.batches_per_epoch
                if progress.updates == total:
                    finished = settings.epochs
                while progress.epochs < finished:
                    progress = self._finish_epoch(progress, validation)
                if settings.patience is not None and progress.waiting >= settings.patience:
                    self.log.console.print(f"no better result in {progress.waiting} evaluations: stopping early")
                    break
                asking = progress.updates % STOP_INTERVAL == 0 or self.engine.topology.world_size == 1
                if asking and any_rank(stop.requested, topology=self.engine.topology, device=self.engine.device):
                    self._save(progress)
                    self.log.console.print(f"stopped by a signal after update {progress.updates}")
                    raise SystemExit(0)
        return progress

    def score(self, splits: Sequence[Any], *, epoch: int, write: bool = False) -> Result:
        """Evaluate splits, print their metrics, write predictions on demand; return the overall metrics.

        Overall metrics are means weighted by the number of examples. A split without labels has predictions only;
        without any labels there are no metrics.
        """
        folder = self.run.summary_folder if write else None
        scores = [self.task.evaluate(self.engine, split, folder=folder) for split in splits]
        for score in scores:
            if score.metrics is None:
                self.log.console.print(f"{score.name}: no labels, so predictions only")
            elif len(scores) > 1:
                self.log.console.print(_score_line(epoch, score.name, score.count, score.metrics))
        counted = [score for score in scores if score.metrics is not None]
        total = sum(score.count for score in counted)
        metrics = _weighted([(score.count, score.metrics) for score in counted])
        baseline = _weighted([(score.count, score.baseline) for score in counted])
        if metrics:
            self.log.console.print(_score_line(epoch, "overall", total, metrics))
        return Result(metrics, baseline)

    def finish(self, progress: Progress, test: Sequence[Any]) -> Result:
        """Go back to the best epoch, evaluate the test splits, write predictions and ``test_results.json``."""
        if progress.best is not None and self.checkpoint.save is not None:
            self.engine.load_weights(self.checkpoint.save / BEST_TAG)
        result = self.score(test, epoch=-1, write=True)
        if self.first:
            content = {**result.metrics, "type": "test", **self.notes}
            store_json(self.run.summary_folder / TEST_RESULTS_FILE, content, indent=None)
        return result

    def _next(self, data: TrainingSet, batches: Iterator[Any], progress: Progress) -> list[Any]:
        """Return the micro batches of the next update: the task's, or with ``mixed_in`` by chance others."""
        count = self.settings.accumulation_steps
        if data.mixed_in is not None:
            # The same choice on all ranks, and after a resume.
            generator = random.Random(f"mixture {self.run.seed} {progress.updates}")
            if generator.random() < data.mixed_ratio:
                skipped = list(itertools.islice(batches, count))
                return [data.mixed_in(progress.batches + index) for index in range(len(skipped))]
        return list(itertools.islice(batches, count))

    def _finish_epoch(self, progress: Progress, validation: Sequence[Any]) -> Progress:
        settings, epoch = self.settings, progress.epochs
        progress = replace(progress, epochs=epoch + 1)
        if validation and settings.validate and (epoch + 1) % settings.eval_epoch == 0:
            result = self.score(validation, epoch=epoch)
            metrics = result.metrics
            chosen = settings.validation_metric or self.task.metrics[0]
            if chosen not in metrics:
                raise ValueError(f"--validation-metric {chosen}: {self.task.name} has {', '.join(metrics) or 'none'}")
            scalars = [(f"Train/valid_{name}", value, progress.updates) for name, value in metrics.items()]
            row = {"kind": "evaluation", "iteration": progress.updates, "epoch": epoch, **metrics}
            self.log.write(row, scalars)
            if progress.best is None or metrics[chosen] > progress.best:
                progress = replace(
                    progress, best=metrics[chosen], best_update=progress.updates, best_epoch=epoch, waiting=0
                )
                self.best = result
                self._keep_best(progress, metrics)
            else:
                progress = replace(progress, waiting=progress.waiting + 1)
        if (epoch + 1) % settings.save_epoch == 0:
            self._save(progress)
        return progress

    def _keep_best(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Save what is trained as ``best``, without the optimizer, and write ``results.json``."""
        if self.checkpoint.save is not None:
            weights_only = replace(self.checkpoint, save_optimizer=False, save_random_state=False, keep=None)
            self.engine.save(weights_only, iteration=progress.updates, data_state={}, tag=BEST_TAG)
            keep_adapter(self.engine, self.checkpoint.save, base_model=self.checkpoint.load_pretrained)
            if self.first:
                (self.checkpoint.save / BEST_TRACKER).write_text(str(progress.best_update), encoding="utf-8")
        if self.first:
            results = {**metrics, "type": "validation", "epoch": progress.best_epoch, **self.notes}
            store_json(self.run.summary_folder / RESULTS_FILE, results, indent=None)

    def _save(self, progress: Progress) -> None:
        if self.checkpoint.save is not None:
            state = {"task": self.task.name, "progress": vars(progress), "interval": self.metrics.state_dict()}
            folder = self.engine.save(self.checkpoint, iteration=progress.updates, data_state=state)
            if progress.best is None:  # nothing has been evaluated: the newest is the one to use
                keep_adapter(self.engine, self.checkpoint.save, base_model=self.checkpoint.load_pretrained)
            self.log.console.print(f"saved a checkpoint after epoch {progress.epochs} to {folder}")

    def _report(self, update: int, total: int, *, seconds: float) -> None:
        report = self.metrics.report(update, seconds=seconds)
        numbers = {"elapsed_ms": report.elapsed_ms, "learning_rate": report.learning_rate, "loss": report.loss}
        self.log.console.print(iteration_line(update, total, **numbers, loss_scale=report.loss_scale))
        memory = self.engine.memory_bytes()
        self.log.console.dense(dense_line(report, total=total, utilisation=None, memory_bytes=memory))
        self.log.write(report.row(), iteration_scalars(update, **numbers))

    def _validation_loss(self, batches: Callable[[], Iterator[Any]], update: int) -> None:
        result = evaluate(self.engine, itertools.islice(batches(), self.run.eval_iters))
        for line in evaluation_lines(f"iteration {update}", result):
            self.log.console.print(line)


def _weighted(parts: Sequence[tuple[int, Mapping[str, float] | None]]) -> dict[str, float]:
    """Return the means of metrics over splits, each weighted by its number of examples."""
    total = sum(count for count, _ in parts)
    sums: dict[str, float] = {}
    for count, metrics in parts:
        for name, value in (metrics or {}).items():
            sums[name] = sums.get(name, 0.0) + value * count
    return {name: value / total for name, value in sums.items()}


def _score_line(epoch: int, name: str, total: int, metrics: Mapping[str, float]) -> str:
    values = " ".join(f"{key} = {value:.4f}" for key, value in metrics.items())
    return f" >> |epoch: {epoch}| {name}: total = {total} {values}"


def result_table(name: str, results: Mapping[str, Result], *, epoch: int, seconds: float) -> list[str]:
    """Return the lines of the final table of results by split; beside each metric what the simplest guess gets."""
    row = "{:<24}{:<12}{:<16}{:>10}{:>10}{:>7}{:>10}"
    lines = [row.format("task", "split", "metric", "value", "baseline", "epoch", "seconds")]
    for split, result in results.items():
        for metric, value in result.metrics.items():
            guess = f"{result.baseline[metric]:.4f}" if metric in result.baseline else "-"
            lines.append(row.format(name, split, metric, f"{value:.4f}", guess, epoch, f"{seconds:.1f}"))
    return lines
