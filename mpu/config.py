"""Sizes and options of a transformer stack. Imports no torch, so that a command line can be checked without it."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass


@dataclass(frozen=True)
class TransformerConfig:
    """Describe one stack of layers. Raises ValueError when the values do not fit together.

    Attributes:
        max_position_embeddings: positions; the tables of a model with block positions have one more row.
        block_position_encoding: a second table counts the tokens within a span.
        relative_encoding: distances in place of learned positions (Transformer-XL).
        embedding_dropout, attention_dropout, output_dropout: probabilities.
        fast_dropout: on the CPU round probabilities to 1/256.
        attention_scale: above 1, guards attention scores in half precision against overflow.
        checkpoint_activations: recompute, in the backward pass, chunks of ``checkpoint_num_layers`` layers.
    """

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    _: KW_ONLY
    max_position_embeddings: int = 512
    block_position_encoding: bool = True
    relative_encoding: bool = False
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.1
    output_dropout: float = 0.1
    fast_dropout: bool = True
    attention_scale: float = 1.0
    checkpoint_activations: bool = False
    checkpoint_num_layers: int = 1
    layernorm_epsilon: float = 1e-5
    initializer_std: float = 0.02

    def __post_init__(self) -> None:
        self.require_positive(
            "num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "checkpoint_num_layers"
        )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}; "
                "change one of them"
            )
        if self.relative_encoding and self.hidden_size % 2:
            raise ValueError(f"hidden_size is {self.hidden_size}; relative positions need an even one")
        for name in ("embedding_dropout", "attention_dropout", "output_dropout"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to lie between 0 and 1")

    def require_positive(self, *names: str) -> None:
        """Raise ValueError where one of the named fields is below 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be at least 1")

    @property
    def position_rows(self) -> int:
        """Return the number of rows of each position table."""
        return self.max_position_embeddings + (1 if self.block_position_encoding else 0)

    @property
    def output_initializer_std(self) -> float:
        """Return the deviation of the two matrices that write to the residual stream."""
        return self.initializer_std / math.sqrt(2.0 * self.num_layers)
