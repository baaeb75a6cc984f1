"""The layers of a GLM for Hugging Face transformers: attention under a prefix mask, feed-forward, positions.

b batch, s new positions, m cached positions, k = m + s keys, h hidden, n heads, d head dim, v vocabulary
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .configuration_glm import GLMConfig
from .inputs_glm import can_look, visible_entries

try:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
except ImportError:  # before 4.48, where models called torch themselves
    ALL_ATTENTION_FUNCTIONS = None

LAYERNORM_EPSILON = 1e-5


@dataclass
class VisibleKeys:
    """Say which keys every position sees.

    ``visible`` is bool [b or 1,1,s or 1,k], None when everything is visible. A row of ``fully_masked`` [b or 1,1,s or
    1,1] sees nothing in the mask as it was given; such a row attends to all keys alike, as in training. ``num_keys`` is
    k.
    """

    num_keys: int
    visible: Tensor | None
    fully_masked: Tensor | None = None
    blocks: Any = None  # what ``block_mask`` has made, for all layers

    @classmethod
    def from_attention_mask(
        cls, attention_mask: Tensor, *, query_length: int, key_length: int, device: torch.device
    ) -> VisibleKeys:
        """Build it from a mask; the number of dimensions says of which kind that is.

        [], [b] or [b,1]: prefix lengths; columns of the prefix are visible to all positions, the others to those that
        come after. [b,k]: nonzero columns are visible to all. [b or 1,1,s or 1,>= k]: nonzero entries are visible, or
        zeros in a mask that is added to scores (``visible_entries``); the last k columns count. Raises ValueError for
        any other shape.
        """
        shape = list(attention_mask.shape)
        attention_mask = attention_mask.to(device)
        if attention_mask.dim() < 2 or shape[1:] == [1]:
            if query_length == 1:
                return cls(key_length, None)
            columns = torch.arange(query_length - key_length, query_length, device=device)  # [k], cached ones: < 0
            rows = torch.arange(query_length, device=device).unsqueeze(1)
            return cls(key_length, (columns <= rows) | (columns < attention_mask.reshape(-1, 1, 1, 1)))
        mask = attention_mask[:, None, None, :] if attention_mask.dim() == 2 else attention_mask
        if mask.dim() != 4 or mask.size(1) != 1 or mask.size(2) not in (1, query_length) or mask.size(3) < key_length:
            raise ValueError(
                f"attention_mask has shape {shape}; for {query_length} new positions and {key_length} keys give "
                f"prefix_lengths [b], columns [b,{key_length}] or a mask [b,1,{query_length},{key_length}]"
            )
        visible = visible_entries(mask)[..., mask.size(3) - key_length :]
        fully_masked = ~visible.any(dim=-1, keepdim=True)
        if can_look(fully_masked) and not fully_masked.any():
            return cls(key_length, visible)
        return cls(key_length, visible | fully_masked, fully_masked)

    def to(self, device: torch.device) -> VisibleKeys:
        """Return it on the device of a layer."""
        if self.visible is None or self.visible.device == device:
            return self
        return VisibleKeys(
            self.num_keys, self.visible.to(device), None if self.fully_masked is None else self.fully_masked.to(device)
        )

    def widened(self, num_keys: int, *, device: torch.device) -> Tensor | None:
        """Return the mask for a cache that holds ``num_keys`` places, of which those after k are still empty."""
        if num_keys == self.num_keys:
            return self.visible
        if self.visible is None:
            return (torch.arange(num_keys, device=device) < self.num_keys).view(1, 1, 1, -1)
        return F.pad(self.visible, (0, num_keys - self.num_keys))

    def block_mask(self, query: Tensor, key: Tensor) -> Any:
        """Return the mask of ``flex_attention`` for queries [b,n,s,d] and keys [b,n,k,d], None to see everything."""
        visible = self.widened(key.size(2), device=query.device)
        if visible is not None and self.blocks is None:
            from torch.nn.attention.flex_attention import create_block_mask

            shape = (query.size(0), 1, query.size(2), key.size(2))
            entries = visible.expand(shape)
            self.blocks = create_block_mask(lambda b, _, q, k: entries[b, 0, q, k], *shape, device=query.device)
        return self.blocks


class GLMEmbedding(nn.Embedding):
    """Word embeddings, which are the output projection as well.

    Both go through ``forward``, so that hooks which bring the weight to a device, or gather it, serve both.
    """

    def forward(self, input: Tensor, *, project: bool = False) -> Tensor:
        """Return embeddings [...,h] of ids [...], or with ``project`` logits [...,v] of hidden states [...,h]."""
        return F.linear(input.to(self.weight.device), self.weight) if project else super().forward(input)


class GLMProjection(nn.Linear):
    """The output projection of word embeddings as a module, which shares their weight and belongs to no other."""

    def __init__(self, embeddings: nn.Embedding) -> None:
        nn.Module.__init__(self)  # without a weight of its own
        self.out_features, self.in_features = embeddings.weight.shape
        self.weight = embeddings.weight
        self.register_parameter("bias", None)
        self._embeddings = (embeddings,)  # not a part of this one

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits [...,v] of hidden states [...,h]."""
        return project(self._embeddings[0], hidden)


