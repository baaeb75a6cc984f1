"""Prefix-LM attention: which keys a query sees, and how the result is computed.

b batch, s new positions (queries), m cached positions, k = m + s keys, h hidden, n heads of this rank, d head dim,
r query positions, t tensor-parallel size
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpu.cache import KeyValueCache
from mpu.config import TransformerConfig
from mpu.kernels.flex import attend_blocks
from mpu.layers import ColumnParallelLinear, LayerContext, RowParallelLinear
from mpu.random import Dropout, dropout

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# From this key length on the fused kernel wins on the CPU in bf16 too, and saves the memory of the scores.
FUSED_FROM_KEY_LENGTH = 1024


def rows_at(states: Tensor, positions: Tensor) -> Tensor:
    """Return the rows [b,r,...] of ``states`` [b,s,...] at ``positions`` [b,r]."""
    firsts = torch.arange(states.size(0), device=positions.device).unsqueeze(1) * states.size(1)
    chosen = states.flatten(0, 1).index_select(0, (positions + firsts).flatten())
    return chosen.view(*positions.shape, *states.shape[2:])


@dataclass
class PrefixMask:
    """Say which keys every query sees.

    ``visible`` is bool [b or 1, 1, s or 1, k] (None: everything is visible). Rows listed in ``fully_masked`` (bool
    [b or 1, 1, s or 1, 1]) see nothing in the given mask; they attend uniformly to all keys, which attention gets by
    zeroing their query, and their row of ``visible`` is all true. The additive form is made once per step, unless it
    is given in place of ``visible`` as ``additive`` (of the dtype of queries), as decoding steps of fixed shapes do.
    ``blocks`` is the form for FlexAttention, made where a step uses it.
    """

    visible: Tensor | None
    fully_masked: Tensor | None = None
    additive: Tensor | None = None
    blocks: BlockMask | None = None
    _biases: dict[tuple[torch.dtype, int], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def from_attention_mask(
        cls, attention_mask: Tensor, *, query_length: int, key_length: int, device: torch.device | str
    ) -> PrefixMask:
        """Build the mask from either form of ``attention_mask``, told apart by rank.

        Rank 0, [1], [b] or [b,1]: prefix lengths; columns of the prefix are visible to all, the rest causally, and
        cached columns always. Rank 3, [b or 1,2,s]: several samples in a row; the first line numbers the sample of each
        position, the second is 1 where its whole sample sees it, the rest is seen causally by its own sample; without a
        cache. Rank 4 [b or 1, 1, s or 1, >= k]: nonzero means visible; the last k columns count. Raises ValueError for
        any other shape.
        """
        if attention_mask.dim() == 4:
            return cls._from_matrix(attention_mask, query_length=query_length, key_length=key_length, device=device)
        if attention_mask.dim() == 3 and attention_mask.shape[1:] == (2, query_length) and key_length == query_length:
            return cls._from_segments(*attention_mask.to(device, non_blocking=True).unbind(1))
        if attention_mask.dim() > 2 or (attention_mask.dim() == 2 and attention_mask.size(1) != 1):
            raise ValueError(
                f"attention_mask has shape {list(attention_mask.shape)}; give prefix lengths of shape [], [b], [b,1], "
                "samples that share rows as [b,2,s] (without a cache), or a mask of shape [b,1,s,k]"
            )
        if query_length == 1:
            return cls(visible=None)  # the one new position sees the cache and itself
        prefix_lengths = attention_mask.to(device, non_blocking=True).reshape(-1, 1, 1, 1)  # [b or 1,1,1,1]
        num_cached = key_length - query_length
        columns = torch.arange(-num_cached, query_length, device=device)  # [k], cached ones are negative
        rows = torch.arange(query_length, device=device).unsqueeze(1)  # [s,1]
        return cls(visible=(columns <= rows) | (columns < prefix_lengths))

    @classmethod
    def _from_segments(cls, segment_ids: Tensor, prefixes: Tensor) -> PrefixMask:
        """Build the block-diagonal mask of samples that share rows; ``segment_ids`` and ``prefixes`` are [b or 1,s]."""
        columns = torch.arange(segment_ids.size(1), device=segment_ids.device)
        causal = columns <= columns.unsqueeze(1)  # [s,s]
        own = segment_ids.unsqueeze(1) == segment_ids.unsqueeze(2)  # [b or 1,s,s]
        return cls(visible=(own & (causal | (prefixes != 0).unsqueeze(1))).unsqueeze(1))

    @classmethod
    def _from_matrix(
        cls, attention_mask: Tensor, *, query_length: int, key_length: int, device: torch.device | str
    ) -> PrefixMask:
        _, heads, rows, columns = attention_mask.shape
        if heads != 1 or rows not in (1, query_length) or columns < key_length:
            raise ValueError(
                f"attention_mask has shape {list(attention_mask.shape)}; for {query_length} new positions and "
                f"{key_length} keys it has to be [b or 1, 1, {query_length} or 1, at least {key_length}]"
            )
        visible = attention_mask[..., columns - key_length :].to(device, non_blocking=True) != 0
        fully_masked = ~visible.any(dim=-1, keepdim=True)  # [b or 1,1,s or 1,1]
        if visible.device.type == "cpu" and not fully_masked.any():
            return cls(visible=visible)  # looking costs nothing here; on a GPU it would wait for the device
        return cls(visible=visible | fully_masked, fully_masked=fully_masked)

    def at(self, positions: Tensor) -> PrefixMask:
        """Return the mask of the queries at ``positions`` [b,r] alone."""

        def choose(rows: Tensor | None) -> Tensor | None:  # [b or 1,1,s or 1,...]
            if rows is None or rows.size(2) == 1:
                return rows
            return rows_at(rows[:, 0].expand(len(positions), -1, -1), positions).unsqueeze(1)  # [b,1,r,...]

        return PrefixMask(choose(self.visible), choose(self.fully_masked), choose(self.additive))

    @property
    def num_rows(self) -> int:
        """Return the batch size the mask was made for, or 1 when it fits any."""
        return 1 if self.visible is None else self.visible.size(0)

    def silence_fully_masked_rows(self, query: Tensor) -> Tensor:
        """Zero the queries [b,n,s,d] of rows that see nothing: their scores are all 0, their attention uniform."""
        return query if self.fully_masked is None else query.masked_fill(self.fully_masked, 0.0)

    def bias(self, *, batch_size: int, num_heads: int, dtype: torch.dtype) -> Tensor | None:
        """Return the additive form [b * num_heads, s or 1, k]: 0 where visible, minus infinity elsewhere."""
        if self.visible is None and self.additive is None:
            return None
        if (dtype, num_heads) not in self._biases:
            bias = self.additive  # [b or 1,1,s or 1,k]
            if bias is None:
                bias = torch.zeros_like(self.visible, dtype=dtype).masked_fill_(~self.visible, -math.inf)
            shape = (batch_size, num_heads, *bias.shape[2:])
            self._biases[dtype, num_heads] = bias.expand(shape).flatten(0, 1)
        return self._biases[dtype, num_heads]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: PrefixMask,
    *,
    dropout_probability: float = 0.0,
    fast_dropout: bool = True,
    attention_scale: float = 1.0,
) -> Tensor:
    """Return softmax(query key^T / sqrt(d)) value, [b,n,s,d].

    ``query`` [b,n,s,d]; ``key`` and ``value`` [b,n,k,d]. ``dropout_probability`` is 0 outside training. On a GPU, and
    on the CPU in fp32 without dropout, the fused kernel does it without keeping scores. There ``attention_scale`` has
    nothing to do: it guards half-precision scores against overflow and cancels in the softmax. The other CPU cases are
    faster with explicit scores.
    """
    if mask.blocks is not None:
        assert dropout_probability == 0.0, "attention by blocks has no dropout"
        return attend_blocks(query, key, value, mask.blocks)
    query = mask.silence_fully_masked_rows(query)
    if _fused_is_better(query, key, dropout_probability):
        given = mask.visible if mask.additive is None else mask.additive
        return F.scaled_dot_product_attention(query, key, value, attn_mask=given, dropout_p=dropout_probability)
    batch_size, num_heads, query_length, head_dim = query.shape
    factor = 1.0 / (math.sqrt(head_dim) * attention_scale)
    flat_query = query.reshape(-1, query_length, head_dim)  # [b*n,s,d]
    flat_key = key.reshape(-1, key.size(2), head_dim).transpose(1, 2)  # [b*n,d,k]
    bias = mask.bias(batch_size=batch_size, num_heads=num_heads, dtype=query.dtype)
    if bias is None:
        scores = torch.bmm(flat_query * factor, flat_key)  # [b*n,s,k]
    else:
        scores = torch.baddbmm(bias, flat_query, flat_key, alpha=factor)
    probabilities = _probabilities(scores, attention_scale)
    probabilities = dropout(probabilities, dropout_probability, training=True, fast=fast_dropout)
    return torch.bmm(probabilities, value.reshape(-1, value.size(2), head_dim)).view(query.shape)


def _fused_is_better(query: Tensor, key: Tensor, dropout_probability: float) -> bool:
    if query.device.type != "cpu" or torch.compiler.is_compiling():
        return True
    if dropout_probability > 0.0:
        return False
    return query.dtype in (torch.float32, torch.float64) or key.size(2) >= FUSED_FROM_KEY_LENGTH


def _probabilities(scores: Tensor, attention_scale: float) -> Tensor:
    """Return the softmax over keys of scores [...,s,k] that were divided by ``attention_scale``."""
    if attention_scale > 1.0:
        scores = (scores - scores.amax(dim=-1, keepdim=True)) * attention_scale
    return torch.softmax(scores, dim=-1).to(scores.dtype)


@dataclass
class RelativePositions:
    """What relative attention adds to a step: encodings of distances and the two shared biases."""

    encodings: Tensor  # [k,h], row t encodes the distance k-1-t
    content_bias: Tensor  # [n,d], u
    position_bias: Tensor  # [n,d], v


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
    mask: PrefixMask,
    *,
    encodings: Tensor,
    positions: RelativePositions,
    dropout_probability: float = 0.0,
    fast_dropout: bool = True,
    attention_scale: float = 1.0,
) -> Tensor:
    """Return Transformer-XL attention [b,n,s,d]: scores ((q+u) k^T + shift((q+v) r^T)) / sqrt(d).

    ``encodings`` [k,n,d] is r, the projected distances. A row that sees nothing attends uniformly.
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
    probabilities = _probabilities(scores, attention_scale)
    probabilities = dropout(probabilities, dropout_probability, training=True, fast=fast_dropout)
    return torch.matmul(probabilities, value)


