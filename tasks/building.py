"""Build the parts of a fine-tuning run from its settings: encoding, network, engine, data, starting point."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_utils.block_infilling import BlankInfillingCollator, BlankInfillingSettings, Sample
from data_utils.tokenization import Tokenizer
from model.checkpoint_format import load_model_weights, resolve_checkpoint, shard_name
from model.modeling_glm import GLMModel
from model.safe_loading import read_checkpoint_file
from mpu.initialize import ParallelTopology
from tasks.configuration import FinetuningConfiguration
from tasks.finetuning import Progress, TrainingSet
from tasks.network import HeadSettings, add_head, check_prompt, freeze_transformer, initialize_prompt
from tasks.objective import TaskObjective
from tasks.registry import Task
from tasks.samples import EncodingOptions, Kind, TaskSample
from tasks.task_data import TaskData, batches_per_epoch, training_batches
from training.build import EngineSettings, checkpoint_to_load, model_config, seed_model, wrap_model
from training.configurations import ScheduleSettings
from training.engine import Engine

Announce = Callable[[str], None]


def encoding_options(configuration: FinetuningConfiguration) -> EncodingOptions:
    """Return how examples become samples."""
    task = configuration.task
    return EncodingOptions(
        seq_length=task.seq_length,
        cloze=task.cloze,
        pattern_id=task.pattern_id,
        multi_token=task.multi_token,
        fast_decode=task.fast_decode,
        segment_length=task.segment_length,
        continuous_prompt=task.continuous_prompt,
        num_prompt_tokens=task.num_prompt_tokens,
        prefix_prompt=task.prefix_prompt,
        wsc_negative=task.wsc_negative,
        loss_func=task.loss_function,
        block_positions=configuration.block_positions,
        masked_lm=configuration.blank.masked_lm,
        sentinel_token=task.sentinel_token,
        max_position_embeddings=configuration.model.max_position_embeddings,
        unidirectional=task.unidirectional,
        reserve_position=task.pool_token == "start",
    )


def build_network(
    configuration: FinetuningConfiguration,
    task: Task,
    *,
    kind: Kind,
    tokenizer: Tokenizer,
    encoding: EncodingOptions,
    topology: ParallelTopology,
    announce: Announce,
) -> torch.nn.Module:
    """Build the GLM with the weights of ``--load-pretrained``, its prompt encoder, and the head for ``kind``."""
    settings = configuration.task
    vocab_size = tokenizer.padded_size(configuration.tokenizer.vocab_divisor)
    config = model_config(configuration.model, vocab_size=vocab_size)
    if settings.continuous_prompt:
        config = replace(config, prompt_length=task.prompt_length(encoding), prompt_function=settings.prompt_function)
    check_prompt(config, kind=kind)
    model = GLMModel(config, topology=topology)
    head = HeadSettings(
        kind=kind,
        num_classes=1 if task.choice_head else len(task.labels),
        pool_token=settings.pool_token,
        dropout=settings.head_dropout,
        length_penalty=settings.length_penalty,
        adapet=settings.adapet,
    )
    network = add_head(model, head)
    seed_model(model, configuration.run.seed, topology=topology)
    announce(f"model: {model.num_parameters():,} parameters on this rank, vocabulary {vocab_size}")
    if configuration.checkpoint.load_pretrained is not None:
        report = load_model_weights(network, configuration.checkpoint.load_pretrained, topology=topology)
        announce(report.summary())
    elif configuration.checkpoint.load is None:
        announce("weights: random (no --load-pretrained, no --load)")
    if settings.prompt_init:
        words = task.prompt_init_tokens(tokenizer, encoding)
        initialize_prompt(model, task_token_ids=words, generator=random.Random(configuration.run.seed))
    if settings.freeze_transformer:
        freeze_transformer(model, tuned_layers=settings.tuned_layers)
    return network


def build_engine(
    network: torch.nn.Module,
    configuration: FinetuningConfiguration,
    *,
    num_updates: int,
    topology: ParallelTopology,
    device: torch.device,
    announce: Announce,
) -> Engine:
    """Build the engine around ``network``; the schedule is ``num_updates`` long."""
    schedule = configuration.schedule
    settings = EngineSettings(
        optimizer=configuration.optimizer,
        schedule=ScheduleSettings(
            decay_style=schedule.decay_style,
            num_iters=max(1, num_updates),
            warmup=schedule.warmup,
            decay_ratio=schedule.decay_ratio,
            switch_linear=False,
        ),
        precision=configuration.precision,
        batch_size=configuration.tuning.batch_size,
        accumulation_steps=configuration.tuning.accumulation_steps,
        deepspeed_content=configuration.deepspeed_content,
        universal=configuration.checkpoint.universal,
    )
    objective = TaskObjective(function=configuration.task.loss_function, adapet=configuration.task.adapet)
    return wrap_model(network, settings, topology=topology, device=device, announce=announce, objective=objective)


def training_set(
    data: TaskData,
    samples: Sequence[TaskSample],
    valid: Sequence[TaskSample],
    configuration: FinetuningConfiguration,
    *,
    topology: ParallelTopology,
) -> TrainingSet:
    """Return the batches of a run."""
    tuning, seed = configuration.tuning, configuration.run.seed

    def batches(first_batch: int) -> Iterator[Any]:
        return training_batches(
            samples,
            epochs=tuning.epochs,
            batch_size=tuning.batch_size,
            seed=seed,
            topology=topology,
            first_batch=first_batch,
            collate_samples=data.collate,
        )

    def valid_batches() -> Iterator[Any]:
        starts = range(0, len(valid), tuning.eval_batch_size)
        ranks, rank = topology.data_parallel_size, topology.data_parallel_rank
        for turn in range(-(-len(starts) // ranks)):  # the same number of batches on every rank
            start = starts[(turn * ranks + rank) % len(starts)]
            yield data.collate(valid[start : start + tuning.eval_batch_size])

    ratio = configuration.task.block_lm_ratio
    return TrainingSet(
        batches=batches,
        batches_per_epoch=batches_per_epoch(len(samples), batch_size=tuning.batch_size, topology=topology),
        valid=valid_batches if valid else None,
        mixed_in=_infilling_batches(data, configuration, topology=topology) if ratio > 0 else None,
        mixed_ratio=ratio / (1.0 + ratio),
    )


def _infilling_batches(
    data: TaskData, configuration: FinetuningConfiguration, *, topology: ParallelTopology
) -> Callable[[int], Any]:
    """Return what makes blank-infilling batches of the task's texts with their answers filled in."""
    examples = data.examples("train", for_training=True)
    texts = data.task.priming_texts(examples, data.tokenizer, data.encoding)
    collator = BlankInfillingCollator(
        data.tokenizer,
        BlankInfillingSettings(**asdict(configuration.blank)),
        max_seq_length=configuration.task.seq_length,
        rank=topology.data_parallel_rank,
        world_size=topology.data_parallel_size,
    )

    def batch(number: int) -> Any:
        generator = random.Random(f"texts {configuration.run.seed} {number} {topology.data_parallel_rank}")
        chosen = (np.array(generator.choice(texts), dtype=np.int64) for _ in range(configuration.tuning.batch_size))
        return collator([Sample(tokens, np.ones_like(tokens)) for tokens in chosen], batch_index=number)

    return batch


def find_progress(
    engine: Engine, configuration: FinetuningConfiguration, task: Task, *, announce: Announce
) -> Progress:
    """Restore the run that ``--load`` or ``--auto-resume`` names; another checkpoint gives its weights alone."""
    settings = configuration.checkpoint
    folder = checkpoint_to_load(settings)
    if folder is None:
        return Progress()
    state = _data_state(folder)
    goes_on = state.get("task") == task.name and configuration.tuning.epochs > 0 and not settings.finetune
    restored = engine.load(folder, settings if goes_on else replace(settings, finetune=True))
    announce(restored.report.summary())
    if not goes_on:
        return Progress()
    progress = Progress(**restored.data_state["progress"])
    announce(f"continuing after {progress.epochs} epochs and {progress.updates} updates")
    return progress


def _data_state(folder: Path) -> dict[str, Any]:
    return read_checkpoint_file(resolve_checkpoint(folder).folder / shard_name(0)).get("data_state") or {}
