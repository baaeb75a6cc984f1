"""finetune_glm.py as a user runs it: tiny real runs over one and two processes, resumed, and mistakes in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from model.checkpoints.describe import described
from tests.helpers.launching import losses, run, start, wait_for, workers
from tests.helpers.small_corpus import SmallCorpus, make_corpus, task_flags, write_entailment_split


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("task")
    (root / "data").mkdir()
    for name, count, labels in (("train", 18, True), ("val", 7, True), ("test", 5, False)):
        write_entailment_split(root / "data", name, count, labels=labels)
    return root


@pytest.fixture(scope="module")
def straight(corpus: SmallCorpus, folder: Path) -> str:
    return run(
        "finetune_glm.py", *task_flags(corpus, "--epochs", "3", "--save", "c", "--experiment-name", "s"), cwd=folder
    )


def test_a_run_leaves_what_it_promises(straight: str, folder: Path) -> None:
    summary, best = folder / "runs" / "s", folder / "c" / "s"
    results = json.loads((summary / "results.json").read_text(encoding="utf-8"))
    assert results["type"] == "validation" and 0.0 <= results["accuracy"] <= 100.0
    assert json.loads((summary / "test_results.json").read_text(encoding="utf-8")) == {"type": "test"}
    predictions = (summary / "rte-test.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["idx"] for line in predictions] == list(range(5))
    assert {json.loads(line)["label"] for line in predictions} <= {"entailment", "not_entailment"}
    update = (best / "best_checkpointed_iteration.txt").read_text(encoding="utf-8")
    assert int(update) == 5 * (results["epoch"] + 1)
    assert (best / "best" / "mp_rank_00_model_states.pt").is_file()
    assert straight.count(" >> |epoch: ") == 3
    assert re.search(r"training on 18 examples of rte\n +validation +7 examples.*\n +test +5 examples", straight)
    assert (summary / "loss.png").read_bytes().startswith(b"\x89PNG")
    end = straight[straight.index("\ns is done in 0:") :]
    for line in (
        "predictions runs/s/: rte-test.jsonl",
        "best        c/s/best",
        "results     runs/s/: results.json, test",
    ):
        assert line in end
    assert len(list(best.glob("[0-9]*"))) == 2, "of three epochs"
    assert list(summary.glob("events.out.tfevents.*"))
    assert len(losses(folder, "s")) == 15


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2], ids=["data ranks", "tensor-parallel ranks"])
def test_two_ranks_start_as_one(size: int, corpus: SmallCorpus, folder: Path, straight: str) -> None:
    """The first update sees the same examples: two of each data rank, or four of both tensor-parallel ranks."""
    name = f"two-{size}"
    given = task_flags(corpus, "--epochs", "1", "--experiment-name", name, "--model-parallel-size", str(size))
    given[given.index("--batch-size") + 1] = str(2 * size)
    output = run("finetune_glm.py", *given, cwd=folder, ranks=2)
    assert output.count(" >> |epoch: 0|") == 1, "one rank speaks"
    assert losses(folder, name)[0] == pytest.approx(losses(folder, "s")[0], rel=1e-5)


@pytest.mark.slow
def test_an_interrupted_run_goes_on(corpus: SmallCorpus, folder: Path, straight: str) -> None:
    given = task_flags(corpus, "--save", "c", "--experiment-name", "k", "--auto-resume")
    run("finetune_glm.py", *given, "--epochs", "3", "--patience", "1", "--validation-metric", "accuracy", cwd=folder)
    stopped = len(losses(folder, "k"))
    output = run("finetune_glm.py", *given, "--epochs", "3", cwd=folder)
    assert f"continuing after {stopped // 5} epochs and {stopped} updates" in output
    assert losses(folder, "k") == losses(folder, "s")


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0.5, 1.0], ids=["cut off", "one byte changed"])
def test_a_damaged_checkpoint_is_followed_by_an_older_one(
    kept: float, corpus: SmallCorpus, folder: Path, straight: str, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    given = task_flags(corpus, "--save", "c", "--experiment-name", "d", "--auto-resume")
    run("finetune_glm.py", *given, "--epochs", "3", "--exit-after", "10", cwd=tmp_path)
    [file] = (tmp_path / "c" / "d" / "10").glob("mp_rank_*")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data[: int(kept * len(data))])
    output = run("finetune_glm.py", *given, "--epochs", "3", cwd=tmp_path)
    assert "an OLDER checkpoint is used" in output and "continuing after 1 epochs and 5 updates" in output
    assert losses(tmp_path, "d") == losses(folder, "s")


@pytest.mark.slow
def test_a_signal_ends_all_ranks_in_order(corpus: SmallCorpus, folder: Path, straight: str) -> None:
    given = task_flags(corpus, "--save", "c", "--experiment-name", "t", "--auto-resume", "--epochs", "10000")
    process = start("finetune_glm.py", *given, cwd=folder, ranks=2)
    wait_for(process, r"^ iteration +3/")
    for worker in workers(process.pid, "finetune_glm.py"):  # what a batch system does
        os.kill(worker.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0, output
    stopped = int(re.search(r"stopped at (\d+) of", output)[1])
    assert (folder / "c" / "t" / "latest").read_text(encoding="utf-8") == str(stopped)
    assert not (folder / "runs" / "t" / "test_results.json").exists() and "baseline" not in output


@pytest.mark.slow
def test_deepspeed_and_accumulation(corpus: SmallCorpus, folder: Path, straight: str) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is an extra")
    content = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 2, "cpu_offload": True},
        "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
    }
    (folder / "ds.json").write_text(json.dumps(content), encoding="utf-8")
    given = task_flags(
        corpus,
        "--epochs",
        "1",
        "--experiment-name",
        "ds",
        "--save",
        "c",
        "--deepspeed",
        "--deepspeed_config",
        "ds.json",
    )
    output = run("finetune_glm.py", *given, cwd=folder, ranks=1)
    assert output.count("ds.json sets batch_size = 2") == 1
    assert losses(folder, "ds")[0] == pytest.approx(losses(folder, "s")[0], rel=1e-5)
    assert (folder / "runs" / "ds" / "rte-test.jsonl").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["--continuous-prompt", "--num-prompt-tokens", "3", "--freeze-transformer"],
        ["--block-lm-ratio", "0.5"],
        ["--fast-decode"],
        ["--segment-length", "2"],
        ["--limit", "4", "--bf16", "--optimizer", "adafactor"],
    ],
    ids=["prompts", "infilling", "fast", "segments", "limited"],
)
def test_other_ways_to_train(more: list[str], corpus: SmallCorpus, folder: Path) -> None:
    name = more[0].strip("-")
    run(
        "finetune_glm.py",
        *task_flags(corpus, "--epochs", "1", "--experiment-name", name, "--save", "c", *more),
        cwd=folder,
    )
    results = json.loads((folder / "runs" / name / "results.json").read_text(encoding="utf-8"))
    assert "accuracy" in results
    assert results.get("limit") == (4 if name == "limit" else None)


@pytest.mark.slow
def test_a_classification_head(corpus: SmallCorpus, folder: Path) -> None:
    given = [
        word
        for word in task_flags(corpus, "--epochs", "1", "--experiment-name", "head")
        if word not in ("--cloze-eval", "--multi-token")
    ]
    output = run("finetune_glm.py", *given, cwd=folder)
    assert " >> |epoch: 0| overall: total = 7 accuracy = " in output


@pytest.mark.slow
def test_a_prefix_prompt_alone_is_trained_saved_and_evaluated(corpus: SmallCorpus, folder: Path, straight: str) -> None:
    words = ["--prefix-prompt", "3", "--prompt-func", "mlp", "--freeze-transformer", "--load-pretrained", "c/s/best"]
    given = task_flags(corpus, "--epochs", "1", "--save", "c", "--experiment-name", "prefix", "--lr", "0.1")
    output = run("finetune_glm.py", *given, *words, cwd=folder)
    assert "5 missing (prefix_encoder.embedding.weight" in output
    lines = described(folder / "c" / "prefix" / "best")
    assert "no whole model, but: a prefix prompt of length 3" in lines
    given = task_flags(corpus, "--epochs", "0", "--load", "c/prefix/best", "--experiment-name", "prefix-again")
    output = run("finetune_glm.py", *given, *words, cwd=folder)
    assert "loaded 5 parameters of" in output and "; the missing ones are those of c/s/best" in output
    trained, again = (folder / "runs" / name / "rte-test.jsonl" for name in ("prefix", "prefix-again"))
    assert trained.read_bytes() == again.read_bytes()


@pytest.mark.slow
def test_an_ensemble_of_patterns(corpus: SmallCorpus, folder: Path, straight: str) -> None:
    """Every example is trained on in both patterns; the answer has the highest mean probability; indices by name."""
    more = ["--pattern-ensemble", "0", "2", "--index-key", "id", "--epochs", "1", "--experiment-name", "patterns"]
    output = run("finetune_glm.py", *task_flags(corpus, *more), cwd=folder)
    assert "rte train: 18 examples, 36 samples" in output
    assert len(losses(folder, "patterns")) == 9
    lines = (folder / "runs" / "patterns" / "rte-test.jsonl").read_text(encoding="utf-8").splitlines()
    assert [list(json.loads(line)) for line in lines] == [["id", "label"]] * 5
    rows = [line.split() for line in output.splitlines()]
    first = next(number for number, row in enumerate(rows) if row[:2] == ["task", "split"])
    table = rows[first : first + 2]
    assert table[0][:5] == ["task", "split", "metric", "value", "baseline"]
    assert table[1][:3] == ["rte", "validation", "accuracy"] and float(table[1][4]) == pytest.approx(
        100 * 4 / 7, abs=0.01
    )


@pytest.mark.slow
def test_evaluation_only(corpus: SmallCorpus, folder: Path, straight: str) -> None:
    more = ["--epochs", "0", "--experiment-name", "e", "--load-pretrained", "c/s/best", "--eval-valid"]
    run("finetune_glm.py", *task_flags(corpus, *more), cwd=folder)
    found = json.loads((folder / "runs" / "e" / "test_results.json").read_text(encoding="utf-8"))
    kept = json.loads((folder / "runs" / "s" / "results.json").read_text(encoding="utf-8"))
    assert found["accuracy"] == pytest.approx(kept["accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task", "rt"], "did you mean rte"),
        (["--data-dir", "absent"], "absent"),
        (["--valid-data", "nothing"], "nothing"),
        (["--pattern-id", "77"], "77"),
        (["--pattern-ensemble", "0", "99"], "rte has the patterns"),
        (["--data-dir", "label"], "label/train.jsonl, line 2"),
        (["--data-dir", "long", "--seq-length", "8"], "--seq-length"),
        (["--epochs", "0", "--data-dir", "broken"], "broken"),
        (["--experiment-name", "s"], "--overwrite"),
    ],
)
def test_mistakes_end_in_one_line(
    more: list[str], message: str, corpus: SmallCorpus, folder: Path, straight: str
) -> None:
    for name in ("broken", "label", "long"):
        (folder / name).mkdir(exist_ok=True)
    good = {"premise": "the dog runs", "hypothesis": "it rains", "label": "entailment", "idx": 0}
    rows = [json.dumps(good), json.dumps({**good, "label": "perhaps"})]
    (folder / "label" / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (folder / "long" / "train.jsonl").write_text(rows[0], encoding="utf-8")
    (folder / "broken" / "val.jsonl").write_text('{"premise": "a", "hypothesis": "b"', encoding="utf-8")
    output = run("finetune_glm.py", *task_flags(corpus, "--epochs", "1", *more), cwd=folder, code=2)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], output
    assert "Traceback" not in output
