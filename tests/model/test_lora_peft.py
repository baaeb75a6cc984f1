"""Adapters go to the Hugging Face package peft and come back: the exported model computes what ours does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from model.config import LORA_TARGETS, LoraSettings
from model.heads import SequenceClassification
from model.hub.adapters import HEAD_FILE, load_adapter, read_adapter, save_adapter
from model.hub.describe import config_fields
from model.modeling_glm import GLMModel
from tests.helpers.lora_models import adapt, batch, build, merge_adapters

peft = pytest.importorskip("peft", reason="peft is an extra")
pytest.importorskip("transformers", reason="transformers is an extra")

PLACES = list(LORA_TARGETS.values())


def exported(model: GLMModel, kind: str = "GLMForConditionalGeneration", **fields: Any) -> Any:
    """Return the Hugging Face model with the weights of ours."""
    from model.hf import modeling_glm
    from model.hf.configuration_glm import GLMConfig

    config = GLMConfig(**{**config_fields(model.config), **fields})
    result = getattr(modeling_glm, kind)(config).eval()
    result.glm.load_state_dict({n: t for n, t in model.state_dict().items() if "lora" not in n})
    return result


@torch.no_grad()
def logits_of(hub_model: Any) -> Tensor:
    ids, positions, prefix_lengths = batch()
    return hub_model(input_ids=ids, position_ids=positions, attention_mask=prefix_lengths).logits


@torch.no_grad()
@pytest.mark.parametrize("targets", [("query_key_value",), tuple(LORA_TARGETS)])
def test_peft_loads_what_we_save(tmp_path: Path, targets: tuple[str, ...]) -> None:
    model = adapt(build(), LoraSettings(rank=4, alpha=6.0, dropout=0.1, targets=targets), filled=True)
    save_adapter(tmp_path / "adapter", model, topology=model.topology, base_model="base")
    adapted = peft.PeftModel.from_pretrained(exported(build()), tmp_path / "adapter")
    expected = model(*batch())
    assert (expected - build()(*batch())).abs().max() > 0.1
    torch.testing.assert_close(logits_of(adapted), expected, atol=1e-5, rtol=1e-5)
    merged = adapted.merge_and_unload()
    merge_adapters(model)
    for name, tensor in merged.glm.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["query_key_value"]},
        {"target_modules": r".*\.(attention\.dense|mlp\.dense_4h_to_h)", "use_rslora": True},
        {"target_modules": PLACES, "init_lora_weights": "gaussian", "lora_dropout": 0.2},
    ],
    ids=["default", "pattern", "all"],
)
def test_we_load_what_peft_trains_and_saves(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    adapted = peft.get_peft_model(exported(build()), peft.LoraConfig(r=4, lora_alpha=6, **options))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=3e-2)
    ids, positions, prefix_lengths = batch()
    losses = []
    for _ in range(6):
        loss = adapted(input_ids=ids, position_ids=positions, attention_mask=prefix_lengths, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    adapted.save_pretrained(tmp_path / "adapter")
    model = build()
    report = load_adapter(model, model, read_adapter(tmp_path / "adapter"), topology=model.topology)
    assert all(".lora_" in name for name in report.loaded)
    with torch.no_grad():
        found = model(*batch())
        assert (found - build()(*batch())).abs().max() > 0.01
        torch.testing.assert_close(found, logits_of(adapted.eval()), atol=1e-5, rtol=1e-5)
    save_adapter(tmp_path / "again", model, topology=model.topology)
    again = peft.PeftModel.from_pretrained(exported(build()), tmp_path / "again")
    torch.testing.assert_close(logits_of(again), logits_of(adapted.eval()), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_classifier_takes_its_head_from_the_file_beside(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    network = SequenceClassification(adapt(build(), filled=True), 3).eval()
    for index, parameter in enumerate([*network.pool_layer.parameters(), *network.multichoice_head.parameters()]):
        parameter.normal_(0.0, 0.3, generator=Generator().manual_seed(index))
    save_adapter(tmp_path / "adapter", network, topology=network.model.topology)
    hub_model = exported(build(), "GLMForSequenceClassification", num_labels=3)
    head = load_file(tmp_path / "adapter" / HEAD_FILE)
    assert not hub_model.load_state_dict(head, strict=False).unexpected_keys
    adapted = peft.PeftModel.from_pretrained(hub_model, tmp_path / "adapter")
    torch.testing.assert_close(logits_of(adapted), network(*batch()), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_generation_with_an_adapter_equals_that_with_merged_weights(tmp_path: Path) -> None:
    model = adapt(build(max_position_embeddings=32), filled=True)
    save_adapter(tmp_path / "adapter", model, topology=model.topology)
    adapted = peft.PeftModel.from_pretrained(exported(build(max_position_embeddings=32)), tmp_path / "adapter")
    merge_adapters(model)
    merged = exported(model)
    ids = batch()[0][:1]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(adapted.generate(input_ids=ids, **options), merged.generate(input_ids=ids, **options))


def test_what_we_write_is_what_peft_writes(tmp_path: Path) -> None:
    """The same names in the weight file, and no field that peft does not know."""
    from safetensors.torch import load_file

    model = adapt(build())
    save_adapter(tmp_path / "ours", model, topology=model.topology)
    adapted = peft.get_peft_model(exported(build()), peft.LoraConfig(r=4, lora_alpha=8, target_modules=PLACES))
    adapted.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    ours, theirs = (
        json.loads((tmp_path / name / "adapter_config.json").read_text(encoding="utf-8")) for name in ("ours", "theirs")
    )
    assert set(ours) <= set(theirs)
    assert set(ours.pop("target_modules")) == set(theirs.pop("target_modules"))
    differing = {name for name in ours if ours[name] != theirs[name]}
    assert differing <= {"base_model_name_or_path"}, differing
