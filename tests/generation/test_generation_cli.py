"""generate_samples.py and scripts/generate_block.sh as a user runs them, on a small model with random weights."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from generate_samples import main
from mpu.kernels.int8 import Int8Linear
from tests.helpers import REPOSITORY
from tests.helpers.small_models import random_model

SIZES = ["--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "4", "--max-position-embeddings", "64"]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a SentencePiece model of a few hundred pieces."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("tokenizer")
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (folder / "text.txt").write_text(text, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "t"), vocab_size=200, minloglevel=2, num_threads=1
    )
    return folder / "t.model"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of the released layout, without tracker, for a padded vocabulary of 256.

    Command tokens have zero embeddings: they are never among the best ones, which are all above 0.
    """
    folder = tmp_path_factory.mktemp("weights") / "tiny-blank"
    folder.mkdir()
    weights = random_model(vocab_size=256).state_dict()
    weights["word_embeddings.weight"][200:] = 0.0
    torch.save({"module": weights}, folder / "mp_rank_00_model_states.pt")
    return folder


@pytest.fixture
def arguments(tokenizer_file: Path, checkpoint: Path) -> list[str]:
    tokenizer = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-path", str(tokenizer_file)]
    return ["--block-lm", "--task-mask", *SIZES, *tokenizer, "--load-pretrained", str(checkpoint), "--device", "cpu"]


def test_help_needs_neither_torch_nor_numpy(repository: Path):
    command = [sys.executable, "generate_samples.py", "--help"]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert "--length-penalty" in run.stdout
    check = "import sys, generate_samples; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", check], cwd=repository, check=True)


def test_weights_of_8_bits(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Nearly the same scores choose the same tokens here."""
    loaded = []
    monkeypatch.setattr("generation.api.Int8Linear", lambda *given: loaded.append(Int8Linear(*given)) or loaded[-1])
    options = ["--prompt", "the first [MASK] .", "--top-k", "1", "--out-seq-length", "3"]
    texts = []
    for precision in (["--bf16"], ["--int8"], ["--int8", "--bf16"]):
        assert main([*arguments, *options, *precision]) == 0
        texts.append(re.search(r"Filled: .*", capsys.readouterr().out).group())
    assert texts[0] == texts[1] == texts[2]
    assert len(loaded) == 2 * (2 * 4 + 1)  # four matrices of two layers and the vocabulary, twice


def test_prompts_and_files(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    source, target = tmp_path / "prompts.txt", tmp_path / "filled.jsonl"
    source.write_text("a second [MASK] and [sMASK]\n", encoding="utf-8")
    options = ["--prompt", "the first [MASK] .", "--input", str(source), "--output", str(target), "--top-k", "1"]
    assert main([*arguments, *options, "--out-seq-length", "5"]) == 0
    printed = capsys.readouterr().out
    assert "parameters of iteration 0" in printed
    assert "0 missing" in printed
    rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == ["the first [MASK] .", "a second [MASK] and [sMASK]"]
    assert [len(row["answers"]) for row in rows] == [1, 2]
    for row in rows:
        assert "MASK]" not in row["filled"]
        assert f"Filled: {row['filled']}" in printed


def test_half_precision_on_a_cpu_falls_back(arguments: list[str], capsys: pytest.CaptureFixture):
    assert main([*arguments, "--fp16", "--out-seq-length", "99", "--num-beams", "2", "--prompt", "a [gMASK]"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert sum("fp16" in line for line in printed) == 1
    assert printed[0] == "note: --out-seq-length 99 is lowered to the model's 64 positions"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--prompt", "no blank"], "--prompt 1: no blank to fill"),
        (["--prompt", "the " * 99 + "[MASK]"], "--prompt 1: the prompt has"),
        (["--load-pretrained", "nowhere"], "nowhere does not exist"),
        (["--num-layers", "3"], "another architecture"),
        (["--max-position-embeddings", "128"], "--max-position-embeddings 64"),
        (["--make-vocab-size-divisible-by", "512"], "has a vocabulary of 256, the model one of 512"),
        (["--input", "nothing.txt"], "no such file"),
        (["--temperature", "0"], "--temperature is 0.0"),
        (["--output", "x.jsonl"], "--output needs"),
        (["--load-pretrained", ""], "no weights"),
    ],
)
def test_mistakes(arguments: list[str], change: list[str], message: str):
    extra = [] if {"--prompt", "--input", "--output"} & set(change) else ["--prompt", "[MASK]"]
    with pytest.raises(ValueError, match=message) as error:
        main([*arguments, *extra, "--out-seq-length", "4", *change])
    assert "\n" not in str(error.value)


def test_a_mistake_is_one_line_and_exit_code_2(repository: Path):
    run = subprocess.run(
        [sys.executable, "generate_samples.py", "--block-lm"], cwd=repository, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert run.stderr == "error: no weights: name a checkpoint with --load-pretrained\n"


@pytest.mark.slow
def test_generate_block(repository: Path, tokenizer_file: Path, checkpoint: Path, tmp_path: Path):
    """Type a context with three blanks, one without, an empty line, ``stop``."""
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "CHECKPOINT_PATH": str(checkpoint.parent),
        "TINY_MODEL": checkpoint.name,
        "TINY_LAYERS": "2",
        "TINY_HIDDEN_SIZE": "32",
        "TINY_HEADS": "4",
        "TINY_POSITIONS": "64",
        "TOKENIZER_ARGS": f"--tokenizer-type SentencePieceTokenizer --tokenizer-path {tokenizer_file}",
    }
    command = ["bash", "scripts/generate_block.sh", "config_tasks/model_blocklm_tiny.sh"]
    options = ["--samples-dir", str(tmp_path / "samples"), "--out-seq-length", "6", "--device", "cpu"]
    typed = "a [MASK] b [sMASK] c [MASK]\nno mask\n\nstop\n"
    run = subprocess.run(
        [*command, *options], cwd=repository, env=environment, input=typed, capture_output=True, text=True, check=True
    )
    assert run.stdout.count("\nContext prompt (stop to exit) >>> ") == 4
    assert "Prompt should not be empty!" in run.stdout
    answers = [line for line in run.stdout.splitlines() if line.startswith("GLM: ")]
    assert [line.count("<|startofpiece|>") for line in answers] == [3, 1]
    assert all(line.startswith("GLM: <|startofpiece|>") for line in answers)
    assert "\nContext: no mask [gMASK]\n" in run.stdout
    [samples] = (tmp_path / "samples").iterdir()
    lines = samples.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("a [MASK] b [sMASK] c [MASK]<|startofpiece|>")
    wrong = subprocess.run(
        [*command, "--load-pretrained", "nowhere"], cwd=repository, env=environment, capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("error: checkpoint folder nowhere does not exist")
    nothing = subprocess.run(["bash", "scripts/generate_block.sh"], cwd=repository, capture_output=True, text=True)
    assert nothing.returncode == 2
    assert nothing.stderr.startswith("error: name a model file")
