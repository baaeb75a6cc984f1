"""Checkpoints under ZeRO: DeepSpeed's files in the run's layout, whole or not at all.

    <root>/<tag>/mp_rank_00_model_states.pt                         weights; with ZeRO stage 3 mp_rank_00_weights.pt
    <root>/<tag>/[bf16_]zero_pp_rank_0_mp_rank_00_optim_states.pt   a part of the optimizer per rank, fp32 weights too
    <root>/<tag>/zero_pp_rank_0_mp_rank_00_model_states.pt          with ZeRO stage 3: what DeepSpeed knows of a part

The parts fit the number of ranks that wrote them. ``--universal-checkpoint`` has DeepSpeed put them together first, and
so does DeepSpeed's own ``ds_to_universal``; ``zero_to_fp32`` makes one file of fp32 weights.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from files.checksums import CHECKSUMS_FILE
from model.checkpoints.checks import (
    NO_CHECKSUMS,
    FileOrigin,
    check_bytes,
    check_finite,
    check_same_save,
    listed_checksums,
    origin_of,
)
from model.checkpoints.format import canonical_name, rule_for
from model.checkpoints.pickles import check_pickles
from model.checkpoints.reading import (
    RELEASE_TAG,
    SHARD_NAME,
    CheckpointLocation,
    LoadReport,
    iteration_of,
    resolve_checkpoint,
    shard_file,
    shard_name,
)
from model.checkpoints.safe_loading import (
    UnreadableCheckpointError,
    is_archive,
    numpy_allow_list,
    read_checkpoint_file,
)
from model.checkpoints.writing import TEMPORARY_PREFIX, stamped, write_shard
from mpu.initialize import ParallelTopology
from mpu.mappings import gathered, wait_for_ranks
from training.checkpointing import (
    ResumeState,
    gather_random_states,
    newest_first,
    refuse_not_finite,
    restore_random_states,
    restore_schedule,
    shared_save_id,
    tensors_in,
    trained_weights,
    write_checkpoint,
)
from training.deepspeed.config import DeepSpeedPlan
from training.resume_state import check_resume_state
from training.schedule import AnnealingLR
from training.settings import CheckpointSettings

OPTIMIZER_FILE = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
# Stage 3 has files of the model's parts as well.
ZERO_FILE = re.compile(rf"{OPTIMIZER_FILE.pattern}|{SHARD_NAME.pattern}|zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
STAGE_KEY = "zero_stage"
STEP_KEY = "optimizer_step"  # updates applied, which the universal form of stage 3 lacks


class SafeCheckpointEngine:
    """Read and write DeepSpeed's files: durable writes, reads that execute nothing.

    A failed write is remembered instead of raised, so that all ranks pass DeepSpeed's barriers and fail together.
    Of the weights only those that ``kept`` names are written (None: all). ``begin`` starts a checkpoint; ``checksums``
    are those of its files.
    """

    name = "safe"

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.kept: frozenset[str] | None = None
        self.checksums: dict[str, str] = {}
        self._save_id = ""

    def begin(self, save_id: str) -> None:
        """Forget the files of the last save; those of this one get ``save_id``."""
        self.failure, self.checksums, self._save_id = None, {}, save_id

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file and wait until it is on the disk; see ``failure``."""
        if self.kept is not None and "module" in state_dict:
            weights = {name: tensor for name, tensor in state_dict["module"].items() if name in self.kept}
            state_dict = {**state_dict, "module": weights}
        try:
            name = Path(path).name
            self.checksums[name] = write_shard(Path(path), stamped(state_dict, name, save_id=self._save_id))
        except (OSError, RuntimeError) as error:  # torch reports some failed writes as RuntimeError
            self.failure = error

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file with the weights-only reader; raise ``UnreadableCheckpointError`` when it cannot be."""
        return read_deepspeed_file(Path(path))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder; see ``failure``."""
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self.failure = error

    def create(self, info: Any) -> None:
        """Begin a checkpoint: nothing to do."""

    def commit(self, info: Any) -> bool:
        """End a checkpoint; it is published by us."""
        return True

    def is_data_parallel_writer(self, data_parallel_rank: int) -> bool:
        """Tell whether a data rank writes the model's file."""
        return data_parallel_rank == 0

    def is_decoupled(self) -> bool:
        """Tell whether files are written in the background."""
        return False

    def preserves_storage_sharing(self) -> bool:
        """Tell whether tensors that share memory have to be cloned before they are written."""
        return True

    def cleanup(self) -> None:
        """Close nothing."""


