"""Frozen settings, one small class per concern, made from a parsed command line.

Entry points parse, build a ``PretrainingConfiguration`` and hand each callee the one group it needs. Whatever can be
checked without touching files or devices is checked here, with the flag's name in the message.
Imports neither torch nor numpy.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.arguments import ParsedArguments
from training.pretraining_checks import check_pretraining

DEFAULT_TOKENIZER_PATH = "tokenizer.model"  # the original's


@dataclass(frozen=True)
class ModelSettings:
    """Size, dropout and form of the model; the vocabulary comes from the tokenizer."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    max_position_embeddings: int
    block_position_encoding: bool
    relative_encoding: bool
    hidden_dropout: float
    attention_dropout: float
    attention_scale: float
    max_memory_length: int
    checkpoint_activations: bool
    checkpoint_num_layers: int
    fast_dropout: bool


@dataclass(frozen=True)
class TokenizerSettings:
    """Which tokenizer, with which extra command tokens."""

    tokenizer_type: str
    model_type: str | None
    path: str | None
    block_symbols: bool
    task_mask: bool
    decoder_mask: bool
    num_sentinels: int
    fix_command_token: bool
    vocab_dir: str | None
    cache_dir: str | None
    vocab_divisor: int


@dataclass(frozen=True)
class CorpusSettings:
    """Which documents are read, where they are cached, how they are split."""

    train_data: tuple[str, ...]
    valid_data: tuple[str, ...]
    test_data: tuple[str, ...]
    split: str
    load_splits: str | None
    save_splits: str | None
    save_test_data: str | None
    text_field: str
    text_unit: str
    cache_dir: str | None
    skip_malformed: bool
    pre_tokenize: bool
    in_memory: bool
    filter_english: bool
    half_of_documents: bool
    scatter: int | None
    seed: int


@dataclass(frozen=True)
class BatchSettings:
    """How documents become micro batches."""

    seq_length: int
    eval_seq_length: int
    batch_size: int
    eval_batch_size: int
    accumulation_steps: int
    shuffle: bool
    num_workers: int
    sample_one_document: bool
    non_sentence_start: float
    pack_samples: bool


@dataclass(frozen=True)
class BlankSettings:
    """Options of the blank construction."""

    bert_prob: float
    gap_sentence_prob: float
    gpt_infill_prob: float
    gpt_min_ratio: float
    gap_sentence_ratio: float
    average_block_length: int
    block_mask_prob: float
    context_mask_ratio: float
    short_seq_prob: float
    single_span_prob: float
    shuffle_blocks: bool
    block_position_encoding: bool
    sentinel_token: bool
    task_mask: bool
    random_position: bool
    masked_lm: bool


@dataclass(frozen=True)
class OptimizerSettings:
    """Optimizer and gradient clipping; ``clip_grad`` 0 is off."""

    name: str
    lr: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    clip_grad: float


@dataclass(frozen=True)
class ScheduleSettings:
    """Learning rate schedule; ``num_iters`` is its length in updates."""

    decay_style: str
    num_iters: int
    warmup: float
    decay_ratio: float
    switch_linear: bool


@dataclass(frozen=True)
class PrecisionSettings:
    """Arithmetic of forward and backward: ``fp32``, ``bf16`` or ``fp16``; the rest concerns fp16."""

    kind: str
    loss_scale: float | None
    loss_scale_window: float
    hysteresis: int
    min_scale: float


@dataclass(frozen=True)
class KernelSettings:
    """How layers are computed; the result is the same. See ``mpu.transformer.Transformer.choose_kernels``."""

    attention: str = "auto"
    compiled: bool = False


@dataclass(frozen=True)
class CheckpointSettings:
    """What is saved and loaded, when and where."""

    save: Path | None
    save_interval: int
    save_optimizer: bool
    save_random_state: bool
    keep: int | None
    load: Path | None
    load_pretrained: Path | None
    load_optimizer: bool
    load_random_state: bool
    load_schedule: bool
    finetune: bool
    auto_resume: bool
    universal: bool = False


@dataclass(frozen=True)
class RunSettings:
    """Length of the run and how it is watched."""

    experiment_name: str
    train_iters: int
    log_interval: int
    eval_interval: int
    eval_iters: int
    eval_at_start: bool
    exit_after: int | None
    seed: int
    summary_folder: Path
    metrics_file: Path
    wandb: bool
    progress: bool
    precision: str


@dataclass(frozen=True)
class DeviceSettings:
    """Processes and devices."""

    device: str
    rank: int
    world_size: int
    local_rank: int
    backend: str
    model_parallel_size: int


@dataclass(frozen=True)
class MixtureSettings:
    """Downstream tasks mixed into pre-training; ``ratio`` 0 is none."""

    tasks: tuple[str, ...]
    ratio: float
    data_folder: str | None
    seq_length: int
    batch_size: int


