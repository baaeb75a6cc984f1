"""Fine-tuning: the training loop with epochs, the best of them, patience, and predictions at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from files.reading import value_of
from model.checkpoints.reading import resolve_checkpoint
from model.checkpoints.safe_loading import UnreadableCheckpointError, read_checkpoint_file
from model.hub.adapters import save_adapter
from model.lora import adapted_layers
from tasks.run import TaskRun
from tasks.settings import FinetuningSettings
from training.build import checkpoint_to_load
from training.checkpointing import newest_first
from training.engine import Engine
from training.logging import RunLog, perf_log, store_json
from training.loop import Progress, Trainer, run_every
from training.settings import FALLING_METRICS
from training.signals import StopRequest

RESULTS_FILE = "results.json"
TEST_RESULTS_FILE = "test_results.json"
BEST_TRACKER = "best_checkpointed_iteration.txt"
BEST_TAG = "best"
ADAPTER_FOLDER = "adapter"
KEPT_CHECKPOINTS = 2  # beside the best, where nobody says how many

logger = logging.getLogger("glm")


@dataclass
class FinetuningProgress(Progress):
    """How far a run is.

    Attributes:
        epochs: finished so far.
        best: the best value of the selecting metric, None before the first evaluation.
        best_update, best_epoch: when it was reached.
        waiting: evaluations since then.
    """

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


class FineTuner(Trainer):
    """One fine-tuning run over one engine."""

    progress: FinetuningProgress
    says_the_end = False

    def __init__(
        self,
        engine: Engine,
        task: TaskRun,
        configuration: FinetuningSettings,
        *,
        progress: FinetuningProgress | None = None,
        log: RunLog,
        stop: StopRequest | None = None,
    ) -> None:
        """Train ``task`` from ``progress`` on (default: a new run); ``stop`` as for every ``Trainer``."""
        super().__init__(
            engine,
            configuration,
            data=task.training_data(),
            num_updates=task.num_updates,
            log=log,
            progress=progress or FinetuningProgress(),
            stop=stop,
        )
        if self.checkpoint.keep_checkpoints is None:
            self.checkpoint = replace(self.checkpoint, keep_checkpoints=KEPT_CHECKPOINTS)
        self.task, self.unit = task, task.unit
        self.settings = configuration.tuning
        self.validating = bool(task.validation) and not self.settings.no_validation
        samples = self.accumulation_steps * self.data.samples_per_batch  # of an update
        # Updates between evaluations of --eval-samples; 0 where epochs count.
        self.eval_interval = -(-(self.settings.eval_samples or 0) // samples)
        # Part of every results file.
        limit = configuration.task.limit
        self.notes: dict[str, Any] = {**task.rules, **({} if limit is None else {"limit": limit})}
        self.first = engine.topology.rank == 0
        self.best = Result({}, {})  # of the best epoch on the validation splits, once there is one
        self.test = Result({}, {})

    def after_update(self, leaving: bool) -> bool:
        """Evaluate the loss when it is due and every epoch that the update ended; return whether to save."""
        super().after_update(leaving)
        progress, epochs, saving = self.progress, self.settings.num_epochs, False
        ended = progress.batches // self.task.batches_per_epoch
        if progress.updates == self.num_updates:
            ended = epochs
        while progress.epochs < ended:
            progress.epochs += 1
            perf_log.debug("EPOCH_END", {"epoch": progress.epochs})
            if self.validating and not self.eval_interval and run_every(self.settings.eval_epoch, progress.epochs):
                self._validate(epoch=progress.epochs - 1)
            saving = saving or run_every(self.settings.save_epoch, progress.epochs)
            if progress.epochs < epochs:
                perf_log.debug("EPOCH_BEGIN", {"epoch": progress.epochs + 1})
        due = run_every(self.eval_interval, progress.updates) or progress.updates == self.num_updates
        if self.eval_interval and due:
            if self.validating:
                self._validate(epoch=min(progress.epochs, epochs - 1))
            saving = True
        return saving

    def begin(self) -> None:
        super().begin()
        perf_log.debug("EPOCH_BEGIN", {"epoch": self.progress.epochs + 1})

    def before_updates(self) -> None:
        """Evaluate the loss, and in a new run the validation splits as well."""
        super().before_updates()
        if self.validating and self.progress.updates == 0:
            self._validate(epoch=0)

    @property
    def finished(self) -> bool:
        """Tell whether ``--patience`` is at its end, or the target is reached."""
        return super().finished or self.impatient

    @property
    def impatient(self) -> bool:
        """Tell whether ``--patience`` is at its end."""
        return self.settings.patience is not None and self.progress.waiting >= self.settings.patience

    @property
    def metric(self) -> tuple[str, float | None]:
        """Return the metric that selects the best weights, and its best value."""
        return self.settings.validation_metric or self.task.metrics[0], self.progress.best

    def save_end(self) -> None:
        """Save where ``--exit-after`` ends the loop within an epoch, and what a skipped update held back."""
        if self._save_is_due or (not self.finished and self._saved < self.progress.updates < self.num_updates):
            self.save()

    def finish(self) -> None:
        """Go back to the best epoch, evaluate the test splits, write predictions and ``test_results.json``."""
        progress = self.progress
        if self.impatient:
            self.log.console.print(f"no better result in {progress.waiting} evaluations: stopping early")
        elif progress.updates < self.num_updates and not progress.reached:  # --exit-after: it goes on another time
            return
        if not self.task.test:
            return
        if progress.best is not None and self.checkpoint.save is not None:
            self.engine.load_weights(self.checkpoint.save / BEST_TAG)
        epoch = max(0, progress.epochs - 1) if progress.best is None else progress.best_epoch
        self.test = self.score(self.task.test, epoch=epoch, write=True)
        if self.first:
            content = {**self.test.metrics, "type": "test", **self.notes}
            store_json(self.run.summary_folder / TEST_RESULTS_FILE, content, indent=None)

    def results(self) -> list[tuple[str, str]]:
        """Return where the results are, name and place, and how many examples they are of."""
        folder, saved = self.run.summary_folder, self.checkpoint.save
        predictions = [file.name for file in sorted(folder.glob("*.jsonl*")) if file != self.run.metrics_path]
        results = [name for name in (RESULTS_FILE, TEST_RESULTS_FILE) if (folder / name).exists()]
        rows = [(name, text) for name, text in self.data.sizes.items() if name != "training"]
        rows += [(name, f"{folder}/: {', '.join(files)}")
                 for name, files in (("results", results), ("predictions", predictions)) if files]  # fmt: skip
        if saved is not None and (saved / BEST_TAG).exists():
            rows.append(("best", f"{saved / BEST_TAG}, of epoch {self.progress.best_epoch}"))
        return rows

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the loop. Every rank has to call it."""
        progress = asdict(self.progress)
        for name in ("interval", "identity", "throughput"):
            del progress[name]
        return {
            "task": self.task.name,
            "progress": progress,
            "interval": self.metrics.state_dict(),
            "data": dict(self.data.identity),
            "throughput": self.throughput.state_dict(self.engine.topology),
        }

    def save(self) -> None:
        """Save a checkpoint, if there is a folder to save to."""
        super().save()
        if self.progress.best is None:  # nothing has been evaluated: the newest adapter is the one to use
            self._save_adapter()

    def score(self, splits: Sequence[Any], *, epoch: int, write: bool = False) -> Result:
        """Evaluate splits, print their metrics, write predictions on demand; return the overall metrics.

        Overall metrics are means weighted by the number of examples. A split without labels has predictions only;
        without any labels there are no metrics.
        """
        folder = self.run.summary_folder if write else None
        scores = [self.task.evaluate(self.engine, split, folder=folder) for split in splits]
        for score in scores:
            if score.metrics is None:
                self.log.console.print(f"{score.name}: no labels, so predictions only; metrics are not available")
            elif len(scores) > 1:
                self.log.console.print(_score_line(epoch, score.name, score.count, score.metrics))
        counted = [score for score in scores if score.metrics is not None]
        total = sum(score.count for score in counted)
        metrics = _weighted([(score.count, score.metrics) for score in counted])
        baseline = _weighted([(score.count, score.baseline) for score in counted])
        if metrics:
            self.log.console.print(_score_line(epoch, "overall", total, metrics))
            if rules := self.task.rules:
                self.log.console.print(f" >> by {', '.join(f'{name} {value}' for name, value in rules.items())}")
        return Result(metrics, baseline)

    def _validate(self, *, epoch: int) -> None:
        """Evaluate the validation splits, and keep the weights when they are the best so far."""
        progress, began = self.progress, time.perf_counter()
        with self.aside():
            result = self.score(self.task.validation, epoch=epoch)
        metrics, name = result.metrics, self.metric[0]
        known = ", ".join(metrics) or "none"
        if name not in metrics:
            raise ValueError(f"--validation-metric {name}: {self.task.name} has {known}")
        if self.run.target is not None and self.run.target[0] not in (*metrics, *FALLING_METRICS):
            raise ValueError(f"--stop-at {self.run.stop_at}: {self.task.name} has {known}")
        self.evaluated(metrics, began=began)
        scalars = [(f"Train/valid_{key}", value, progress.updates) for key, value in metrics.items()]
        self.log.write({"kind": "evaluation", "iteration": progress.updates, "epoch": epoch, **metrics}, scalars)
        if progress.best is not None and not metrics[name] > progress.best:
            progress.waiting += 1
            return
        progress.best, progress.waiting = metrics[name], 0
        progress.best_update, progress.best_epoch = progress.updates, epoch
        self.best = result
        self._keep_best(metrics)

    def _keep_best(self, metrics: Mapping[str, float]) -> None:
        """Save what is trained as ``best``, without the optimizer, and write ``results.json``."""
        progress, root = self.progress, self.checkpoint.save
        if root is not None:
            weights_only = replace(
                self.checkpoint, no_save_optim=True, no_save_rng=True, keep_checkpoints=None, async_save=False
            )
            with self.aside():
                self.engine.save(weights_only, iteration=progress.updates, data_state={}, tag=BEST_TAG)
            self._save_adapter()
            self.name_newest()
            if self.first:
                (root / BEST_TRACKER).write_text(str(progress.best_update), encoding="utf-8")
        if self.first:
            results = {**metrics, "type": "validation", "epoch": progress.best_epoch, **self.notes}
            store_json(self.run.summary_folder / RESULTS_FILE, results, indent=None)

    def _save_adapter(self) -> None:
        """Write the adapters of the network, if it has any, beside the checkpoints; every rank has to call it."""
        root, base = self.checkpoint.save, self.checkpoint.load_pretrained
        if root is not None and adapted_layers(self.engine.model):
            save_adapter(
                root / ADAPTER_FOLDER,
                self.engine.model,
                topology=self.engine.topology,
                base_model=None if base is None else str(base),
            )


