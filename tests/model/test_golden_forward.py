"""Recorded forward passes: every mask form, plain and block positions, attention scale, dropout placement."""

from __future__ import annotations

import re

import pytest
import torch

from tests.helpers.golden_index import GoldenFolder
from tests.helpers.golden_models import assert_close, build_model, config_for, load_vectors


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
