"""The names of a GLM's parameters, and how each is cut over model-parallel ranks.

One table says it for loading, for resharding and for conversions (docs/formats.md#parameters). Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Files in a run's folder that hold the tag of its newest checkpoint.
TRACKERS = ("latest_checkpointed_iteration.txt", "latest")
# What wrappers and other programs put before a name.
WRAPPER_PREFIXES = ("module.", "model.", "glm.")
# Names of the SwissArmyTransformer layout, in which the multilingual release and some GLM-10B-Chinese files are spread.
FOREIGN_NAMES = {
    "transformer.word_embeddings.weight": "word_embeddings.weight",
    "mixins.block_position_embedding.block_position_embeddings.weight": "transformer.block_position_embeddings.weight",
}
# That layout's rows of positions beyond those a model was pre-trained with, and the table they continue.
ADDITIONAL_ROWS = {
    "mixins.block_position_embedding.additional_position_embeddings.weight": "transformer.position_embeddings.weight",
    "mixins.block_position_embedding.additional_block_position_embeddings.weight": (
        "transformer.block_position_embeddings.weight"
    ),
}
# The classifier's head in files of the Hugging Face layout, and our names; of no use to a language
# model.
HUB_HEAD_NAMES = {
    "dense.weight": "pool_layer.weight",
    "dense.bias": "pool_layer.bias",
    "out_proj.weight": "multichoice_head.weight",
    "out_proj.bias": "multichoice_head.bias",
}
HUB_HEAD = frozenset(HUB_HEAD_NAMES)
HEAD_NAMES = tuple(HUB_HEAD_NAMES.values())
HUB_PREFIX = "glm."  # of the language model inside the classes of the Hugging Face layout
PROMPT_PREFIX = "prompt_spell."
PREFIX_PROMPT = "prefix_encoder."
WORD_TABLE = "word_embeddings.weight"
BLOCK_POSITION_TABLE = "transformer.block_position_embeddings.weight"
POSITION_TABLES = ("transformer.position_embeddings.weight", BLOCK_POSITION_TABLE)
# The two factors of a low-rank adapter stand beside the weight they belong to (model/lora.py).
ADAPTER_NAME = re.compile(r"(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True)
class ParameterRule:
    """How parameters are cut: ``dim`` None is a full copy on every rank, ``blocks`` parts are cut each for itself.

    A tensor of 3 blocks (query, key, value) gives rank r the r-th part of each block.
    """

    pattern: str
    dim: int | None
    blocks: int = 1


PARAMETER_RULES = (
    ParameterRule(r"word_embeddings\.weight", 0),
    ParameterRule(r"transformer\.(block_)?position_embeddings\.(weight|inv_freq)", None),
    ParameterRule(r"mixins\.block_position_embedding\.additional_(block_)?position_embeddings\.weight", None),
    ParameterRule(r"transformer\.r_[wr]_bias", 0),
    ParameterRule(r"transformer\.layers\.\d+\.(input|post_attention)_layernorm\.(weight|bias)", None),
    ParameterRule(r"transformer\.layers\.\d+\.attention\.query_key_value\.(weight|bias)", 0, blocks=3),
    ParameterRule(r"transformer\.layers\.\d+\.attention\.relative\.(weight|bias)", 0),
    ParameterRule(r"transformer\.layers\.\d+\.mlp\.dense_h_to_4h\.(weight|bias)", 0),
    ParameterRule(r"transformer\.layers\.\d+\.(attention\.dense|mlp\.dense_4h_to_h)\.weight", 1),
    ParameterRule(r"transformer\.layers\.\d+\.(attention\.dense|mlp\.dense_4h_to_h)\.bias", None),
    ParameterRule(r"transformer\.final_layernorm\.(weight|bias)", None),
    ParameterRule(r"(prompt_spell|prefix_encoder)\..+", None),
    ParameterRule(r"(pool_layer|multichoice_head)\.(weight|bias)", None),
)


def canonical_name(name: str) -> str:
    """Return the name of the table for ``name``, which may carry wrappers' prefixes or be of a foreign layout."""
    while name.startswith(WRAPPER_PREFIXES):
        name = name.split(".", 1)[1]
    return FOREIGN_NAMES.get(name, name)


