"""Engines make updates from micro batches.

``Engine`` says what an update, an evaluation and a checkpoint are; ``TorchEngine`` computes them with plain torch, on a
CPU or on GPUs, and ``training.deepspeed.engine.DeepSpeedEngine`` with DeepSpeed. A ``Criterion`` is what they minimise.

b micro batch, s sequence
"""

from __future__ import annotations

import operator
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data_utils.batches import Batch
from data_utils.objective import Objective
from data_utils.objective.context_probe import ContextProbe
from model.checkpoints.reading import LoadReport, load_model_weights, master_of
from model.modeling_glm import LanguageModelLoss, evaluating, target_positions
from mpu.fsdp import is_spread, own_rows, release
from mpu.initialize import ParallelTopology
from mpu.kernels.host_memory import send
from mpu.kernels.prepacked import has_bf16_instructions
from mpu.masks import PrefixMask
from training.checkpointing import BackgroundWriter, ResumeState, load_checkpoint, save_checkpoint
from training.metrics import (
    OBJECTIVE_INDEX,
    OBJECTIVES,
    BatchSize,
    EvaluationResult,
    EvaluationTotals,
    ProbeResult,
    StepResult,
)
from training.optimizer import DynamicLossScaler, clip_gradients
from training.schedule import AnnealingLR
from training.settings import CheckpointSettings, PrecisionSettings

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def supported_precision(
    settings: PrecisionSettings, *, device: torch.device, training: bool = True
) -> tuple[str, str | None]:
    """Return the arithmetic to use on ``device`` and, when it is not the one asked for, a line that says why.

    fp16 on a CPU is emulated, about 70 times slower than fp32: bf16 takes its place there. Without instructions for it
    ``training`` in bf16 is slower than in fp32, too; weights of half the size still help to generate.
    """
    asked = settings.kind
    if device.type != "cpu" or asked == "fp32":
        return asked, None
    if training and not has_bf16_instructions():
        return (
            "fp32",
            f"precision: fp32 instead of {asked}, which this processor is not known to have instructions for (slower)",
        )
    if asked == "fp16":
        return (
            "bf16",
            "precision: bf16 instead of fp16, which a CPU only emulates (70 times slower); --fp32 forces fp32",
        )
    return asked, None


class Criterion(Protocol):
    """The loss of one kind of batches. Engines divide its sum by the weights of all micro batches and data ranks."""

    def loss(self, model: nn.Module, batch: Any, *, device: torch.device) -> LanguageModelLoss:
        """Run ``model`` on ``batch`` and return the sums of losses and of weights."""

    def weight(self, batch: Any) -> float:
        """Return the sum of weights, known before the model runs."""

    def objective(self, batch: Any) -> Objective:
        """Return what the loss is reported as."""

    def size(self, batch: Any) -> BatchSize:
        """Return what the batch holds."""


def prefix_mask(batch: Batch, *, device: torch.device) -> PrefixMask:
    """Return the mask of a batch of tensors, on ``device``."""
    mask = batch.attention_mask
    if batch.layout == "packed":
        return PrefixMask.packed(*mask.unbind(1)).to(device)
    return (PrefixMask.matrix(mask) if batch.layout == "matrix" else PrefixMask.prefix(mask)).to(device)


class BlankInfilling:
    """Predict the tokens of blanks: cross entropy over the padded vocabulary, computed only where targets are.

    ``label_smoothing`` is the share of the loss that every id of the vocabulary gets.
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, model: nn.Module, batch: Batch, *, device: torch.device) -> LanguageModelLoss:
        """Return the sums over target positions."""
        tensors = batch.tensors()
        return model(
            send(tensors.input_ids, device),
            send(tensors.position_ids, device),
            prefix_mask(tensors, device=device),
            labels=send(tensors.target_ids, device),
            loss_mask=tensors.loss_mask,  # on the host, where its targets are counted without a wait
            label_smoothing=self.label_smoothing,
        )

    def weight(self, batch: Batch) -> float:
        """Return the number of target positions."""
        return float(batch.loss_mask.sum())

    def objective(self, batch: Batch) -> Objective:
        return batch.objective

    def size(self, batch: Batch) -> BatchSize:
        samples = int(batch.attention_mask[:, 0].max() if batch.layout == "packed" else len(batch.input_ids))
        return BatchSize(
            samples, samples, batch.input_ids.size, batch.num_real_tokens, filled=batch.filled, room=batch.room
        )


class Stopwatch:
    """Measure the host time of the parts of a step; on a GPU that is the time to launch them."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the body to part ``name``."""
        start = time.perf_counter()
        yield
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + 1000.0 * (time.perf_counter() - start)


