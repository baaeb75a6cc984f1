"""Build the parts of a run from its settings: model, optimizer, engine, starting point, log."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from data_utils.order_record import OrderRecord
from data_utils.tokenizers.tokenizer import Tokenizer
from files.locks import locked
from files.reading import described, read_text, value_of
from model.checkpoints.format import TRACKERS
from model.checkpoints.reading import load_model_weights
from model.hub.describe import CONFIG_FILE, TOKENIZER_KEY, TokenizerDescription
from model.initialization import look_at_neighbours
from model.modeling_glm import GLMModel
from mpu.fsdp import spread_parameters
from mpu.initialize import ParallelTopology
from mpu.kernels.host_memory import keep_freed_memory
from mpu.mappings import of_first_rank
from mpu.transformer import Transformer, TransformerLayer
from training.checkpointing import BackgroundWriter, ResumeState
from training.data import tokenizer_keywords
from training.deepspeed.config import DeepSpeedPlan, deepspeed_plan
from training.distributed import compare_ranks, seed_data_rank
from training.engine import AUTOCAST_TYPES, Criterion, Engine, TorchEngine, supported_precision
from training.logging import (
    Console,
    JsonLinesWriter,
    RunLog,
    WandbWriter,
    json_text,
    perf_log,
    store_json,
    tensorboard_writer,
)
from training.loop import Progress, TrainingData
from training.metrics import ComputeCost
from training.optimizer import DynamicLossScaler, build_optimizer, keep_masters
from training.plan import choose_recomputation
from training.schedule import AnnealingLR
from training.settings import BatchSettings, CheckpointSettings, KernelSettings, PretrainingSettings, Settings

logger = logging.getLogger("glm")

S = TypeVar("S", bound=Settings)

LOCK_FILE = ".lock"


def build_engine(
    configuration: PretrainingSettings,
    *,
    vocab_size: int,
    topology: ParallelTopology,
    device: torch.device,
) -> Engine:
    """Build the model of a pre-training run and the engine that holds it.

    Weights are random, or those of ``--load-pretrained``; ``find_starting_point`` restores a run.
    """
    configuration = choose_recomputation(configuration, vocab_size=vocab_size, topology=topology, device=device)
    model = GLMModel(configuration.network(vocab_size=vocab_size), topology=topology)
    if configuration.model.initialization == "neighbours":
        look_at_neighbours(model)
    seed_model(model, configuration.run.seed, topology=topology)
    if configuration.checkpoint.load_pretrained is not None:
        report = load_model_weights(model, configuration.checkpoint.load_pretrained, topology=topology)
        logger.info(report.summary())
    if configuration.prompt.freeze_transformer:
        model.freeze_transformer()
    length = configuration.schedule_length
    return wrap_model(model, configuration, schedule_length=length, topology=topology, device=device)


def seed_model(model: GLMModel, seed: int, *, topology: ParallelTopology) -> None:
    """Seed dropout once the model is built: each data rank, and each rank's own heads, draw other masks."""
    model.random_state.seed(seed + topology.data_parallel_rank * topology.model_parallel_size)
    seed_data_rank(seed, topology=topology)