def read_deepspeed_file(path: Path) -> Any:
    """Return the content of one of DeepSpeed's files; only its own plain classes are built, nothing is executed."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    allowed = [*numpy_allow_list(), DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    try:
        if check_pickles(path, archive=is_archive(path)):
            raise ValueError("it makes a bytearray")
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can end in any error of torch, pickle or Python
        raise UnreadableCheckpointError(
            f"{path} cannot be read as a DeepSpeed checkpoint: {' '.join(str(error).split())[:200]}"
        ) from error


@dataclass(frozen=True)
class ZeroShape:
    """How a checkpoint's optimizer is cut: data ranks, tensor-parallel ranks, ZeRO stage (None: not known)."""

    data_parallel_size: int
    model_parallel_size: int
    stage: int | None

    def __str__(self) -> str:
        stage = "" if self.stage is None else f" with ZeRO stage {self.stage}"
        return f"{self.data_parallel_size} data x {self.model_parallel_size} tensor-parallel ranks{stage}"


def zero_shape(folder: Path) -> ZeroShape | None:
    """Return how the optimizer files in ``folder`` are cut; None when there are none."""
    matches = [match for file in folder.iterdir() if (match := OPTIMIZER_FILE.fullmatch(file.name))]
    if not matches:
        return None
    content = read_checkpoint_file(shard_file(folder, 0))
    data_size, model_size = (1 + max(int(match[group]) for match in matches) for group in (1, 2))
    return ZeroShape(data_size, model_size, stage=content.get(STAGE_KEY))


def continues_deepspeed(
    path: Path, settings: CheckpointSettings, *, plan: DeepSpeedPlan, topology: ParallelTopology
) -> bool:
    """Tell whether the optimizer of the checkpoint at ``path`` has to be restored by DeepSpeed.

    Raises:
        ValueError: it cannot be restored in this run; the message names the flag that helps.
    """
    location = resolve_checkpoint(path)
    if settings.finetune or location.tag == RELEASE_TAG or settings.no_load_optim:
        return False
    saved, weights_only = zero_shape(location.folder), "or continue with its weights alone (--no-load-optim)"
    if plan.stage == 0:
        if saved is not None:
            raise ValueError(
                f"{location.folder} was written by {saved}, this run has no ZeRO: choose a stage in the DeepSpeed "
                f"file, {weights_only}"
            )
        return False
    if saved is None:
        raise ValueError(
            f"{location.folder} was not written with ZeRO, so it has no optimizer state for stage {plan.stage}: "
            f"continue with the engine that wrote it, {weights_only}"
        )
    if settings.universal_checkpoint and (saved.stage == 3) != (plan.stage == 3):
        raise ValueError(
            f"{location.folder} was written by {saved}: DeepSpeed converts neither to stage 3 nor from it; continue "
            f"with stage {saved.stage}, {weights_only}"
        )
    if settings.universal_checkpoint and plan.stage == 3 and topology.model_parallel_size > saved.model_parallel_size:
        raise ValueError(
            f"{location.folder} was written by {saved}: DeepSpeed cannot cut stage 3 for more tensor-parallel ranks; "
            f"use no more than {saved.model_parallel_size}, {weights_only}"
        )
    present = ZeroShape(topology.data_parallel_size, topology.model_parallel_size, plan.stage)
    if not settings.universal_checkpoint and replace(saved, stage=saved.stage or plan.stage) != present:
        raise ValueError(
            f"{location.folder} was written by {saved}, this run has {present}: add --universal-checkpoint to carry "
            f"its optimizer over, {weights_only}"
        )
    return True


