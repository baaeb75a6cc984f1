"""Compare the logits of a checkpoint and of the same model in the Hugging Face layout, both in fp32.

b batch, s sequence, v vocabulary
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoints.reading import CheckpointShards, WholeWeights, load_model_weights, load_weights
from model.config import GLMConfig
from model.heads import SequenceClassification
from model.hub.describe import is_classifier, read_fields
from model.modeling_glm import GLMModel

TOLERANCE = 1e-5  # of logits up to 1, and relative to larger ones


def verify(
    checkpoint: Path,
    folder: Path,
    *,
    config: GLMConfig,
    base: Path | None = None,
    shared_row: tuple[int, int] | None = None,
    fp32: WholeWeights | None = None,
) -> str:
    """Return a line on how much the logits of both sides differ, relative to the largest one where that is above 1.

    ``base`` is the model that a partial checkpoint belongs to; ``shared_row`` as in ``ExportOptions``; ``fp32`` are the
    weights of a run under ZeRO, which take the place of the rounded ones. Both models are in memory. Raises ValueError
    when they differ too much, or transformers is missing.
    """
    inputs = _inputs(config)
    fields = read_fields(folder) or {}
    labels = len(fields.get("id2label", {0: "", 1: ""})) if is_classifier(fields) else None
    options: Any = {"base": base, "shared_row": shared_row, "fp32": fp32}
    native = _native_logits(checkpoint, inputs, config=config, labels=labels, **options)
    exported = _exported_logits(folder, inputs, classifier=labels is not None)
    assert native.shape == exported.shape, (native.shape, exported.shape)
    difference = ((native - exported).abs().max() / native.abs().max().clamp(min=1.0)).item()
    line = f"logits of {checkpoint} and {folder} differ by {difference:.1e} (fp32)"
    if not difference <= TOLERANCE:
        raise ValueError(f"{line}, more than {TOLERANCE:.0e}: the files do not hold the same model")
    return line


def _inputs(config: GLMConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return random ids [2,s], positions [2,2,s] (or [2,s]) and prefix_lengths [2]: a context and an answer each."""
    generator = torch.Generator().manual_seed(1)
    length = min(24, config.max_position_embeddings)
    ids = torch.randint(config.vocab_size, (2, length), generator=generator)
    prefix_lengths = torch.tensor([length // 2, length // 3])
    columns = torch.arange(length).expand(2, -1)
    if not config.block_position_encoding:
        return ids, columns, prefix_lengths
    blocks = (columns - prefix_lengths[:, None] + 1).clamp(min=0)
    return ids, torch.stack([columns, blocks], dim=1), prefix_lengths


@torch.no_grad()
def _native_logits(
    checkpoint: Path,
    inputs: tuple[Tensor, Tensor, Tensor],
    *,
    config: GLMConfig,
    base: Path | None,
    shared_row: tuple[int, int] | None,
    fp32: WholeWeights | None,
    labels: int | None,
) -> Tensor:
    """Return the logits [b,s,v], or those of the classes, of this program's model."""
    language_model = GLMModel(config)
    model: nn.Module = language_model if labels is None else SequenceClassification(language_model, labels)
    for path in (base, checkpoint):
        if path is not None:
            load_model_weights(model, path)
    if fp32 is not None:
        content = {"module": {name: fp32.read(name) for name in fp32.pieces}}
        load_weights(
            model, CheckpointShards(fp32.location, [content], same_size=True), topology=language_model.topology
        )
    if shared_row is not None:
        target, source = shared_row
        language_model.word_embeddings.weight[target] = language_model.word_embeddings.weight[source]
    return model.eval()(*inputs)


@torch.no_grad()
def _exported_logits(folder: Path, inputs: tuple[Tensor, Tensor, Tensor], *, classifier: bool) -> Tensor:
    """Return the same of the classes of the layout: our own, whatever code the folder has."""
    try:
        from model.hf.modeling_glm import GLMForConditionalGeneration, GLMForSequenceClassification
    except ImportError as error:
        raise ValueError("--verify needs the package transformers: pip install 'transformers>=4.40'") from error
    kind = GLMForSequenceClassification if classifier else GLMForConditionalGeneration
    model = kind.from_pretrained(folder).float().eval()
    ids, positions, prefix_lengths = inputs
    return model(input_ids=ids, position_ids=positions, attention_mask=prefix_lengths).logits