@dataclass(frozen=True)
class PretrainingConfiguration:
    """All settings of one pre-training run; ``values`` is the whole command line for ``config.json``."""

    model: ModelSettings
    tokenizer: TokenizerSettings
    corpus: CorpusSettings
    batch: BatchSettings
    blank: BlankSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    precision: PrecisionSettings
    kernels: KernelSettings
    checkpoint: CheckpointSettings
    run: RunSettings
    mixture: MixtureSettings
    device: DeviceSettings
    values: Mapping[str, Any]
    deepspeed_content: Mapping[str, Any] | None


def experiment_name(values: argparse.Namespace, *, date: str) -> str:
    """Return the run's name: that of the loaded folder, or the given one with the date."""
    if values.load and not values.new_save_directory:
        return Path(values.load).resolve().name
    if values.auto_resume:
        return values.experiment_name
    return f"{values.experiment_name}{date}"


def model_settings(values: argparse.Namespace) -> ModelSettings:
    """Collect the model's settings."""
    return ModelSettings(
        num_layers=values.num_layers,
        hidden_size=values.hidden_size,
        num_attention_heads=values.num_attention_heads,
        max_position_embeddings=values.max_position_embeddings,
        block_position_encoding=values.block_lm and not values.masked_lm,
        relative_encoding=values.transformer_xl,
        hidden_dropout=values.hidden_dropout,
        attention_dropout=values.attention_dropout,
        attention_scale=values.attention_scale,
        max_memory_length=values.mem_length if values.transformer_xl else 0,
        checkpoint_activations=values.checkpoint_activations,
        checkpoint_num_layers=values.checkpoint_num_layers,
        fast_dropout=not values.exact_dropout,
    )


def tokenizer_path(values: argparse.Namespace) -> str | None:
    """Return the vocabulary file that ``--tokenizer-path`` names; its default concerns SentencePiece models only."""
    given = values.tokenizer_type == "SentencePieceTokenizer" or values.tokenizer_path != DEFAULT_TOKENIZER_PATH
    return values.tokenizer_path if given else None


def tokenizer_settings(values: argparse.Namespace) -> TokenizerSettings:
    """Collect the tokenizer's settings; of S sentinels those numbered 1 .. S-1 exist."""
    return TokenizerSettings(
        tokenizer_type=values.tokenizer_type,
        model_type=values.tokenizer_model_type,
        path=tokenizer_path(values),
        block_symbols=values.block_lm,
        task_mask=values.task_mask,
        decoder_mask=values.block_mask_prob > 0 or values.context_mask_ratio > 0,
        num_sentinels=values.max_position_embeddings if values.sentinel_token else 0,
        fix_command_token=values.fix_command_token,
        vocab_dir=values.vocab_dir,
        cache_dir=values.cache_dir,
        vocab_divisor=values.make_vocab_size_divisible_by,
    )


def pretraining_configuration(parsed: ParsedArguments, *, date: str | None = None) -> PretrainingConfiguration:
    """Turn a parsed command line into the settings of a pre-training run.

    Args:
        parsed: from ``parse_arguments``.
        date: suffix of a new run's name, ``MM-DD-hh-mm``; None takes the launcher's (GLM_DATE), else the clock's.

    Raises:
        ValueError: values that cannot work together, or that this program does not support.
    """
    values = parsed.values
    check_pretraining(values)
    name = experiment_name(values, date=date or os.environ.get("GLM_DATE") or time.strftime("%m-%d-%H-%M"))
    save = Path(values.save) / name if values.save else None
    num_iters = values.lr_decay_iters or values.train_iters
    if values.finetune:
        num_iters //= values.gradient_accumulation_steps
    return PretrainingConfiguration(
        model=model_settings(values),
        tokenizer=tokenizer_settings(values),
        corpus=CorpusSettings(
            train_data=tuple(values.train_data),
            valid_data=tuple(values.valid_data or ()),
            test_data=tuple(values.test_data or ()),
            split=values.split,
            load_splits=values.load_splits,
            save_splits=values.save_splits,
            save_test_data=values.save_test_data,
            text_field=values.text_field,
            text_unit=values.text_unit,
            pre_tokenize=not values.no_pre_tokenize,
            in_memory=values.no_lazy_loader,
            cache_dir=values.data_cache_dir,
            skip_malformed=values.skip_malformed,
            filter_english=values.filter_english,
            half_of_documents=values.half_lazy_loader,
            scatter=values.loader_scatter,
            seed=values.seed,
        ),
        batch=BatchSettings(
            seq_length=values.seq_length,
            eval_seq_length=values.eval_seq_length or values.seq_length,
            batch_size=values.batch_size,
            eval_batch_size=values.eval_batch_size or values.batch_size,
            accumulation_steps=values.gradient_accumulation_steps,
            shuffle=values.shuffle,
            num_workers=values.num_workers,
            sample_one_document=values.sample_one_document,
            non_sentence_start=values.non_sentence_start,
            pack_samples=values.pack_samples,
        ),
        blank=blank_settings(values),
        optimizer=optimizer_settings(values),
        schedule=schedule_settings(values, num_iters=num_iters),
        precision=precision_settings(values),
        kernels=kernel_settings(values),
        checkpoint=checkpoint_settings(values, save=save),
        run=run_settings(values, name=name),
        mixture=MixtureSettings(
            tasks=tuple(values.multi_task_data or ()),
            ratio=values.multi_task_ratio,
            data_folder=values.data_dir,
            seq_length=values.multi_seq_length or values.seq_length,
            batch_size=values.multi_batch_size or values.batch_size,
        ),
        device=device_settings(values),
        values=dict(vars(values)),
        deepspeed_content=deepspeed_content(parsed),
    )