def project(embeddings: nn.Embedding, hidden: Tensor) -> Tensor:
    """Map hidden states [...,h] to logits [...,v] by the word embeddings.

    Where an adapter wraps them, by what it makes of all rows: so they stay one table, and merging changes nothing.
    """
    if isinstance(embeddings, GLMEmbedding):
        return embeddings(hidden, project=True)
    table: Tensor = embeddings.weight
    if type(embeddings) is not nn.Embedding:  # which the library puts there when the vocabulary is resized
        table = embeddings(torch.arange(table.size(0), device=table.device))  # [v,h]
    return F.linear(hidden.to(table.device), table)


class GLMAttention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values, in this order."""

    def __init__(self, config: GLMConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        # It is initialised with a smaller spread.
        self.dense.ends_half_layer = True  # type: ignore[assignment]  # torch expects tensors and modules
        self.output_dropout = nn.Dropout(config.output_dropout_prob)

    def forward(
        self, hidden: Tensor, keys: VisibleKeys, *, cache: Any = None, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention output [b,s,h], and the probabilities [b,n,s,k] where they are asked for."""
        batch_size, length, _ = hidden.shape
        fused = self.query_key_value(hidden).view(batch_size, length, 3, self.num_heads, self.head_dim)
        query, key, value = (part.transpose(1, 2) for part in fused.unbind(dim=2))  # [b,n,s,d] each
        if cache is not None:
            places = torch.arange(keys.num_keys - length, keys.num_keys, device=key.device)  # [s]
            key, value = cache.update(key, value, self.layer, {"cache_position": places})
        keys = keys.to(query.device)
        if keys.fully_masked is not None:
            query = query.masked_fill(keys.fully_masked, 0.0)  # equal scores, hence uniform attention
        visible = keys.widened(key.size(2), device=query.device)
        dropout = self.config.attention_dropout_prob if self.training else 0.0
        name, probabilities = self.config._attn_implementation, None
        if output_attentions or name == "eager":
            context, probabilities = self._attend(query, key, value, visible, dropout=dropout)
        elif ALL_ATTENTION_FUNCTIONS is None:
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
            context = context.transpose(1, 2)
        else:
            mask = keys.block_mask(query, key) if name == "flex_attention" else visible
            context, _ = ALL_ATTENTION_FUNCTIONS[name](
                self, query, key, value, mask, dropout=dropout, scaling=self.head_dim**-0.5, is_causal=False
            )  # [b,s,n,d]
        return self.output_dropout(self.dense(context.reshape(batch_size, length, -1))), probabilities

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, *, dropout: float
    ) -> tuple[Tensor, Tensor]:
        """Compute attention [b,s,n,d] step by step; the scale keeps half-precision scores small and cancels out."""
        scale = max(1.0, self.config.attention_scale)
        scores = torch.matmul(query / (math.sqrt(self.head_dim) * scale), key.transpose(-1, -2))  # [b,n,s,k]
        if visible is not None:
            scores = scores.masked_fill(~visible, -math.inf)
        scores = scores.float()
        scores = (scores - scores.amax(dim=-1, keepdim=True)) * scale
        probabilities = torch.softmax(scores, dim=-1).to(query.dtype)
        context = torch.matmul(F.dropout(probabilities, dropout, training=dropout > 0.0), value)
        return context.transpose(1, 2), probabilities


