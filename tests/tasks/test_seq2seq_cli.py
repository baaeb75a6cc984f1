"""finetune_glm.py and the scripts on sequence-to-sequence tasks, as a user runs them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import REPOSITORY
from tests.helpers.launching import metrics, run
from tests.helpers.small_corpus import WORDS, SmallCorpus, make_corpus

SIZES = ("--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "2", "--max-position-embeddings", "64")
FLAGS = (
    "--task", "customization", "--data-dir", "data", "--block-lm", *SIZES, "--tokenizer-type", "SentencePieceTokenizer",
    "--batch-size", "4", "--lr", "1e-2", "--device", "cpu", "--log-interval", "1", "--hidden-dropout", "0",
    "--attention-dropout", "0", "--no-progress", "--src-seq-length", "24", "--tgt-seq-length", "8", "--num-beams", "3",
    "--length-penalty", "0.7", "--no-repeat-ngram-size", "3", "--label-smoothing", "0.1",
)  # fmt: skip
REPORT = 'import json, sys\nprint(json.dumps({"words": sys.argv[1:]}))\n'


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def write_pairs(folder: Path, split: str, count: int, *, missing: int = 0) -> None:
    """Write sources of different lengths; the target is the beginning of its source."""
    folder.mkdir(exist_ok=True)
    sources = [
        " ".join(WORDS[(number * 3 + step) % len(WORDS)] for step in range(2 + number)) for number in range(count)
    ]
    targets = [" ".join(source.split()[:2]) for source in sources]
    (folder / f"{split}.source").write_text("".join(f"{line}\n" for line in sources), encoding="utf-8")
    (folder / f"{split}.target").write_text("".join(f"{line}\n" for line in targets[missing:]), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("task")
    for split, count in (("train", 14), ("val", 5), ("test", 7)):
        write_pairs(root / "data", split, count)
    return root


def flags(corpus: SmallCorpus, *more: str) -> list[str]:
    return [*FLAGS, "--tokenizer-path", str(corpus.folder / "tokenizer.model"), *more]


def lines(folder: Path, name: str, file: str) -> list[str]:
    return (folder / "runs" / name / file).read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def straight(corpus: SmallCorpus, folder: Path) -> str:
    given = ("--epochs", "4", "--eval-epoch", "2", "--save", "c", "--experiment-name", "s")
    return run("finetune_glm.py", *flags(corpus, *given), cwd=folder)


def test_a_run_leaves_what_it_promises(straight: str, folder: Path) -> None:
    assert straight.count(" >> |epoch: ") == 3, "after epochs 2 and 4, and of the test split"
    results = json.loads((folder / "runs" / "s" / "results.json").read_text(encoding="utf-8"))
    assert results["type"] == "validation" and results["epoch"] in (1, 3)
    assert 0.0 <= results["rouge-1"] <= 1.0
    found = json.loads((folder / "runs" / "s" / "test_results.json").read_text(encoding="utf-8"))
    assert found["type"] == "test" and {"rouge-1", "rouge-2", "rouge-l", "bleu", "sacrebleu", "chrf"} <= set(found)
    assert lines(folder, "s", "test.jsonl.refs") == (folder / "data" / "test.target").read_text("utf-8").splitlines()
    assert len(lines(folder, "s", "test.jsonl.hyps")) == 7
    losses = [row["loss"] for row in metrics(folder, "s") if row["kind"] == "train"]
    assert len(losses) == 16 and losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "more"),
    [
        (1, ["--eval-batch-size", "1"]),
        (1, ["--eval-batch-size", "16"]),
        (2, ["--eval-batch-size", "4"]),
        (2, ["--eval-batch-size", "4", "--model-parallel-size", "2"]),
    ],
    ids=["one by one", "all together", "data ranks", "tensor-parallel ranks"],
)
def test_evaluation_alone_writes_the_same_texts(
    ranks: int, more: list[str], corpus: SmallCorpus, folder: Path, straight: str
) -> None:
    name = f"e-{ranks}-{'-'.join(more[1::2])}"
    given = ["--epochs", "0", "--no-validation", "--load-pretrained", "c/s/best", "--experiment-name", name, *more]
    output = run("finetune_glm.py", *flags(corpus, *given), cwd=folder, ranks=ranks)
    assert output.count(" >> |epoch: 0| overall: total = 7") == 1, "one rank speaks"
    assert lines(folder, name, "test.jsonl.hyps") == lines(folder, "s", "test.jsonl.hyps")
    found = [
        json.loads((folder / "runs" / run_name / "test_results.json").read_text("utf-8")) for run_name in (name, "s")
    ]
    assert found[0] == pytest.approx(found[1])


@pytest.mark.slow
def test_two_data_ranks_start_as_one(corpus: SmallCorpus, folder: Path, straight: str) -> None:
    given = flags(corpus, "--epochs", "1", "--experiment-name", "two")
    given[given.index("--batch-size") + 1] = "2"
    run("finetune_glm.py", *given, cwd=folder, ranks=2)
    first = [next(row["loss"] for row in metrics(folder, name) if row["kind"] == "train") for name in ("two", "s")]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    assert len(lines(folder, "two", "test.jsonl.hyps")) == 7


@pytest.mark.slow
def test_as_the_original(corpus: SmallCorpus, folder: Path, straight: str) -> None:
    """Padding is visible and candidates are drawn: other texts, the same for every batch size."""
    for size in ("1", "5"):
        given = ["--epochs", "0", "--compatible", "--load-pretrained", "c/s/best", "--experiment-name", f"o{size}"]
        run("finetune_glm.py", *flags(corpus, *given, "--eval-batch-size", size), cwd=folder)
    assert lines(folder, "o1", "test.jsonl.hyps") == lines(folder, "o5", "test.jsonl.hyps")
    assert lines(folder, "o1", "test.jsonl.hyps") != lines(folder, "s", "test.jsonl.hyps")


@pytest.mark.slow
def test_deepspeed(corpus: SmallCorpus, folder: Path, straight: str) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is an extra")
    content = json.loads((REPOSITORY / "config_tasks" / "config_blocklm_10B_cnndm.json").read_text(encoding="utf-8"))
    content["optimizer"]["params"]["lr"] = 1e-2
    (folder / "ds.json").write_text(json.dumps(content), encoding="utf-8")
    given = flags(corpus, "--epochs", "1", "--experiment-name", "ds", "--deepspeed", "--deepspeed_config", "ds.json")
    given[given.index("--lr") + 1] = "0.5"
    output = run("finetune_glm.py", *given, cwd=folder)
    assert re.search(r"ds.json sets .*\blr = 0.01\b", output)
    assert len(lines(folder, "ds", "test.jsonl.hyps")) == 7
    content["zero_optimization"] = {"stage": 3}
    (folder / "ds3.json").write_text(json.dumps(content), encoding="utf-8")
    given[given.index("ds.json")] = "ds3.json"
    assert "use stage 2 or 1" in run("finetune_glm.py", *given, "--overwrite", cwd=folder, code=2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data-dir", "absent"], "absent/train.source"),
        (["--data-dir", "unequal"], "unequal/train.source"),
        (["--data-dir", "empty"], "empty/train.source"),
        (["--tgt-seq-length", "65"], "--tgt-seq-length 65"),
        (["--min-tgt-length", "9"], "--min-tgt-length 9"),
        (["--num-beams", "0"], "--num-beams is 0"),
        (["--label-smoothing", "1"], "--label-smoothing"),
        (["--validation-metric", "rouge"], "customization has rouge-1"),
        (["--masked-lm"], "--masked-lm"),
    ],
)
def test_mistakes_end_in_one_line(more: list[str], message: str, corpus: SmallCorpus, folder: Path) -> None:
    for name, missing in (("unequal", 2), ("empty", 0)):
        for split in ("train", "val", "test"):
            write_pairs(folder / name, split, 0 if name == "empty" else 4, missing=missing)
    given = flags(corpus, "--epochs", "1", "--experiment-name", "x", *more)
    output = run("finetune_glm.py", *given, cwd=folder, code=2)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], output
    assert "Traceback" not in output


def test_the_name_squad_means_this_task_when_sources_have_a_length(corpus: SmallCorpus, folder: Path) -> None:
    output = run("finetune_glm.py", *flags(corpus, "--epochs", "1", "--task", "squad"), cwd=folder, code=2)
    assert "train-v2.0.json" in output


REAL = {
    "gigaword": ("gigaword_style", ()),
    "cnn_dm": ("cnn_dm", ("--mask-pad-token",)),
    "cnn_dm_original": ("cnn_dm_original", ("--compatible", "--select-topk")),
    "xsum": ("xsum", ("--no-block-position",)),
    "squad": ("squad", ("--validation-metric", "F1")),
    "squad_v1": ("squad", ()),
    "squad_generation": ("squad_generation", ()),
    "blank": ("blank_yahoo", ("--task-mask",)),
    "customization": ("customization", ("--task-mask", "--mask-pad-token", "--compatible")),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", REAL)
def test_real_data(task: str, data_dir: Path, vocab_dir: Path, tmp_path: Path) -> None:
    """Every task trains and decodes; sources are longer than the model's positions."""
    place, more = REAL[task]
    files = data_dir / "seq2seq" / place
    if not files.is_dir():
        pytest.skip(f"no {files}")
    output = run(
        "finetune_glm.py", "--task", task, "--data-dir", str(files), "--block-lm", *SIZES, "--tokenizer-model-type",
        "bert-base-uncased", "--vocab-dir", str(vocab_dir), "--device", "cpu", "--no-progress", "--limit", "5",
        "--epochs", "1", "--batch-size", "2", "--experiment-name", task, "--src-seq-length", "80", "--tgt-seq-length",
        "10", "--num-beams", "2", *more, cwd=tmp_path,
    )  # fmt: skip
    assert "--max-position-embeddings 64 is raised to 80" in output
    assert output.count(" >> |epoch: ") == 2
    references = lines(tmp_path, task, "test.jsonl.refs")
    if task.startswith("squad") and task != "squad_generation":
        assert {row["id"] for row in map(json.loads, references)} == set(
            json.loads(lines(tmp_path, task, "test.jsonl")[0])
        )
    else:
        assert len(lines(tmp_path, task, "test.jsonl.hyps")) == len(references) == 5


