"""The training loop, a straight line: fetch, update, log, evaluate, save."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from data_utils.batches import Batch
from mpu.mappings import any_rank
from training.configurations import CheckpointSettings, RunSettings
from training.curves import draw_loss_curves, validation_table
from training.engine import Engine
from training.evaluation import evaluate
from training.logging import RunLog
from training.metrics import (
    OBJECTIVES,
    ComputeCost,
    EvaluationResult,
    IntervalMetrics,
    IntervalReport,
    dense_line,
    evaluation_lines,
    evaluation_scalars,
    iteration_line,
    iteration_scalars,
)

# With dynamic loss scaling from 2^32 some thirty updates are skipped at the start of a healthy fp16 run.
LONGEST_SKIPPED_STREAK = 100
STOP_INTERVAL = 10  # updates after which several ranks ask each other whether to save and leave
END_PREFIX = "the end of training for {} data"


class StopRequest:
    """Remember SIGTERM, SIGUSR1 (from batch systems) and SIGINT until the loop can save and leave.

    A second SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class TrainingData:
    """Where batches come from.

    Attributes:
        train: makes the endless sequence of this rank's micro batches from an absolute batch number on.
        valid: makes the validation batches, the same ones each time; None without validation data.
        test: the same for the test data.
        samples_per_batch: samples that all data ranks together draw for one micro batch.
        unigram_entropy: of the training text, in nats; what a model without any context would reach.
        tokenizer_fingerprint: of the tokenizer that made the ids; kept in checkpoints, so that no other one continues.
    """

    train: Callable[[int], Iterable[Batch]]
    samples_per_batch: int
    valid: Callable[[], Iterable[Batch]] | None = None
    test: Callable[[], Iterable[Batch]] | None = None
    unigram_entropy: float | None = None
    tokenizer_fingerprint: str | None = None


@dataclass(frozen=True)
class StartingPoint:
    """Where a run starts: updates made, micro batches consumed per rank, sums of an unfinished log interval."""

    iteration: int = 0
    train_batches: int = 0
    interval: dict[str, Any] | None = None


