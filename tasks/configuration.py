"""Frozen settings of a fine-tuning run, made from a parsed command line. Imports neither torch nor numpy."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.config import LoraSettings
from tasks.language_model.settings import LanguageModelSettings, language_model_settings
from tasks.seq2seq.settings import SEQ2SEQ_TASKS, Seq2SeqSettings, seq2seq_settings
from training.arguments import ParsedArguments
from training.configurations import (
    BlankSettings,
    CheckpointSettings,
    DeviceSettings,
    KernelSettings,
    ModelSettings,
    OptimizerSettings,
    PrecisionSettings,
    RunSettings,
    TokenizerSettings,
    blank_settings,
    checkpoint_settings,
    deepspeed_content,
    device_settings,
    kernel_settings,
    model_settings,
    optimizer_settings,
    precision_settings,
    run_settings,
    tokenizer_settings,
)


@dataclass(frozen=True)
class ScheduleShape:
    """The learning rate schedule but for its length, which the data decides."""

    decay_style: str
    warmup: float
    decay_ratio: float


@dataclass(frozen=True)
class TaskSettings:
    """The task and how its examples become samples and losses."""

    name: str
    data_folder: str | None
    valid_data: tuple[str, ...]
    test_data: tuple[str, ...]
    evaluate_valid: bool
    cloze: bool
    multi_token: bool
    fast_decode: bool
    segment_length: int
    pattern_id: int
    few_superglue: bool
    wsc_negative: bool
    unidirectional: bool
    pool_token: str
    loss_function: str
    adapet: bool
    length_penalty: float
    block_lm_ratio: float
    continuous_prompt: bool
    num_prompt_tokens: int
    prefix_prompt: int
    prompt_function: str
    prompt_init: bool
    freeze_transformer: bool
    tuned_layers: int
    seq_length: int
    pad_to_max: bool
    pack_samples: bool
    head_dropout: float
    sentinel_token: bool
    limit: int | None
    family: str
    pattern_ensemble: tuple[int, ...] | None
    index_key: str
    compatible: bool


@dataclass(frozen=True)
class FinetuningSettings:
    """Length of the run, and when it evaluates and saves."""

    epochs: int
    batch_size: int
    eval_batch_size: int
    accumulation_steps: int
    save_epoch: int
    eval_epoch: int
    validate: bool
    validation_metric: str | None
    patience: int | None
    overwrite: bool


@dataclass(frozen=True)
class FinetuningConfiguration:
    """All settings of one fine-tuning run; ``values`` is the whole command line for ``config.json``."""

    task: TaskSettings
    tuning: FinetuningSettings
    model: ModelSettings
    tokenizer: TokenizerSettings
    blank: BlankSettings
    optimizer: OptimizerSettings
    schedule: ScheduleShape
    precision: PrecisionSettings
    kernels: KernelSettings
    checkpoint: CheckpointSettings
    run: RunSettings
    device: DeviceSettings
    block_positions: bool
    values: Mapping[str, Any]
    deepspeed_content: Mapping[str, Any] | None
    lora: LoraSettings | None
    lora_adapter: Path | None
    seq2seq: Seq2SeqSettings | None
    language_model: LanguageModelSettings | None


LANGUAGE_MODEL_TASKS = ("lambda", "lambada", "wikitext", "language_model")


def family_of(task: str, *, source_length: int | None = None) -> str:
    """Return ``understanding``, ``seq2seq`` or ``language_model``; tasks without a family are of the first.

    ``squad`` is a sequence-to-sequence task when its sources have a length.
    """
    name = task.lower()
    if name in LANGUAGE_MODEL_TASKS:
        return "language_model"
    if name in SEQ2SEQ_TASKS and not (name == "squad" and source_length is None):
        return "seq2seq"
    return "understanding"


def _check(values: argparse.Namespace) -> None:
    """Refuse what cannot run, in the words of the flags."""
    if values.epochs is None and family_of(values.task) != "language_model":
        raise ValueError("no --epochs: give the number of passes over the training examples, or 0 to evaluate only")
    least = {
        "epochs": 0, "batch_size": 1, "gradient_accumulation_steps": 1, "log_interval": 1, "save_epoch": 1,
        "eval_epoch": 1, "seq_length": 8, "segment_length": 0, "num_prompt_tokens": 0, "prefix_prompt": 0,
    }  # fmt: skip
    for name, minimum in least.items():
        given = getattr(values, name)
        if given is not None and given < minimum:
            raise ValueError(f"--{name.replace('_', '-')} is {given}; at least {minimum} is needed")
    prompt_tokens = values.num_prompt_tokens + values.prefix_prompt
    refusals = (
        (
            values.prefix_prompt > 0 and not values.continuous_prompt,
            "--prefix-prompt needs --continuous-prompt: without it the tokens would be ordinary ones that mean nothing",
        ),
        (
            values.continuous_prompt and not prompt_tokens,
            "--continuous-prompt needs --num-prompt-tokens or --prefix-prompt",
        ),
        (
            values.continuous_prompt and values.fast_decode,
            "--fast-decode does not know --continuous-prompt; leave one of them out",
        ),
        (
            values.block_lm_ratio > 0 and (values.continuous_prompt or values.fast_decode or not values.cloze_eval),
            "--block-lm-ratio goes with --cloze-eval, without --continuous-prompt and --fast-decode",
        ),
        (
            values.pattern_ensemble is not None and not values.cloze_eval,
            "--pattern-ensemble needs --cloze-eval: a classification head has no patterns",
        ),
        (
            values.prompt_init and not (values.continuous_prompt and values.load_pretrained),
            "--prompt-init needs --continuous-prompt and the words of --load-pretrained",
        ),
        (
            values.freeze_transformer
            and values.cloze_eval
            and not values.continuous_prompt
            and not values.tune_prefix_layers,
            "--freeze-transformer leaves nothing to train here; add --continuous-prompt or --tune-prefix-layers",
        ),
        (
            family_of(values.task, source_length=values.src_seq_length) != "seq2seq"
            and values.seq_length > values.max_position_embeddings
            and not values.sentinel_token,
            f"--seq-length {values.seq_length} does not fit --max-position-embeddings "
            f"{values.max_position_embeddings}: shorten the samples or add positions",
        ),
        (
            values.pack_samples and (values.pad_to_max or values.fast_decode or values.continuous_prompt),
            "--pack-samples does not go with --pad-to-max, --fast-decode and --continuous-prompt; leave it out",
        ),
        (
            values.pack_samples and family_of(values.task) == "language_model",
            f"--pack-samples has nothing to do for {values.task}, whose rows are full; leave it out",
        ),
        (values.warmup > 0.5, f"--warmup is {values.warmup}, a fraction of the schedule; at most 0.5 is possible"),
        (
            values.auto_resume and (values.load or not values.save),
            "--auto-resume continues from <save>/<experiment-name>: it needs --save and excludes --load",
        ),
    )
    for refused, message in refusals:
        if refused:
            raise ValueError(message)


def _check_adapters(values: argparse.Namespace) -> None:
    """Refuse adapters that cannot be, in the words of the flags."""
    flags = ("lora_alpha", "lora_dropout", "lora_target")
    lonely = [f"--{name.replace('_', '-')}" for name in flags if getattr(values, name) is not None]
    wanted = "--lora-rank" if values.lora_rank is not None else "--lora-adapter"
    if values.lora_rank is None and values.lora_adapter is None:
        if lonely:
            raise ValueError(f"{lonely[0]} is for adapters: give --lora-rank as well")
        return
    if values.lora_adapter is not None and (values.lora_rank is not None or lonely):
        raise ValueError(f"--lora-adapter has its own settings; leave {(lonely or ['--lora-rank'])[0]} out")
    if values.load_pretrained is None:
        raise ValueError(f"{wanted} needs --load-pretrained, the model that is adapted: its weights are not in the run")
    for name in ("continuous_prompt", "freeze_transformer"):
        if getattr(values, name):
            raise ValueError(f"{wanted} does not go with --{name.replace('_', '-')}; leave one of them out")


def _lora_settings(values: argparse.Namespace) -> LoraSettings | None:
    """Return the adapters to add; None without ``--lora-rank``."""
    _check_adapters(values)
    if values.lora_rank is None:
        return None
    chosen = {} if values.lora_target is None else {"targets": tuple(dict.fromkeys(values.lora_target))}
    alpha = 2.0 * values.lora_rank if values.lora_alpha is None else values.lora_alpha
    return LoraSettings(rank=values.lora_rank, alpha=alpha, dropout=values.lora_dropout or 0.0, **chosen)


def finetuning_configuration(parsed: ParsedArguments) -> FinetuningConfiguration:
    """Turn a parsed command line into the settings of a fine-tuning run.

    Raises:
        ValueError: values that cannot work together.
    """
    values = parsed.values
    _check(values)
    family = family_of(values.task, source_length=values.src_seq_length)
    epochs = values.epochs or 0  # language models are evaluated only
    name = values.experiment_name
    save = Path(values.save) / name if values.save else None
    run = run_settings(values, name=name)
    return FinetuningConfiguration(
        task=TaskSettings(
            name=values.task,
            data_folder=values.data_dir,
            valid_data=tuple(values.valid_data or ()),
            test_data=tuple(values.test_data or ()),
            evaluate_valid=values.eval_valid,
            cloze=values.cloze_eval,
            multi_token=values.multi_token,
            fast_decode=values.fast_decode,
            segment_length=values.segment_length,
            pattern_id=values.pattern_id,
            few_superglue=values.few_superglue,
            wsc_negative=values.wsc_negative,
            unidirectional=values.unidirectional,
            pool_token=values.pool_token,
            loss_function=values.loss_func,
            adapet=values.adapet,
            length_penalty=values.length_penalty,
            block_lm_ratio=values.block_lm_ratio,
            continuous_prompt=values.continuous_prompt,
            num_prompt_tokens=values.num_prompt_tokens,
            prefix_prompt=values.prefix_prompt,
            prompt_function=values.prompt_func,
            prompt_init=values.prompt_init,
            freeze_transformer=values.freeze_transformer,
            tuned_layers=values.tune_prefix_layers or 0,
            seq_length=values.seq_length,
            pad_to_max=values.pad_to_max,
            pack_samples=values.pack_samples,
            head_dropout=values.output_dropout,
            sentinel_token=values.sentinel_token,
            limit=values.limit,
            family=family,
            pattern_ensemble=None if values.pattern_ensemble is None else tuple(values.pattern_ensemble),
            index_key=values.index_key,
            compatible=values.compatible,
        ),
        tuning=FinetuningSettings(
            epochs=epochs,
            batch_size=values.batch_size,
            eval_batch_size=values.eval_batch_size or values.batch_size,
            accumulation_steps=values.gradient_accumulation_steps,
            save_epoch=values.save_epoch,
            eval_epoch=values.eval_epoch,
            validate=not values.no_validation,
            validation_metric=values.validation_metric,
            patience=values.patience,
            overwrite=values.overwrite,
        ),
        model=model_settings(values),
        tokenizer=tokenizer_settings(values),
        blank=blank_settings(values),
        optimizer=optimizer_settings(values),
        schedule=ScheduleShape(values.lr_decay_style, values.warmup, values.lr_decay_ratio),
        precision=precision_settings(values),
        kernels=kernel_settings(values),
        checkpoint=checkpoint_settings(values, save=save),
        run=replace(run, train_iters=0),
        device=device_settings(values),
        block_positions=not values.no_block_position,
        values=dict(vars(values)),
        deepspeed_content=deepspeed_content(parsed),
        lora=_lora_settings(values),
        lora_adapter=Path(values.lora_adapter) if values.lora_adapter else None,
        seq2seq=seq2seq_settings(values) if family == "seq2seq" else None,
        language_model=language_model_settings(values) if family == "language_model" else None,
    )