class Workplace:
    """The repository in links, so that runs and logs go elsewhere; ``report``: the program prints its words."""

    def __init__(self, folder: Path, *, report: bool = True) -> None:
        self.folder = folder / "glm"
        self.folder.mkdir()
        for name in (
            "scripts",
            "config_tasks",
            "tasks",
            "training",
            "generation",
            "model",
            "mpu",
            "data_utils",
            "files",
        ):
            (self.folder / name).symlink_to(REPOSITORY / name)
        if report:
            (self.folder / "finetune_glm.py").write_text(REPORT, encoding="utf-8")
        else:
            (self.folder / "finetune_glm.py").symlink_to(REPOSITORY / "finetune_glm.py")

    def run(self, script: str, *words: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        found = subprocess.run(
            ["bash", f"scripts/{script}", *words], cwd=self.folder, env={**environment, **variables},
            capture_output=True, text=True, encoding="utf-8", timeout=300,
        )  # fmt: skip
        assert found.returncode == code, found.stdout + found.stderr
        return found

    def words(self, script: str, *words: str, **variables: str) -> dict[str, str]:
        """Return the flags that the program is given, the last of each name."""
        output = self.run(script, *words, **variables).stdout
        given = next(json.loads(line)["words"] for line in output.splitlines() if line.startswith('{"words"'))
        return {name: value for name, value in zip(given, [*given[1:], ""]) if name.startswith("--")}


MODEL = "config_tasks/model_blocklm_tiny.sh"


def test_scripts_pass_the_flags_of_their_files(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    for file in sorted((REPOSITORY / "config_tasks").glob("seq_*.sh")):
        for script in ("finetune_seq2seq.sh", "ds_finetune_seq2seq.sh"):
            found = place.words(script, MODEL, f"config_tasks/{file.name}", "--seed", "5", DATA_PATH=".", EPOCHS="1")
            assert found["--epochs"] == "1" and found["--seed"] == "5"
            assert int(found["--src-seq-length"]) >= 192 and "--cloze-eval" in found
            assert ("--deepspeed" in found) == script.startswith("ds_")
            assert found["--data-dir"] == "."
    found = place.words("finetune_seq2seq.sh", MODEL, "config_tasks/seq_squad.sh", DATA_PATH=".")
    assert (found["--epochs"], found["--lr"], found["--batch-size"]) == ("10", "1e-5", "12")
    found = place.words("finetune_blank.sh", MODEL, DATA_PATH=".", MASK_RATIO="0.3", CHECKPOINT_PATH="/weights")
    assert (found["--task"], found["--blank-maskratio"]) == ("blank", "0.3")
    assert found["--load-pretrained"].startswith("/weights/")


def test_the_grid_lists_its_runs(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    options = {"DATA_PATH": ".", "LRS": "1e-5 2e-5", "EPOCHS": "3"}
    output = place.run("finetune_seq2seq_grid.sh", MODEL, "config_tasks/seq_xsum.sh", "--debug", **options).stdout
    runs = [shlex.split(line) for line in output.splitlines()]
    assert len(runs) == 6
    assert {(words[-1], words[words.index("--num-beams") + 1]) for words in runs} == {("1e-05", "6"), ("2e-05", "6")}
    assert all(words.count("--eval-batch-size") == 1 and "--seq-length" not in words for words in runs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no model file is named; name one of config_tasks/model_*.sh"),
        ([MODEL], "no sequence-to-sequence file is named"),
        (["config_tasks/seq_xsum.sh", MODEL], "xsum.sh is of the kind sequence-to-sequence (it sets no MODEL_ARGS)"),
        ([MODEL, "config_tasks/task_rte.sh"], "task_rte.sh is of the kind understanding (it sets no TASK_ARGS)"),
        ([MODEL, "config_tasks/seq_none.sh"], "seq_none.sh: no such file"),
        ([MODEL, "config_tasks/seq_xsum.sh"], "no such file or folder; set DATA_PATH"),
    ],
)
def test_scripts_ask_for_what_is_missing(words: list[str], message: str, tmp_path: Path) -> None:
    found = Workplace(tmp_path).run("finetune_seq2seq.sh", *words, code=2, DATA_ROOT="/nowhere")
    assert message in found.stderr


@pytest.mark.slow
def test_the_script_trains_and_writes(corpus: SmallCorpus, folder: Path, straight: str, tmp_path: Path) -> None:
    place = Workplace(tmp_path, report=False)
    tokenizer = f"--tokenizer-type SentencePieceTokenizer --tokenizer-path {corpus.folder / 'tokenizer.model'}"
    model = torch.load(folder / "c" / "s" / "best" / "mp_rank_00_model_states.pt", weights_only=True)
    (folder / "weights").mkdir()
    torch.save({"module": model["module"]}, folder / "weights" / "mp_rank_00_model_states.pt")
    variables = {
        "DATA_PATH": str(folder / "data"), "CHECKPOINT_PATH": str(folder), "TINY_MODEL": "weights",
        "TINY_LAYERS": "2", "TINY_HIDDEN_SIZE": "32", "TINY_HEADS": "2", "TINY_POSITIONS": "64",
        "TOKENIZER_ARGS": tokenizer, "N_GPU": "2", "EPOCHS": "1", "LIMIT": "6",
    }  # fmt: skip
    shorter = ["--src-seq-length", "24", "--tgt-seq-length", "8", "--min-tgt-length", "2", "--eval-epoch", "1"]
    place.run("finetune_seq2seq.sh", MODEL, "config_tasks/seq_customization.sh", *shorter, **variables)
    (made,) = {file.resolve() for file in (place.folder / "runs").glob("*/test.jsonl.hyps")}  # and a link to the run
    assert len(made.read_text(encoding="utf-8").splitlines()) == 6
    assert len(made.with_suffix(".refs").read_text(encoding="utf-8").splitlines()) == 6
