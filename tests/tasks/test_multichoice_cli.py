"""scripts/evaluate_multichoice.sh and the task multichoice as a user runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data_utils.tokenizers.tokenizer import build_tokenizer
from generation.api import GLM, load_model
from tasks.registry import TASKS
from tasks.superglue.samples import EncodingOptions
from tests.helpers.launching import run
from tests.helpers.small_corpus import WORDS, SmallCorpus, make_corpus, task_flags, write_entailment_split
from tests.helpers.small_models import random_model

POSITIONS = 64
SIZES = [
    "--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "4", "--max-position-embeddings",
    str(POSITIONS), "--seq-length", str(POSITIONS),
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def checkpoint(corpus: SmallCorpus) -> Path:
    """Return a folder of weights for the corpus' tokenizer, padded to 128 ids."""
    folder = corpus.folder / "tiny-choices"
    folder.mkdir()
    weights = random_model(vocab_size=128, positions=POSITIONS).state_dict()
    torch.save({"module": weights}, folder / "mp_rank_00_model_states.pt")
    return folder


@pytest.fixture(scope="module")
def glm(corpus: SmallCorpus, checkpoint: Path) -> GLM:
    tokenizer = build_tokenizer("SentencePieceTokenizer", path=corpus.folder / "tokenizer.model", task_mask=True)
    return load_model(checkpoint, config=random_model(vocab_size=128, positions=POSITIONS).config, tokenizer=tokenizer)


def questions(count: int, *, start: int = 0) -> list[dict[str, Any]]:
    rows = []
    for number in range(start, start + count):
        words = [WORDS[(number * step) % len(WORDS)] for step in range(1, 5)]
        if number % 3:
            words.insert(number % 4, "[MASK]")
        choices = [WORDS[(number + step) % len(WORDS)] + " day" * (step % 2) for step in range(2 + number % 3)]
        rows.append(
            {"inputs_pretokenized": " ".join(words), "choices_pretokenized": choices, "label": number % len(choices)}
        )
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three files: labelled ones, one of them further down, and one without most labels."""
    root = tmp_path_factory.mktemp("choices") / "data"
    write(root / "first.jsonl", questions(21))
    write(root / "deeper" / "second.part.jsonl", questions(9, start=50))
    unlabelled = [{name: value for name, value in row.items() if name != "label"} for row in questions(6, start=70)]
    write(root / "third.jsonl", [*questions(4, start=90), *unlabelled])
    write(root / "fourth.jsonl", unlabelled)
    return root


def expected(glm: GLM, rows: list[dict[str, Any]]) -> list[int]:
    scores = glm.score(
        [row["inputs_pretokenized"] for row in rows], [row["choices_pretokenized"] for row in rows], batch_size=1
    )
    return [row.index(max(row)) for row in scores]


def accuracy(chosen: list[int], rows: list[dict[str, Any]]) -> float:
    pairs = [(choice, row["label"]) for choice, row in zip(chosen, rows) if "label" in row]
    return 100.0 * sum(choice == label for choice, label in pairs) / len(pairs)


def finetune_flags(corpus: SmallCorpus, checkpoint: Path, *more: str) -> list[str]:
    return [
        "--task", "multichoice", "--cloze-eval", "--block-lm", "--task-mask", *SIZES, "--epochs", "0", "--device",
        "cpu", "--no-validation", "--overwrite", "--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-path",
        str(corpus.folder / "tokenizer.model"), "--load-pretrained", str(checkpoint), *more,
    ]  # fmt: skip


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_script(corpus, checkpoint, folder: Path, repository: Path, tmp_path: Path):
    """Every file's accuracy and the overall one; answers of all files; nothing is trained."""
    environment = {
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
        "DATA_PATH": str(folder),
    }
    command = ["bash", "scripts/evaluate_multichoice.sh", "config_tasks/model_blocklm_tiny.sh"]
    more = ["--seq-length", str(POSITIONS), "--summary-dir", str(tmp_path), "--experiment-name", "e", "--device", "cpu"]
    result = subprocess.run([*command, *more], cwd=repository, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    files = {"first": 21, "second": 9, "third": 4}
    for name, count in files.items():
        assert f" >> |epoch: 0| multichoice-{name}: total = {count} accuracy = " in result.stdout
    assert "multichoice-fourth: no labels, so predictions only" in result.stdout
    assert " >> |epoch: 0| overall: total = 34 accuracy = " in result.stdout
    assert "update" not in result.stdout
    summary = tmp_path / "runs" / "e"
    assert "accuracy" in json.loads((summary / "test_results.json").read_text(encoding="utf-8"))
    for path in folder.rglob("*.jsonl"):
        rows = read_rows(summary / f"multichoice-{path.name.split('.')[0]}.jsonl")
        assert [set(row) for row in rows] == [{"idx", "label"}] * len(read_rows(path))
    missing = subprocess.run([command[0], command[1]], cwd=repository, capture_output=True, text=True)
    assert missing.returncode == 2 and missing.stderr.startswith("error: no model file is named")


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 1), (1, 16), (2, 4)])
def test_answers_do_not_depend_on_batches_or_ranks(
    ranks: int, batch_size: int, corpus, checkpoint, folder: Path, glm: GLM, tmp_path: Path
):
    """They are those of the Python API, one question at a time."""
    files = [folder / "first.jsonl", folder / "third.jsonl"]
    more = ["--eval-batch-size", str(batch_size), "--experiment-name", "n", "--test-data", *map(str, files)]
    output = run("finetune_glm.py", *finetune_flags(corpus, checkpoint, *more), cwd=tmp_path, ranks=ranks)
    correct = labelled = 0.0
    for file in files:
        rows, name = read_rows(file), file.stem
        chosen = expected(glm, rows)
        written = read_rows(tmp_path / "runs" / "n" / f"multichoice-{name}.jsonl")
        assert written == [{"idx": str(number), "label": choice} for number, choice in enumerate(chosen)]
        count = sum("label" in row for row in rows)
        assert f"multichoice-{name}: total = {count} accuracy = {accuracy(chosen, rows):.4f}" in output
        correct, labelled = correct + accuracy(chosen, rows) * count, labelled + count
    assert 0.0 < correct / labelled < 100.0
    result = json.loads((tmp_path / "runs" / "n" / "test_results.json").read_text(encoding="utf-8"))
    assert result["accuracy"] == pytest.approx(correct / labelled)


