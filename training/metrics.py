"""What a run reports: the original's log strings and scalar names, and the measurements of a log interval.

Steps hand over tensors that stay on the device; they are read only when a line is due.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from data_utils.objective import Objective
from files.progress import duration
from files.reading import described, value_of
from mpu.initialize import ParallelTopology
from mpu.kernels.host_memory import send

# Label in the evaluation line, part of the scalar's name; the order is that of the line, and of sums per objective.
OBJECTIVES: dict[Objective, tuple[str, str]] = {
    Objective.DOCUMENT: ("GPT", "gpt"),
    Objective.TOKEN: ("BERT", "bert"),
    Objective.SENTENCE: ("Sent", "sent"),
    Objective.DOWNSTREAM: ("Multi", "multi"),
}
OBJECTIVE_INDEX = {objective: index for index, objective in enumerate(OBJECTIVES)}
SURROUNDINGS_IN_WORDS = {"true": "true neighbours", "swapped": "neighbours swapped", "far": "far context only"}
COUNTED = ("tokens", "real_tokens", "filled", "room")  # of the batches' sizes, over an interval
MAXIMUM_EXPONENT = 20.0  # of the perplexity

# Dense peak of one device in the arithmetic of autocast, FLOP/s, from the vendors' data sheets (first match counts).
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 150e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "4090": 165e12,
    "3090": 71e12,
}

Scalar = tuple[str, float, int]


def iteration_line(
    step: int, total: int, *, elapsed_ms: float, learning_rate: float, loss: float, loss_scale: float | None = None
) -> str:
    """Write the log line of the original; people parse it. ``loss_scale`` is given with fp16 only."""
    line = (
        f" iteration {step:8d}/{total:8d} | elapsed time per iteration (ms): {elapsed_ms:.1f} |"
        f" learning rate {learning_rate:.3E} | lm loss {loss:.6E} |"
    )
    return line if loss_scale is None else f"{line} loss scale {loss_scale:.1f} |"


def iteration_scalars(step: int, *, elapsed_ms: float, learning_rate: float, loss: float) -> list[Scalar]:
    """Return the TensorBoard scalars that go with ``iteration_line``."""
    return [
        ("Train/lr", learning_rate, step),
        ("Train/train_loss", loss, step),
        ("Train/elapsed_time", elapsed_ms, step),
    ]


@dataclass(frozen=True)
class EvaluationResult:
    """Mean loss per batch over all objectives, and over the batches of each one seen (absent or 0: not seen)."""

    loss: float
    objective_losses: Mapping[Objective, float]

    @property
    def perplexity(self) -> float:
        """Return exp(loss), with the exponent capped at 20; nan of nan."""
        return math.exp(MAXIMUM_EXPONENT if self.loss > MAXIMUM_EXPONENT else self.loss)


def evaluation_lines(prefix: str, result: EvaluationResult) -> list[str]:
    """Write the evaluation lines of the original: an opening rule, then the line between two rules of its length."""
    line = f" validation loss at {prefix} | LM loss: {result.loss:.6E} | LM PPL: {result.perplexity:.6E}"
    for objective, (label, _) in OBJECTIVES.items():
        if result.objective_losses.get(objective):
            line += f" | {label} loss: {result.objective_losses[objective]:.6E}"
    rule = "-" * (len(line) + 1)
    return ["-" * 100, rule, line, rule]


def evaluation_scalars(result: EvaluationResult, *, step: int) -> list[Scalar]:
    """Return the TensorBoard scalars that go with ``evaluation_lines``."""
    scalars = [("Train/valid_ppl", result.perplexity, step), ("Train/valid_loss", result.loss, step)]
    for objective, (_, name) in OBJECTIVES.items():
        if result.objective_losses.get(objective):
            scalars.append((f"Train/valid_{name}_loss", result.objective_losses[objective], step))
    return scalars


@dataclass(frozen=True)
class ProbeResult:
    """What a model makes of the blanks of a ``ContextProbe``.

    Attributes:
        losses: nats per first token of a blank, by surroundings.
        top1: share of blanks whose first token is the most probable one, by surroundings.
        num_blanks: of all data ranks.
        most_frequent: share that guessing the most frequent first token gets right.
    """

    losses: Mapping[str, float]
    top1: Mapping[str, float]
    num_blanks: int
    most_frequent: float

    def line(self, prefix: str) -> str:
        """Write the line that follows those of the evaluation at ``prefix``."""
        parts = [
            f"{SURROUNDINGS_IN_WORDS[name]}: loss {loss:.3f}, top-1 {self.top1[name]:.1%}"
            for name, loss in self.losses.items()
        ]
        return (
            f" context probe at {prefix} | first token of {self.num_blanks} blanks | {' | '.join(parts)} | "
            f"most frequent: {self.most_frequent:.1%}"
        )

    def values(self) -> dict[str, float]:
        """Return the figures by the names of the JSON lines."""
        losses = {f"probe_{name}_loss": loss for name, loss in self.losses.items()}
        return losses | {f"probe_{name}_top1": share for name, share in self.top1.items()}


class EvaluationTotals:
    """Sum batch losses per objective on the device; read them once at the end."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._sums = torch.zeros(len(OBJECTIVES), dtype=torch.float64, device=device)
        self._counts = torch.zeros(len(OBJECTIVES), dtype=torch.float64)

    def add(self, objective: Objective, loss: Tensor) -> None:
        """Count one batch of ``objective`` with mean target loss ``loss`` (0-dim)."""
        self._sums[OBJECTIVE_INDEX[objective]] += loss.detach().double()
        self._counts[OBJECTIVE_INDEX[objective]] += 1

    def result(self, *, topology: ParallelTopology) -> EvaluationResult:
        """Return mean losses over all batches of all data ranks; every batch weighs the same, as in the original."""
        totals = torch.stack([self._sums, self._counts.to(self._sums.device)])  # [2,objectives]
        if topology.data_parallel_group is not None:
            dist.all_reduce(totals, group=topology.data_parallel_group)
        sums, counts = totals.tolist()
        num_batches = sum(counts)
        assert num_batches, "an evaluation without batches"
        losses = {objective: s / c for objective, s, c in zip(OBJECTIVES, sums, counts, strict=True) if c}
        return EvaluationResult(loss=sum(sums) / num_batches, objective_losses=losses)


