"""The Python blocks of docs/huggingface.md's section on using exported models run as they stand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("safetensors", reason="safetensors is an extra")
pytest.importorskip("transformers", reason="transformers is an extra")

import torch

from data_utils.tokenizers.tokenizer import build_tokenizer
from generation.infill import BlankFiller
from generation.sampling import DecodingSettings
from model.checkpoints.reading import shard_name
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from tests.helpers import REPOSITORY
from tests.helpers.launching import run

CONFIG = GLMConfig(2, 32, 4, 384, max_position_embeddings=128, initializer_std=0.2)


def blocks() -> list[str]:
    """Return the Python blocks of the section."""
    text = (REPOSITORY / "docs" / "huggingface.md").read_text(encoding="utf-8")
    section = re.search(r"^## Using exported models\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)[1]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> tuple[BlankFiller, Path]:
    """Return our own decoding of a small model, and the folder that holds its export."""
    from tokenizers.pre_tokenizers import ByteLevel

    folder = tmp_path_factory.mktemp("docs")
    for name in ("vocabulary", "base"):
        (folder / name).mkdir()
    pieces = [*sorted(ByteLevel.alphabet()), "<|endoftext|>"]
    (folder / "vocabulary" / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "vocabulary" / "merges.txt").write_text("#version: 0.2\n")
    model = GLMModel(CONFIG, generator=torch.Generator().manual_seed(3)).eval()
    with torch.no_grad():
        model.word_embeddings.weight[256:] = 0.0  # special tokens are never the best choice
    torch.save({"module": model.state_dict()}, folder / "base" / shard_name(0))
    words = ["base", "--output", "exported/glm-tiny", "--num-attention-heads", "4", "--task-mask",
             "--tokenizer-type", "GPT2BPETokenizer", "--tokenizer-path", "vocabulary"]  # fmt: skip
    run("scripts/convert_glm_checkpoint_to_transformers.py", *words, cwd=folder)
    tokenizer = build_tokenizer("GPT2BPETokenizer", path=folder / "vocabulary", task_mask=True)
    return BlankFiller(model, tokenizer), folder


def execute(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    variables: dict[str, Any] = {}
    exec(compile(block, "docs/huggingface.md", "exec"), variables)
    return variables


@pytest.mark.slow
def test_several_blanks(filler: tuple[BlankFiller, Path], monkeypatch: pytest.MonkeyPatch):
    own, folder = filler
    several, _ = blocks()
    found = execute(several, folder, monkeypatch)["pieces"]
    texts = re.findall(r'"([^"]*\[MASK\][^"]*)"', several)
    expected = own.fill(texts, settings=DecodingSettings(max_length=8, top_k=1))
    assert found == [[list(piece) for piece in result.pieces] for result in expected]
    assert [len(pieces) for pieces in found] == [2, 1]


@pytest.mark.slow
def test_the_pipeline(
    filler: tuple[BlankFiller, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    own, folder = filler
    _, pipelined = blocks()
    execute(pipelined, folder, monkeypatch)
    printed = capsys.readouterr().out
    texts = re.findall(r'"([^"]*\[MASK\][^"]*)"', pipelined)
    for expected in own.fill(texts, settings=DecodingSettings(max_length=8, top_k=1)):
        assert repr(expected.answers[0])[1:-1] in printed