class Trainer:
    """One run over one engine. ``train`` is the loop; the other methods are its reports."""

    def __init__(
        self,
        engine: Engine,
        *,
        data: TrainingData,
        accumulation_steps: int,
        run: RunSettings,
        checkpoint: CheckpointSettings,
        log: RunLog,
        cost: ComputeCost,
    ) -> None:
        self.engine = engine
        self.data = data
        self.accumulation_steps = accumulation_steps
        self.run = run
        self.checkpoint = checkpoint
        self.log = log
        self.cost = cost
        self.metrics = IntervalMetrics(engine.device, topology=engine.topology)
        self._validated: tuple[int, EvaluationResult] | None = None  # iteration and result of the last validation

    def train(self, start: StartingPoint) -> int:
        """Make updates until ``train_iters`` (or ``exit_after``, or a signal), then evaluate and save.

        Returns the number of updates made over all runs. Raises ValueError when update after update is not finite.
        """
        run = self.run
        iteration, consumed = start.iteration, start.train_batches
        if start.interval is not None:
            self.metrics.load_state_dict(start.interval)
        if run.eval_at_start:
            self.evaluate(f"iteration {iteration}", step=iteration)
        last = min(run.train_iters, iteration + (run.exit_after or run.train_iters))
        saved = iteration
        batches: Iterator[Batch] = iter(self.data.train(consumed) if iteration < last else ())
        with StopRequest() as stop:
            seconds, clock = 0.0, time.perf_counter()
            while iteration < last:
                fetched = time.perf_counter()
                micro_batches = list(itertools.islice(batches, self.accumulation_steps))
                fetch_ms = 1000.0 * (time.perf_counter() - fetched)
                result = self.engine.train_step(micro_batches)
                self.metrics.add(result, fetch_ms=fetch_ms)
                iteration += 1
                consumed += self.accumulation_steps
                self.log.console.step()
                due = iteration % run.log_interval == 0
                if due:
                    seconds += time.perf_counter() - clock
                    self.report(self.metrics.report(iteration, seconds=seconds))
                    seconds, clock = 0.0, time.perf_counter()
                # Asking several ranks costs a wait for the device: not after every update.
                asking = due or iteration % STOP_INTERVAL == 0 or self.engine.topology.world_size == 1
                leaving = asking and any_rank(stop.requested, topology=self.engine.topology, device=self.engine.device)
                saving = run_every(self.checkpoint.save_interval, iteration) or leaving
                evaluating = run_every(run.eval_interval, iteration) and self.data.valid and not leaving
                if saving or evaluating:  # not part of the time per update
                    seconds += time.perf_counter() - clock
                    if evaluating:  # first, so that a checkpoint never lacks the evaluation of its iteration
                        self.evaluate(f"iteration {iteration}", step=iteration)
                    if saving:
                        saved = self.save(iteration, consumed)
                    clock = time.perf_counter()
                if leaving:
                    self.log.console.print(f"stopped by a signal after iteration {iteration}")
                    break
        if iteration == run.train_iters and self.data.valid:
            self.evaluate(END_PREFIX.format("val"), step=iteration, scalars=False)
        if iteration > saved:
            self.save(iteration, consumed)
        if iteration == run.train_iters and self.data.test:
            self.evaluate(END_PREFIX.format("test"), step=iteration, scalars=False, test=True)
        return iteration

    def report(self, report: IntervalReport) -> None:
        """Print and write one log interval; stop the run when nothing has been finite for long."""
        numbers = {"elapsed_ms": report.elapsed_ms, "learning_rate": report.learning_rate, "loss": report.loss}
        console = self.log.console
        if report.num_skipped:
            console.print(f"skipped {report.num_skipped} of {report.num_steps} updates: gradients not finite")
        console.print(iteration_line(report.step, self.run.train_iters, **numbers, loss_scale=report.loss_scale))
        parts = " | ".join(f"{name}: {ms:.2f}" for name, ms in report.milliseconds.items())
        console.print(f"time (ms) | {parts}")
        utilisation = self.cost.utilisation(report.tokens_per_second, num_devices=self.engine.topology.world_size)
        memory = self.engine.memory_bytes()
        console.dense(dense_line(report, total=self.run.train_iters, utilisation=utilisation, memory_bytes=memory))
        extra = {"memory_bytes": memory, **({} if utilisation is None else {"mfu": utilisation})}
        scalars = iteration_scalars(report.step, **numbers)
        scalars += [
            (f"Train/{OBJECTIVES[mode][1]}_loss", loss, report.step) for mode, loss in report.objective_losses.items()
        ]
        scalars += [
            ("Train/grad_norm", report.grad_norm, report.step),
            ("Train/tokens_per_second", report.tokens_per_second, report.step),
        ]
        self.log.write({**report.row(), **extra}, scalars)
        if report.longest_streak >= LONGEST_SKIPPED_STREAK:
            scale = "" if report.loss_scale is None else f", loss scale {report.loss_scale:g}"
            raise ValueError(
                f"{report.longest_streak} updates in a row had gradients that are not finite (up to iteration "
                f"{report.step}{scale}): lower --lr, lengthen --warmup, or use --bf16 instead of --fp16; no weight was "
                "changed by them, and the checkpoints before are intact"
            )

    def evaluate(self, prefix: str, *, step: int, scalars: bool = True, test: bool = False) -> EvaluationResult | None:
        """Evaluate on the validation data (or the test data), print the original's lines and write the losses."""
        batches = self.data.test if test else self.data.valid
        if batches is None:
            return None
        if test or self._validated is None or self._validated[0] != step:
            result = evaluate(self.engine, batches())
            self._validated = self._validated if test else (step, result)
        else:  # the evaluation at the end of training repeats that of the last iteration
            result = self._validated[1]
        for line in evaluation_lines(prefix, result):
            self.log.console.print(line)
        row = {"kind": "test" if test else "evaluation", "iteration": step, "prefix": prefix, "loss": result.loss}
        row |= {"perplexity": result.perplexity}
        row |= {f"{OBJECTIVES[mode][1]}_loss": loss for mode, loss in result.objective_losses.items()}
        self.log.write(row, evaluation_scalars(result, step=step) if scalars else ())
        return result

    def save(self, iteration: int, consumed: int) -> int:
        """Save a checkpoint, if there is a folder to save to, and return ``iteration``."""
        if self.checkpoint.save is not None:
            state = {"samples": consumed * self.data.samples_per_batch, "interval": self.metrics.state_dict()}
            state["tokenizer"] = self.data.tokenizer_fingerprint
            folder = self.engine.save(self.checkpoint, iteration=iteration, data_state=state)
            self.log.console.print(f"saved a checkpoint at iteration {iteration} to {folder}")
        return iteration

    def summarize(self, picture: Path) -> None:
        """Print the validation losses before and after and draw the curves of the whole run, resumed parts included."""
        for line in validation_table(self.run.metrics_file, unigram_entropy=self.data.unigram_entropy):
            self.log.console.print(line)
        note = draw_loss_curves(self.run.metrics_file, picture, title=self.run.experiment_name)
        self.log.console.print(note or f"loss curves: {picture}")


def run_every(interval: int, iteration: int) -> bool:
    """Tell whether something that happens every ``interval`` updates (0: never) is due."""
    return interval > 0 and iteration % interval == 0