def save_zero_checkpoint(
    engine: Any,
    settings: CheckpointSettings,
    *,
    tag: str,
    iteration: int,
    data_state: Mapping[str, Any],
    scheduler: AnnealingLR,
    topology: ParallelTopology,
    beside: Mapping[str, bytes],
) -> Path:
    """Write a checkpoint of DeepSpeed's ``engine``; see ``training.checkpointing.write_checkpoint``."""
    assert settings.save is not None, "save without a folder"
    stage = engine.zero_optimization_stage()
    state: dict[str, Any] = {"iteration": iteration, "data_state": dict(data_state), STAGE_KEY: int(stage)}
    if not settings.no_save_optim:
        state["client_lr_scheduler"] = scheduler.state_dict()
        steps = [float(kept["step"]) for kept in engine.optimizer.optimizer.state.values() if "step" in kept]
        state[STEP_KEY] = max(steps, default=0.0)
    if not settings.no_save_rng:
        state |= gather_random_states(engine.module, topology=topology)
    temporary = settings.save / f"{TEMPORARY_PREFIX}{tag}"
    files: SafeCheckpointEngine = engine.checkpoint_engine
    files.begin(shared_save_id(topology))
    weights_here = {name: getattr(p, "ds_tensor", p) for name, p in engine.module.named_parameters()}
    optimizer = None if settings.no_save_optim else engine.optimizer.optimizer
    refuse_not_finite(engine.module, weights_here, optimizer, root=settings.save, topology=topology)

    def write() -> dict[str, str]:
        if not settings.no_save_optim:
            frozen = has_frozen_weights(engine.module)
            files.kept = frozenset(trained_weights(engine.module)) if frozen else None
            engine.save_checkpoint(
                str(settings.save),
                tag=temporary.name,
                client_state=state,
                save_latest=False,
                exclude_frozen_parameters=frozen,
            )
            files.kept = None
        if stage == 3 or settings.no_save_optim:
            weights = whole_weights(engine.module, keep=topology.data_parallel_rank == 0)
            if topology.data_parallel_rank == 0:
                sizes = {
                    "mp_world_size": topology.model_parallel_size,
                    "dp_world_size": topology.data_parallel_size,
                }
                kind = "model_states" if settings.no_save_optim else "weights"
                path = temporary / shard_name(topology.model_parallel_rank, kind)
                files.save({"module": weights, **sizes, **state}, str(path))
        if files.failure is not None:
            raise files.failure
        return files.checksums

    options: dict[str, Any] = {"keep": settings.keep_checkpoints, "beside": beside}
    return write_checkpoint(settings.save / tag, write, topology=topology, **options)


def has_frozen_weights(model: torch.nn.Module) -> bool:
    """Tell whether a part of the model is not trained; checkpoints leave it out, as the torch engine's do."""
    return not all(parameter.requires_grad for parameter in model.parameters())


def whole_weights(model: torch.nn.Module, *, keep: bool) -> dict[str, torch.Tensor]:
    """Return the trained weights under their names, gathering those that stage 3 has spread; empty without ``keep``.

    Every rank has to call it.
    """
    import deepspeed

    gathered: dict[str, torch.Tensor] = {}
    for name, tensor in trained_weights(model).items():
        spread = [tensor] if hasattr(tensor, "ds_id") else []
        with deepspeed.zero.GatheredParameters(spread, enabled=bool(spread)):
            if keep:
                gathered[name] = tensor.detach().cpu().clone()
    return gathered