def wrap_model(
    model: nn.Module,
    settings: Settings,
    *,
    schedule_length: int,
    topology: ParallelTopology,
    device: torch.device,
    criterion: Criterion | None = None,
) -> Engine:
    """Move ``model`` to ``device``, and build its optimizer, schedule and loss scaler and the engine that holds them.

    The schedule is ``schedule_length`` updates long; ``criterion`` is what is minimised (default: blank infilling).
    """
    plan = _deepspeed_plan(settings, device=device)
    if plan is not None and plan.stage > 0 and settings.checkpoint.async_save:
        raise ValueError(
            f"--async-save does not go with ZeRO (stage {plan.stage}), whose ranks write their files together with "
            "DeepSpeed; leave one of them out"
        )
    if plan is not None and plan.stage == 3 and settings.kernels.compile:
        raise ValueError("--compile does not go with ZeRO stage 3, which takes layers apart; leave one of them out")
    # DeepSpeed's parameters are of the run's precision: so only half the bytes ever reach a GPU.
    if device.type == "cpu":
        keep_freed_memory()  # an update takes and frees the same large tensors every time
    kind, reason = supported_precision(settings.precision, device=device)
    if settings.device.fsdp and topology.data_parallel_group is not None:
        layers = [module for module in model.modules() if isinstance(module, TransformerLayer)]
        spread_parameters(model, layers, topology=topology, device=device, dtype=AUTOCAST_TYPES.get(kind))
    else:
        if settings.device.fsdp:
            logger.info("--fsdp: one data rank has nobody to share parameters with")
        model.to(device=device, dtype=AUTOCAST_TYPES.get(plan.precision) if plan else None)
    if settings.precision.bf16_params and kind == "bf16":
        keep_masters(model)
    if settings.precision.tf32:
        use_tf32(device)
    perf_log.info("CONVERT_MODEL")
    choose_kernels(model, settings.kernels, device=device)
    optimizer = build_optimizer(model, settings.optimizer)
    perf_log.info("CREATE_OPTIMIZER")
    perf_log.info("MODEL_TO_FP16", {"precision": plan.precision if plan else settings.precision.kind})
    perf_log.info("MODEL_TO_DDP", {"data_parallel_size": topology.data_parallel_size})
    scheduler = AnnealingLR.of(settings.schedule, optimizer, num_iters=schedule_length)
    common: dict[str, Any] = {"optimizer": optimizer, "scheduler": scheduler, "topology": topology, "device": device}
    common |= {"clip_grad": settings.optimizer.clip_grad, "criterion": criterion}
    if plan is not None:
        from training.deepspeed.engine import DeepSpeedEngine

        return with_writer(DeepSpeedEngine(model, plan=plan, **common), settings)
    if reason:
        logger.info(reason)
    scaler = DynamicLossScaler.of(settings.precision) if kind == "fp16" else None
    return with_writer(TorchEngine(model, precision=kind, loss_scaler=scaler, **common), settings)


def with_writer(engine: Engine, settings: Settings) -> Engine:
    """Return ``engine``, which writes its checkpoints beside training where ``settings`` say so; all ranks ask."""
    if settings.checkpoint.async_save and settings.checkpoint.save is not None:
        engine.writer = BackgroundWriter(engine.topology)
    return engine


