"""What a pre-training run is refused for, before anything is read. Imports neither torch nor numpy."""

from __future__ import annotations

import argparse
import math


def check_pretraining(values: argparse.Namespace) -> None:
    """Refuse what cannot run, in the words of the flags."""
    for name in ("num_layers", "hidden_size", "num_attention_heads", "seq_length", "max_position_embeddings",
                 "batch_size", "gradient_accumulation_steps", "log_interval", "checkpoint_num_layers",
                 "make_vocab_size_divisible_by"):  # fmt: skip
        if getattr(values, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(values, name)}; at least 1 is needed")
    for name in ("train_iters", "eval_iters", "eval_interval", "save_interval", "num_workers", "clip_grad"):
        if getattr(values, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(values, name)}; it cannot be negative")
    refusals = (
        (not (math.isfinite(values.lr) and values.lr > 0), f"--lr is {values.lr}; a positive number is needed"),
        (
            not values.train_data,
            "no --train-data: name corpora of NAMED_CORPORA (data_utils/corpora/named.py), files or globs",
        ),
        (
            values.encoder_decoder,
            "--encoder-decoder was never finished in the original and is not supported; leave it out",
        ),
        (
            not 0.0 <= values.multi_task_ratio < 1.0,
            f"--multi-task-ratio is {values.multi_task_ratio}, a probability; at least 0 and below 1 is possible",
        ),
        (
            values.multi_task_ratio > 0 and not (values.multi_task_data and values.data_dir),
            "--multi-task-ratio needs --multi-task-data (names of tasks) and --data-dir (the folder of their folders)",
        ),
        (
            not values.block_lm or values.transformer_xl,
            "pre-training is blank infilling: give --block-lm and leave --transformer-xl out (plain causal and "
            "Transformer-XL pre-training are not supported by this version)",
        ),
        (
            values.seq_length > values.max_position_embeddings,
            f"--seq-length {values.seq_length} does not fit --max-position-embeddings "
            f"{values.max_position_embeddings}: shorten the samples or add positions",
        ),
        (values.warmup > 0.5, f"--warmup is {values.warmup}, a fraction of the schedule; at most 0.5 is possible"),
        (
            values.load and values.load_pretrained,
            "--load continues a run, --load-pretrained starts one from its weights; give one of them",
        ),
        (
            values.auto_resume and (values.load or not values.save),
            "--auto-resume continues from <save>/<experiment-name>: it needs --save and excludes --load",
        ),
    )
    for refused, message in refusals:
        if refused:
            raise ValueError(message)
