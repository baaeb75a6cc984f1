"""Sizes and options of a GLM and of its low-rank adapters. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mpu.config import TransformerConfig

PROMPT_FUNCTIONS = ("lstm", "mlp", "none")
# What --lora-target names, and where it is in a layer of the transformer.
LORA_TARGETS = {
    "query_key_value": "attention.query_key_value",
    "dense": "attention.dense",
    "dense_h_to_4h": "mlp.dense_h_to_4h",
    "dense_4h_to_h": "mlp.dense_4h_to_h",
}


@dataclass(frozen=True)
class GLMConfig(TransformerConfig):
    """Describe one GLM: its transformer, and what is around it.

    Attributes:
        vocab_size: rows of the word table, padding included.
        max_memory_length: how many earlier positions a cache made by ``GLMModel.new_cache`` keeps (0: all).
        prompt_length: adds a prompt encoder of that many vectors.
        prefix_prompt_length: adds trained vectors that many positions before the keys and values of every layer.
        prompt_function: how the prompt encoder computes either.
    """

    vocab_size: int
    max_memory_length: int = field(default=0, kw_only=True)
    prompt_length: int | None = field(default=None, kw_only=True)
    prefix_prompt_length: int | None = field(default=None, kw_only=True)
    prompt_function: str = field(default="lstm", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("vocab_size")
        if self.max_memory_length < 0:
            raise ValueError(f"max_memory_length is {self.max_memory_length}; it has to be 0 (no limit) or more")
        if self.prompt_length is not None and self.prompt_length < 1:
            raise ValueError(f"prompt_length is {self.prompt_length}; it has to be at least 1, or None for no prompt")
        if self.prefix_prompt_length is not None and (self.prefix_prompt_length < 1 or self.relative_encoding):
            raise ValueError(
                f"prefix_prompt_length is {self.prefix_prompt_length}; it has to be at least 1, of a model with "
                "learned positions, or None for no prefix"
            )
        if self.prompt_function not in PROMPT_FUNCTIONS:
            raise ValueError(
                f"prompt function {self.prompt_function!r} is unknown; choose one of {', '.join(PROMPT_FUNCTIONS)}"
            )


@dataclass(frozen=True)
class LoraSettings:
    """How large adapters are and which layers have them.

    Attributes:
        rank: of the product that is added to a matrix.
        alpha: the product is multiplied by alpha / rank.
        dropout: on the input of the adapters, in training.
        targets: keys of ``LORA_TARGETS``.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query_key_value",)

    def __post_init__(self) -> None:
        """Raise ValueError, in the words of the flags, for values that cannot be."""
        if self.rank < 1:
            raise ValueError(f"--lora-rank is {self.rank}; at least 1 is needed")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"--lora-alpha is {self.alpha}; give a number above 0")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"--lora-dropout is {self.dropout}; give a probability below 1")
        unknown = [name for name in self.targets if name not in LORA_TARGETS]
        if unknown or not self.targets:
            raise ValueError(
                f"--lora-target is {' '.join(self.targets) or 'empty'}; choose among {', '.join(LORA_TARGETS)}"
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank
