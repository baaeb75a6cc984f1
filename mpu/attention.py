"""Self-attention: how its result is computed, and the layer around it.

b batch, s new positions (queries), m cached positions, k = m + s keys, h hidden, n heads of this rank, d head dim,
r query positions, t tensor-parallel size, T length of a prefix prompt
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpu.cache import KeyValueCache
from mpu.config import TransformerConfig
from mpu.kernels.flash import attend_in_two_calls
from mpu.kernels.flex import attend_blocks
from mpu.kernels.static_attention import attend_in_parts
from mpu.layers import ColumnParallelLinear, LayerContext, RowParallelLinear
from mpu.masks import VisibleKeys, rows_at
from mpu.random import Dropout, dropout

# From this key length on the fused kernel wins on the CPU in bf16 too, and saves the memory of the scores.
FUSED_FROM_KEY_LENGTH = 1024


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: VisibleKeys,
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
    if mask.calls is not None:
        return attend_in_two_calls(query, key, value, mask.calls, dropout_probability=dropout_probability)
    if mask.parts > 1 and mask.additive is not None:
        return attend_in_parts(query, key, value, mask.additive, parts=mask.parts)
    query = mask.silence_fully_masked_rows(query)
    if _fused_is_better(query, key, dropout_probability):
        attn_mask = None if mask.causal else mask.visible if mask.additive is None else mask.additive
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=attn_mask, dropout_p=dropout_probability, is_causal=mask.causal
        )
    batch_size, num_heads, query_length, head_dim = query.shape
    factor = 1.0 / (math.sqrt(head_dim) * attention_scale)
    flat_query = query.reshape(-1, query_length, head_dim)  # [b*n,s,d]
    flat_key = key.reshape(-1, key.size(2), head_dim).transpose(1, 2)  # [b*n,d,k]
    bias = mask.bias(batch_size=batch_size, num_heads=num_heads, dtype=query.dtype)
    if bias is None:
        scores = torch.bmm(flat_query * factor, flat_key)  # [b*n,s,k]
    else:
        scores = torch.baddbmm(bias, flat_query, flat_key, alpha=factor)
    probabilities = attention_probabilities(scores, attention_scale)
    probabilities = dropout(probabilities, dropout_probability, training=True, fast=fast_dropout)
    return torch.bmm(probabilities, value.reshape(-1, value.size(2), head_dim)).view(query.shape)


def _fused_is_better(query: Tensor, key: Tensor, dropout_probability: float) -> bool:
    if query.device.type != "cpu" or torch.compiler.is_compiling():
        return True
    if dropout_probability > 0.0:
        return False
    return query.dtype in (torch.float32, torch.float64) or key.size(2) >= FUSED_FROM_KEY_LENGTH


def attention_probabilities(scores: Tensor, attention_scale: float) -> Tensor:
    """Return the softmax over keys of scores [...,s,k] that were divided by ``attention_scale``."""
    if attention_scale > 1.0:
        scores = (scores - scores.amax(dim=-1, keepdim=True)) * attention_scale
    return torch.softmax(scores, dim=-1).to(scores.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with fused query/key/value projection, heads cut over the model-parallel ranks."""

    def __init__(self, config: TransformerConfig, context: LayerContext) -> None:
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.num_heads = context.topology.share(config.num_attention_heads, what="the number of attention heads")
        self.head_dim = size // config.num_attention_heads
        self.random_state = context.random_state
        self.add_projections(config, context)
        self.dense = RowParallelLinear(size, size, context, initializer_std=config.output_initializer_std)
        self.output_dropout = Dropout(config.output_dropout, fast=config.fast_dropout)

    # ``mpu/relative.py`` extends the next method and replaces ``attend``.
    def add_projections(self, config: TransformerConfig, context: LayerContext) -> None:
        """Make what comes before attention: the fused projection [b,s,h] -> [b,s,3h/t]."""
        size, std = config.hidden_size, config.initializer_std
        self.query_key_value = ColumnParallelLinear(size, 3 * size, context, stride=3, initializer_std=std)

    def forward(
        self,
        hidden: Tensor,
        mask: VisibleKeys,
        *,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        query_positions: Tensor | None = None,
        prefix: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> Tensor:
        """Map the normalised hidden states [b,s,h] to the attention output [b,s,h], dropout included.

        With a ``cache`` the new keys and values are appended to those of ``layer``. With ``query_positions`` [b,r] only
        those positions are queries, the output is [b,r,h], and ``mask`` is made for them. ``prefix`` [T,h] are vectors
        that give keys and values alone, before all others; ``mask`` counts them, a cache does not hold them, and with
        them attention has no dropout, as in the multilingual release. With a ``seed`` for the output's dropout the
        caller has lent the ranks' random state for the whole layer (``Transformer.run_layers``).
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
        if prefix is not None:
            key, value = self._behind(prefix, key, value)
        probability = self.config.attention_dropout if self.training and prefix is None else 0.0
        with self.random_state.fork(query.device) if probability > 0.0 and seed is None else nullcontext():
            context = self.attend(query, key, value, mask, dropout_probability=probability)  # [b,n,s,d]
        context = context.transpose(1, 2).flatten(2).to(fused.dtype)  # [b,s,h/t]
        output = self.dense(context)
        return output if prefix is not None else self.output_dropout(output, seed)

    def _behind(self, prefix: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``key`` and ``value`` [b,n,k,d] with those of ``prefix`` [T,h] in front of them: [b,n,T+k,d]."""
        fused = self.query_key_value(prefix.unsqueeze(0)).view(1, prefix.size(0), 3, self.num_heads, self.head_dim)
        _, keys, values = (part.transpose(1, 2).to(key.dtype) for part in fused.unbind(dim=2))  # [1,n,T,d] each
        batch_size = key.size(0)
        return (
            torch.cat([keys.expand(batch_size, -1, -1, -1), key], dim=2),
            torch.cat([values.expand(batch_size, -1, -1, -1), value], dim=2),
        )

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: VisibleKeys, *, dropout_probability: float
    ) -> Tensor:
        """Return the attention of the heads, [b,n,s,d]; for the arguments see the function ``attend``."""
        return attend(
            query,
            key,
            value,
            mask,
            dropout_probability=dropout_probability,
            fast_dropout=self.config.fast_dropout,
            attention_scale=max(1.0, self.config.attention_scale),
        )
