"""Recorded forward passes: every mask form, plain and block positions, attention scale, dropout placement."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from model.modeling_glm import GLMModel
from mpu.attention import attend
from mpu.masks import PrefixMask
from tests.helpers.golden_index import GoldenFolder
from tests.helpers.golden_models import assert_close, build_model, config_for, load_vectors

HEADS = 4  # of the recorded decoder layer


def test_weights_have_our_keys_and_shapes(golden: GoldenFolder) -> None:
    weights = load_vectors(golden, "weights.pt")
    variants = set(weights) - {"config"}
    assert variants == {"block", "plain", "relative"}
    for variant in variants:
        model = build_model(golden, variant)
        state = model.state_dict()
        assert list(state) == list(weights[variant])
        for name, tensor in weights[variant].items():
            assert torch.equal(state[name], tensor), name
        assert model.config == config_for(variant, weights["config"])


@torch.no_grad()
def test_forward_block(golden: GoldenFolder) -> None:
    vectors = load_vectors(golden, "forward_block.pt")
    inputs = vectors["input_ids"], vectors["position_ids"]
    scaled_key = re.compile(r"logits_attention_scale_([\d.]+)")
    for key in vectors:
        scaled = scaled_key.fullmatch(key)
        if key in ("input_ids", "position_ids", "masks"):
            continue
        if key == "logits_position_ids_batch1":
            logits = build_model(golden, "block")(inputs[0], inputs[1][:1], vectors["masks"]["sep_batch"])
            assert_close(logits, vectors[key], key)
            continue
        assert scaled or key in ("logits", "hidden"), f"unknown entry {key}"
        assert set(vectors[key]) == set(vectors["masks"])
        model = build_model(golden, "block", attention_scale=float(scaled[1]) if scaled else 1.0)
        output = "hidden" if key == "hidden" else "logits"
        for name, mask in vectors["masks"].items():
            assert_close(model(*inputs, mask, output=output), vectors[key][name], f"{key} {name}")


@torch.no_grad()
def test_a_decoder_layer_made_of_our_parts(golden: GoldenFolder) -> None:
    """No model here has cross-attention: it is put together of what the layers of a GLM are made of."""
    vectors = load_vectors(golden, "decoder_layer.pt")
    state, hidden, encoded = vectors["state"], vectors["hidden_states"], vectors["encoder_states"]
    sizes = {
        "num_layers": 1,
        "vocab_size": 8,
        "hidden_size": 16,
        "num_attention_heads": HEADS,
        "max_sequence_length": 8,
    }
    layer = GLMModel(config_for("plain", sizes)).eval().transformer.layers[0]
    names = {name: name.replace("self_attention.", "attention.") for name in state}
    ours = {ours: state[name] for name, ours in names.items() if ours in layer.state_dict()}
    assert set(ours) == set(layer.state_dict())
    layer.load_state_dict(ours)

    def linear(values: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(values, state[f"cross_attention.{name}.weight"], state[f"cross_attention.{name}.bias"])

    def cross_attention(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        parts = linear(states, "query"), *linear(encoded, "key_value").chunk(2, dim=-1)
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)  # [b,n,s,d]
        visible = torch.ones(1, 1, 5, 7) if mask is None else mask
        keys = PrefixMask.matrix(visible).visible_keys(query_length=5, key_length=7, device="cpu")
        return linear(attend(query, key, value, keys).transpose(1, 2).flatten(2), "dense")

    causal = PrefixMask.matrix(vectors["ltor_mask"]).visible_keys(query_length=5, key_length=5, device="cpu")
    attended = hidden + layer.attention(layer.input_layernorm(hidden), causal)
    norm = state["post_self_layernorm.weight"], state["post_self_layernorm.bias"]
    for name, mask in (("output", vectors["cross_mask"]), ("output_no_cross_mask", None)):
        states = attended + cross_attention(F.layer_norm(attended, (16,), *norm, eps=1e-5), mask)
        assert_close(states + layer.mlp(layer.post_attention_layernorm(states)), vectors[name], name)
    assert_close(cross_attention(hidden, vectors["cross_mask"]), vectors["cross_attention_output"])


@torch.no_grad()
def test_forward_plain(golden: GoldenFolder) -> None:
    block, vectors = load_vectors(golden, "forward_block.pt"), load_vectors(golden, "forward_plain.pt")
    assert set(vectors) == {"input_ids", "position_ids", "masks", "logits"}
    assert vectors["masks"] == "same as forward_block.pt"
    assert set(vectors["logits"]) == set(block["masks"])
    model = build_model(golden, "plain")
    for name, expected in vectors["logits"].items():
        assert_close(model(vectors["input_ids"], vectors["position_ids"], block["masks"][name]), expected, name)


@pytest.mark.parametrize("fast_dropout", [True, False])
@torch.no_grad()
def test_dropout_placement(golden: GoldenFolder, fast_dropout: bool) -> None:
    vectors = load_vectors(golden, "dropout_placement.pt")
    assert set(vectors) == {"input_ids", "position_ids", "attention_mask", "logits"}
    for name, expected in vectors["logits"].items():
        variant, *places = re.split("_(?=embedding|attention|output)", name)
        options = {"embedding_dropout": 0.0, "attention_dropout": 0.0, "output_dropout": 0.0}
        for place in places:
            where, probability = place.split("_")
            assert f"{where}_dropout" in options, f"unknown place {place}"
            options[f"{where}_dropout"] = float(probability)
        model = build_model(golden, variant, fast_dropout=fast_dropout, **options).train()
        logits = model(vectors["input_ids"], vectors["position_ids"], vectors["attention_mask"])
        assert_close(logits, expected, name)
