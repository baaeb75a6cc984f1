"""Transformer-XL: distances in place of positions, for causal models with a memory of earlier segments.

The variant of attention and of the stack that ``TransformerConfig.relative_encoding`` asks for (Dai et al. 2019,
section 3.3); its memory is the window of a ``KeyValueCache``. Nothing else in this room knows of it.

b batch, s new positions (queries), m cached positions, k = m + s keys, h hidden, n heads of this rank, d head dim,
r query positions
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpu.attention import SelfAttention, attention_probabilities
from mpu.cache import KeyValueCache
from mpu.config import TransformerConfig
from mpu.layers import ColumnParallelLinear, LayerContext, mark_model_parallel
from mpu.masks import PrefixMask, VisibleKeys, keys_of_call, rows_at
from mpu.random import dropout
from mpu.transformer import Transformer


@dataclass(frozen=True)
class RelativePositions:
    """What a call adds to the attention of every layer: encodings of distances and the two shared biases."""

    encodings: Tensor  # [k,h], row t encodes the distance k-1-t
    content_bias: Tensor  # [n,d], u
    position_bias: Tensor  # [n,d], v


@dataclass
class RelativeKeys(VisibleKeys):
    """The mask of one call, with its ``positions``."""

    positions: RelativePositions | None = None


def relative_shift(scores: Tensor) -> Tensor:
    """Move row i of [...,s,k] so that column j holds the score of the distance between query i and key j.

    One zero column is put in front, the [s,k+1] block is read as [k+1,s] and its first row dropped. Columns beyond the
    diagonal hold wrapped values, as in the original.
    """
    *outer, num_queries, num_keys = scores.shape
    padded = F.pad(scores, (1, 0))  # [...,s,k+1]
    return padded.reshape(*outer, num_keys + 1, num_queries)[..., 1:, :].reshape(scores.shape)


def attend_relative(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: VisibleKeys,
    *,
    encodings: Tensor,
    positions: RelativePositions,
    dropout_probability: float = 0.0,
    fast_dropout: bool = True,
    attention_scale: float = 1.0,
) -> Tensor:
    """Return Transformer-XL attention [b,n,s,d]: scores ((q+u) k^T + shift((q+v) r^T)) / sqrt(d).

    ``query`` [b,n,s,d]; ``key`` and ``value`` [b,n,k,d]; ``encodings`` [k,n,d] is r, the projected distances. A row
    that sees nothing attends uniformly.
    """
    batch_size, num_heads, _, head_dim = query.shape
    factor = 1.0 / (math.sqrt(head_dim) * attention_scale)
    content_bias = positions.content_bias.to(query.dtype).unsqueeze(1)  # [n,1,d]
    position_bias = positions.position_bias.to(query.dtype).unsqueeze(1)
    scores = torch.matmul((query + content_bias) * factor, key.transpose(-1, -2))  # [b,n,s,k]
    scores = scores + relative_shift(torch.matmul((query + position_bias) * factor, encodings.permute(1, 2, 0)))
    bias = mask.bias(batch_size=batch_size, num_heads=num_heads, dtype=scores.dtype)
    if bias is not None:
        scores = scores + bias.view(batch_size, num_heads, -1, scores.size(-1))
    if mask.fully_masked is not None:
        # Not by zeroed queries: the shift hands values of a row on to the row before it.
        scores = scores.masked_fill(mask.fully_masked, 0.0)
    probabilities = attention_probabilities(scores, attention_scale)
    probabilities = dropout(probabilities, dropout_probability, training=True, fast=fast_dropout)
    return torch.matmul(probabilities, value)


class RelativeSelfAttention(SelfAttention):
    """Self-attention with a projection of the distances."""

    def add_projections(self, config: TransformerConfig, context: LayerContext) -> None:
        """Make the fused projection, and that of the distances [k,h] -> [k,h/t]."""
        super().add_projections(config, context)
        size, std = config.hidden_size, config.initializer_std
        self.relative = ColumnParallelLinear(size, size, context, initializer_std=std)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: VisibleKeys, *, dropout_probability: float
    ) -> Tensor:
        """Return the attention of the heads, [b,n,s,d]."""
        assert isinstance(mask, RelativeKeys) and mask.positions is not None, "the encodings of distances are missing"
        encodings = self.relative(mask.positions.encodings).view(-1, self.num_heads, self.head_dim)  # [k,n,d]
        return attend_relative(
            query,
            key,
            value,
            mask,
            encodings=encodings.to(query.dtype),
            positions=mask.positions,
            dropout_probability=dropout_probability,
            fast_dropout=self.config.fast_dropout,
            attention_scale=max(1.0, self.config.attention_scale),
        )


class SinusoidalEncoding(nn.Module):
    """Encode distances by sines and cosines of falling frequencies."""

    inv_freq: Tensor

    def __init__(self, hidden_size: int, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        exponents = torch.arange(0, hidden_size, 2, device=device, dtype=torch.float32) / hidden_size
        self.register_buffer("inv_freq", 10000.0**-exponents)  # [h/2]

    def forward(self, num_keys: int, *, dtype: torch.dtype) -> Tensor:
        """Return [k,h]: row t encodes the distance k-1-t."""
        distances = torch.arange(num_keys - 1, -1, -1, device=self.inv_freq.device, dtype=torch.float32)
        angles = distances.unsqueeze(1) * self.inv_freq.float()
        return torch.cat([angles.sin(), angles.cos()], dim=1).to(dtype)


class RelativeTransformer(Transformer):
    """The stack without position tables: its layers are told how far apart queries and keys are."""

    attention_type = RelativeSelfAttention

    def add_positions(self, config: TransformerConfig, context: LayerContext) -> None:
        """Make the encoding of distances and the two biases that all layers share."""
        heads = context.topology.share(config.num_attention_heads, what="the number of attention heads")
        shape = (heads, config.hidden_size // config.num_attention_heads)  # [n,d]
        self.r_w_bias = mark_model_parallel(nn.Parameter(torch.zeros(shape, **context.factory())))
        self.r_r_bias = mark_model_parallel(nn.Parameter(torch.zeros(shape, **context.factory())))
        self.position_embeddings = SinusoidalEncoding(config.hidden_size, device=context.device)

    def forward(
        self,
        word_embeddings: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor | PrefixMask | VisibleKeys,
        *,
        cache: KeyValueCache | None = None,
        query_positions: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states [b,s,h], or [b,r,h], as in ``Transformer.forward``; ``position_ids`` are ignored.

        The last layer has all queries: a row of scores is shifted by the number of rows.
        """
        assert prefix is None, "a prefix has no distance; the configuration refuses it"
        if isinstance(attention_mask, Tensor):
            attention_mask = PrefixMask.from_attention_mask(attention_mask)
        keys = keys_of_call(attention_mask, word_embeddings, cache=cache)
        length = word_embeddings.size(1)
        num_keys = length + (0 if cache is None else cache.length)
        hidden = self.embedding_dropout(word_embeddings)
        encodings = self.embedding_dropout(self.position_embeddings(num_keys, dtype=word_embeddings.dtype))  # [k,h]
        positions = RelativePositions(encodings, self.r_w_bias, self.r_r_bias)
        mask = RelativeKeys(keys.visible, keys.fully_masked, keys.additive, positions=positions)
        hidden = self.run_layers(hidden, mask, cache=cache)
        if cache is not None:
            cache.advance(length)
        return self.final_layernorm(hidden if query_positions is None else rows_at(hidden, query_positions))