class Engine(ABC):
    """A model in training: its place among the ranks, its criterion, its optimizer and its schedule.

    Engines differ in ``_forward``, ``_backward`` and ``_update``; the step itself is the same.
    """

    description = "torch"

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: torch.optim.Optimizer,
        scheduler: AnnealingLR,
        criterion: Criterion | None = None,
        precision: str = "fp32",
        loss_scaler: DynamicLossScaler | None = None,
        clip_grad: float = 1.0,
        topology: ParallelTopology | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Hold ``model``, which lives on ``device``, and the optimizer of its parameters.

        ``criterion`` is blank infilling by default. ``precision`` is fp32, bf16 or fp16 (autocast); ``loss_scaler``
        belongs to fp16. ``clip_grad`` is the limit of the global gradient norm, 0 for none. Parameters in bf16 have
        masters (``training.optimizer.keep_masters``), which belong to ``optimizer``.
        """
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.criterion = criterion or BlankInfilling()
        self.precision = precision
        self.loss_scaler = loss_scaler
        self.clip_grad = clip_grad
        self.topology = topology or ParallelTopology.single()
        self.device = torch.device(device)
        self.beside: dict[str, bytes] = {}  # files that every checkpoint gets, by name
        self.writer: BackgroundWriter | None = None  # of ``--async-save``
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self._parameters: list[nn.Parameter] = [one for one in model.parameters() if one.requires_grad]
        self._masters = [master_of(parameter) for parameter in self._parameters]
        self.has_masters = any(map(operator.is_not, self._parameters, self._masters))
        self._spread = any(map(is_spread, self._parameters))
        if self._spread:
            self.description = "torch, FSDP2"

    @property
    def network(self) -> nn.Module:
        """Return what runs a batch outside of training."""
        return self.model

    @property
    def loss_scale(self) -> float | None:
        """Return the factor of this update's loss; None but for fp16."""
        return self.loss_scaler.scale if self.loss_scaler else None

    def train_step(self, batches: Sequence[Any]) -> StepResult:
        """Make one update from the micro batches of this data rank.

        The loss is the sum of all target losses over the sum of all target weights, over micro batches and data ranks
        alike. Gradients are clipped once, by their global norm. When they are not finite nothing is changed: neither
        parameters nor optimizer, and with fp16 neither the schedule.
        """
        stopwatch = Stopwatch()
        learning_rate, loss_scale = self.optimizer.param_groups[0]["lr"], self.loss_scale
        objective_sums = torch.zeros(len(OBJECTIVES), 2, device=self.device)
        share = torch.zeros((), device=self.device)
        factor = self._inverse_weight(batches)
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with self._reduction(last):
                with stopwatch.part("forward"):
                    sums = self._loss(self._forward, batch)
                    loss = sums.loss_sum * factor
                with stopwatch.part("backward"):
                    self._backward(loss, last)
            objective_sums[OBJECTIVE_INDEX[self.criterion.objective(batch)]] += torch.stack(
                [sums.loss_sum.detach(), sums.weight_sum]
            )
            share += loss.detach()
        with stopwatch.part("optimizer"):
            grad_norm, skipped = self._update()
        return StepResult(
            objective_sums=objective_sums,
            loss=share,
            grad_norm=grad_norm,
            skipped=skipped,
            size=BatchSize(*map(sum, zip(*map(self.criterion.size, batches), strict=True))),
            learning_rate=learning_rate,
            loss_scale=loss_scale,
            milliseconds=stopwatch.milliseconds,
        )

    def batch_loss(self, batch: Any) -> LanguageModelLoss:
        """Return the sums of losses and weights of one micro batch."""
        return self._loss(self.network, batch)

    def evaluate(self, batches: Iterable[Any]) -> EvaluationResult:
        """Run the model over ``batches`` without dropout and return the losses per objective.

        No random numbers are drawn: a run with evaluations takes the same steps as one without.
        """
        totals = EvaluationTotals(self.device)
        with self._evaluating():
            for batch in batches:
                totals.add(self.criterion.objective(batch), self.batch_loss(batch).mean)
        return totals.result(topology=self.topology)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Run the body without dropout and gradients."""
        # What inference mode makes, such as whole parameters, cannot be trained.
        with evaluating(self.model), torch.no_grad() if self._spread else torch.inference_mode():
            yield
        if self._spread:
            release(self.model)

    def probe(self, probe: ContextProbe) -> ProbeResult:
        """Return how well the first tokens of the probe's blanks are predicted; logits are computed of them alone."""
        sums = torch.zeros(len(probe.batches), 3, dtype=torch.float64, device=self.device)  # losses, right ones, blanks
        with self._evaluating():
            for number, batches in enumerate(probe.batches.values()):
                for batch in batches:
                    sums[number] += self._first_tokens(batch.tensors())
        if self.topology.data_parallel_group is not None:
            dist.all_reduce(sums, group=self.topology.data_parallel_group)
        means = dict(zip(probe.batches, (sums[:, :2] / sums[:, 2:]).tolist(), strict=True))
        return ProbeResult(
            losses={name: loss for name, (loss, _) in means.items()},
            top1={name: share for name, (_, share) in means.items()},
            num_blanks=int(sums[0, 2].item()),
            most_frequent=probe.most_frequent,
        )

    def _first_tokens(self, batch: Batch) -> Tensor:
        """Return the loss, the number of right first choices and the number of targets [3] of a batch of tensors."""
        queries = target_positions(batch.loss_mask)  # [b,r]
        if queries is None:  # of rows without a blank, which other ranks need not have
            queries = torch.zeros(len(batch.input_ids), 1, dtype=torch.int64)
        targets, weights = (
            send(values.gather(1, queries), self.device) for values in (batch.target_ids, batch.loss_mask)
        )
        with self.autocast():
            logits = self.network(
                send(batch.input_ids, self.device),
                send(batch.position_ids, self.device),
                prefix_mask(batch, device=self.device),
                output="logits",
                query_positions=queries,
            )  # [b,r,v]
        losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")  # [b*r]
        right = (logits.argmax(dim=-1) == targets).flatten()
        return torch.stack([losses, right, torch.ones_like(losses)]).double() @ weights.flatten().double()

    def autocast(self) -> AbstractContextManager:
        """Return the context of a forward pass in the run's arithmetic."""
        if self.precision not in AUTOCAST_TYPES or self.has_masters:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=AUTOCAST_TYPES[self.precision])

    def save(
        self, settings: CheckpointSettings, *, iteration: int, data_state: dict[str, Any], tag: str | None = None
    ) -> Path:
        """Write a checkpoint of everything to ``settings.save`` and return its folder; every rank has to call it.

        ``tag`` names it (default: the iteration). With a ``writer``, and ``settings`` that ask for it, the checkpoint
        is whole when that is done; the save before is waited for.
        """
        assert settings.save is not None, "save without a folder"
        if self.writer is not None:
            self.writer.done(wait=True)
        if self.loss_scaler:
            data_state = {**data_state, "loss_scaler": self.loss_scaler.state_dict()}
        return save_checkpoint(
            settings.save,
            tag=tag or str(iteration),
            iteration=iteration,
            model=self.model,
            optimizer=None if settings.no_save_optim else self.optimizer,
            scheduler=None if settings.no_save_optim else self.scheduler,
            topology=self.topology,
            data_state=data_state,
            random_state=not settings.no_save_rng,
            keep=settings.keep_checkpoints,
            beside=self.beside,
            writer=self.writer if settings.async_save else None,
        )

    def load(self, path: Path, settings: CheckpointSettings) -> ResumeState:
        """Continue from the checkpoint at ``path``, as far as ``settings`` allow."""
        state = load_checkpoint(
            path,
            model=self.model,
            optimizer=self.optimizer,
            scheduler=None if settings.no_load_lr_scheduler else self.scheduler,
            topology=self.topology,
            load_optimizer=not settings.no_load_optim,
            load_random=not settings.no_load_rng,
            finetune=settings.finetune,
        )
        if self.loss_scaler and "loss_scaler" in state.data_state:
            self.loss_scaler.load_state_dict(state.data_state["loss_scaler"])
        self._round_masters()
        return state

    def load_weights(self, path: Path) -> LoadReport:
        """Take the weights of the checkpoint at ``path``, for an evaluation: the optimizer's state stays as it is."""
        report = load_model_weights(self.model, path, topology=self.topology)
        self._round_masters()
        return report

    @torch.no_grad()
    def _round_masters(self) -> None:
        """Give parameters in half precision the values of their masters."""
        if self.has_masters:
            torch._foreach_copy_([*self._parameters], [*self._masters])

    def memory_bytes(self) -> int | None:
        """Return the peak of the memory in use, of the GPU or of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    @property
    @abstractmethod
    def _forward(self) -> nn.Module:
        """Return what runs a batch in training."""

    @abstractmethod
    def _backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of a micro batch's share of the loss; with the ``last`` they are reduced over data ranks.

        Data parallelism averages over the data ranks, whose global weight ``loss`` holds already.
        """

    @abstractmethod
    def _update(self) -> tuple[Tensor, Tensor]:
        """Clip the gradients and apply them; return their norm from before, and 1 when they were skipped (0-dim)."""

    def _reduction(self, last: bool) -> AbstractContextManager:
        """Return the context of a micro batch, outside of which its gradients are reduced."""
        return nullcontext()

    def _loss(self, forward: nn.Module, batch: Any) -> LanguageModelLoss:
        with self.autocast():
            return self.criterion.loss(forward, batch, device=self.device)

    def _inverse_weight(self, batches: Sequence[Any]) -> Tensor:
        """Return one over the weights of all micro batches and data ranks, known before the first forward."""
        weight = torch.full((), float(sum(map(self.criterion.weight, batches))), device=self.device)
        if self.topology.data_parallel_group is not None:
            dist.all_reduce(weight, group=self.topology.data_parallel_group)
        return 1.0 / weight.clamp(min=1.0)


