"""The training loop, a straight line: fetch, update, report, evaluate, save."""

from __future__ import annotations

import gc
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_utils.objective.context_probe import ContextProbe
from data_utils.order_record import OrderRecord
from files.cores import usable_cores
from files.names import point_to_newest
from mpu.mappings import any_rank
from training.engine import Engine
from training.logging import END_PREFIX, STARTED, RunLog, perf_log
from training.metrics import (
    OBJECTIVES,
    ComputeCost,
    EvaluationResult,
    IntervalMetrics,
    IntervalReport,
    ProbeResult,
    Throughput,
    dense_line,
    evaluation_lines,
    evaluation_scalars,
    iteration_line,
    iteration_scalars,
    report_lines,
)
from training.settings import PRETRAINING, Settings
from training.signals import StopRequest

# With dynamic loss scaling from 2^32 some thirty updates are skipped at the start of a healthy fp16 run.
LONGEST_SKIPPED_STREAK = 100
LONGEST_EMPTY_START = 100  # updates without anything to predict after which a run ends
MUCH_WAITING = 0.05  # of the time of updates, for batches: worth a warning
WAITING_UPDATES = 20  # after which it is known how much that is
COLLECTION_INTERVAL = 50  # updates between two collections of garbage, at the same ones on every rank
STOP_INTERVAL = 10  # updates after which several ranks ask each other whether to save and leave


# What is forked within the loop, to build batches, collects by itself.
os.register_at_fork(after_in_child=gc.enable)


@contextmanager
def garbage_by_hand() -> Iterator[None]:
    """Let Python collect garbage in the body only where it is told to.

    A collection that comes by itself stops one rank, at any place, and all others wait for it. What there is at the
    beginning lives as long as the run: it is not looked at again.
    """
    before = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if before:
            gc.enable()


@dataclass(frozen=True)
class TrainingData:
    """Where batches come from.

    Attributes:
        train: makes the sequence of this rank's micro batches from an absolute batch number on; it does not end before
            the run does.
        valid: makes the validation batches, the same ones each time; None without validation data.
        test: the same for the test data.
        probe: blanks of the validation data that tell what the model reads (``--probe-context``).
        samples_per_batch: samples that all data ranks together draw for one micro batch.
        sizes: how much there is, by split, in words.
        unigram_entropy: of the training text, in nats; what a model without any context would reach.
        tokenizer_fingerprint: of the tokenizer that made the ids; kept in checkpoints, so that no other one continues.
        identity: what a place in the data depends on, plain values by option or name; kept in checkpoints likewise.
        summary: what to say after training of the first so many micro batches (a line, and a row of the metrics); None
            for nothing.
    """

    train: Callable[[int], Iterable[Any]]
    samples_per_batch: int
    valid: Callable[[], Iterable[Any]] | None = None
    test: Callable[[], Iterable[Any]] | None = None
    probe: ContextProbe | None = None
    sizes: Mapping[str, str] = field(default_factory=dict)
    unigram_entropy: float | None = None
    tokenizer_fingerprint: str | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    summary: Callable[[int], tuple[str, dict[str, Any]]] | None = None


@dataclass
class Progress:
    """How far a run is, parts before a restart included.

    Attributes:
        updates: made so far.
        batches: micro batches of this data rank taken so far.
        interval: sums of the log interval in which the run was restored (``IntervalMetrics.state_dict``), if any.
        identity: of the data that were trained on (``TrainingData.identity``); empty of a new run.
        throughput: what the run has trained on and its time (``Throughput.state_dict``); empty of a new run.
        reached: the target (``--stop-at``) has been reached.
    """

    updates: int = 0
    batches: int = 0
    interval: Mapping[str, Any] | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    throughput: Mapping[str, Any] = field(default_factory=dict)
    reached: bool = False