def load_zero_checkpoint(
    engine: Any, path: Path, settings: CheckpointSettings, *, scheduler: AnnealingLR, topology: ParallelTopology
) -> ResumeState:
    """Continue DeepSpeed's ``engine`` from the newest readable checkpoint of the run at ``path``.

    Every rank has to call it. Raises ValueError when none can be read.
    """
    location, notes = _newest_complete(resolve_checkpoint(path), topology=topology)
    folder = location.folder
    if settings.universal_checkpoint:
        folder = make_universal(location, parent=settings.save or folder.parent, topology=topology)
    options = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
    _, content = engine.load_checkpoint(
        str(folder.parent),
        tag=folder.name,
        load_module_strict=not has_frozen_weights(engine.module),
        load_optimizer_states=True,
        load_lr_scheduler_states=False,
    )
    for group, values in zip(engine.optimizer.param_groups, options, strict=True):
        group.update(values)  # rate, betas and decay stay those of this run
    if settings.universal_checkpoint:
        for moments in engine.optimizer.optimizer.state.values():
            moments["step"] = torch.full_like(torch.as_tensor(moments["step"]), content[STEP_KEY])
        wait_for_ranks(topology)
        if topology.rank == 0:
            shutil.rmtree(folder)
    if not settings.no_load_lr_scheduler:
        restore_schedule(scheduler, content, folder=location.folder)
    if not settings.no_load_rng:
        notes += restore_random_states(content, engine.module, topology=topology)
    report = LoadReport(
        loaded=tuple(canonical_name(name) for name, _ in engine.module.named_parameters()),
        missing=(),
        unexpected=(),
        grown=(),
        iteration=iteration_of(content, location),
        file=location.folder,
        notes=notes,
    )
    return ResumeState(report.iteration, dict(content.get("data_state") or {}), report)


def _newest_complete(
    location: CheckpointLocation, *, topology: ParallelTopology
) -> tuple[CheckpointLocation, tuple[str, ...]]:
    """Return the checkpoint, or the newest before it, whose files are as one save wrote them, and notes on the others.

    The ranks share the files; every rank has to call it.
    """
    failures: list[str] = []
    for candidate in newest_first(location):
        failure, origins = None, {}
        try:
            present = sorted(file.name for file in candidate.folder.iterdir() if ZERO_FILE.fullmatch(file.name))
            lost = [name for name in listed_checksums(candidate.folder) if name not in present]
            if any(map(ZERO_FILE.fullmatch, lost)):
                raise UnreadableCheckpointError(f"{candidate.folder} lacks {lost[0]}; copy all files into it")
            for name in present[topology.rank :: topology.world_size]:
                origins[name] = _check_file(candidate.folder / name)
        except ValueError as error:
            failure = str(error)
        answers = gathered((failure, origins), topology=topology, world=True)
        try:
            together: dict[str, FileOrigin] = {}
            for failed, found in answers:
                if failed is not None:
                    raise UnreadableCheckpointError(failed)
                together.update(found)
            # The optimizer's files say no iteration.
            iteration = next((o.iteration for o in together.values() if o.iteration is not None), None)
            together = {name: replace(o, iteration=o.iteration or iteration) for name, o in together.items()}
            check_same_save(together, folder=candidate.folder, size=None)
        except UnreadableCheckpointError as error:
            failures.append(str(error))
            continue
        listed = () if (candidate.folder / CHECKSUMS_FILE).is_file() else (NO_CHECKSUMS,)
        return candidate, listed + tuple(f"WARNING: {before}: an OLDER checkpoint is used" for before in failures)
    raise UnreadableCheckpointError(failures[0])


def _check_file(path: Path) -> FileOrigin:
    """Return the origin of one of DeepSpeed's files; raise ``UnreadableCheckpointError`` for damage or NaN."""
    check_bytes(path)
    content = read_deepspeed_file(path)
    if not isinstance(content, Mapping):
        raise UnreadableCheckpointError(f"{path} holds no table; use another checkpoint")
    if SHARD_NAME.fullmatch(path.name):
        check_resume_state(content, file=path, optimizer=False, schedule=True, random_states=True)
    for key in ("module", "optimizer_state_dict"):
        check_finite(dict(tensors_in(content.get(key), key)), file=path)
    return origin_of(content, file=path)


