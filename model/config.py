"""Sizes and options of a GLM, and the table of the released models.

``python -m model.config`` prints the table with parameter counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpu.transformer import TransformerSettings

PROMPT_FUNCTIONS = ("lstm", "mlp", "none")


@dataclass(frozen=True)
class GLMConfig:
    """Describe one GLM. Raises ValueError when the values do not fit together.

    ``max_position_embeddings`` counts positions: the tables of a model with block positions have one more row. Dropouts
    are probabilities; ``fast_dropout`` rounds them to 1/256 on the CPU. ``attention_scale`` above 1 guards
    half-precision attention scores against overflow. ``max_memory_length`` is how many earlier positions a cache made
    by ``GLMModel.new_cache`` keeps (0: all). ``prompt_length`` adds a prompt encoder of that many vectors.
    """

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    vocab_size: int
    max_position_embeddings: int = 512
    block_position_encoding: bool = True
    relative_encoding: bool = False
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.1
    output_dropout: float = 0.1
    attention_scale: float = 1.0
    max_memory_length: int = 0
    checkpoint_activations: bool = False
    checkpoint_num_layers: int = 1
    prompt_length: int | None = None
    prompt_function: str = "lstm"
    layernorm_epsilon: float = 1e-5
    initializer_std: float = 0.02
    fast_dropout: bool = True

    def __post_init__(self) -> None:
        for name in (
            "num_layers",
            "hidden_size",
            "num_attention_heads",
            "vocab_size",
            "max_position_embeddings",
            "checkpoint_num_layers",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be at least 1")
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
        if self.max_memory_length < 0:
            raise ValueError(f"max_memory_length is {self.max_memory_length}; it has to be 0 (no limit) or more")
        if self.prompt_length is not None and self.prompt_length < 1:
            raise ValueError(f"prompt_length is {self.prompt_length}; it has to be at least 1, or None for no prompt")
        if self.prompt_function not in PROMPT_FUNCTIONS:
            raise ValueError(
                f"prompt function {self.prompt_function!r} is unknown; choose one of {', '.join(PROMPT_FUNCTIONS)}"
            )

    @property
    def position_rows(self) -> int:
        """Return the number of rows of each position table."""
        return self.max_position_embeddings + (1 if self.block_position_encoding else 0)

    def transformer_settings(self) -> TransformerSettings:
        """Return what the layer stack needs to know."""
        return TransformerSettings(
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
            position_rows=self.position_rows,
            block_position_encoding=self.block_position_encoding,
            relative_encoding=self.relative_encoding,
            embedding_dropout=self.embedding_dropout,
            attention_dropout=self.attention_dropout,
            output_dropout=self.output_dropout,
            fast_dropout=self.fast_dropout,
            attention_scale=self.attention_scale,
            checkpoint_activations=self.checkpoint_activations,
            checkpoint_num_layers=self.checkpoint_num_layers,
            layernorm_epsilon=self.layernorm_epsilon,
            initializer_std=self.initializer_std,
        )

    def num_parameters(self) -> int:
        """Count the parameters of the whole model, built on the meta device: no memory is taken."""
        from model.modeling_glm import GLMModel

        return GLMModel(self, device="meta").num_parameters()


@dataclass(frozen=True)
class ReleasedModel:
    """A published checkpoint: its sizes, its tokenizer, and the names of its files.

    ``config_task`` is the script in ``config_tasks/`` that describes it, ``checkpoint_folder`` the folder that script
    expects below ``CHECKPOINT_PATH``. ``fix_command_token`` gives [gMASK] an id of its own in the Chinese tokenizer.
    """

    name: str
    config: GLMConfig
    tokenizer_type: str
    tokenizer_model_type: str | None
    config_task: str
    checkpoint_folder: str
    task_mask: bool = False
    fix_command_token: bool = False


def _released(
    name: str,
    sizes: tuple[int, int, int],
    *,
    tokenizer: str,
    vocab_size: int,
    config_task: str,
    checkpoint_folder: str,
    model_type: str | None = None,
    positions: int = 512,
    task_mask: bool = False,
    fix_command_token: bool = False,
) -> ReleasedModel:
    """Build a row of the table from ``sizes`` = (layers, hidden size, heads)."""
    layers, hidden_size, heads = sizes
    config = GLMConfig(layers, hidden_size, heads, vocab_size, max_position_embeddings=positions)
    return ReleasedModel(
        name=name,
        config=config,
        tokenizer_type=tokenizer,
        tokenizer_model_type=model_type,
        config_task=config_task,
        checkpoint_folder=checkpoint_folder,
        task_mask=task_mask,
        fix_command_token=fix_command_token,
    )


_WORDPIECE = {"tokenizer": "BertWordPieceTokenizer", "vocab_size": 30592}
_BYTE_PAIRS = {"tokenizer": "GPT2BPETokenizer", "vocab_size": 50304}
_CHINESE = {"tokenizer": "ChineseSPTokenizer", "vocab_size": 50048, "positions": 1024, "task_mask": True}

RELEASED_MODELS: dict[str, ReleasedModel] = {
    row.name: row
    for row in (
        _released(
            "GLM-Base",
            (12, 768, 12),
            **_WORDPIECE,
            model_type="bert-base-uncased",
            config_task="model_blocklm_base.sh",
            checkpoint_folder="blocklm-base-blank",
        ),
        _released(
            "GLM-Large",
            (24, 1024, 16),
            **_WORDPIECE,
            model_type="bert-large-uncased",
            config_task="model_blocklm_large.sh",
            checkpoint_folder="blocklm-large-blank",
        ),
        _released(
            "GLM-Large-Chinese",
            (24, 1024, 16),
            **_CHINESE,
            fix_command_token=True,
            config_task="model_blocklm_large_chinese.sh",
            checkpoint_folder="blocklm-large-chinese",
        ),
        _released(
            "GLM-Doc",
            (24, 1024, 16),
            **_WORDPIECE,
            model_type="bert-large-uncased",
            config_task="model_blocklm_large_generation.sh",
            checkpoint_folder="blocklm-large-generation",
        ),
        _released(
            "GLM-410M",
            (30, 1024, 16),
            **_WORDPIECE,
            model_type="bert-large-uncased",
            config_task="model_blocklm_1.25_generation.sh",
            checkpoint_folder="blocklm-1.25-generation",
        ),
        _released(
            "GLM-515M",
            (30, 1152, 18),
            **_WORDPIECE,
            model_type="bert-large-uncased",
            config_task="model_blocklm_1.5_generation.sh",
            checkpoint_folder="blocklm-1.5-generation",
        ),
        _released(
            "GLM-RoBERTa",
            (24, 1024, 16),
            **_BYTE_PAIRS,
            model_type="roberta",
            config_task="model_blocklm_roberta_large.sh",
            checkpoint_folder="blocklm-roberta-large-blank",
        ),
        _released(
            "GLM-2B",
            (36, 2048, 32),
            **_BYTE_PAIRS,
            positions=1024,
            task_mask=True,
            config_task="model_blocklm_2B.sh",
            checkpoint_folder="blocklm-2b-512",
        ),
        _released(
            "GLM-10B",
            (48, 4096, 64),
            **_BYTE_PAIRS,
            positions=1024,
            task_mask=True,
            config_task="model_blocklm_10B.sh",
            checkpoint_folder="glm-10b-1024",
        ),
        _released(
            "GLM-10B-Chinese",
            (48, 4096, 64),
            **_CHINESE,
            config_task="model_blocklm_10B_chinese.sh",
            checkpoint_folder="glm-10b-chinese",
        ),
    )
}


def released_models_table() -> str:
    """Return the table of released models, one line each, with parameter counts."""
    numeric = ("layers", "hidden", "heads", "positions", "vocabulary", "parameters")
    header = ("model", *numeric, "tokenizer", "configuration")
    rows = [header]
    for released in RELEASED_MODELS.values():
        config = released.config
        numbers = (config.num_layers, config.hidden_size, config.num_attention_heads, config.max_position_embeddings)
        tokenizer = released.tokenizer_type.removesuffix("Tokenizer")
        if released.tokenizer_model_type is not None:
            tokenizer += f" {released.tokenizer_model_type}"
        counts = (f"{config.vocab_size:,}", f"{config.num_parameters():,}")
        rows.append((released.name, *map(str, numbers), *counts, tokenizer, released.config_task))
    widths = [max(map(len, column)) for column in zip(*rows)]
    is_number = [name in numeric for name in header]
    lines = []
    for row in rows:
        cells = (cell.rjust(w) if number else cell.ljust(w) for cell, w, number in zip(row, widths, is_number))
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


if __name__ == "__main__":
    print(released_models_table())