def deepspeed_content(parsed: ParsedArguments) -> Mapping[str, Any] | None:
    """Return the DeepSpeed file's content, empty when ``--deepspeed`` names none; None without ``--deepspeed``."""
    if parsed.deepspeed_file is not None:
        return parsed.deepspeed_file.content
    return {} if parsed.values.deepspeed else None


def blank_settings(values: argparse.Namespace) -> BlankSettings:
    """Collect the options of the blank construction."""
    return BlankSettings(
        bert_prob=values.bert_prob,
        gap_sentence_prob=values.gap_sentence_prob,
        gpt_infill_prob=values.gpt_infill_prob,
        gpt_min_ratio=values.gpt_min_ratio,
        gap_sentence_ratio=values.gap_sentence_ratio,
        average_block_length=values.avg_block_length,
        block_mask_prob=values.block_mask_prob,
        context_mask_ratio=values.context_mask_ratio,
        short_seq_prob=values.short_seq_prob,
        single_span_prob=values.single_span_prob,
        shuffle_blocks=not values.no_shuffle_block,
        block_position_encoding=not values.no_block_position,
        sentinel_token=values.sentinel_token,
        task_mask=values.task_mask,
        random_position=values.random_position,
        masked_lm=values.masked_lm,
    )


def optimizer_settings(values: argparse.Namespace) -> OptimizerSettings:
    """Collect the optimizer's settings."""
    return OptimizerSettings(
        name=values.optimizer,
        lr=values.lr,
        weight_decay=values.weight_decay,
        betas=(values.adam_beta1, values.adam_beta2),
        eps=values.adam_eps,
        clip_grad=values.clip_grad,
    )


def schedule_settings(values: argparse.Namespace, *, num_iters: int) -> ScheduleSettings:
    """Collect the schedule's settings; ``num_iters`` is its length in updates."""
    return ScheduleSettings(
        decay_style=values.lr_decay_style,
        num_iters=max(1, num_iters),
        warmup=values.warmup,
        decay_ratio=values.lr_decay_ratio,
        switch_linear=values.switch_linear,
    )


def checkpoint_settings(values: argparse.Namespace, *, save: Path | None) -> CheckpointSettings:
    """Collect what is saved and loaded; ``save`` is the run's own folder."""
    return CheckpointSettings(
        save=save,
        save_interval=values.save_interval,
        save_optimizer=not values.no_save_optim,
        save_random_state=not values.no_save_rng,
        keep=values.keep_checkpoints,
        load=Path(values.load) if values.load else None,
        load_pretrained=Path(values.load_pretrained) if values.load_pretrained else None,
        load_optimizer=not values.no_load_optim,
        load_random_state=not values.no_load_rng,
        load_schedule=not values.no_load_lr_scheduler,
        finetune=values.finetune,
        auto_resume=values.auto_resume,
        universal=values.universal_checkpoint,
    )


def run_settings(values: argparse.Namespace, *, name: str) -> RunSettings:
    """Collect the length of run ``name`` and how it is watched."""
    summary_folder = Path(values.summary_dir) / "runs" / name
    return RunSettings(
        experiment_name=name,
        train_iters=values.train_iters,
        log_interval=values.log_interval,
        eval_interval=values.eval_interval,
        eval_iters=values.eval_iters,
        eval_at_start=values.eval_at_start,
        exit_after=values.exit_after,
        seed=values.seed,
        summary_folder=summary_folder,
        metrics_file=Path(values.metrics_file) if values.metrics_file else summary_folder / "metrics.jsonl",
        wandb=values.wandb,
        progress=not values.no_progress,
        precision=precision_settings(values).kind,
    )


def precision_settings(values: argparse.Namespace) -> PrecisionSettings:
    """Collect the arithmetic's settings."""
    return PrecisionSettings(
        kind="fp16" if values.fp16 else "bf16" if values.bf16 else "fp32",
        loss_scale=values.loss_scale,
        loss_scale_window=values.loss_scale_window,
        hysteresis=values.hysteresis,
        min_scale=values.min_scale,
    )


def kernel_settings(values: argparse.Namespace) -> KernelSettings:
    """Collect how layers are computed."""
    return KernelSettings(attention=values.attention, compiled=values.compile)


def device_settings(values: argparse.Namespace) -> DeviceSettings:
    """Collect what the launcher and the flags say about processes and devices."""
    return DeviceSettings(
        device=values.device,
        rank=values.rank,
        world_size=values.world_size,
        local_rank=values.local_rank or 0,
        backend=values.distributed_backend,
        model_parallel_size=values.model_parallel_size,
    )