@pytest.fixture
def spread(tmp_path: Path) -> list[str]:
    """Return the flags of ZeRO stage 3, which has whole weights only inside the head: it runs rows one by one."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is an extra")
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    content = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": zero}
    content |= {"optimizer": {"type": "Adam", "params": {"lr": 1e-3}}}
    (tmp_path / "ds.json").write_text(json.dumps(content), encoding="utf-8")
    return ["--deepspeed", "--deepspeed_config", "ds.json", "--experiment-name", "z"]


@pytest.mark.slow
def test_answers_with_weights_that_are_spread(corpus, checkpoint, folder: Path, glm: GLM, spread, tmp_path: Path):
    more = [*spread, "--test-data", str(folder / "first.jsonl")]
    run("finetune_glm.py", *finetune_flags(corpus, checkpoint, *more), cwd=tmp_path, ranks=2)
    written = [row["label"] for row in read_rows(tmp_path / "runs" / "z" / "multichoice-first.jsonl")]
    assert written == expected(glm, read_rows(folder / "first.jsonl"))


@pytest.mark.slow
def test_answers_after_training_with_weights_that_are_spread(corpus, spread, tmp_path: Path):
    """Training leaves some weights whole for a while."""
    (tmp_path / "data").mkdir()
    for name, count in (("train", 18), ("val", 7), ("test", 5)):
        write_entailment_split(tmp_path / "data", name, count)
    output = run("finetune_glm.py", *task_flags(corpus, *spread, "--epochs", "1"), cwd=tmp_path, ranks=2)
    assert " >> |epoch: 0| overall: total = 7 accuracy = " in output


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices_pretokenized": []}, "line 2: choices_pretokenized is []; a list of texts is needed"),
        ({"choices_pretokenized": ["day", ""]}, "line 2: a choice is empty"),
        ({"choices_pretokenized": ["day " * 90], "label": 0}, "leaves no room for the text; raise --seq-length 64"),
        ({"label": 7}, "line 2: label is 7; the labels are 0, 1"),
        ({"inputs_pretokenized": None}, "line 2: inputs_pretokenized is null"),
        (None, "no questions in it"),
    ],
)
def test_mistakes_name_file_and_line(row: dict[str, Any] | None, message: str, glm: GLM, tmp_path: Path):
    first, second = questions(2)
    file = write(tmp_path / "wrong.jsonl", [] if row is None else [first, {**second, **row}])
    task, options = TASKS["multichoice"], EncodingOptions(seq_length=POSITIONS)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        task.build_samples(task.examples(None, str(file)), glm.tokenizer, options)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_a_mistake_ends_in_one_line(corpus, checkpoint, tmp_path: Path):
    row = {**questions(1)[0], "label": 9}
    file = write(tmp_path / "wrong.jsonl", [*questions(1), row])
    output = run("finetune_glm.py", *finetune_flags(corpus, checkpoint, "--test-data", str(file)), cwd=tmp_path, code=2)
    [error] = [line for line in output.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: {file}, line 2: label is 9; the labels are 0, 1") and "Traceback" not in output


def test_files_that_are_not_there_or_share_a_name(tmp_path: Path):
    task = TASKS["multichoice"]
    with pytest.raises(ValueError, match=re.escape("no/*.jsonl: no such file")):
        task.splits(["no/*.jsonl"])
    same = [str(write(tmp_path / name, questions(1))) for name in ("a.one.jsonl", "a.two.jsonl")]
    with pytest.raises(ValueError, match="predictions of the same name; rename one up to its first dot"):
        task.splits(same)