def foreign_name(name: str) -> str:
    """Return the name of a parameter in the layout of the multilingual release."""
    names = {ours: theirs for theirs, ours in FOREIGN_NAMES.items()}
    return names.get(name, name)


def hub_name(name: str) -> str:
    """Return the name of a parameter in the classes of the Hugging Face layout."""
    heads = {ours: theirs for theirs, ours in HUB_HEAD_NAMES.items()}
    return heads.get(name) or f"{HUB_PREFIX}{name}"


def rule_for(name: str) -> ParameterRule:
    """Return the rule of a parameter; raise ValueError for a name that is not in the table.

    The product B A of an adapter is cut as its weight: B [out,r] where rows are cut, A [r,in] where columns are; the
    other factor is a full copy.
    """
    canonical = canonical_name(name)
    if match := ADAPTER_NAME.fullmatch(canonical):
        rule = rule_for(f"{match[1]}.weight")
        dim = 0 if match[2] == "B" else 1  # the one that the factor shares with the weight
        return ParameterRule(re.escape(canonical), dim if rule.dim == dim else None, rule.blocks)
    for rule in PARAMETER_RULES:
        if re.fullmatch(rule.pattern, canonical):
            return rule
    raise ValueError(
        f"parameter {name!r} is not one of a GLM, so it is not known how it is cut over model-parallel ranks; "
        "use the file with the model-parallel size it was written for"
    )


def reshard_tensor(name: str, shards: Sequence[Tensor], *, size: int, rank: int) -> Tensor:
    """Return part ``rank`` of ``size`` of the parameter whose present parts are ``shards``, in rank order.

    Only what is needed of the shards is read. The result has memory of its own, except that an unchanged tensor is
    returned as it is. Raises ValueError when the parameter cannot be cut evenly.
    """
    rule = rule_for(name)
    first = shards[0]
    if rule.dim is None or len(shards) == size == 1:
        return first
    if len(shards) == size:
        return shards[rank]
    if any(shard.shape != first.shape for shard in shards):
        raise ValueError(f"the shards of parameter {name!r} differ in shape; they are not shards of one model")
    if not rule.dim < first.dim() <= 2:
        raise ValueError(f"parameter {name!r} has {first.dim()} dimensions; one or two are expected")
    part_length, remainder = divmod(first.size(rule.dim) * len(shards), size * rule.blocks)
    if remainder or first.size(rule.dim) % rule.blocks:
        raise ValueError(
            f"parameter {name!r} of {first.size(rule.dim) * len(shards)} rows or columns cannot be cut into "
            f"{size * rule.blocks} equal parts; choose a model-parallel size that divides it"
        )
    shard_length = first.size(rule.dim) // rule.blocks  # of one block in one present shard
    pieces = []
    for block in range(rule.blocks):
        start, end = rank * part_length, (rank + 1) * part_length  # inside the whole block
        for index, shard in enumerate(shards):
            left, right = max(start, index * shard_length), min(end, (index + 1) * shard_length)
            if left < right:
                offset = block * shard_length + left - index * shard_length
                pieces.append(shard.narrow(rule.dim, offset, right - left))
    import torch

    return torch.cat(pieces, dim=rule.dim)


def split_tensor(name: str, tensor: Tensor, size: int) -> list[Tensor]:
    """Cut a whole parameter into the parts of ``size`` ranks."""
    return [reshard_tensor(name, [tensor], size=size, rank=rank) for rank in range(size)]


def merge_tensors(name: str, shards: Sequence[Tensor]) -> Tensor:
    """Put the parts of all ranks, in rank order, together to the whole parameter."""
    return reshard_tensor(name, shards, size=1, rank=0)
