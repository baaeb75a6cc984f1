"""Engines make updates from micro batches. The loop knows ``Engine``; this one is plain torch, on a CPU or on GPUs.

b micro batch, s sequence
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.checkpoints.reading import LoadReport, load_model_weights
from model.modeling_glm import LanguageModelLoss
from mpu.initialize import ParallelTopology
from training.checkpointing import ResumeState, load_checkpoint, save_checkpoint
from training.configurations import CheckpointSettings
from training.metrics import OBJECTIVE_INDEX, OBJECTIVES, StepResult
from training.objectives import BlankInfilling, Objective
from training.optimizer import DynamicLossScaler, clip_gradients
from training.precision import autocast
from training.schedule import AnnealingLR


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
    """What every engine has: a model on a device, its place among the ranks, a schedule, and the loss of a batch."""

    optimizer: torch.optim.Optimizer
    scheduler: AnnealingLR
    loss_scaler: DynamicLossScaler | None

    def __init__(
        self,
        model: nn.Module,
        *,
        objective: Objective,
        precision: str,
        topology: ParallelTopology | None,
        device: torch.device | str,
    ) -> None:
        self.model = model
        self.objective = objective
        self.precision = precision
        self.topology = topology or ParallelTopology.single()
        self.device = torch.device(device)
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())

    @abstractmethod
    def train_step(self, batches: Sequence[Any]) -> StepResult:
        """Make one update from the micro batches of this data rank."""

    @abstractmethod
    def save(
        self, settings: CheckpointSettings, *, iteration: int, data_state: dict[str, Any], tag: str | None = None
    ) -> Path:
        """Write a checkpoint of everything to ``settings.save`` and return its folder; every rank has to call it.

        ``tag`` names it (default: the iteration).
        """

    def load_weights(self, path: Path) -> LoadReport:
        """Take the weights of the checkpoint at ``path``, for an evaluation: the optimizer's state stays as it is."""
        return load_model_weights(self.model, path, topology=self.topology)

    @abstractmethod
    def load(self, path: Path, settings: CheckpointSettings) -> ResumeState:
        """Continue from the checkpoint at ``path``, as far as ``settings`` allow."""

    @property
    def network(self) -> nn.Module:
        """Return what runs a batch outside of training."""
        return self.model

    def batch_loss(self, batch: Any) -> LanguageModelLoss:
        """Return the sums of losses and weights of one micro batch."""
        return self._loss(self.network, batch)

    def memory_bytes(self) -> int | None:
        """Return the peak of the memory in use, of the GPU or of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def _loss(self, forward: nn.Module, batch: Any) -> LanguageModelLoss:
        with autocast(self.precision, device=self.device):
            return self.objective.loss(forward, batch, device=self.device)

    def _inverse_weight(self, batches: Sequence[Any]) -> Tensor:
        """Return one over the weights of all micro batches and data ranks, known before the first forward."""
        weight = torch.full((), float(sum(map(self.objective.weight, batches))), device=self.device)
        if self.topology.data_parallel_group is not None:
            dist.all_reduce(weight, group=self.topology.data_parallel_group)
        return 1.0 / weight.clamp(min=1.0)


class TorchEngine(Engine):
    """The engine of plain torch: a CPU or GPUs, DistributedDataParallel over several data ranks."""

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: torch.optim.Optimizer,
        scheduler: AnnealingLR,
        objective: Objective | None = None,
        precision: str = "fp32",
        loss_scaler: DynamicLossScaler | None = None,
        clip_grad: float = 1.0,
        topology: ParallelTopology | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Wrap ``model``, which lives on ``device``, for data parallelism when the topology has several data ranks.

        ``precision`` is fp32, bf16 or fp16 (autocast; parameters are fp32); ``loss_scaler`` belongs to fp16.
        ``clip_grad`` is the limit of the global gradient norm, 0 for none.
        """
        super().__init__(
            model, objective=objective or BlankInfilling(), precision=precision, topology=topology, device=device
        )
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.loss_scaler = loss_scaler
        self.clip_grad = clip_grad
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._forward: nn.Module = model
        if self.topology.data_parallel_group is not None:
            self._forward = DistributedDataParallel(
                model, process_group=self.topology.data_parallel_group, gradient_as_bucket_view=True
            )
        # Fused optimizers can leave everything as it is by a flag on the device: nobody has to wait for it.
        self._skips_on_device = getattr(optimizer, "_step_supports_amp_scaling", False)

    def train_step(self, batches: Sequence[Any]) -> StepResult:
        """Make one update from the micro batches of this data rank.

        The loss is the sum of all target losses over the sum of all target weights, over micro batches and data ranks
        alike. Gradients are clipped once, by their global norm. When they are not finite nothing is changed: neither
        parameters nor optimizer, and with fp16 neither the schedule.
        """
        stopwatch = Stopwatch()
        learning_rate = self.optimizer.param_groups[0]["lr"]
        objective_sums = torch.zeros(len(OBJECTIVES), 2, device=self.device)
        share = torch.zeros((), device=self.device)
        factor = self._inverse_weight(batches)
        loss_scale = self.loss_scaler.scale if self.loss_scaler else 1.0
        for index, batch in enumerate(batches):
            with self._synchronised(index == len(batches) - 1):
                with stopwatch.part("forward"):
                    sums = self._loss(self._forward, batch)
                    loss = sums.loss_sum * factor
                with stopwatch.part("backward"):
                    # DistributedDataParallel averages over data ranks; the factor already holds the global weight.
                    (loss * (loss_scale * self.topology.data_parallel_size)).backward()
            objective_sums[OBJECTIVE_INDEX[self.objective.mode(batch)]] += torch.stack(
                [sums.loss_sum.detach(), sums.weight_sum]
            )
            share += loss.detach()
        with stopwatch.part("optimizer"):
            grad_norm = self._unscale_and_clip(loss_scale)
            skipped = self._update(grad_norm)
        return StepResult(
            objective_sums=objective_sums,
            loss=share,
            grad_norm=grad_norm,
            skipped=skipped,
            num_tokens=sum(map(self.objective.num_tokens, batches)),
            learning_rate=learning_rate,
            loss_scale=loss_scale if self.loss_scaler else None,
            milliseconds=stopwatch.milliseconds,
        )

    def save(
        self, settings: CheckpointSettings, *, iteration: int, data_state: dict[str, Any], tag: str | None = None
    ) -> Path:
        """Write a checkpoint of everything to ``settings.save`` and return its folder; every rank has to call it."""
        assert settings.save is not None, "save without a folder"
        state = dict(data_state)
        if self.loss_scaler:
            state["loss_scaler"] = self.loss_scaler.state_dict()
        return save_checkpoint(
            settings.save,
            tag=tag or str(iteration),
            iteration=iteration,
            model=self.model,
            optimizer=self.optimizer if settings.save_optimizer else None,
            scheduler=self.scheduler if settings.save_optimizer else None,
            topology=self.topology,
            data_state=state,
            random_state=settings.save_random_state,
            keep=settings.keep,
        )

    def load(self, path: Path, settings: CheckpointSettings) -> ResumeState:
        """Continue from the checkpoint at ``path``, as far as ``settings`` allow."""
        state = load_checkpoint(
            path,
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler if settings.load_schedule else None,
            topology=self.topology,
            load_optimizer=settings.load_optimizer,
            load_random=settings.load_random_state,
            finetune=settings.finetune,
        )
        if self.loss_scaler and "loss_scaler" in state.data_state:
            self.loss_scaler.load_state_dict(state.data_state["loss_scaler"])
        return state

    def _synchronised(self, last: bool) -> AbstractContextManager:
        """Reduce gradients over data ranks in the last micro batch only."""
        if last or not isinstance(self._forward, DistributedDataParallel):
            return nullcontext()
        return self._forward.no_sync()

    def _unscale_and_clip(self, loss_scale: float) -> Tensor:
        """Divide the gradients by the loss scale, clip them, and return their global norm from before clipping."""
        if self.loss_scaler:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            torch._foreach_mul_(gradients, 1.0 / loss_scale)
        return clip_gradients(self._parameters, self.clip_grad, topology=self.topology)

    def _update(self, grad_norm: Tensor) -> Tensor:
        """Apply the gradients unless they are not finite; return 1 when they were skipped, else 0 (0-dim)."""
        skipped = (~torch.isfinite(grad_norm)).float()
        if self.loss_scaler:
            overflow = bool(skipped.item())  # the scale of the next step depends on it
            if not overflow:
                self.optimizer.step()
                self.scheduler.step()
            self.loss_scaler.update(overflow)
        elif self._skips_on_device:
            self.optimizer.found_inf = skipped
            self.optimizer.step()
            self.scheduler.step()
        else:
            if not skipped.item():
                self.optimizer.step()
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return skipped
