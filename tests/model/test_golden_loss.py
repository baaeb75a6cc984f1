"""Recorded loss and gradients."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from model.modeling_glm import GLMModel
from tests.helpers.golden_index import GoldenFolder
from tests.helpers.golden_models import assert_close, build_model, load_vectors


def _gradients(model: GLMModel) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("checkpointing", [0, 1, 2])
def test_loss_and_gradients(golden: GoldenFolder, checkpointing: int) -> None:
    vectors = load_vectors(golden, "loss_grad.pt")
    options = {"checkpoint_activations": checkpointing > 0, "checkpoint_num_layers": max(1, checkpointing)}
    model = build_model(golden, "block", **options)
    inputs = vectors["input_ids"], vectors["position_ids"], vectors["attention_mask"]
    loss = model(*inputs, labels=vectors["labels"], loss_mask=vectors["loss_mask"])
    assert loss.weight_sum.item() == pytest.approx(vectors["loss_mask"].sum().item())
    loss.mean.backward()
    empty = model(*inputs, labels=vectors["labels"], loss_mask=torch.zeros_like(vectors["loss_mask"]))
    gradients = _gradients(model)
    clipped_key = re.compile(r"clipped_to_([\d.]+)_word_embeddings_grad")
    for key, expected in vectors.items():
        clipped = clipped_key.fullmatch(key)
        if key in ("input_ids", "position_ids", "attention_mask", "labels", "loss_mask"):
            continue
        if key == "losses":
            logits = model(*inputs).transpose(1, 2)  # [b,v,s]
            assert_close(F.cross_entropy(logits, vectors["labels"], reduction="none"), expected, key)
        elif key == "loss":
            assert_close(loss.mean.detach(), expected, key)
        elif key == "loss_all_masked":
            assert_close(empty.mean.detach(), expected, key)
        elif key == "grads":
            assert set(gradients) == set(expected)
            for name, gradient in expected.items():
                assert_close(gradients[name], gradient, name)
        elif key == "grad_norm":
            norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
            assert_close(norm, expected, key)
        else:
            assert clipped, f"unknown entry {key}"
            factor = float(clipped[1]) / (vectors["grad_norm"] + 1e-6)
            assert_close(gradients["word_embeddings.weight"] * factor.clamp(max=1.0), expected, key)


def test_empty_mask_keeps_the_graph(golden: GoldenFolder) -> None:
    vectors = load_vectors(golden, "loss_grad.pt")
    model = build_model(golden, "block")
    inputs = vectors["input_ids"], vectors["position_ids"], vectors["attention_mask"]
    loss = model(*inputs, labels=vectors["labels"], loss_mask=torch.zeros_like(vectors["loss_mask"]))
    loss.loss_sum.backward()
    assert loss.weight_sum.item() == 0.0
    for name, gradient in _gradients(model).items():
        assert gradient is not None, name
        assert not gradient.any(), name
