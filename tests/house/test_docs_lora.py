"""The Python blocks of docs/huggingface.md's section on LoRA run as they stand on a small exported model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from model.checkpoints.reading import shard_name
from model.config import GLMConfig, LoraSettings
from model.hub.adapters import load_adapter, read_adapter, save_adapter
from model.modeling_glm import GLMModel
from tests.helpers import REPOSITORY
from tests.helpers.launching import run
from tests.helpers.lora_models import adapt, merge_adapters

pytest.importorskip("peft", reason="peft is an extra")
pytest.importorskip("transformers", reason="transformers is an extra")
CONFIG = GLMConfig(2, 32, 4, 384, max_position_embeddings=128, initializer_std=0.2)


def lora_blocks() -> list[str]:
    """Return the Python blocks of the section."""
    text = (REPOSITORY / "docs" / "huggingface.md").read_text(encoding="utf-8")
    section = re.search(r"^## LoRA\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)[1]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


def base_model() -> GLMModel:
    return GLMModel(CONFIG, generator=Generator().manual_seed(3)).eval()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the export and the adapter that the section names."""
    from tokenizers.pre_tokenizers import ByteLevel

    folder = tmp_path_factory.mktemp("docs")
    for name in ("vocabulary", "base"):
        (folder / name).mkdir()
    pieces = [*sorted(ByteLevel.alphabet()), "<|endoftext|>"]
    (folder / "vocabulary" / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "vocabulary" / "merges.txt").write_text("#version: 0.2\n")
    torch.save({"module": base_model().state_dict()}, folder / "base" / shard_name(0))
    words = ["base", "--output", "exported/glm-tiny", "--num-attention-heads", "4", "--task-mask",
             "--tokenizer-type", "GPT2BPETokenizer", "--tokenizer-path", "vocabulary"]  # fmt: skip
    run("scripts/convert_glm_checkpoint_to_transformers.py", *words, cwd=folder)
    model = adapt(base_model(), LoraSettings(rank=8, alpha=16.0, targets=("query_key_value", "dense")), filled=True)
    save_adapter(folder / "checkpoints" / "rte-lora" / "adapter", model, topology=model.topology)
    return folder


def execute(block: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(workplace)
    variables: dict[str, Any] = {}
    exec(compile(block, "docs/huggingface.md", "exec"), variables)
    return variables


@pytest.mark.slow
def test_an_adapter_of_ours_on_the_exported_model(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loading, _ = lora_blocks()
    found = execute(loading, workplace, monkeypatch)
    model = base_model()
    load_adapter(
        model, model, read_adapter(workplace / "checkpoints" / "rte-lora" / "adapter"), topology=model.topology
    )
    merge_adapters(model)
    for name, tensor in found["merged"].glm.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=1e-6, rtol=1e-6, msg=name)
    assert found["outputs"].size(1) > found["inputs"]["input_ids"].size(1)


@pytest.mark.slow
def test_an_adapter_of_peft_in_ours(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, training = lora_blocks()
    found = execute(training, workplace, monkeypatch)
    assert found["losses"][-1] < found["losses"][0]
    run("scripts/merge_lora.py", "base", "colours", "coloured", cwd=workplace)
    model = base_model()
    model.load_state_dict(torch.load(workplace / "coloured" / shard_name(0))["module"])
    inputs = found["inputs"]
    with torch.no_grad():
        logits = model(inputs["input_ids"], inputs["position_ids"], inputs["attention_mask"])
        torch.testing.assert_close(found["model"].eval()(**inputs).logits, logits, atol=1e-5, rtol=1e-5)
