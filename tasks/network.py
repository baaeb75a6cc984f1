"""The network of a task: a GLM, what of it is trained, and the head for the kind of samples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from model.config import GLMConfig
from model.heads import MultiTokenCloze, MultiTokenClozeFast, SequenceClassification, SingleTokenCloze
from model.modeling_glm import GLMModel
from mpu.mappings import gather_from_model_parallel
from tasks.samples import Kind


@dataclass(frozen=True)
class HeadSettings:
    """Which head scores the samples.

    Attributes:
        kind: of the samples.
        num_classes: outputs of a classification head; 1 where choices are scored.
        pool_token: the position that feeds it.
        dropout: before its last layer.
        length_penalty: answers' scores are divided by length ** penalty.
        adapet: single tokens are scored by log-probability over the vocabulary.
    """

    kind: Kind
    num_classes: int = 1
    pool_token: str = "cls"
    dropout: float = 0.1
    length_penalty: float = 0.0
    adapet: bool = False


def add_head(model: GLMModel, settings: HeadSettings) -> nn.Module:
    """Return ``model`` inside the head for its samples; a bare one predicts tokens."""
    if settings.kind == "single_token":
        return SingleTokenCloze(model, take_softmax=settings.adapet)
    if settings.kind == "multi_token":
        return MultiTokenCloze(model, length_penalty=settings.length_penalty)
    if settings.kind == "fast_decode":
        return MultiTokenClozeFast(model, length_penalty=settings.length_penalty)
    if settings.kind == "classification":
        return SequenceClassification(
            model, settings.num_classes, pool_token=settings.pool_token, dropout_probability=settings.dropout
        )
    assert settings.kind == "language_model", settings.kind
    return model


def freeze_transformer(model: GLMModel, *, tuned_layers: int = 0) -> None:
    """Train the prompt encoder and the heads only, and with ``tuned_layers`` the first layers.

    Raises:
        ValueError: nothing is left to train, or there are fewer layers.
    """
    if tuned_layers > model.config.num_layers:
        raise ValueError(
            f"--tune-prefix-layers is {tuned_layers}, the model has {model.config.num_layers} layers; give no more"
        )
    model.word_embeddings.requires_grad_(False)
    model.transformer.requires_grad_(False)
    model.transformer.layers[:tuned_layers].requires_grad_(True)


def initialize_prompt(model: GLMModel, *, task_token_ids: Sequence[int], generator: random.Random) -> None:
    """Start the continuous prompt from word embeddings (``--prompt-init``), the same on all ranks."""
    assert model.prompt_spell is not None, "no prompt encoder"
    with torch.no_grad():
        # Rows are cut over the ranks; gathering works on the last dimension.
        rows = gather_from_model_parallel(model.word_embeddings.weight.t().contiguous(), model.topology).t()
    model.prompt_spell.initialize_from_words(rows, task_token_ids=task_token_ids, generator=generator)


def check_prompt(config: GLMConfig, *, kind: Kind) -> None:
    """Raise ValueError when a continuous prompt cannot be used with samples of this kind."""
    if config.prompt_length is not None and kind in ("fast_decode", "classification", "encoder"):
        raise ValueError(
            f"--continuous-prompt does not go with {kind.replace('_', ' ')} samples; use --cloze-eval without "
            "--fast-decode"
        )
