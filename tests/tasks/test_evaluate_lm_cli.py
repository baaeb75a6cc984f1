"""scripts/evaluate_lm.sh and the language-model tasks as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data_utils.tokenizers.tokenizer import build_tokenizer
from generation.api import GLM, load_model
from model.modeling_glm import GLMModel
from tests.helpers.launching import run
from tests.helpers.small_corpus import WORDS, SmallCorpus, make_corpus
from tests.helpers.small_models import random_model

POSITIONS = 64
SIZES = [
    "--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "4", "--max-position-embeddings",
    str(POSITIONS),
]  # fmt: skip
TASKS = {
    "zero_lambada": {"accuracy"},
    "zero_lambada_uni": {"accuracy"},
    "zero_lm": {"avg loss", "ppl", "adjusted ppl", "loss per token", "ppl per token"},
    "zero_lm_uni": {"avg loss", "ppl", "adjusted ppl", "loss per token", "ppl per token"},
    "zero_wikitext": {"avg loss", "ppl", "adjusted ppl", "loss per token", "ppl per token"},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def model() -> GLMModel:
    return random_model(vocab_size=128, positions=POSITIONS)


@pytest.fixture(scope="module")
def checkpoint(corpus: SmallCorpus, model: GLMModel) -> Path:
    folder = corpus.folder / "tiny-lm"
    folder.mkdir()
    torch.save({"module": model.state_dict()}, folder / "mp_rank_00_model_states.pt")
    return folder


@pytest.fixture(scope="module")
def glm(corpus: SmallCorpus, checkpoint: Path, model: GLMModel) -> GLM:
    tokenizer = build_tokenizer("SentencePieceTokenizer", path=corpus.folder / "tokenizer.model", task_mask=True)
    return load_model(checkpoint, config=model.config, tokenizer=tokenizer)


def passage(number: int) -> str:
    return " ".join(WORDS[(number * 7 + step * step) % len(WORDS)] for step in range(3 + number % 9))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, glm: GLM) -> Path:
    """Return a folder with the three files; every third passage ends in what the model would say."""
    root = tmp_path_factory.mktemp("lm")
    rows = []
    for number in range(19):
        text = passage(number)
        if number % 3 == 0:
            found = [glm.loglikelihood([text], [f" {word}"])[0].log_probability for word in WORDS]
            text = f"{text} {WORDS[found.index(max(found))]}"
        rows.append(json.dumps({"text": text}))
    (root / "lambada_test.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    lines = [" ".join(passage(number + step) for step in range(1 + number % 4)) for number in range(6)]
    (root / "bert-large-test.txt").write_text("\n".join(["", *lines, ""]), encoding="utf-8")
    (root / "wikitext-103").mkdir()
    wiki = " \n = Time = \n \n " + " . \n ".join(lines) + " @-@ end . \n"
    (root / "wikitext-103" / "wiki.test.tokens").write_text(wiki, encoding="utf-8")
    return root


def flags(corpus: SmallCorpus, checkpoint: Path, task: str, file: Path, *more: str) -> list[str]:
    return [
        "--task", task, "--valid-data", str(file), "--block-lm", "--task-mask", *SIZES, "--seq-length", "32",
        "--overlapping-eval", "9", "--device", "cpu", "--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-path",
        str(corpus.folder / "tokenizer.model"), "--load-pretrained", str(checkpoint), "--overwrite", *more,
    ]  # fmt: skip


def results(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "runs" / name / "test_results.json").read_text(encoding="utf-8"))


def script_environment(corpus: SmallCorpus, checkpoint: Path, data: Path) -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHON": sys.executable,
        "CHECKPOINT_PATH": str(checkpoint.parent),
        "TINY_MODEL": checkpoint.name,
        "TINY_LAYERS": "2",
        "TINY_HIDDEN_SIZE": "32",
        "TINY_HEADS": "4",
        "TINY_POSITIONS": str(POSITIONS),
        "TOKENIZER_ARGS": f"--tokenizer-type SentencePieceTokenizer --tokenizer-path {corpus.folder}/tokenizer.model",
        "DATA_ROOT": str(data),
    }


@pytest.mark.parametrize("task", TASKS)
def test_the_script(task: str, corpus, checkpoint, data: Path, repository: Path, tmp_path: Path):
    """Every task file gives its figures; --unidirectional goes with each."""
    command = ["bash", "scripts/evaluate_lm.sh", "config_tasks/model_blocklm_tiny.sh", f"config_tasks/{task}.sh"]
    more = ["--seq-length", "32", "--overlapping-eval", "9", "--summary-dir", str(tmp_path), "--device", "cpu"]
    if task == "zero_wikitext":
        more.append("--unidirectional")
    environment = script_environment(corpus, checkpoint, data)
    finished = subprocess.run(
        [*command, *more, "--experiment-name", "e"], cwd=repository, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    found = results(tmp_path, "e")
    assert found.pop("type") == "test"
    assert set(found) == TASKS[task]
    lines = finished.stdout.splitlines()
    first = next(number for number, line in enumerate(lines) if line.split()[:2] == ["task", "split"]) + 1
    table = lines[first : first + len(found)]
    assert [line.split("  ")[0].strip() for line in table] == [line.split()[0] for line in table]
    for (name, value), line in zip(found.items(), table, strict=True):
        assert name in line and f" {value:.4f} " in line


def test_the_script_names_what_is_missing(repository: Path):
    command = ["bash", "scripts/evaluate_lm.sh", "config_tasks/model_blocklm_tiny.sh"]
    missing = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert missing.returncode == 2 and missing.stderr.startswith("error: no evaluation file is named")
    environment = {**os.environ, "DATA_PATH": "/no/such/file"}
    finished = subprocess.run(
        [*command, "config_tasks/zero_lm.sh"], cwd=repository, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 2 and finished.stderr.startswith("error: DATA_PATH /no/such/file: no such")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "file", "more"),
    [("lambada", "lambada_test.jsonl", []), ("language_model", "bert-large-test.txt", ["--unidirectional"])],
)
def test_figures_do_not_depend_on_batches_or_ranks(
    task: str, file: str, more: list[str], corpus, checkpoint, data: Path, tmp_path: Path
):
    """One by one; two ranks that share the windows; two ranks that share the model."""
    found = []
    for ranks, batch_size, parallel in ((1, 1, 1), (2, 4, 1), (2, 16, 2)):
        words = flags(
            corpus, checkpoint, task, data / file, "--eval-batch-size", str(batch_size), "--model-parallel-size",
            str(parallel), "--experiment-name", "same", *more,
        )  # fmt: skip
        run("finetune_glm.py", *words, cwd=tmp_path, ranks=ranks)
        found.append(results(tmp_path, "same"))
    first, *others = found
    for other in others:
        assert other.keys() == first.keys()
        for name, value in first.items():
            assert other[name] == (value if name == "type" else pytest.approx(value, rel=1e-5)), name
    assert task != "lambada" or 0.0 < first["accuracy"] < 100.0


def test_the_first_lines(corpus, checkpoint, data: Path, tmp_path: Path):
    words = flags(corpus, checkpoint, "lambda", data / "lambada_test.jsonl", "--limit", "5", "--experiment-name", "n")
    output = run("finetune_glm.py", *words, cwd=tmp_path)
    assert "lambda: 5 passages of" in output and results(tmp_path, "n")["limit"] == 5


@pytest.mark.parametrize(
    ("task", "content", "more", "message"),
    [
        ("lambada", '{"text": "day"\n', [], "wrong.txt, line 1: not valid JSON"),
        ("lambada", '{"text": "a day"}\n{"word": "day"}\n', [], "wrong.txt, line 2: no 'text'; it has word"),
        ("wikitext", "", [], "wrong.txt, line 1: no text; wikitext evaluates running text"),
        ("language_model", "day\n", ["--seq-length", "128"], "--seq-length 128 does not fit --max-position-embeddings"),
        ("language_model", "day\n", ["--sentinel-token", "--seq-length", "128"], "--seq-length 128 does not fit"),
        ("language_model", "day\n", ["--overlapping-eval", "32"], "--overlapping-eval 32 would leave ids unscored in"),
        ("language_model", "day\n", ["--epochs", "2"], "--epochs 2: language_model only evaluates; leave --epochs out"),
        ("language_model", "day\n", ["--masked-lm"], "language_model needs two rows of positions"),
        ("language_model", "day\n", ["--valid-data"], "language_model evaluates one file: give --valid-data FILE"),
    ],
)
def test_a_mistake_ends_in_one_line(
    task: str, content: str, more: list[str], message: str, corpus, checkpoint, tmp_path: Path
):
    file = tmp_path / "wrong.txt"
    file.write_text(content, encoding="utf-8")
    output = run("finetune_glm.py", *flags(corpus, checkpoint, task, file, *more), cwd=tmp_path, code=2)
    [error] = [line for line in output.splitlines() if line.startswith("error: ")]
    assert message in error and "Traceback" not in output


@pytest.mark.slow
def test_real_data(data_dir: Path, vocab_dir: Path, repository: Path, tmp_path: Path):
    """The first lines of the real files in both directions; an untrained model is as good as chance."""
    folder = tmp_path / "weights" / "tiny-real"
    folder.mkdir(parents=True)
    real = random_model(vocab_size=30592, positions=256)
    torch.save({"module": real.state_dict()}, folder / "mp_rank_00_model_states.pt")
    files = {
        "lambda": data_dir / "lm" / "lambada_test.jsonl",
        "wikitext": data_dir / "lm" / "wikitext-103" / "wiki.test.tokens",
        "language_model": data_dir / "lm" / "books_heldout.txt",
    }
    sizes = [*SIZES[:-1], "256", "--tokenizer-model-type", "bert-base-uncased"]
    for task, file in files.items():
        for direction in ([], ["--unidirectional"]):
            limit = {"lambda": "60", "wikitext": "25", "language_model": "1"}[task]
            output = subprocess.run(
                [
                    sys.executable, str(repository / "finetune_glm.py"), "--task", task, "--valid-data", str(file),
                    "--block-lm", "--task-mask", *sizes, "--seq-length", "256", "--overlapping-eval", "128", "--limit",
                    limit, "--device", "cpu", "--load-pretrained", str(folder), "--overwrite", "--eval-batch-size",
                    "8", "--experiment-name", "real", *direction,
                ],
                cwd=tmp_path, env={**os.environ, "GLM_VOCAB_DIR": str(vocab_dir), "OMP_NUM_THREADS": "1"},
                capture_output=True, text=True,
            )  # fmt: skip
            assert output.returncode == 0, output.stdout + output.stderr
            found = results(tmp_path, "real")
            if task == "lambda":
                assert 0.0 <= found["accuracy"] < 5.0
            else:
                assert found["adjusted ppl"] > 1000.0 and found["loss per token"] > 8.0