def use_tf32(device: torch.device) -> None:
    """Let products of fp32 matrices on a GPU round their factors to TF32; elsewhere say that nothing changes."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    else:
        logger.warning("--tf32 changes nothing: it is for GPUs, and this run is on a CPU")


def description_files(settings: Settings, tokenizer: Tokenizer) -> dict[str, bytes]:
    """Return the files that say of a checkpoint what model and what tokenizer it is, by name.

    They are the run's command line and the vocabulary (docs/formats.md#checkpoints).
    """
    names = TokenizerDescription(**tokenizer_keywords(settings)).file_names
    files = {name: file.read_bytes() for name, file in zip(names, tokenizer.files, strict=True)}
    origin = {name: str(file.resolve()) for name, file in zip(names, tokenizer.files, strict=True)}
    identity = {"fingerprint": tokenizer.fingerprint, "files": origin}
    config = json_text({**settings.values, TOKENIZER_KEY: identity})
    return {CONFIG_FILE: config.encode("utf-8"), **files}


def choose_kernels(model: nn.Module, settings: KernelSettings, *, device: torch.device) -> None:
    """Tell the transformer in ``model`` how to compute its layers.

    Raises ValueError for FlexAttention on a CPU, where it has no backward pass.
    """
    if settings.attention == "flex" and device.type == "cpu":
        raise ValueError("--attention flex is for GPUs: torch has no backward pass of it on a CPU; use auto or sdpa")
    for module in model.modules():
        if isinstance(module, Transformer):
            module.choose_kernels(attention=settings.attention, compiled=settings.compile)
            if settings.attention == "flex" and module.config.attention_dropout > 0.0:
                logger.info(
                    "note: FlexAttention has no dropout, so --attention flex works in evaluation alone; add "
                    "--attention-dropout 0 to train with it"
                )
    if settings.compile:
        logger.info("layers are compiled at the first update, which takes a minute or more")


def _deepspeed_plan(settings: Settings, *, device: torch.device) -> DeepSpeedPlan | None:
    """Return what DeepSpeed will be told; None when it is not asked for, or not installed."""
    if settings.deepspeed_content is None:
        return None
    if find_spec("deepspeed") is None:
        logger.warning("DeepSpeed is not installed; the torch engine runs with the values of its file")
        return None
    plan = deepspeed_plan(settings, device=device)
    for notice in plan.notices:
        logger.info(notice)
    return plan


def checkpoint_to_load(settings: CheckpointSettings) -> Path | None:
    """Return the folder to continue from: that of ``--load``, or with ``--auto-resume`` the run's own if it has one.

    Every rank has to ask. Raises ValueError when they do not see the same.
    """
    folder = settings.load
    if settings.auto_resume and settings.save is not None:
        folder = settings.save if (settings.save / TRACKERS[0]).exists() else None
    newest = None if folder is None else next((p for name in TRACKERS if (p := folder / name).is_file()), None)
    seen = "no checkpoint" if folder is None else f"{folder} ({read_text(newest).strip() if newest else 'no tracker'})"
    compare_ranks({"what there is to continue from (one folder for all ranks is needed)": seen})
    return folder


def claim_name(settings: S, *, topology: ParallelTopology) -> S:
    """Make the folder of a run's results, and return its settings under the first rank's name; every rank has to ask.

    A new run whose name is taken, by one that began in the same minute, gets a number behind it.
    """
    claimed = settings
    if topology.rank == 0 and settings.begins:
        for number in itertools.count(1):
            claimed = settings if number == 1 else settings.named(f"{settings.run.experiment_name}-{number}")
            saved = claimed.checkpoint.save
            with contextlib.suppress(FileExistsError):
                if saved is None or not saved.exists():
                    claimed.run.summary_folder.mkdir(parents=True)
                    break
    return settings.named(of_first_rank(claimed.run.experiment_name, topology=topology))


@contextmanager
def locked_folders(settings: Settings, *, first: bool) -> Iterator[None]:
    """Let the first rank hold what the run writes to, its results' and its checkpoints' folder, to the end of the body.

    Raises ValueError when another run holds one of them.
    """
    folders = (settings.run.summary_folder, settings.checkpoint.save) if first else ()
    with ExitStack() as held:
        for folder in folders:
            if folder is not None:
                try:
                    held.enter_context(locked(folder / LOCK_FILE))
                except BlockingIOError as error:
                    raise ValueError(
                        f"{folder} is in use by {error}: wait for its end, or give this run another --experiment-name"
                    ) from None
        try:
            yield
        finally:
            held.close()
            with contextlib.suppress(OSError):
                for folder in (settings.run.summary_folder, settings.run.summary_folder.parent) if first else ():
                    folder.rmdir()  # made by ``claim_name``, and nothing was put into it


def find_starting_point(engine: Engine, configuration: PretrainingSettings, *, tokenizer: str) -> Progress:
    """Restore the run that ``--load`` or ``--auto-resume`` names, and return where it goes on.

    ``tokenizer`` is the fingerprint of the one in use. Raises ValueError when the run used another.
    """
    settings = configuration.checkpoint
    if settings.save is None and configuration.run.train_iters > 0:
        logger.info("note: no --save, so this run leaves no checkpoint")
    folder = checkpoint_to_load(settings)
    start = Progress()
    if folder is None:
        if settings.auto_resume:
            logger.info(f"no checkpoint in {settings.save} yet: a new run")
        if settings.load_pretrained is None:
            logger.info("weights: random (no --load, no --load-pretrained)")
    else:
        state = engine.load(folder, settings)
        logger.info(state.report.summary())
        if state.data_state.get("tokenizer", tokenizer) not in (tokenizer, None):
            raise ValueError(
                f"{folder} was trained with another tokenizer: give the one it was started with (type, path, "
                "--task-mask ...), or start a new run with another --experiment-name"
            )
        if not settings.finetune:
            start = resume_position(
                state, batch=configuration.batch, data_parallel_size=engine.topology.data_parallel_size
            )
        logger.info(f"continuing from iteration {start.updates}")
        if start.updates > configuration.run.train_iters:
            logger.warning(
                f"nothing to train: the run has made {start.updates:,} updates, and --train-iters, the number of all "
                f"its updates, is {configuration.run.train_iters:,}; give more to train on, or --finetune to begin anew"
            )
    if configuration.schedule.switch_linear:
        engine.scheduler.switch_linear(configuration.run.train_iters - start.updates)
    return start


def check_data(
    data: TrainingData, start: Progress, *, settings: CheckpointSettings, num_updates: int, topology: ParallelTopology
) -> None:
    """Raise ValueError when the ranks, or a run and its checkpoint, do not have the same data; every rank has to ask.

    ``--accept-new-data`` lets a run go on with others. A checkpoint of an earlier version does not know its data. Where
    ranks have shards of the data of their own, the first data rank compares.
    """
    now, before = data.identity, start.identity
    sharded = now.get("--loader-scatter") is not None
    common = {} if sharded else now
    made = {"the number of updates": num_updates, "updates made before": start.updates}
    compare_ranks({**made, "the tokenizer's fingerprint": data.tokenizer_fingerprint, **common})
    changed = [
        f"{name}: {described(before[name])} then, {described(now[name])} now"
        for name in before
        if name in now and before[name] != now[name]
    ]
    if not changed or (sharded and topology.data_parallel_rank > 0):
        return
    if not settings.accept_new_data:
        raise ValueError(
            f"the run was started with other data ({'; '.join(changed)}): give what it was started with, or go on with "
            "the new data (--accept-new-data)"
        )
    logger.warning(f"the run goes on with other data: {'; '.join(changed)}")


def order_record(
    configuration: PretrainingSettings, data: TrainingData, *, updates: int, topology: ParallelTopology
) -> OrderRecord | None:
    """Return the record of the order (``--record-order``) behind the first ``updates``; None where it is not asked for.

    The first tensor-parallel rank of every data rank writes; an evaluation alone leaves the record as it is.
    """
    run = configuration.run
    if not run.record_order or run.train_iters == 0 or topology.model_parallel_rank > 0:
        return None
    return OrderRecord(
        run.order_folder,
        documents={"documents": data.identity["the training documents"]},
        updates=updates,
        rank=topology.data_parallel_rank,
        num_ranks=topology.data_parallel_size,
    )


def resume_position(state: ResumeState, *, batch: BatchSettings, data_parallel_size: int) -> Progress:
    """Return where a restored run goes on.

    The checkpoint counts the samples drawn by all data ranks, so that none is seen twice with another batch size or
    another number of ranks. A checkpoint of the original has no such count: its updates tell.
    """
    kept, place = state.data_state, f"{state.report.file}, data_state"
    drawn = value_of(kept, "samples", int, place=place, default=None, at_least=0)
    if drawn is None:
        return Progress(state.iteration, state.iteration * batch.gradient_accumulation_steps)
    train_batches = math.ceil(drawn / (batch.batch_size * data_parallel_size))
    interval = value_of(kept, "interval", dict, place=place, default=None)
    return Progress(
        state.iteration,
        train_batches,
        interval,
        identity=value_of(kept, "data", dict, place=place, default={}),
        throughput=value_of(kept, "throughput", dict, place=place, default={}),
        reached=value_of(kept, "reached", bool, place=place, default=False),
    )


def compute_cost(engine: Engine, configuration: PretrainingSettings) -> ComputeCost:
    """Return the arithmetic per token, and the device's peak where it is known and autocast reaches it."""
    half = engine.device.type == "cuda" and engine.precision != "fp32"
    return ComputeCost.of(
        num_parameters=engine.num_parameters * engine.topology.model_parallel_size,
        num_layers=configuration.model.num_layers,
        hidden_size=configuration.model.hidden_size,
        seq_length=configuration.batch.seq_length,
        device_name=torch.cuda.get_device_name(engine.device) if half else None,
    )


