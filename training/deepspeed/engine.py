"""The DeepSpeed engine: ZeRO 0 to 3, half precision with fp32 masters, offloading.

DeepSpeed is imported here alone, and only when ``--deepspeed`` asks for it.
"""

from __future__ import annotations

import copy
import logging
import os
import warnings
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.checkpoints.reading import LoadReport
from mpu.initialize import ParallelTopology
from training.checkpointing import ResumeState
from training.deepspeed.checkpoints import (
    SafeCheckpointEngine,
    continues_deepspeed,
    load_zero_checkpoint,
    save_zero_checkpoint,
    universal_checkpoint_info,
)
from training.deepspeed.config import DeepSpeedPlan
from training.engine import Criterion, Engine
from training.optimizer import clip_gradients
from training.schedule import AnnealingLR
from training.settings import CheckpointSettings

INSTALL_HINT = "--deepspeed needs the package deepspeed: pip install deepspeed, or leave --deepspeed out"


def prepare_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for ``device`` and return the module; several processes are already joined, a single one joins.

    Raises:
        ValueError: DeepSpeed is not installed.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
        from deepspeed import ops
        from deepspeed.utils import logger
    except ImportError:
        raise ValueError(INSTALL_HINT) from None
    logger.setLevel(logging.ERROR)
    # DeepSpeed's collectives have newer names in torch; the warning comes with every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    # A shared-memory collective that would be compiled at the first start; training does not use it.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    # What launchers set; DeepSpeed reads nothing else than the environment.
    launched = {"RANK": dist.get_rank(), "WORLD_SIZE": dist.get_world_size(), "LOCAL_RANK": device.index or 0}
    for name, value in launched.items():
        os.environ.setdefault(name, str(value))
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    return deepspeed


def refuse_bad_file(config: dict[str, Any]) -> None:
    """Raise ValueError for values that DeepSpeed cannot read; it meets them with errors of any kind."""
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(copy.deepcopy(config))
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"DeepSpeed cannot read its file (--deepspeed_config): {text[:300]}") from error


def topology_for_deepspeed(topology: ParallelTopology) -> ParallelTopology:
    """Return the topology with real groups everywhere: DeepSpeed takes None for the whole world."""
    groups = {}
    for name in ("model_parallel_group", "data_parallel_group"):
        if getattr(topology, name) is None:
            groups[name] = dist.new_group([topology.rank], use_local_synchronization=True)
    return replace(topology, **groups)


class DeepSpeedEngine(Engine):
    """Make updates with DeepSpeed. It starts with the first use, so that weights can be loaded into the model before.

    Without ZeRO the model, its gradients and the optimizer are as in plain torch, and so are the checkpoints.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: torch.optim.Optimizer,
        scheduler: AnnealingLR,
        plan: DeepSpeedPlan,
        clip_grad: float,
        topology: ParallelTopology,
        device: torch.device | str,
        criterion: Criterion | None = None,
    ) -> None:
        """Hold ``model``, which lives on ``device``, and its optimizer; ``plan`` is what DeepSpeed is told."""
        super().__init__(
            model,
            optimizer=optimizer,
            scheduler=scheduler,
            criterion=criterion,
            precision=plan.precision,
            clip_grad=clip_grad,
            topology=topology,
            device=device,
        )
        self.plan = plan
        self.description = f"DeepSpeed, ZeRO stage {plan.stage}"

    @cached_property
    def deepspeed(self) -> Any:
        """Return DeepSpeed's engine around the model, made at the first use."""
        module = prepare_deepspeed(self.device)
        refuse_bad_file(self.plan.config)
        info = universal_checkpoint_info(self.model)
        self.model.universal_checkpoint_info = info  # type: ignore[assignment]  # torch expects tensors and modules
        engine, *_ = module.initialize(
            model=self.model,
            optimizer=self.optimizer,
            mpu=topology_for_deepspeed(self.topology),
            dist_init_required=False,
            config=self.plan.config,
        )
        engine.checkpoint_engine = SafeCheckpointEngine()
        engine._copy_recovery_script = lambda folder: None  # checkpoints hold whole weights by themselves
        if hasattr(engine.optimizer, "check_grad_overflow"):
            engine.optimizer.check_grad_overflow = True  # skip updates that are not finite in fp32, too
        return engine

    @property
    def network(self) -> nn.Module:
        return self.deepspeed.module

    @property
    def loss_scale(self) -> float | None:
        """Return the factor of this update's loss, which DeepSpeed chooses; None but for fp16."""
        return float(self.deepspeed.optimizer.loss_scale) if self.precision == "fp16" else None

    @property
    def _forward(self) -> nn.Module:
        return self.deepspeed

    def _backward(self, loss: Tensor, last: bool) -> None:
        self.deepspeed.backward(loss * self.topology.data_parallel_size, scale_wrt_gas=False)
        if not last:
            self.deepspeed.step()  # counts the micro batches

    def _update(self) -> tuple[Tensor, Tensor]:
        engine = self.deepspeed
        if self.plan.stage > 0:  # DeepSpeed clips the gradients and knows their norm
            engine.step()
            grad_norm = torch.as_tensor(engine.get_global_grad_norm(), device=self.device, dtype=torch.float32)
        else:
            grad_norm = clip_gradients(self._parameters, self.clip_grad, topology=self.topology)
            # Fused optimizers leave everything as it is by this flag, as in the torch engine.
            self.optimizer.found_inf = (~torch.isfinite(grad_norm)).float()  # type: ignore[attr-defined]  # see there
            engine.step()
        if engine.was_step_applied() or self.precision != "fp16":
            self.scheduler.step()
        return grad_norm, (~torch.isfinite(grad_norm)).float()

    def save(
        self, settings: CheckpointSettings, *, iteration: int, data_state: dict[str, Any], tag: str | None = None
    ) -> Path:
        """Write a checkpoint; with ZeRO each rank adds its part of the optimizer."""
        if self.plan.stage == 0:
            return super().save(settings, iteration=iteration, data_state=data_state, tag=tag)
        return save_zero_checkpoint(
            self.deepspeed,
            settings,
            tag=tag or str(iteration),
            iteration=iteration,
            data_state=data_state,
            scheduler=self.scheduler,
            topology=self.topology,
            beside=self.beside,
        )

    def load_weights(self, path: Path) -> LoadReport:
        """Take the weights of the checkpoint at ``path``, for an evaluation: the optimizer stays as it is."""
        import deepspeed

        spread = [parameter for parameter in self.model.parameters() if hasattr(parameter, "ds_id")]
        with deepspeed.zero.GatheredParameters(spread, modifier_rank=0, enabled=bool(spread)):
            return super().load_weights(path)

    def load(self, path: Path, settings: CheckpointSettings) -> ResumeState:
        """Continue from the checkpoint at ``path``, as far as ``settings`` allow.

        Weights alone, and everything without ZeRO, are read like the torch engine's. Raises ValueError when an
        optimizer state is asked for that cannot be had here, with what to do.
        """
        if continues_deepspeed(path, settings, plan=self.plan, topology=self.topology):
            return load_zero_checkpoint(
                self.deepspeed, path, settings, scheduler=self.scheduler, topology=self.topology
            )
        assert "deepspeed" not in self.__dict__, "weights are loaded before DeepSpeed starts"
        return super().load(path, settings if self.plan.stage == 0 else replace(settings, no_load_optim=True))