class Trainer:
    """One run over one engine. ``train`` is the loop, for every program that trains.

    A program with epochs, or with other data in its checkpoints, overrides what happens at the start, between updates
    and at the end: ``before_updates``, ``begin``, ``after_update``, ``finished``, ``state``, ``save_end``, ``finish``
    and ``metric``.

    Attributes:
        says_the_end: ``save_end`` prints the validation of the last update, so that it is not printed twice.
        unit: what samples are called in the report.
    """

    says_the_end = True
    unit = "samples"

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        data: TrainingData,
        num_updates: int,
        log: RunLog,
        progress: Progress | None = None,
        cost: ComputeCost | None = None,
        stop: StopRequest | None = None,
        order: OrderRecord | None = None,
    ) -> None:
        """Start at ``progress`` (default: a new run) of ``num_updates`` updates.

        With ``cost`` the utilisation of the devices is reported. ``stop`` has the signals of the program; without it
        the loop takes them for itself. With ``order`` the origins of all batches are recorded.
        """
        self.engine = engine
        self.run = settings.run
        self._remedies = waiting_remedies(settings)
        self.checkpoint = settings.checkpoint
        self.batch_size = settings.batch.batch_size
        self.accumulation_steps = settings.batch.gradient_accumulation_steps
        self.data = data
        self.num_updates = num_updates
        self.log = log
        self.progress = progress or Progress()
        self.cost = cost
        self.stop = stop
        self.order = order
        self.metrics = IntervalMetrics(engine.device, topology=engine.topology)
        if self.progress.interval is not None:
            self.metrics.load_state_dict(self.progress.interval)
        self.throughput = Throughput.of(self.progress.throughput, engine.topology)
        self._saved = self.progress.updates  # when the last checkpoint was written
        self._being_saved: tuple[int, Path] | None = None  # the update and the folder of a checkpoint under way
        self._save_is_due = False
        self._predicted = False  # something, in some interval
        self._warned = False
        # After which update, its result, and that of the probe.
        self._validated: tuple[int, EvaluationResult, ProbeResult | None] | None = None
        self._waited, self._timed, self._measured = 0.0, 0.0, 0  # seconds for batches, of updates; updates

    def train(self) -> bool:
        """Make updates until the last (or ``--exit-after``, ``finished``, a signal), then ``save_end`` and ``finish``.

        Returns False after a signal: a checkpoint is saved then, for the run to go on from. Raises ValueError when
        update after update is not finite.
        """
        perf_log.info("INIT_END")
        progress, run, topology = self.progress, self.run, self.engine.topology
        if run.eval_at_start:
            self.before_updates()
        self._began = progress.updates
        launched = time.time()
        self.begin()
        last = min(self.num_updates, progress.updates + (run.exit_after or self.num_updates))
        batches = iter(self.data.train(progress.batches) if progress.updates < last else ())
        with (
            nullcontext(self.stop) if self.stop else StopRequest() as stop,
            stop.remember(),
            self.throughput.running(),
            garbage_by_hand(),
        ):
            while progress.updates < last and not self.finished:
                with stop.update():
                    began = time.perf_counter()
                    micro_batches = list(itertools.islice(batches, self.accumulation_steps))
                    fetched = time.perf_counter()
                    result = self.engine.train_step(micro_batches)
                    # Evaluations and saving are not part of the time per update.
                    self.metrics.add(result, seconds=time.perf_counter() - began, fetch_seconds=fetched - began)
                    self.throughput.samples += result.size.samples
                    self.throughput.rows += result.size.rows
                    progress.updates += 1
                    if self.order is not None:
                        self._record_order([batch.origin for batch in micro_batches])
                    progress.batches += self.accumulation_steps
                    self.log.console.step()
                    if run_every(COLLECTION_INTERVAL, progress.updates):
                        gc.collect()
                    due = run_every(run.log_interval, progress.updates)
                    if due:
                        self.report(self.metrics.report(progress.updates))
                    # Asking several ranks costs a wait for the device: not after every update.
                    asking = due or run_every(STOP_INTERVAL, progress.updates) or topology.world_size == 1
                    leaving = asking and any_rank(stop.requested, topology=topology, device=self.engine.device)
                self.say_saved()
                # Evaluations come first, so that a checkpoint never lacks the evaluation of its iteration.
                self._save_is_due |= self.after_update(leaving)
                # A run that blows up must not take its checkpoints along: they wait for an update that is finite.
                if leaving or (self._save_is_due and not self.metrics.skipping):
                    self.save()
                if leaving:
                    self.say_saved(wait=True)
                    self.log.console.print(self.stopped_line())
                    return False
            if progress.updates == last > self._began:
                self._refuse_nothing(progress.updates - self._began)
            self.save_end()
            self.say_saved(wait=True)
            stop.where = "after the last update"
        perf_log.info("TRAIN_END")
        if progress.reached:
            self.log.console.print(f"the target is reached (--stop-at {run.stop_at}): stopping")
        self.finish()
        self.report_end(launched)
        return True

    def stopped_line(self) -> str:
        """Return what to say when a signal has ended the loop: how far it is, and how to go on."""
        saved = self.checkpoint.save
        how = "run the same command to go on" if self.checkpoint.auto_resume else f"go on with --load {saved}"
        how = how if saved else "nothing is kept (no --save)"
        return f"stopped at {self.progress.updates} of {self.num_updates}; {how}"

    def begin(self) -> None:
        """Say that updates begin."""
        perf_log.info("TRAIN_BEGIN")

    def before_updates(self) -> None:
        """Evaluate before the first update of this process (``--eval-at-start``)."""
        self.evaluate(f"iteration {self.progress.updates}")

    def after_update(self, leaving: bool) -> bool:
        """Evaluate when that is due; return whether a checkpoint is. With ``leaving`` the process ends after it."""
        updates = self.progress.updates
        if run_every(self.run.eval_interval, updates) and not leaving:
            shown = not (self.says_the_end and updates == self.num_updates)
            self.evaluate(f"iteration {updates}", shown=shown)
        return run_every(self.checkpoint.save_interval, updates)

    @property
    def finished(self) -> bool:
        """Tell whether the run ends before its last update: it has reached its target."""
        return self.progress.reached

    @property
    def metric(self) -> tuple[str, float | None]:
        """Return what the run is judged by, and its value; None before the first evaluation."""
        return "loss", self._validated and self._validated[1].loss

    def save_end(self) -> None:
        """Save what the loop leaves, and evaluate before it when the last update was made."""
        if self.progress.updates == self.num_updates:
            self.evaluate(END_PREFIX.format("val"), scalars=False)
        if self.progress.updates > self._saved or self._save_is_due:
            self.save()

    def finish(self) -> None:
        """Evaluate the test data when the last update was made, or the target is reached."""
        if self.progress.updates == self.num_updates or self.progress.reached:
            self.evaluate(END_PREFIX.format("test"), scalars=False, test=True)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the loop. Every rank has to call it."""
        return {
            "samples": self.progress.batches * self.data.samples_per_batch,
            "interval": self.metrics.state_dict(),
            "tokenizer": self.data.tokenizer_fingerprint,
            "data": dict(self.data.identity),
            "throughput": self.throughput.state_dict(self.engine.topology),
            "reached": self.progress.reached,
        }

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Do something besides training in the body: its time is not that of updates, and garbage is collected."""
        by_hand = not gc.isenabled()
        gc.enable()
        try:
            with self.throughput.aside(self.engine.device):
                yield
        finally:
            if by_hand:
                gc.disable()

    def save(self) -> None:
        """Save a checkpoint, if there is a folder to save to. After a skipped update no older one is deleted."""
        self._saved, self._save_is_due = self.progress.updates, False
        self._record_order()
        if self.checkpoint.save is not None:
            settings = replace(self.checkpoint, keep_checkpoints=None) if self.metrics.skipping else self.checkpoint
            with self.aside():
                self.say_saved(wait=True)
                folder = self.engine.save(settings, iteration=self.progress.updates, data_state=self.state())
            self._being_saved = self.progress.updates, folder
            self.say_saved()

    def say_saved(self, *, wait: bool = False) -> None:
        """Say that the checkpoint under way is written, once it is; ``wait`` for it. Raises OSError when it cannot be.

        Without ``--async-save`` it is when it has been saved.
        """
        if self._being_saved is None or not (self.engine.writer is None or self.engine.writer.done(wait=wait)):
            return
        (updates, folder), self._being_saved = self._being_saved, None
        self.name_newest()
        self.log.console.print(f"saved a checkpoint at iteration {updates} to {folder}")

    def _record_order(self, origins: Sequence[bytes] | None = None) -> None:
        """Record the ``origins`` of the update that was made; without them, see to it that what is recorded stays.

        A full disk ends the record, with a warning: it is not worth a run.
        """
        if self.order is None:
            return
        try:
            if origins is None:
                self.order.sync()
            else:
                self.order.add(self.progress.updates, origins)
        except OSError as error:
            self.order = None
            self.log.console.print(f"warning: the order of the data is recorded no further, the run goes on: {error}")

    def name_newest(self) -> None:
        """Let the run's name without its date lead to its folders."""
        if self.engine.topology.rank == 0:
            for folder in (self.checkpoint.save, self.run.summary_folder):
                if folder is not None:
                    point_to_newest(folder)

    def report(self, report: IntervalReport) -> None:
        """Print and write one log interval; stop the run when nothing has been finite for long."""
        numbers = {"elapsed_ms": report.elapsed_ms, "learning_rate": report.learning_rate, "loss": report.loss}
        console = self.log.console
        if report.num_skipped:
            console.print(f"skipped {report.num_skipped} of {report.num_steps} updates: gradients not finite")
        console.print(iteration_line(report.step, self.num_updates, **numbers, loss_scale=report.loss_scale))
        parts = " | ".join(f"{name}: {ms:.2f}" for name, ms in report.milliseconds.items())
        console.print(f"time (ms) | {parts}")
        utilisation = None
        if self.cost is not None:
            devices = self.engine.topology.world_size
            utilisation = self.cost.utilisation(report.tokens_per_second, num_devices=devices)
        memory = self.engine.memory_bytes()
        console.dense(dense_line(report, total=self.num_updates, utilisation=utilisation, memory_bytes=memory))
        extra = {"memory_bytes": memory, **({} if utilisation is None else {"mfu": utilisation})}
        scalars = iteration_scalars(report.step, **numbers)
        scalars += [
            (f"Train/{OBJECTIVES[objective][1]}_loss", loss, report.step)
            for objective, loss in report.objective_losses.items()
        ]
        scalars += [
            ("Train/grad_norm", report.grad_norm, report.step),
            ("Train/tokens_per_second", report.tokens_per_second, report.step),
            ("Train/waiting_share", report.waiting_share, report.step),
            ("Train/padding_share", report.padding_share, report.step),
        ]
        self.log.write({**report.row(), **extra}, scalars)
        samples = self.accumulation_steps * self.data.samples_per_batch  # of an update
        perf_log.debug(
            "STEP_END",
            {
                "loss": report.loss,
                "learning_rate": report.learning_rate,
                "num_trained_samples": report.step * samples,
                "seq/s": samples * report.num_steps / max(report.seconds, 1e-9),
                "loss_scale": report.loss_scale,
            },
        )
        self._warn_of_waiting(report)
        self._predicted |= bool(report.objective_losses)
        if report.empty and not self._warned:
            self._warned = True
            console.print(f"warning: {nothing_to_predict(report.num_steps)}")
        if report.empty and not self._predicted and self.progress.updates - self._began >= LONGEST_EMPTY_START:
            raise ValueError(nothing_to_predict(self.progress.updates - self._began))
        if report.longest_streak >= LONGEST_SKIPPED_STREAK:
            scale = "" if report.loss_scale is None else f", loss scale {report.loss_scale:g}"
            raise ValueError(
                f"{report.longest_streak} updates in a row had gradients that are not finite (up to iteration "
                f"{report.step}{scale}): lower --lr, lengthen --warmup, or use --bf16 instead of --fp16; no weight was "
                "changed by them, and the checkpoints before are intact"
            )

    def _warn_of_waiting(self, report: IntervalReport) -> None:
        """Say once that batches are waited for, and what helps."""
        before, self._measured = self._measured, self._measured + report.num_steps
        self._waited += report.waiting_share * report.seconds
        self._timed += report.seconds
        share = self._waited / max(self._timed, 1e-9)
        if before < WAITING_UPDATES <= self._measured and share > MUCH_WAITING:
            remedies = "; ".join(self._remedies)
            self.log.console.print(f"warning: {100 * share:.0f} % of the time is spent waiting for data: {remedies}")

    def _refuse_nothing(self, updates: int) -> None:
        """Raise ValueError when none of this process's ``updates`` had anything to predict; every rank has to ask."""
        if not self._predicted and self.metrics.num_targets() == 0 and not self.metrics.skipping:
            raise ValueError(nothing_to_predict(updates))

    def evaluate(self, prefix: str, *, scalars: bool = True, test: bool = False, shown: bool = True) -> None:
        """Evaluate on the validation data (or the test data), print the original's lines and write the losses.

        Without such data nothing happens.
        """
        batches, updates = self.data.test if test else self.data.valid, self.progress.updates
        if batches is None:
            return
        probe = None
        if not test and self._validated is not None and self._validated[0] == updates:
            _, result, probe = self._validated  # the evaluation at the end of training repeats that of the last one
        else:
            began = time.perf_counter()
            with self.aside():
                result = self.engine.evaluate(batches())
                if self.data.probe is not None and not test:
                    probe = self.engine.probe(self.data.probe)
            if not test:
                self._validated = (updates, result, probe)
                self.evaluated({"loss": result.loss, "perplexity": result.perplexity}, began=began)
        probed = {} if probe is None else probe.values()
        for line in evaluation_lines(prefix, result) if shown else ():
            self.log.console.print(line)
        if shown and probe is not None:
            self.log.console.print(probe.line(prefix))
        row = {"kind": "test" if test else "evaluation", "iteration": updates, "prefix": prefix, "loss": result.loss}
        row |= {"perplexity": result.perplexity}
        row |= {f"{OBJECTIVES[objective][1]}_loss": loss for objective, loss in result.objective_losses.items()}
        all_scalars = evaluation_scalars(result, step=updates)
        all_scalars += [(f"Train/valid_{name}", value, updates) for name, value in probed.items()]
        self.log.write(row | probed, all_scalars if scalars else ())

    def evaluated(self, metrics: Mapping[str, float], *, began: float) -> None:
        """Take the metrics of an evaluation that ``began`` then: they may be what the run is to reach."""
        self.progress.reached |= self.run.reaches_target(metrics)
        values = {"global_steps": self.progress.updates, **{f"eval_{name}": value for name, value in metrics.items()}}
        event = "EVALUATION" if self.progress.updates else "INIT_EVALUATION"
        perf_log.info(event, values | {"time": time.perf_counter() - began})

    def report_end(self, launched: float) -> None:
        """Print how fast the run was (``--report``) and write it; every rank has to ask."""
        (name, value), total = self.metric, self.throughput.total(self.engine.topology)
        rates = total.rates()
        if self.run.report:
            world_size = self.engine.topology.world_size
            local = min(world_size, int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
            processes = f"{world_size // local}x{local}"
            for line in report_lines(
                total, processes=processes, batch_size=self.batch_size, unit=self.unit, metric=self.metric
            ):
                self.log.console.print(line)
            made = {"processes": processes, "batch_size": self.batch_size, name: value}
            counted = {"samples": total.samples, "rows": total.rows, "seconds": total.seconds}
            self.log.write({"kind": "throughput", "iteration": self.progress.updates, **made, **counted, **rates})
        perf_log.info(
            "FINISHED",
            {
                "e2e_time": time.time() - STARTED,
                "training_sequences_per_second": rates["samples_per_second"],
                "converged": self.progress.reached,
                f"final_{name}": value,
                "raw_train_time": total.seconds,
                "init_time": launched - STARTED,
            },
        )


def waiting_remedies(settings: Settings) -> list[str]:
    """Return what shortens the wait for batches."""
    if settings.program != PRETRAINING:
        return ["batches are made between the updates here: a larger --batch-size with fewer accumulation steps"]
    workers, corpus, cores = settings.batch.num_workers, settings.corpus, usable_cores()
    busy = f"now {workers}, on {cores} cores" if workers else "now 0: batches are made between the updates"
    remedies = [f"more workers (--num-workers, {busy})"]
    if corpus.no_pre_tokenize:
        remedies.append("tokens made once (leave --no-pre-tokenize out)")
    if corpus.filter_english:
        remedies.append("a corpus that was filtered once (leave --filter-english out)")
    if not corpus.no_lazy_loader:
        remedies.append("tokens in memory where the disk is slow (--no-lazy-loader)")
    return [*remedies, "python -m data_utils.loader_speed with the flags of this run measures the loader alone"]


def nothing_to_predict(updates: int) -> str:
    """Return what to say of ``updates`` whose batches had no targets."""
    return (
        f"nothing to predict in {updates} updates: the documents are too short for a blank (or cut to nothing by "
        "--seq-length); give longer ones, or pack several into a sample (without --sample-one-document)"
    )


def run_every(interval: int, iteration: int) -> bool:
    """Tell whether something that happens every ``interval`` updates (0: never) is due."""
    return interval > 0 and iteration % interval == 0