def deepspeed_files(folder: Path) -> list[Path]:
    """Return the files in ``folder`` that DeepSpeed's own tools read, checked before, because these trust them.

    Earlier versions wrote the whole weights beside the parts of stage 3 under a name that these tools take for theirs.
    """
    files = sorted(file for file in folder.iterdir() if ZERO_FILE.fullmatch(file.name))
    if any(file.name.startswith("zero_") and "model_states" in file.name for file in files):
        files = [file for file in files if not SHARD_NAME.fullmatch(file.name)]
    for file in files:
        read_deepspeed_file(file)
    return files


def fp32_weights(folder: Path) -> dict[str, list[torch.Tensor]]:
    """Return the fp32 weights that the optimizer's files in ``folder`` hold, by name, of all tensor-parallel ranks.

    Empty where a checkpoint has no such files. DeepSpeed puts the parts together, one tensor-parallel rank at a time;
    all weights are in memory. Raises ValueError when DeepSpeed is missing or a file cannot be read.
    """
    matches = [match for file in folder.iterdir() if (match := OPTIMIZER_FILE.fullmatch(file.name))]
    if not matches:
        return {}
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError:
        raise ValueError(
            f"{folder} has its fp32 weights in files of DeepSpeed: pip install deepspeed, or delete "
            "*_optim_states.pt from a copy of the folder to take the rounded ones"
        ) from None
    weights: dict[str, list[torch.Tensor]] = {}
    files = deepspeed_files(folder)
    for rank in range(1 + max(int(match[2]) for match in matches)):
        own = f"mp_rank_{rank:02d}_"
        with TemporaryDirectory() as parts, open(os.devnull, "w") as silent:
            for file in files:
                if own in file.name:
                    (Path(parts) / file.name.replace(own, "mp_rank_00_")).symlink_to(file.resolve())
            with redirect_stdout(silent), redirect_stderr(silent):
                found = get_fp32_state_dict_from_zero_checkpoint(parts, tag=".", exclude_frozen_parameters=True)
            for name, tensor in found.items():
                weights.setdefault(canonical_name(name), []).append(tensor)
    return weights


def make_universal(location: CheckpointLocation, *, parent: Path, topology: ParallelTopology) -> Path:
    """Put the parts of a checkpoint together in a temporary folder below ``parent``; every rank has to call it."""
    folder = parent / f"{TEMPORARY_PREFIX}universal-{location.tag}"
    if topology.rank == 0:
        from deepspeed.checkpoint import ds_to_universal

        shutil.rmtree(folder, ignore_errors=True)
        with TemporaryDirectory() as parts, open(os.devnull, "w") as silent:
            for file in deepspeed_files(location.folder):
                (Path(parts) / file.name).symlink_to(file.resolve())
            arguments = argparse.Namespace(
                input_folder=parts,
                output_folder=str(folder),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=False,
            )
            with redirect_stdout(silent), redirect_stderr(silent):
                ds_to_universal.main(arguments)
    wait_for_ranks(topology)
    return folder


def universal_checkpoint_info(model: torch.nn.Module) -> dict[str, Any]:
    """Tell DeepSpeed's converter how each parameter is cut over tensor-parallel ranks (the table of parameter names).

    What it is not told is cut along dimension 0.
    """
    replicated, columns = [], []
    fused: dict[int, list[tuple[str, int]]] = {1: [], 2: []}
    for name, parameter in model.named_parameters():
        rule, pattern = rule_for(name), f"{re.escape(name)}$"
        if rule.dim is None:
            replicated.append(pattern)
        elif rule.dim == 1:
            columns.append(pattern)
        elif rule.blocks > 1:
            fused[parameter.dim()].append((pattern, rule.blocks))
    parts = [
        {"patterns": [pattern], "shape": (blocks,) + (-1,) * (dimensions - 1), "partition_dim": 0}
        for dimensions, patterns in fused.items()
        for pattern, blocks in patterns
    ]
    return {
        "tp_replicated_parameter_patterns": replicated,
        "parameter_with_row_parallelism_patterns": columns,
        "parameter_with_sub_params": parts,
    }
