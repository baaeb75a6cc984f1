"""generate_samples.py and scripts/generate_block.sh as a user runs them, on a small model with random weights."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--top-k", "-1"], "--top-k is -1"),
        (["--top-k", "x"], "--top-k"),
        (["--top-p", "nan"], "--top-p is nan"),
        (["--top-p", "1.5"], "--top-p is 1.5"),
        (["--temperature", "inf"], "--temperature is inf"),
        (["--temperature", "1e-40"], "--temperature is 1e-40"),
        (["--num-beams", "0"], "--num-beams is 0"),
        (["--num-beams", "1000000"], "--num-beams is 1000000"),
        (["--length-penalty", "1e308"], "--length-penalty is 1e[+]308"),
        (["--out-seq-length", "0"], "--out-seq-length is 0"),
        (["--min-tgt-length", "9"], "--min-tgt-length 9 is above"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--eval-batch-size", "-2"], "--eval-batch-size is -2"),
        (["--prompt", "a \udcff [MASK]"], "--prompt 1: the text has '.udcff' at character 2"),
        (["--output", "/"], "/ is a folder; give the name of a file"),
        (["--output", "/dev/null/x"], "/dev/null is a file, no folder"),
        (["--output", "x" * 300], "cannot be written"),
    ],
)
def test_values_out_of_range(arguments: list[str], change: list[str], message: str):
    with pytest.raises(ValueError, match=message) as error:
        main([*arguments, "--prompt", "[MASK]", "--out-seq-length", "4", *change])
    assert "\n" not in str(error.value)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text("the \u6545 [MASK]\n[MASK] and [sMASK]\n", encoding="utf-8")
    return tmp_path / "prompts.txt"


def generate(arguments: list[str], *words: str, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    given = [*arguments, "--top-k", "1", "--out-seq-length", "4", "--input", "prompts.txt", *words]
    command = [sys.executable, str(REPOSITORY / "generate_samples.py"), *given]
    return subprocess.run(command, cwd=folder, stderr=subprocess.PIPE, text=True, encoding="utf-8", **options)


def test_results_are_written_whatever_happens_to_what_is_printed(arguments: list[str], prompts: Path):
    folder, output = prompts.parent, prompts.with_name("filled.jsonl")
    words = ["--top-k", "1", "--out-seq-length", "4", "--input", str(prompts), "--output", str(output)]
    assert main([*arguments, *words]) == 0
    expected = output.read_bytes()
    assert len(expected.splitlines()) == 2
    output.unlink()

    reading, writing = os.pipe()
    os.close(reading)
    closed = generate(arguments, "--output", output.name, folder=folder, stdout=writing)
    os.close(writing)
    assert (closed.returncode, closed.stderr, output.read_bytes()) == (0, "", expected)
    output.unlink()

    with Path("/dev/full").open("w", encoding="utf-8") as full:
        unprinted = generate(arguments, "--output", output.name, folder=folder, stdout=full)
    assert unprinted.stderr == "warning: nothing more is printed (No space left on device)\n"
    assert (unprinted.returncode, output.read_bytes()) == (0, expected)
    output.unlink()

    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    narrow = generate(arguments, "--output", output.name, folder=folder, stdout=subprocess.PIPE, env=ascii_only)
    assert (narrow.returncode, output.read_bytes()) == (0, expected)
    assert "Prompt: the \\u6545 [MASK]\n" in narrow.stdout


def test_results_that_cannot_be_written_are_printed(arguments: list[str], prompts: Path):
    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8))  # bytes: a file for a moment can be made, as imports do

    folder = prompts.parent
    run = generate(arguments, "--output", "o.jsonl", folder=folder, stdout=subprocess.PIPE, preexec_fn=no_room)
    assert run.returncode == 2
    assert run.stderr == f"error: [Errno 27] File too large: '{folder / 'o.jsonl'}'\n"
    assert run.stdout.count("\nFilled: ") == 2
    assert [path.name for path in folder.iterdir()] == ["prompts.txt"]


def test_prompts_are_not_overwritten(arguments: list[str], prompts: Path):
    prompts.with_name("link.txt").symlink_to(prompts)
    with pytest.raises(ValueError, match=r"--output .*link.txt is the file of prompts; choose another name"):
        main([*arguments, "--input", str(prompts), "--output", str(prompts.with_name("link.txt"))])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("output", [True, False])
def test_a_signal_leaves_what_is_done(
    arguments: list[str], tmp_path: Path, capfd: pytest.CaptureFixture, number: signal.Signals, output: bool
):
    """It comes from a process of its own, some time after the first results are there."""
    (tmp_path / "a.txt").write_text("a [MASK]\n" * 3000, encoding="utf-8")
    words = ["--output", str(tmp_path / "o.jsonl")] if output else []
    options = ["--input", str(tmp_path / "a.txt"), "--out-seq-length", "50", "--eval-batch-size", "1"]
    program = f"import os, time; time.sleep(4); os.kill({os.getpid()}, {number})"
    killer = subprocess.Popen([sys.executable, "-c", program])
    with pytest.raises(SystemExit, match=str(128 + number)):
        main([*arguments, *options, *words])
    killer.wait()
    printed, said = capfd.readouterr()
    filled = int(
        re.search(r"note: (\d+) of 3000 prompts are filled; they are (?:in .*o.jsonl.partial|printed)", said)[1]
    )
    assert said.splitlines()[-1] == f"error: stopped by {number.name}"
    assert printed.count("\nFilled: ") == filled > 0
    if output:
        rows = (tmp_path / "o.jsonl.partial").read_text(encoding="utf-8").splitlines()
        assert [set(json.loads(row)) for row in rows] == [{"prompt", "answers", "filled"}] * filled
        assert not (tmp_path / "o.jsonl").exists()


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
    assert wrong.stderr.splitlines()[-1].startswith("error: checkpoint nowhere does not exist")
    nothing = subprocess.run(
        ["bash", "scripts/generate_block.sh", "--prompt", "She opened the [MASK] and went out.", "--top-k", "1"],
        cwd=repository, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True,
    )  # fmt: skip
    assert nothing.returncode == 0 and "this is the demo model" in nothing.stdout
    assert re.search(r"She opened the \w", nothing.stdout)