def build_log(
    settings: Settings, *, num_updates: int, initial: int, silent: bool, screen: Sequence[str] = ()
) -> RunLog:
    """Open the console and the writers of a run, print its ``screen``, and store its arguments.

    ``num_updates`` is the length of the run, ``initial`` the updates made before; an evaluation alone writes to
    ``--metrics-file``, if that is given. A ``silent`` log (all ranks but the first) writes nothing anywhere.
    """
    run, values = settings.run, settings.values
    console = Console(total=num_updates, initial=initial, progress=not run.no_progress, silent=silent)
    for line in screen:
        console.print(line)
    if silent or num_updates == 0:
        wanted = run.metrics_file is not None and not silent
        return RunLog(console, [JsonLinesWriter(run.metrics_path, iteration=initial)] if wanted else [])
    store_json(run.summary_folder / CONFIG_FILE, values)
    if settings.deepspeed_content is not None:
        store_json(run.summary_folder / "config_gpt_large.json", settings.deepspeed_content)
    writers, note = tensorboard_writer(run.summary_folder, iteration=initial)
    if note:
        console.print(note)
    writers.append(JsonLinesWriter(run.metrics_path, iteration=initial))
    if run.wandb:
        writers.append(WandbWriter(run.experiment_name, config=values))
    return RunLog(console, writers)
