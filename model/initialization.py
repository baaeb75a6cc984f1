"""A start from which small models look at the words beside a blank at once.

With weights of deviation 0.02, those of the released models, a small GLM first learns how frequent words are, writes
them into every position, and may stay there for millions of tokens: the queries of a blank have no reason yet to look
at its neighbours, and by the time they had one, large constants hide what stands where (docs/demo_model.md).

Here the positions are sines and cosines, so that a rotation turns a position into another one a fixed distance away,
and heads of the first two layers have queries and keys that are such rotations: they look one or two tokens to the
left or to the right, two heads at each neighbour (mimetic initialization, Trockman and Kolter 2023,
https://arxiv.org/abs/2305.09828).
The other matrices have the deviation at which a layer keeps the size of its input, and the word table is large enough
for a rate of 1e-3 and more not to overwrite it in a few updates. All of it is trained; nothing else differs.

h hidden, d head dim, v vocabulary, p positions
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.modeling_glm import GLMModel
from mpu.transformer import TransformerLayer

# Where the heads of the first layers look, in tokens from their own; the other heads start at random.
OFFSETS = ((-1, 1, -1, 1, -2, 2), (-1, 1, -1, 1, -2, 2))
WORD_STD = 0.1
FREQUENCIES = (0.05, 2.9)  # radians a token
SHARPNESS = 1.6  # of the heads that look: factor of their queries and of their keys
LOGIT_SCALE = 0.5  # of the final LayerNorm: logits of a new model are small


@torch.no_grad()
def look_at_neighbours(model: GLMModel) -> None:
    """Give ``model``, which is whole on this rank, other random weights, drawn from torch's default generator.

    Raises ValueError for relative positions, a cut model, and heads of an odd size.
    """
    config, stack = model.config, model.transformer
    if config.relative_encoding or model.topology.model_parallel_size > 1:
        raise ValueError("--initialization neighbours is for learned positions and --model-parallel-size 1")
    if config.hidden_size // config.num_attention_heads % 2:
        raise ValueError(
            f"--initialization neighbours needs heads of an even size; --hidden-size {config.hidden_size} over "
            f"--num-attention-heads {config.num_attention_heads} is {config.hidden_size // config.num_attention_heads}"
        )
    model.word_embeddings.weight.normal_(0.0, WORD_STD)  # [v,h]
    frequencies = torch.linspace(0.0, 1.0, config.hidden_size // 2) ** 1.5  # [h/2], the low ones closer together
    frequencies = FREQUENCIES[0] + (FREQUENCIES[1] - FREQUENCIES[0]) * frequencies
    assert isinstance(stack.position_embeddings, nn.Embedding)
    if config.block_position_encoding:
        stack.block_position_embeddings.weight.normal_(0.0, WORD_STD / 5)
    table = stack.position_embeddings.weight  # [p,h]
    angles = torch.arange(len(table)).unsqueeze(1) * frequencies  # [p,h/2]
    table[:, 0::2] = 2.0 * math.sqrt(2.0) * WORD_STD * angles.sin()
    table[:, 1::2] = 2.0 * math.sqrt(2.0) * WORD_STD * angles.cos()
    depth = math.sqrt(2.0 * config.num_layers)
    for number, layer in enumerate(stack.layers):
        assert isinstance(layer, TransformerLayer)
        attention, mlp = layer.attention, layer.mlp
        for linear, divisor in (
            (attention.query_key_value, 1.0),
            (attention.dense, depth),
            (mlp.dense_h_to_4h, 1.0),
            (mlp.dense_4h_to_h, depth),
        ):
            linear.weight.normal_(0.0, 1.0 / (divisor * math.sqrt(linear.weight.size(1))))
        attention.query_key_value.weight[: 2 * config.hidden_size] *= 0.5
        heads = attention.query_key_value.weight.unflatten(0, (3, config.num_attention_heads, -1))  # [3,n,d,h]
        offsets = OFFSETS[number] if number < len(OFFSETS) else ()
        for head, offset in enumerate(offsets[: config.num_attention_heads]):
            heads[:2, head] *= 0.2
            heads[0, head] += SHARPNESS * _rotation(frequencies, offset, head, heads.shape[1:])
            heads[1, head] += SHARPNESS * _rotation(frequencies, 0, head, heads.shape[1:])
    stack.final_layernorm.weight.fill_(LOGIT_SCALE)


def _rotation(frequencies: Tensor, offset: int, head: int, shape: torch.Size) -> Tensor:
    """Return the matrix [d,h] that picks the sines and cosines of a head, ``offset`` positions further on.

    ``shape`` is (n, d, h); head number k of n has the frequencies k, k + n, k + 2n ...
    """
    num_heads, size, hidden = shape
    chosen = torch.arange(head, hidden // 2, num_heads)[: size // 2]  # [d/2]
    sine, cosine = (frequencies[chosen] * offset).sin(), (frequencies[chosen] * offset).cos()
    rows = torch.arange(0, 2 * len(chosen), 2)
    matrix = torch.zeros(size, hidden)
    matrix[rows, 2 * chosen] = matrix[rows + 1, 2 * chosen + 1] = cosine
    matrix[rows, 2 * chosen + 1] = sine  # sin(a + b) = sin a cos b + cos a sin b
    matrix[rows + 1, 2 * chosen] = -sine  # cos(a + b) = cos a cos b - sin a sin b
    return matrix