class GLMMLP(nn.Module):
    """The feed-forward half of a layer, four times as wide inside, with the tanh form of GELU."""

    def __init__(self, config: GLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.dense_4h_to_h = nn.Linear(4 * config.hidden_size, config.hidden_size)
        self.dense_4h_to_h.ends_half_layer = True  # type: ignore[assignment]  # as above
        self.dropout = nn.Dropout(config.output_dropout_prob)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [b,s,h] to [b,s,h]."""
        return self.dropout(self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(hidden), approximate="tanh")))


class GLMBlock(nn.Module):
    """A layer: normalise, attend, add; normalise, feed forward, add."""

    def __init__(self, config: GLMConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=LAYERNORM_EPSILON)
        self.attention = GLMAttention(config, layer)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=LAYERNORM_EPSILON)
        self.mlp = GLMMLP(config)

    def forward(
        self, hidden: Tensor, keys: VisibleKeys, cache: Any = None, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the new hidden states [b,s,h] and, where asked for, the attention probabilities."""
        attended, probabilities = self.attention(
            self.input_layernorm(hidden), keys, cache=cache, output_attentions=output_attentions
        )
        hidden = hidden + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), probabilities


class GLMStack(nn.Module):
    """Position embeddings, layers, final LayerNorm."""

    def __init__(self, config: GLMConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = config.checkpoint_activations
        self.position_embeddings = nn.Embedding(config.position_rows, config.hidden_size)
        if config.block_position_encoding:
            self.block_position_embeddings = nn.Embedding(config.position_rows, config.hidden_size)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout_prob)
        self.layers = nn.ModuleList(GLMBlock(config, layer) for layer in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=LAYERNORM_EPSILON)

    def forward(
        self,
        embeddings: Tensor,
        position_ids: Tensor,
        keys: VisibleKeys,
        *,
        cache: Any = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
        """Return the final hidden states [b,s,h], those before and after each layer, and the attentions."""
        hidden = self.embedding_dropout(embeddings + self._positions(position_ids))
        all_hidden, attentions = [hidden], []
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                recompute = getattr(self, "_gradient_checkpointing_func", None)
                recompute = recompute or partial(checkpoint, use_reentrant=False)
                hidden, probabilities = recompute(layer.__call__, hidden, keys, None, output_attentions)
            else:
                hidden, probabilities = layer(hidden, keys, cache=cache, output_attentions=output_attentions)
            if output_hidden_states:
                all_hidden.append(hidden)
            if output_attentions:
                attentions.append(probabilities)
        return self.final_layernorm(hidden), all_hidden, attentions

    def _positions(self, position_ids: Tensor) -> Tensor:
        """Return the sum of the embeddings of [b or 1,2,s] or [b or 1,s] positions, [b or 1,s,h]."""
        last = self.config.position_rows - 1
        if can_look(position_ids) and position_ids.numel() and position_ids.max() > last:
            raise ValueError(
                f"position_ids go up to {int(position_ids.max())}, the model has positions up to {last}; shorten the "
                "text or what is generated"
            )
        if not self.config.block_position_encoding:
            return self.position_embeddings(position_ids)
        return self.position_embeddings(position_ids[:, 0]) + self.block_position_embeddings(position_ids[:, 1])