def _task_of(folder: Path) -> Any:
    """Return the task of the run in ``folder`` by its newest file that can be read; None of other checkpoints.

    Its bytes are compared where it is loaded.
    """
    for location in newest_first(resolve_checkpoint(folder)):
        if location.hub_file is None:
            try:
                file = location.shard_files()[0]
                return value_of(read_checkpoint_file(file), "data_state", dict, place=str(file), default={}).get("task")
            except UnreadableCheckpointError:
                continue  # loading says so, and goes on from an older one
    return None


def find_progress(engine: Engine, configuration: FinetuningSettings, task_name: str) -> FinetuningProgress:
    """Restore the run that ``--load`` or ``--auto-resume`` names; another checkpoint gives its weights alone."""
    settings = configuration.checkpoint
    folder = checkpoint_to_load(settings)
    if folder is None:
        return FinetuningProgress()
    goes_on = _task_of(folder) == task_name and configuration.tuning.num_epochs > 0 and not settings.finetune
    restored = engine.load(folder, settings if goes_on else replace(settings, finetune=True))
    report, base = restored.report, settings.load_pretrained
    if report.missing and base is not None:  # a prefix prompt that was trained alone, over its model
        report = replace(report, notes=(*report.notes, f"the missing ones are those of {base}"))
    logger.info(report.summary())
    if not goes_on:
        return FinetuningProgress()
    state = restored.data_state
    place = f"{restored.report.file}, data_state"
    made = value_of(state, "progress", dict, place=place)
    names = [one.name for one in fields(FinetuningProgress) if one.type == "int"]
    progress = FinetuningProgress(
        **{name: value_of(made, name, int, place=f"{place}, progress", at_least=0) for name in names},
        best=value_of(made, "best", float, place=f"{place}, progress", default=None),
        reached=value_of(made, "reached", bool, place=f"{place}, progress", default=False),
        throughput=value_of(state, "throughput", dict, place=place, default={}),
        interval=value_of(state, "interval", dict, place=place, default=None),
        identity=value_of(state, "data", dict, place=place, default={}),
    )
    logger.info(f"continuing after {progress.epochs} epochs and {progress.updates} updates")
    return progress


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
    widest = max((len(metric) for result in results.values() for metric in result.metrics), default=0)
    row = f"{{:<24}}{{:<12}}{{:<{max(16, widest + 2)}}}{{:>10}}{{:>10}}{{:>7}}{{:>10}}"
    lines = [row.format("task", "split", "metric", "value", "baseline", "epoch", "seconds")]
    for split, result in results.items():
        for metric, value in result.metrics.items():
            guess = f"{result.baseline[metric]:.4f}" if metric in result.baseline else "-"
            lines.append(row.format(name, split, metric, f"{value:.4f}", guess, epoch, f"{seconds:.1f}"))
    return lines