class SelfAttention(nn.Module):
    """Multi-head self-attention with fused query/key/value projection, heads cut over the model-parallel ranks."""

    def __init__(self, config: TransformerConfig, context: LayerContext) -> None:
        super().__init__()
        size, std = config.hidden_size, config.initializer_std
        self.config = config
        self.num_heads = context.topology.share(config.num_attention_heads, what="the number of attention heads")
        self.head_dim = size // config.num_attention_heads
        self.random_state = context.random_state
        self.query_key_value = ColumnParallelLinear(size, 3 * size, stride=3, initializer_std=std, **context.parallel())
        self.relative: ColumnParallelLinear | None = None
        if config.relative_encoding:
            self.relative = ColumnParallelLinear(size, size, initializer_std=std, **context.parallel())
        self.dense = RowParallelLinear(size, size, initializer_std=config.output_initializer_std, **context.parallel())
        self.output_dropout = Dropout(config.output_dropout, fast=config.fast_dropout)

    def forward(
        self,
        hidden: Tensor,
        mask: PrefixMask,
        *,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        positions: RelativePositions | None = None,
        query_positions: Tensor | None = None,
    ) -> Tensor:
        """Map the normalised hidden states [b,s,h] to the attention output [b,s,h], dropout included.

        With a ``cache`` the keys and values are appended as those of ``layer``. Relative mode needs ``positions``. With
        ``query_positions`` [b,r] only those positions are queries, the output is [b,r,h], and ``mask`` is made for
        them.
        """
        batch_size, length, _ = hidden.shape
        fused = self.query_key_value(hidden).view(batch_size, length, 3, self.num_heads, self.head_dim)
        query, key, value = fused.unbind(dim=2)  # [b,s,n,d] each
        if query_positions is not None:
            query = rows_at(query, query_positions)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))  # [b,n,s,d]
        if cache is not None:
            key, value = cache.append(layer, key, value)
            if query.device.type == "cpu" and not torch.is_grad_enabled():
                query = query.to(key.dtype)  # fp32 for 16 bits, see ``KeyValueCache.allocate``
            else:
                key, value = key.to(query.dtype), value.to(query.dtype)
        probability = self.config.attention_dropout if self.training else 0.0
        options = {
            "dropout_probability": probability,
            "fast_dropout": self.config.fast_dropout,
            "attention_scale": max(1.0, self.config.attention_scale),
        }
        with self.random_state.fork(query.device) if probability > 0.0 else nullcontext():
            if self.relative is None:
                context = attend(query, key, value, mask, **options)
            else:
                assert positions is not None, "relative attention needs the encodings of distances"
                encodings = self.relative(positions.encodings).view(-1, self.num_heads, self.head_dim)  # [k,n,d]
                encodings = encodings.to(query.dtype)
                context = attend_relative(query, key, value, mask, encodings=encodings, positions=positions, **options)
        context = context.transpose(1, 2).flatten(2).to(fused.dtype)  # [b,s,h/t]
        return self.output_dropout(self.dense(context))