class BatchSize(NamedTuple):
    """What a batch holds.

    Attributes:
        samples, rows: a question is a sample, each of its answers a row.
        tokens: of the input, padding included.
        real_tokens: of them, those that are no padding.
        filled, room: tokens that packing has put into the batch, and the positions it had (``Batch``); 0: no packing.
    """

    samples: int
    rows: int
    tokens: int
    real_tokens: int
    filled: int = 0
    room: int = 0


@dataclass(frozen=True)
class StepResult:
    """What one update of one data rank measured; the tensors stay on the device.

    Attributes:
        objective_sums: fp32 [objectives,2], this rank's sums of target losses and of target weights per objective.
        loss: 0-dim, this rank's share of the loss: the shares of all data ranks add up to the step's loss.
        grad_norm: 0-dim, before clipping.
        skipped: 0-dim, 1 when the update was not applied because its gradients were not finite.
        size: of the batches of this rank.
        learning_rate: the one this update used.
        loss_scale: fp16's loss scale, else None.
        milliseconds: host time by part of the step.
    """

    objective_sums: Tensor
    loss: Tensor
    grad_norm: Tensor
    skipped: Tensor
    size: BatchSize
    learning_rate: float
    loss_scale: float | None = None
    milliseconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class IntervalReport:
    """The measurements of the updates since the last report, over all data ranks.

    The loss is nan when all of them were skipped, or had nothing to predict.

    Attributes:
        num_tokens, num_real_tokens: of the input of all data ranks, with padding and without.
        packing_efficiency: share of the positions that packing had (``Batch.room``) which it filled; None: no packing.
        waiting_share: share of the time of updates that the host waited for batches, of the rank that waited longest;
            the first update of a process, in which the loader starts, does not count.
    """

    step: int
    loss: float
    objective_losses: Mapping[Objective, float]
    learning_rate: float
    grad_norm: float
    num_steps: int
    num_skipped: int
    longest_streak: int
    num_tokens: int
    num_real_tokens: int
    packing_efficiency: float | None
    waiting_share: float
    seconds: float
    loss_scale: float | None
    milliseconds: Mapping[str, float]

    @property
    def elapsed_ms(self) -> float:
        """Return the wall time per update."""
        return 1000.0 * self.seconds / max(self.num_steps, 1)

    @property
    def tokens_per_second(self) -> float:
        """Return the input tokens of all ranks per second, padding included."""
        return self.num_tokens / max(self.seconds, 1e-9)

    @property
    def real_tokens_per_second(self) -> float:
        """Return the input tokens of all ranks per second, without padding."""
        return self.num_real_tokens / max(self.seconds, 1e-9)

    @property
    def padding_share(self) -> float:
        """Return the share of the input that is padding."""
        return 1.0 - self.num_real_tokens / max(self.num_tokens, 1)

    @property
    def empty(self) -> bool:
        """Tell whether no update had anything to predict."""
        return not self.objective_losses and self.num_skipped < self.num_steps

    def row(self) -> dict[str, Any]:
        """Return the JSON lines row; everything but the times is reproducible."""
        return {
            "kind": "train",
            "iteration": self.step,
            "loss": self.loss,
            **{f"{OBJECTIVES[objective][1]}_loss": loss for objective, loss in self.objective_losses.items()},
            "learning_rate": self.learning_rate,
            "grad_norm": self.grad_norm,
            "tokens": self.num_tokens,
            "real_tokens": self.num_real_tokens,
            "padding_share": round(self.padding_share, 4),
            **({} if self.packing_efficiency is None else {"packing_efficiency": round(self.packing_efficiency, 4)}),
            "skipped": self.num_skipped,
            **({} if self.loss_scale is None else {"loss_scale": self.loss_scale}),
            "elapsed_ms": round(self.elapsed_ms, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "real_tokens_per_second": round(self.real_tokens_per_second, 1),
            "waiting_share": round(self.waiting_share, 4),
        }


class IntervalMetrics:
    """Add up the steps of a log interval without waiting for the device."""

    def __init__(self, device: torch.device, *, topology: ParallelTopology) -> None:
        self._device = device
        self._topology = topology
        self._streak = torch.zeros((), device=device)  # of skipped updates, across intervals
        self._started = False
        self.reset()

    def reset(self) -> None:
        """Start a new interval."""
        self._objective_sums = torch.zeros(len(OBJECTIVES), 2, device=self._device)
        self._loss = torch.zeros((), device=self._device)
        self._skipped = torch.zeros((), device=self._device)
        self._longest_streak = self._streak.clone()
        self._last: StepResult | None = None
        self._num_steps = 0
        self._sizes = [0] * len(COUNTED)  # of this rank's batches
        self._seconds = 0.0
        self._waited, self._timed = 0.0, 0.0  # for batches, and of all: seconds without the first update
        self._milliseconds: dict[str, float] = {}

    def add(self, result: StepResult, *, seconds: float = 0.0, fetch_seconds: float = 0.0) -> None:
        """Count one update that took ``seconds``, its batches ``fetch_seconds`` of them.

        Skipped updates do not enter the losses.
        """
        kept = 1.0 - result.skipped
        self._objective_sums += torch.where(kept.bool(), result.objective_sums, 0.0)
        self._loss += torch.where(kept.bool(), result.loss, 0.0)
        self._skipped += result.skipped
        self._streak = (self._streak + 1.0) * result.skipped
        self._longest_streak = torch.maximum(self._longest_streak, self._streak)
        self._last = result
        self._num_steps += 1
        self._sizes = [total + getattr(result.size, name) for total, name in zip(self._sizes, COUNTED, strict=True)]
        self._seconds += seconds
        if self._started:
            self._waited, self._timed = self._waited + fetch_seconds, self._timed + seconds
        self._started = True
        for name, milliseconds in {**result.milliseconds, "batch generator": 1000.0 * fetch_seconds}.items():
            self._milliseconds[name] = self._milliseconds.get(name, 0.0) + milliseconds

    def report(self, step: int) -> IntervalReport:
        """Read the interval's values, add the data ranks up, and start a new interval.

        This is the one wait for the device: it counts as time of the updates that are waited for.
        """
        assert self._last is not None, "report without a step"
        began = time.perf_counter()
        last = self._last
        flags = torch.stack([self._skipped, self._longest_streak, last.grad_norm.float()]).double()
        *sums, loss, tokens, real_tokens, filled, room, num_skipped, longest, grad_norm = torch.cat(
            [self._summed(), flags]
        ).tolist()
        skipped, streak = int(num_skipped), int(longest)
        pairs = zip(OBJECTIVES, sums[0::2], sums[1::2], strict=True)
        report = IntervalReport(
            step=step,
            loss=loss / (self._num_steps - skipped) if any(sums[1::2]) else math.nan,
            objective_losses={objective: total / weight for objective, total, weight in pairs if weight > 0},
            learning_rate=last.learning_rate,
            grad_norm=grad_norm,
            num_steps=self._num_steps,
            num_skipped=skipped,
            longest_streak=streak,
            num_tokens=int(tokens),
            num_real_tokens=int(real_tokens),
            packing_efficiency=filled / room if room else None,
            waiting_share=self._waiting_share(time.perf_counter() - began),
            seconds=self._seconds + time.perf_counter() - began,
            loss_scale=last.loss_scale,
            milliseconds={name: total / self._num_steps for name, total in self._milliseconds.items()},
        )
        self.reset()
        return report

    def _summed(self) -> Tensor:
        """Return the sums over the data ranks, fp64 [2*objectives+1+counted]: losses and weights, loss, sizes."""
        sizes = send(torch.tensor(self._sizes, dtype=torch.float64), self._device)
        local = torch.cat([self._objective_sums.flatten().double(), self._loss[None].double(), sizes])
        if self._topology.data_parallel_group is not None:
            dist.all_reduce(local, group=self._topology.data_parallel_group)
        return local

    def _waiting_share(self, reading_seconds: float) -> float:
        """Return the share of the rank that waited longest; ``reading_seconds`` were those of its updates, too."""
        share = self._waited / max(self._timed + reading_seconds, 1e-9)
        if self._topology.world_size > 1:
            worst = torch.tensor(share, device=self._device)
            dist.all_reduce(worst, op=dist.ReduceOp.MAX)
            share = worst.item()
        return share

    def num_targets(self) -> float:
        """Return the target weights of all data ranks in this interval; every one of them has to ask."""
        weights = self._objective_sums[:, 1].sum()
        if self._topology.data_parallel_group is not None:
            dist.all_reduce(weights, group=self._topology.data_parallel_group)
        return weights.item()

    @property
    def skipping(self) -> bool:
        """Tell whether the last update was skipped, the same on every rank; waits for the device."""
        return self._streak.item() > 0

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of an unfinished interval over all data ranks, so that a resumed run reports the same lines.

        Every data rank has to call it.
        """
        summed = self._summed().tolist()
        return {
            "sums": summed[: 2 * len(OBJECTIVES) + 1],
            "sizes": [int(size) for size in summed[2 * len(OBJECTIVES) + 1 :]],
            "skipped": self._skipped.item(),
            "num_steps": self._num_steps,
            "seconds": self._seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue an interval from what ``state_dict`` returned; data rank 0 takes the sums.

        A streak of skipped updates, which older checkpoints have, begins afresh: the run gets its chance again.
        """
        place = "the unfinished log interval of the checkpoint"
        numbers = value_of(state, "sums", list, place=place)
        if len(numbers) != 2 * len(OBJECTIVES) + 1 or not all(isinstance(number, int | float) for number in numbers):
            raise ValueError(f"{place}: sums is {described(numbers)}; {2 * len(OBJECTIVES) + 1} numbers are needed")
        if self._topology.data_parallel_rank == 0:
            *sums, loss = map(float, numbers)
            self._objective_sums = torch.tensor(sums, device=self._device).view(len(OBJECTIVES), 2)
            self._loss = torch.tensor(loss, device=self._device)
            sizes = value_of(state, "sizes", list, place=place, default=[0] * len(COUNTED))  # older ones lack them
            if len(sizes) != len(COUNTED) or not all(isinstance(size, int) and size >= 0 for size in sizes):
                raise ValueError(
                    f"{place}: sizes is {described(sizes)}; {len(COUNTED)} numbers of at least 0 are needed"
                )
            self._sizes = sizes
        self._skipped = torch.tensor(value_of(state, "skipped", float, place=place, at_least=0), device=self._device)
        self._num_steps = value_of(state, "num_steps", int, place=place, at_least=0)
        self._seconds = value_of(state, "seconds", float, place=place, default=0.0)  # which older checkpoints lack


@dataclass
class Throughput:
    """How fast a run trains: what it has trained on and the time of its loop, parts before a restart included.

    Attributes:
        samples, rows: of this data rank; after a restart the first has those of all.
        seconds: of the loop.
        seconds_aside: of them, for evaluations and checkpoints.
    """

    samples: int = 0
    rows: int = 0
    seconds: float = 0.0
    seconds_aside: float = 0.0
    _began: float | None = None  # when the time was last counted, in the loop

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the body as time of the loop."""
        self._began = time.perf_counter()
        try:
            yield
        finally:
            self._count()
            self._began = None

    @contextmanager
    def aside(self, device: torch.device) -> Iterator[None]:
        """Count the body, an evaluation or a checkpoint in the loop, as time aside; updates under way end before it."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        yield
        if self._began is not None:
            self.seconds_aside += time.perf_counter() - began

    def total(self, topology: ParallelTopology) -> Throughput:
        """Return the figures over all data ranks up to now; every one of them has to ask."""
        self._count()
        sizes = torch.tensor([self.samples, self.rows])
        if topology.data_parallel_group is not None:
            dist.all_reduce(sizes, group=topology.data_parallel_group)
        samples, rows = sizes.tolist()
        return Throughput(samples, rows, self.seconds, self.seconds_aside)

    def state_dict(self, topology: ParallelTopology) -> dict[str, Any]:
        """Return what a checkpoint keeps; every data rank has to ask."""
        total = self.total(topology)
        return {name: getattr(total, name) for name in ("samples", "rows", "seconds", "seconds_aside")}

    @classmethod
    def of(cls, state: Mapping[str, Any], topology: ParallelTopology) -> Throughput:
        """Return the figures to go on from: those of a checkpoint, or none. The first data rank has its samples."""
        place = "the throughput of the checkpoint"
        samples, rows = (value_of(state, name, int, place=place, default=0, at_least=0) for name in ("samples", "rows"))
        times = (value_of(state, name, float, place=place, default=0.0) for name in ("seconds", "seconds_aside"))
        return cls(samples, rows, *times) if topology.data_parallel_rank == 0 else cls(0, 0, *times)

    def rates(self) -> dict[str, float]:
        """Return samples and rows a second, with evaluations (and checkpoints) in the time and without."""
        times = {"": self.seconds, "_without_evaluations": self.seconds - self.seconds_aside}
        return {
            f"{name}_per_second{ending}": getattr(self, name) / max(seconds, 1e-9)
            for ending, seconds in times.items()
            for name in ("samples", "rows")
        }

    def _count(self) -> None:
        if self._began is not None:
            now = time.perf_counter()
            self.seconds, self._began = self.seconds + now - self._began, now


def report_lines(
    total: Throughput, *, processes: str, batch_size: int, unit: str, metric: tuple[str, float | None]
) -> list[str]:
    """Return the lines of ``--report``: what benchmarks publish, then the rates.

    ``processes`` is the number of machines and of processes on each (1x8), ``batch_size`` that of a process; ``unit``
    says what samples are, ``metric`` what the run is judged by and its value.
    """
    (name, value), rates = metric, total.rates()
    fps, reached = f"{rates['samples_per_second']:.2f}", "-" if value is None else f"{value:.4g}"
    header = ["GPUs", "Batch Size", "FPS", name.capitalize()]
    table = (header, ["---"] * len(header), [processes, str(batch_size), fps, reached])
    lines = [f"| {' | '.join(row)} |" for row in table]
    for ending, text in (("", "evaluations and checkpoints in the time"), ("_without_evaluations", "without them")):
        samples, rows = (rates[f"{name}_per_second{ending}"] for name in ("samples", "rows"))
        lines.append(f"{samples:.2f} {unit}/s, {rows:.1f} rows/s, {text}")
    return lines


@dataclass(frozen=True)
class ComputeCost:
    """Arithmetic of training, for the utilisation (MFU): 6 x parameters + 12 x layers x hidden x length per token."""

    flops_per_token: float
    peak_flops: float | None

    @classmethod
    def of(
        cls, *, num_parameters: int, num_layers: int, hidden_size: int, seq_length: int, device_name: str | None
    ) -> ComputeCost:
        """Count the FLOPs of one token, forward and backward (the usual estimate, PaLM appendix B)."""
        flops = 6.0 * num_parameters + 12.0 * num_layers * hidden_size * seq_length
        peak = next((p for name, p in PEAK_FLOPS.items() if device_name and name in device_name), None)
        return cls(flops, peak)

    def utilisation(self, tokens_per_second: float, *, num_devices: int) -> float | None:
        """Return the used fraction of the peak, or None where the peak is not known."""
        if self.peak_flops is None:
            return None
        return tokens_per_second * self.flops_per_token / (self.peak_flops * num_devices)


def short_number(number: float) -> str:
    """Write a count in three digits: 950, 9.5k, 12.3M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def dense_line(report: IntervalReport, *, total: int, utilisation: float | None, memory_bytes: int | None) -> str:
    """Write everything about an interval in one line, what is asked for most first: a terminal may cut the rest."""
    per_objective = " ".join(f"{o.name.lower()} {loss:.3f}" for o, loss in report.objective_losses.items())
    parts: Sequence[str | None] = (
        f"step {report.step}/{total}",
        f"ETA {duration((total - report.step) * report.elapsed_ms / 1000)}",
        f"loss {report.loss:.3f} ({per_objective})" if per_objective else f"loss {report.loss:.3f}",
        f"lr {report.learning_rate:.2e}",
        f"grad norm {report.grad_norm:.2f}",
        f"{short_number(report.tokens_per_second)} tokens/s",
        f"waiting {100 * report.waiting_share:.1f}%",
        f"padding {100 * report.padding_share:.1f}%",
        None if report.packing_efficiency is None else f"packed {100 * report.packing_efficiency:.1f}%",
        None if utilisation is None else f"MFU {100 * utilisation:.1f}%",
        None if memory_bytes is None else f"{memory_bytes / 2**30:.2f} GB",
    )
    return " | ".join(part for part in parts if part is not None)
