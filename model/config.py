"""Sizes and options of a GLM. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from mpu.config import TransformerConfig

PROMPT_FUNCTIONS = ("lstm", "mlp", "none")


@dataclass(frozen=True)
class GLMConfig(TransformerConfig):
    """Describe one GLM: its transformer, and what is around it.

    Attributes:
        vocab_size: rows of the word table, padding included.
        max_memory_length: how many earlier positions a cache made by ``GLMModel.new_cache`` keeps (0: all).
        prompt_length: adds a prompt encoder of that many vectors.
        prompt_function: how the prompt encoder computes them.
    """

    vocab_size: int
    max_memory_length: int = field(default=0, kw_only=True)
    prompt_length: int | None = field(default=None, kw_only=True)
    prompt_function: str = field(default="lstm", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("vocab_size")
        if self.max_memory_length < 0:
            raise ValueError(f"max_memory_length is {self.max_memory_length}; it has to be 0 (no limit) or more")
        if self.prompt_length is not None and self.prompt_length < 1:
            raise ValueError(f"prompt_length is {self.prompt_length}; it has to be at least 1, or None for no prompt")
        if self.prompt_function not in PROMPT_FUNCTIONS:
            raise ValueError(
                f"prompt function {self.prompt_function!r} is unknown; choose one of {', '.join(PROMPT_FUNCTIONS)}"
            )
