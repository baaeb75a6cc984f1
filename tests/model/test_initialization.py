"""The start from which a small model looks at the words beside a blank."""

from __future__ import annotations

import math

import pytest
import torch

from model.config import GLMConfig
from model.initialization import OFFSETS, look_at_neighbours
from model.modeling_glm import GLMModel
from mpu.masks import PrefixMask

LENGTH, PLACE, SAMPLES = 40, 17, 64  # of part A, of the blank in it, and how many texts


def _attention(model: GLMModel) -> list[torch.Tensor]:
    """Return, per layer, how much each head's query of the blank's start token looks at each position [n,LENGTH]."""
    products: list[torch.Tensor] = []
    for layer in model.transformer.layers:
        layer.attention.query_key_value.register_forward_hook(lambda _, inputs, output: products.append(output))
    ids = torch.randint(0, model.config.vocab_size, (SAMPLES, LENGTH + 1))
    positions = torch.zeros(SAMPLES, 2, LENGTH + 1, dtype=torch.long)
    positions[:, 0, :LENGTH] = torch.arange(LENGTH)
    positions[:, 0, LENGTH], positions[:, 1, LENGTH] = PLACE, 1
    with torch.no_grad():
        model.eval()(ids, positions, PrefixMask.prefix(torch.full((SAMPLES,), LENGTH)))
    heads = model.config.num_attention_heads
    result = []
    for fused in products:
        query, key, _ = fused.view(SAMPLES, LENGTH + 1, 3, heads, -1).unbind(2)
        scores = torch.einsum("bnd,bknd->bnk", query[:, -1], key) / math.sqrt(query.size(-1))
        result.append(scores.softmax(-1).mean(0)[:, :LENGTH])
    return result


@pytest.mark.parametrize(("hidden", "heads"), [(192, 6), (192, 4), (256, 4)])
def test_the_first_heads_look_at_the_tokens_beside_the_blank(hidden: int, heads: int):
    torch.manual_seed(3)
    model = GLMModel(GLMConfig(3, hidden, heads, vocab_size=300, max_position_embeddings=64))
    look_at_neighbours(model)
    first, _, third = _attention(model)  # what the first layer writes blurs where the second one looks
    for looks, offset in zip(first, OFFSETS[0]):
        assert looks[PLACE + offset] > 0.9
    assert third.max() < 0.1, "the other layers start at random"


def test_logits_start_small_and_equal_seeds_give_equal_weights():
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(GLMModel(GLMConfig(2, 64, 4, vocab_size=300, max_position_embeddings=64)))
        look_at_neighbours(models[-1])
    assert all(torch.equal(one, other) for one, other in zip(*(model.state_dict().values() for model in models)))
    positions = torch.zeros(1, 2, 20, dtype=torch.long)
    positions[0, 0] = torch.arange(20)
    with torch.no_grad():
        logits = models[0].eval()(torch.randint(0, 300, (1, 20)), positions, torch.tensor([20]))
    assert logits.std() < 1.0


def test_heads_of_an_odd_size_and_relative_positions_are_refused():
    with pytest.raises(ValueError, match="heads of an even size"):
        look_at_neighbours(GLMModel(GLMConfig(2, 60, 4, vocab_size=30, max_position_embeddings=64)))
    with pytest.raises(ValueError, match="learned positions"):
        look_at_neighbours(
            GLMModel(GLMConfig(2, 64, 4, vocab_size=30, relative_encoding=True, block_position_encoding=False))
        )
