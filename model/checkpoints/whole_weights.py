"""The parameters of a checkpoint of any layout and model-parallel size, put together one at a time.

Files stay memory-mapped; what is read of them is let go of at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.format import (
    ADAPTER_NAME,
    HUB_HEAD,
    PROMPT_PREFIX,
    WORD_TABLE,
    canonical_name,
    merge_tensors,
    rule_for,
)
from model.checkpoints.mapped_memory import release_pages
from model.checkpoints.reading import CheckpointLocation, read_weight_file, resolve_checkpoint, weights_in


@dataclass(frozen=True)
class WholeWeights:
    """Parameters under the names of the table.

    Attributes:
        location: where the files are.
        pieces: of each parameter the tensors of all ranks, in rank order.
        left_out: parameters of the file that are no part of a language model or classifier.
    """

    location: CheckpointLocation
    pieces: Mapping[str, Sequence[Tensor]]
    left_out: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        """Return what messages call the checkpoint."""
        return self.location.folder

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a whole parameter, without reading it."""
        first, rule = self.pieces[name][0], rule_for(name)
        shape = list(first.shape)
        if rule.dim is not None and rule.dim < len(shape):
            shape[rule.dim] *= len(self.pieces[name])
        return tuple(shape)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all whole parameters."""
        return {name: self.shape(name) for name in self.pieces}

    def num_bytes(self, name: str) -> int:
        """Return the size of a whole parameter in bytes."""
        count = 1
        for length in self.shape(name):
            count *= length
        return count * self.pieces[name][0].element_size()

    @property
    def dtype(self) -> torch.dtype:
        """Return the number type of the word embeddings."""
        return self.pieces[WORD_TABLE][0].dtype

    def read(self, name: str) -> Tensor:
        """Return a whole parameter in memory of its own; nothing else of the files stays in memory."""
        pieces = self.pieces[name]
        whole = merge_tensors(name, pieces)
        if whole is pieces[0]:
            whole = whole.clone(memory_format=torch.contiguous_format)
        release_pages(pieces)
        return whole

    def over(self, base: WholeWeights) -> WholeWeights:
        """Return the parameters of ``base``, with those that this partial checkpoint has in their place."""
        return replace(self, pieces={**base.pieces, **self.pieces})


def read_whole_weights(path: str | Path) -> WholeWeights:
    """Open the checkpoint that ``path`` names.

    Continuous prompts are left out when there is a model besides; the head of a classifier is kept. Raises ValueError
    with one line when there is no checkpoint, one of its files is damaged, or it is not one of a GLM.
    """
    location = resolve_checkpoint(path)
    parts = [
        {canonical_name(name): tensor for name, tensor in weights_in(read_weight_file(file), file=file).items()}
        for file in location.shard_files()
    ]
    if any(list(part) != list(parts[0]) for part in parts):
        raise ValueError(f"the files in {location.folder} hold different parameters; they are not shards of one model")
    names = [name for name in parts[0] if name not in HUB_HEAD]
    if any(ADAPTER_NAME.fullmatch(name) for name in names):
        raise ValueError(
            f"{location.folder} holds adapters (LoRA) beside or without the weights they change; put them together "
            "with scripts/merge_lora.py and give the result"
        )
    strange = [name for name in names if not _is_known(name)]
    if strange:
        raise ValueError(
            f"{location.folder} holds another kind of model: a GLM has no parameter {strange[0]!r}; "
            "give a GLM checkpoint"
        )
    if any(not name.startswith(PROMPT_PREFIX) for name in names):
        names = [name for name in names if not name.startswith(PROMPT_PREFIX)]
    left_out = tuple(name for name in parts[0] if name not in names)
    return WholeWeights(location, {name: [part[name] for part in parts] for name in names}, left_out)


def _is_known(name: str) -> bool:
    try:
        rule_for(name)
    except ValueError:
        return False
    return True
