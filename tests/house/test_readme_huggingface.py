"""The Python blocks of both READMEs run as they stand on an exported model, and give what the programs here give."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer
from generation.infill import BlankFiller
from generation.sampling import DecodingSettings
from model.checkpoints.reading import shard_name
from model.config import GLMConfig
from model.heads import MultiTokenCloze
from model.modeling_glm import GLMModel
from tests.helpers import REPOSITORY

pytest.importorskip("safetensors", reason="safetensors is an extra")
pytest.importorskip("transformers", reason="transformers is an extra")
sys.path.insert(0, str(REPOSITORY / "scripts"))

from convert_glm_checkpoint_to_transformers import main as convert

READMES = ("README.md", "README.zh-CN.md")
CONFIG = GLMConfig(2, 32, 4, 384, max_position_embeddings=512, initializer_std=0.2)


def python_blocks(name: str, folder: Path = REPOSITORY) -> list[str]:
    """Return the Python blocks of a README."""
    text = (folder / name).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def without_comments(block: str) -> str:
    return re.sub(r"\s*#.*", "", block)


@pytest.fixture(scope="module")
def model() -> GLMModel:
    """Return a model with random weights; special tokens have zero embeddings and are never the best choice."""
    model = GLMModel(CONFIG, generator=torch.Generator().manual_seed(3)).eval()
    with torch.no_grad():
        model.word_embeddings.weight[256:] = 0.0
    return model


@pytest.fixture(scope="module")
def workplace(model: GLMModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``vocabulary``, bytes alone, and the export that the READMEs load."""
    from tokenizers.pre_tokenizers import ByteLevel

    folder = tmp_path_factory.mktemp("readme")
    vocabulary = folder / "vocabulary"
    vocabulary.mkdir()
    pieces = [*sorted(ByteLevel.alphabet()), "<|endoftext|>"]
    (vocabulary / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (vocabulary / "merges.txt").write_text("#version: 0.2\n")
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    torch.save({"module": model.state_dict()}, checkpoint / shard_name(0))
    flags = ["--tokenizer-type", "GPT2BPETokenizer", "--tokenizer-path", str(vocabulary), "--task-mask"]
    heads = ["--num-attention-heads", "4", "--make-vocab-size-divisible-by", "128"]
    convert([str(checkpoint), "--output", str(folder / "exported" / "glm-tiny"), *heads, *flags])
    return folder


@pytest.fixture(scope="module")
def tokenizer(workplace: Path) -> Tokenizer:
    return build_tokenizer("GPT2BPETokenizer", path=workplace / "vocabulary", task_mask=True)


def run_parts(block: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Run a block in the folder that holds ``exported``; return its variables at each comment line and at its end."""
    monkeypatch.chdir(workplace)
    variables: dict[str, Any] = {}
    states = []
    for part in re.split(r"^# .*\n", block, flags=re.MULTILINE):
        exec(compile(part, "README", "exec"), variables)
        states.append(dict(variables))
    return states


def test_both_readmes_have_the_same_blocks():
    english, chinese = (list(map(without_comments, python_blocks(name))) for name in READMES)
    assert len(english) == 2
    assert english == chinese


@pytest.mark.slow
def test_generation_and_training(
    workplace: Path,
    model: GLMModel,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    block = python_blocks("README.md")[0]
    loaded, generated, trained = run_parts(block, workplace, monkeypatch)
    assert loaded["tokenizer"].eop_token_id == tokenizer.command_id("eop")

    prompt = re.search(r'tokenizer\("(Ng is.*?)", return_tensors', block)[1]
    filler = BlankFiller(model, tokenizer)
    context = [tokenizer.command_id("ENC"), *tokenizer.encode(prompt), tokenizer.command_id("eos")]
    ids = generated["outputs"][0].tolist()
    assert ids[: len(context) + 1] == [*context, tokenizer.command_id("sop")]
    answer = ids[len(context) + 1 :]
    [filled] = filler.fill([prompt], settings=DecodingSettings(max_length=len(answer), top_k=1))
    assert len(answer) > 100
    assert len(set(answer)) > 5
    assert list(filled.pieces[0]) == answer
    assert generated["tokenizer"].decode(ids) + "\n" in capsys.readouterr().out

    inputs, loss, labels = trained["inputs"], trained["loss"], trained["inputs"]["labels"]
    assert trained["logits"].shape == (*inputs["input_ids"].shape, CONFIG.vocab_size)
    assert labels.ge(0).sum() == 7 + 1 + 2 + 1  # the letters of the two answers and their ends
    with torch.no_grad():
        native = model(
            inputs["input_ids"], inputs["position_ids"], inputs["attention_mask"],
            labels=labels.clamp(min=0), loss_mask=labels.ge(0).float(),
        )  # fmt: skip
    torch.testing.assert_close(loss.detach(), native.mean, atol=1e-5, rtol=1e-5)


def test_classification(workplace: Path, model: GLMModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    [found] = run_parts(python_blocks("README.md")[1], workplace, monkeypatch)
    logits, choices = found["logits"], found["choices"]
    assert logits.shape == (2, 2)
    texts = ["Tsinghua University is located in [MASK].", "One minus one equals zero, is it correct? Answer: [MASK]"]
    head = MultiTokenCloze(model)
    start, mask = tokenizer.command_id("sop"), tokenizer.command_id("MASK")
    for text, row, scores in zip(texts, choices, logits.detach()):
        context = [tokenizer.command_id("ENC"), *tokenizer.encode(text), tokenizer.command_id("eos")]
        for choice, score in zip(row, scores):
            answer = tokenizer.encode(choice)
            length, count = len(context), len(answer)
            columns = torch.tensor([*range(length), *[context.index(mask)] * count])
            blocks = torch.tensor([0] * length + list(range(1, count + 1)))
            with torch.no_grad():
                native = head(
                    torch.tensor([[*context, start, *answer[:-1]]]), torch.stack([columns, blocks])[None],
                    torch.tensor([length]), torch.tensor([[0] * length + answer]),
                    torch.tensor([[0.0] * length + [1.0] * count]),
                )  # fmt: skip
            torch.testing.assert_close(score[None], native, atol=1e-5, rtol=1e-5)


def test_the_model_card_runs(workplace: Path, model: GLMModel, monkeypatch: pytest.MonkeyPatch, capsys):
    folder = workplace / "exported" / "glm-tiny"
    [block] = python_blocks("README.md", folder)
    [found] = run_parts(block, folder, monkeypatch)
    assert found["tokenizer"].decode(found["outputs"][0].tolist()) + "\n" == capsys.readouterr().out
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{model.num_parameters():,} parameters" in card
