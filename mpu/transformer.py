"""The stack of pre-LayerNorm transformer layers with learned positions.

b batch, s new positions, m cached positions, k = m + s keys, h hidden, n heads, d head dim, r query positions, t
tensor-parallel size
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpu.attention import SelfAttention
from mpu.cache import KeyValueCache
from mpu.config import TransformerConfig
from mpu.fsdp import is_spread
from mpu.initialize import ParallelTopology
from mpu.kernels.flash import can_run_flash
from mpu.kernels.flex import KERNELS, make_block_mask, prefers_blocks, tensors_of
from mpu.layers import ColumnParallelLinear, LayerContext, RowParallelLinear, initialize_normal
from mpu.masks import PrefixMask, TwoCalls, VisibleKeys, keys_of_call, rows_at
from mpu.random import Dropout, checkpoint_activations

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# Widths are multiples of the first for compiled layers, else on a GPU of the second, for its fused
# kernels with a mask.
COMPILED_MULTIPLE, GPU_MULTIPLE = 64, 8
GRAPHS_OF_A_LAYER = 16  # at most, by torch's compiler, which gives up beyond


class MLP(nn.Module):
    """Two linear layers, h to 4h to h, with the tanh form of GELU between them."""

    def __init__(self, config: TransformerConfig, context: LayerContext) -> None:
        super().__init__()
        size, std, output_std = config.hidden_size, config.initializer_std, config.output_initializer_std
        self.dense_h_to_4h = ColumnParallelLinear(size, 4 * size, context, initializer_std=std)
        self.dense_4h_to_h = RowParallelLinear(4 * size, size, context, initializer_std=output_std)
        self.output_dropout = Dropout(config.output_dropout, fast=config.fast_dropout)

    def forward(self, hidden: Tensor, seed: Tensor | None = None) -> Tensor:
        """Map [b,s,h] to [b,s,h], dropout included; ``seed``: see ``Dropout.forward``."""
        inner = F.gelu(self.dense_h_to_4h(hidden), approximate="tanh")  # [b,s,4h/t]
        return self.output_dropout(self.dense_4h_to_h(inner), seed)


class LayerNorm(nn.LayerNorm):
    """LayerNorm of an fp32 residual stream also where its own parameters come in half precision (``mpu/fsdp.py``)."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [b,s,h] to [b,s,h]."""
        if hidden.dtype is not torch.float32 or self.weight.dtype is torch.float32:
            return super().forward(hidden)
        return F.layer_norm(hidden, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class TransformerLayer(nn.Module):
    """x + attention(LayerNorm(x)), then x + MLP(LayerNorm(x))."""

    def __init__(self, config: TransformerConfig, context: LayerContext, attention: SelfAttention) -> None:
        super().__init__()
        norm = {"eps": config.layernorm_epsilon, **context.factory()}
        self.input_layernorm = LayerNorm(config.hidden_size, **norm)
        self.attention = attention
        self.post_attention_layernorm = LayerNorm(config.hidden_size, **norm)
        self.mlp = MLP(config, context)

    def forward(
        self,
        hidden: Tensor,
        mask: VisibleKeys,
        *,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        query_positions: Tensor | None = None,
        prefix: Tensor | None = None,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """Map the residual stream [b,s,h] to the next one, or to its rows at ``query_positions`` [b,r].

        ``prefix`` [T,h]: see ``SelfAttention.forward``. ``seeds`` [2], where they are given, are those of the two
        outputs' dropout.
        """
        seed, mlp_seed = (None, None) if seeds is None else seeds.unbind()
        normalised = self.input_layernorm(hidden)
        attended = self.attention(
            normalised, mask, cache=cache, layer=layer, query_positions=query_positions, prefix=prefix, seed=seed
        )
        hidden = attended + (hidden if query_positions is None else rows_at(hidden, query_positions))
        return hidden + self.mlp(self.post_attention_layernorm(hidden), mlp_seed)


class Transformer(nn.Module):
    """Add positions to word embeddings, apply the layers and the final LayerNorm."""

    # ``mpu/relative.py`` has another type here, other positions, and another ``forward`` around ``run_layers``.
    attention_type: type[SelfAttention] = SelfAttention
    position_embeddings: nn.Module

    def __init__(self, config: TransformerConfig, context: LayerContext) -> None:
        super().__init__()
        self.config = config
        self.random_state = context.random_state
        self.embedding_dropout = Dropout(config.embedding_dropout, fast=config.fast_dropout)
        self.add_positions(config, context)
        self.layers = nn.ModuleList(
            TransformerLayer(config, context, self.attention_type(config, context)) for _ in range(config.num_layers)
        )
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon, **context.factory())
        self.attention_kernel = "auto"
        self._compiled_layer: Callable[..., Tensor] | None = None

    def add_positions(self, config: TransformerConfig, context: LayerContext) -> None:
        """Make the tables of positions."""
        self.position_embeddings = _position_table(config, context)
        if config.block_position_encoding:
            self.block_position_embeddings = _position_table(config, context)

    def choose_kernels(
        self, *, attention: str = "auto", compiled: bool = False, backend: str | Callable[..., Any] = "inductor"
    ) -> None:
        """Choose how layers are computed; parameters and their names stay as they are.

        ``attention`` is ``sdpa``, ``flex`` or ``auto``: FlashAttention where it runs and the mask is two calls of it
        (``mpu/kernels/flash.py``), else as ``mpu.kernels.flex.prefers_blocks`` says. ``compiled`` layers
        share one graph, made by torch's compiler ``backend`` at the first step; what would break it into several
        raises. With a cache they run uncompiled, unless its shapes are fixed.
        """
        assert attention in KERNELS, attention
        self.attention_kernel = attention
        self._compiled_layer = None
        if not compiled:
            return
        from torch._dynamo import config as dynamo

        # Every layer is a graph by itself: its gradients are reduced while the layers before it run backward. A cut at
        # the buckets of DistributedDataParallel would only make more graphs.
        dynamo.optimize_ddp = False
        # Layers in training and evaluation, the last one with queries of its own, rows of one sample or of more.
        dynamo.cache_size_limit = max(dynamo.cache_size_limit, GRAPHS_OF_A_LAYER)
        if any(map(is_spread, self.layers.parameters())):
            # The hooks that bring a layer's parameters together stay around what is compiled.
            compute = torch.compile(TransformerLayer.forward, backend=backend, fullgraph=True)
            for layer in self.layers:
                layer.forward = partial(compute, layer)  # type: ignore[arg-type]  # a layer, says the list
            self._compiled_layer = _run_layer
        else:
            self._compiled_layer = torch.compile(_run_layer, backend=backend, fullgraph=True)

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
        """Return the hidden states [b,s,h] after the final LayerNorm, or those at ``query_positions`` [b,r].

        ``word_embeddings`` [b,s,h]; ``position_ids`` [b or 1,2,s] with block positions, [b or 1,s] without;
        ``attention_mask`` a tensor as in ``PrefixMask.from_attention_mask``, a ``PrefixMask``, or what it comes to for
        this call. A ``cache`` supplies the earlier positions and receives the new ones; activations are then not
        checkpointed. The last layer has no other queries than ``query_positions``. ``prefix`` [l,T,h] are vectors of
        every layer that all positions see; a cache does not hold them.
        """
        length = word_embeddings.size(1)
        if isinstance(attention_mask, Tensor):
            attention_mask = PrefixMask.from_attention_mask(attention_mask)
        hidden = self._embed(word_embeddings, position_ids)
        if cache is None and isinstance(attention_mask, PrefixMask):
            padding = self._padding(hidden, attention_mask)
            hidden = F.pad(hidden, (0, 0, 0, padding)) if padding else hidden
            attention_mask = attention_mask.padded(padding)
        by_rule = self._compiled_layer is None or cache is not None  # compiled layers have one form, and one graph
        mask = keys_of_call(attention_mask, hidden, cache=cache, by_rule=by_rule)
        if prefix is not None:
            mask = mask.behind(prefix.size(1))
        elif isinstance(attention_mask, PrefixMask) and (cache is None or cache.length == 0) and mask.needs_mask:
            mask.calls = self._two_calls(attention_mask, hidden)
            mask.blocks = self._blocks(attention_mask, hidden) if mask.calls is None else None
        if hidden.device.type != "cpu" and mask.needs_mask:
            mask.make_additive(_type_of_products(hidden))
        hidden = self.run_layers(hidden, mask, cache=cache, query_positions=query_positions, prefix=prefix)
        if cache is not None:
            cache.advance(length)
        return self.final_layernorm(hidden[:, :length] if query_positions is None else hidden)

    def run_layers(
        self,
        hidden: Tensor,
        mask: VisibleKeys,
        *,
        cache: KeyValueCache | None = None,
        query_positions: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """Return the residual stream [b,s,h] after all layers, or its rows ``query_positions`` [b,r]."""
        compiled = self._compiled_layer if cache is None or cache.is_static else None
        run_layer = compiled or _run_layer
        if compiled is not None and self.training and self.random_state.is_split:
            run_layer = self._run_layer_with_seeds
        options: list[dict[str, Any]] = [
            {"mask": mask, "cache": None if cache is None else cache.of_layer(index)}
            for index in range(self.config.num_layers)
        ]
        if query_positions is not None:
            last = mask.at(query_positions)
            if hidden.device.type != "cpu":
                last.make_additive(_type_of_products(hidden))
            options[-1] |= {"mask": last, "query_positions": query_positions}
        if prefix is not None:
            options = [{**given, "prefix": vectors} for given, vectors in zip(options, prefix.unbind(0), strict=True)]
        if compiled is not None:
            last = options[-1]["mask"]
            masks = [mask.visible, mask.additive, last.visible, last.additive, *(mask.calls or ())]
            masks += [] if mask.blocks is None else tensors_of(mask.blocks)
            _mark_sizes(hidden, *masks, query_positions)
        chunked = self.config.checkpoint_activations and cache is None and torch.is_grad_enabled()
        chunk = self.config.checkpoint_num_layers if chunked else self.config.num_layers
        for first in range(0, self.config.num_layers, chunk):

            def run_chunk(states: Tensor, first: int = first) -> Tensor:
                for index, layer in enumerate(self.layers[first : first + chunk], start=first):
                    states = run_layer(layer, states, index=index, **options[index])
                return states

            if chunked:
                hidden = checkpoint_activations(run_chunk, hidden, random_state=self.random_state)
            else:
                hidden = run_chunk(hidden)
        return hidden

    def _run_layer_with_seeds(self, layer: nn.Module, states: Tensor, **options: Any) -> Tensor:
        """Run a compiled layer of a model that several ranks share: its graph cannot change random states.

        The whole layer draws from the ranks' own state, and the two dropouts that are equal on all ranks follow seeds
        from the common one.
        """
        assert self._compiled_layer is not None
        seeds = torch.randint(2**62, (2,), device=states.device)
        with self.random_state.fork(states.device):
            return self._compiled_layer(layer, states, seeds=seeds, **options)

    def _padding(self, states: Tensor, mask: PrefixMask) -> int:
        """Return how many positions are put behind those of ``states`` [b,s,h], where nothing sees them."""
        length = states.size(1)
        if mask.visible is not None:
            return 0
        if self._compiled_layer is not None:
            return -length % COMPILED_MULTIPLE
        if mask.kernel_rule(query_length=length, key_length=length):
            return 0
        return -length % GPU_MULTIPLE if states.device.type != "cpu" else 0

    def _two_calls(self, mask: PrefixMask, states: Tensor) -> TwoCalls | None:
        """Return the form of ``mask`` for FlashAttention where a call on ``states`` [b,s,h] alone uses it."""
        if self.attention_kernel != "auto" or mask.known is None:
            return None
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        if not can_run_flash(device=states.device, dtype=_type_of_products(states), head_dim=head_dim):
            return None
        batch_size, length, _ = states.shape
        calls = mask.known.two_calls(batch_size=batch_size, length=length)
        return None if calls is None else calls.to(states.device)

    def _blocks(self, mask: PrefixMask, states: Tensor) -> BlockMask | None:
        """Return the form of ``mask`` for FlexAttention where a call on ``states`` [b,s,h] alone uses it."""
        probability = self.config.attention_dropout if self.training else 0.0
        if not prefers_blocks(self.attention_kernel, mask, device=states.device, dropout_probability=probability):
            return None
        batch_size, length, _ = states.shape
        return make_block_mask(mask, batch_size=batch_size, length=length, device=states.device)

    def _embed(self, word_embeddings: Tensor, position_ids: Tensor | None) -> Tensor:
        """Return the first residual stream [b,s,h]."""
        two_rows = self.config.block_position_encoding
        if position_ids is None or position_ids.dim() != (3 if two_rows else 2):
            given = "none" if position_ids is None else f"shape {list(position_ids.shape)}"
            needed = "[b,2,s]" if two_rows else "[b,s]"
            raise ValueError(f"position_ids are given as {given}; this model needs {needed}")
        if two_rows:
            sums = self.position_embeddings(position_ids[:, 0]) + self.block_position_embeddings(position_ids[:, 1])
        else:
            sums = self.position_embeddings(position_ids)
        return self.embedding_dropout(word_embeddings + sums)


def _type_of_products(states: Tensor) -> torch.dtype:
    """Return the type that queries and keys made of ``states`` have."""
    device_type = states.device.type
    autocast = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)  # not on meta
    return torch.get_autocast_dtype(device_type) if autocast else states.dtype


def _mark_sizes(hidden: Tensor, *masks_and_positions: Tensor | None) -> None:
    """Tell torch's compiler which sizes change between batches, so that one graph serves all of them."""
    from torch._dynamo import maybe_mark_dynamic

    for dimension in (0, 1):  # rows and positions of [b,s,h]
        maybe_mark_dynamic(hidden, dimension)
    for tensor in masks_and_positions:
        for dimension in range(0 if tensor is None else tensor.dim()):
            maybe_mark_dynamic(tensor, dimension)


def _run_layer(layer: nn.Module, states: Tensor, *, index: int, **options: Any) -> Tensor:
    """Run layer number ``index``: what is compiled, once for all layers."""
    return layer(states, layer=index, **options)


def _position_table(config: TransformerConfig, context: LayerContext) -> nn.Embedding:
    """Make a table of positions [rows,h], drawn from the given generator instead of torch's own default."""
    shape = (config.position_rows, config.hidden_size)
    table = nn.Embedding.from_pretrained(torch.empty(shape, **context.factory()), freeze=False)
    initialize_normal(
        table.weight,
        shape,
        std=config.initializer_std,
        generator=context.generator,
        topology=ParallelTopology.single(),
    )
    return table
