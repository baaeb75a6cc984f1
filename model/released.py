"""The table of the released models; ``python -m model.released`` prints it with parameter counts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from model.config import GLMConfig

# The small model that comes with the code, for a first try without any download; its README.md says what it can do.
DEMO_MODEL = Path(__file__).resolve().parent / "demo"


def demo_model() -> Path:
    """Return the folder of the demo model. Raises ValueError where it was left out."""
    if not (DEMO_MODEL / "config.json").is_file():
        raise ValueError(f"no checkpoint is named, and the demo model is not in {DEMO_MODEL}; name a checkpoint")
    return DEMO_MODEL


def demo_notice() -> str:
    """Return what to say where the demo model is taken because none is named."""
    shown = os.path.relpath(DEMO_MODEL) if Path.cwd() in DEMO_MODEL.parents else str(DEMO_MODEL)
    return f"no checkpoint is named: this is the demo model, {shown}, a small one"


@dataclass(frozen=True)
class ReleasedModel:
    """A published checkpoint: its sizes, its tokenizer, and the names of its files.

    ``config_task`` is the script in ``config_tasks/`` that describes it, ``checkpoint_folder`` the folder (or file)
    that script expects below ``CHECKPOINT_PATH``. ``fix_command_token`` gives [gMASK] an id of its own in the Chinese
    tokenizer.
    """

    name: str
    config: GLMConfig
    tokenizer_type: str
    tokenizer_model_type: str | None
    config_task: str
    checkpoint_folder: str
    task_mask: bool = False
    fix_command_token: bool = False


WORDPIECE, BYTE_PAIRS, CHINESE = "BertWordPieceTokenizer", "GPT2BPETokenizer", "ChineseSPTokenizer"
# The SentencePiece file of the multilingual model, and where it lies beside the checkpoint.
MULTILINGUAL_PIECES = "mglm250k/mglm250k-uni.model"
VOCABULARY_SIZES = {WORDPIECE: 30592, BYTE_PAIRS: 50304, CHINESE: 50048, MULTILINGUAL_PIECES: 250112}
# name, (layers, hidden size, heads), positions, tokenizer, vocabulary file, config_tasks/model_blocklm_<...>.sh, folder
_ROWS = (
    ("GLM-Base", (12, 768, 12), 512, WORDPIECE, "bert-base-uncased", "base", "blocklm-base-blank"),
    ("GLM-Large", (24, 1024, 16), 512, WORDPIECE, "bert-large-uncased", "large", "blocklm-large-blank"),
    ("GLM-Large-Chinese", (24, 1024, 16), 1024, CHINESE, None, "large_chinese", "blocklm-large-chinese"),
    ("GLM-Doc", (24, 1024, 16), 512, WORDPIECE, "bert-large-uncased", "large_generation", "blocklm-large-generation"),
    ("GLM-410M", (30, 1024, 16), 512, WORDPIECE, "bert-large-uncased", "1.25_generation", "blocklm-1.25-generation"),
    ("GLM-515M", (30, 1152, 18), 512, WORDPIECE, "bert-large-uncased", "1.5_generation", "blocklm-1.5-generation"),
    ("GLM-RoBERTa", (24, 1024, 16), 512, BYTE_PAIRS, "roberta", "roberta_large", "blocklm-roberta-large-blank"),
    ("GLM-2B", (36, 2048, 32), 1024, BYTE_PAIRS, None, "2B", "blocklm-2b-512"),
    ("GLM-10B", (48, 4096, 64), 1024, BYTE_PAIRS, None, "10B", "glm-10b-1024"),
    ("GLM-10B-Chinese", (48, 4096, 64), 1024, CHINESE, None, "10B_chinese", "glm-10b-chinese"),
    ("mGLM-1B", (24, 1536, 16), 1024, CHINESE, MULTILINGUAL_PIECES, "multilingual_large", "pretrained.pt"),
)  # fmt: skip

RELEASED_MODELS: dict[str, ReleasedModel] = {
    name: ReleasedModel(
        name=name,
        config=GLMConfig(
            *sizes,
            VOCABULARY_SIZES.get(model_type or "", VOCABULARY_SIZES[tokenizer]),
            max_position_embeddings=positions,
        ),
        tokenizer_type=tokenizer,
        tokenizer_model_type=model_type,
        config_task=f"model_blocklm_{script}.sh",
        checkpoint_folder=folder,
        task_mask=positions == 1024,  # these were trained with [gMASK] and [sMASK]
        fix_command_token=name == "GLM-Large-Chinese",
    )
    for name, sizes, positions, tokenizer, model_type, script, folder in _ROWS
}


def released_models_table() -> str:
    """Return the table of released models, one line each, with parameter counts."""
    from model.modeling_glm import count_parameters

    numeric = ("layers", "hidden", "heads", "positions", "vocabulary", "parameters")
    header = ("model", *numeric, "tokenizer", "configuration")
    rows: list[tuple[str, ...]] = [header]
    for released in RELEASED_MODELS.values():
        config = released.config
        numbers = (config.num_layers, config.hidden_size, config.num_attention_heads, config.max_position_embeddings)
        tokenizer = released.tokenizer_type.removesuffix("Tokenizer")
        if released.tokenizer_model_type is not None:
            tokenizer += f" {released.tokenizer_model_type}"
        counts = (f"{config.vocab_size:,}", f"{count_parameters(config):,}")
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