class TorchEngine(Engine):
    """The engine of plain torch, on a CPU or GPUs. Parameters are fp32, or bf16 with fp32 masters.

    Data ranks hold all of them (DistributedDataParallel), or a share each (FSDP2), where the model's parameters are
    spread when it comes; gradients are then reduced after every micro batch, so that nobody holds all of them.
    Gradients of bf16 parameters are bf16 until the update: those of several micro batches add up, and are reduced over
    data ranks, in bf16.
    """

    @cached_property
    def _forward(self) -> nn.Module:
        if self.topology.data_parallel_group is None or self._spread:
            return self.model
        return DistributedDataParallel(
            self.model, process_group=self.topology.data_parallel_group, gradient_as_bucket_view=True
        )

    def _reduction(self, last: bool) -> AbstractContextManager:
        forward = self._forward
        return forward.no_sync() if isinstance(forward, DistributedDataParallel) and not last else nullcontext()

    def _backward(self, loss: Tensor, last: bool) -> None:
        (loss * ((self.loss_scale or 1.0) * self.topology.data_parallel_size)).backward()

    def _update(self) -> tuple[Tensor, Tensor]:
        if self.loss_scaler:
            gradients = [own_rows(p.grad) for p in self._parameters if p.grad is not None]
            torch._foreach_mul_(gradients, 1.0 / self.loss_scaler.scale)
        if self.has_masters:
            for parameter, master in zip(self._parameters, self._masters, strict=True):
                if parameter.grad is not None:
                    master.grad, parameter.grad = parameter.grad.float(), None
        grad_norm = clip_gradients(self._masters, self.clip_grad, topology=self.topology)
        skipped = (~torch.isfinite(grad_norm)).float()
        if self.loss_scaler:
            overflow = bool(skipped.item())  # the scale of the next step depends on it
            if not overflow:
                self.optimizer.step()
                self.scheduler.step()
            self.loss_scaler.update(overflow)
        elif getattr(self.optimizer, "_step_supports_amp_scaling", False):
            # Fused optimizers leave everything as it is by a flag on the device: nobody has to wait for it.
            self.optimizer.found_inf = skipped  # type: ignore[attr-defined]  # it is no part of torch's base class
            self.optimizer.step()
            self.scheduler.step()
        else:
            if not skipped.item():
                self.optimizer.step()
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._round_masters()
        return grad_norm, skipped
