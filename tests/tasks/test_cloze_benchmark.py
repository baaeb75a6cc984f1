"""The cloze benchmark as a run: both of its ways learn the same, and run.sh as a user types it, killed and resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from data_utils.tokenizers.tokenizer import build_tokenizer
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from tasks.cloze_benchmark.prepare import main as prepare
from tasks.cloze_benchmark.run import ClozeBenchmarkRun
from tasks.settings import FinetuningSettings
from tests.helpers import REPOSITORY
from tests.helpers.engines import scoring_engine
from tests.helpers.golden_index import GoldenFolder
from tests.helpers.launching import environment, metrics, wait_for, workers
from training.arguments import parse_settings

pytest.importorskip("h5py")
LENGTH = 128
MODEL = ("--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "2", "--max-position-embeddings", "128")
SHAPE = (*MODEL, "--block-lm", "--hidden-dropout", "0", "--attention-dropout", "0", "--seq-length", str(LENGTH))


@pytest.fixture(scope="module")
def folder(golden: GoldenFolder, vocab_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files of six questions to train on and four to evaluate."""
    made = tmp_path_factory.mktemp("glm")
    content = golden.json("multilingual/record_cloze.json")
    (made / "ReCoRD").mkdir()
    for name in ("train", "val"):
        (made / "ReCoRD" / f"{name}.jsonl").write_text(content[f"{name}_jsonl"], encoding="utf-8")
    prepare([str(made), "--seq-length", str(LENGTH), "--vocab-dir", str(vocab_dir)])
    return made


def benchmark_run(folder: Path, vocab_dir: Path, *words: str) -> ClozeBenchmarkRun:
    flags = ["--task", "cloze_test", "--data-dir", str(folder), "--cloze-eval", *SHAPE, "--batch-size", "3",
             "--tokenizer-model-type", "bert-large-uncased", "--vocab-dir", str(vocab_dir), *words]  # fmt: skip
    settings = parse_settings(FinetuningSettings, flags, environment={})
    tokenizer = build_tokenizer("BertWordPieceTokenizer", model_type="bert-large-uncased", vocab_dir=vocab_dir)
    return ClozeBenchmarkRun(settings, tokenizer=tokenizer, topology=ParallelTopology.single())


def test_both_ways_learn_the_same(folder: Path, vocab_dir: Path):
    shared = benchmark_run(folder, vocab_dir, "--epochs", "2")
    padded = benchmark_run(folder, vocab_dir, "--epochs", "2", "--pad-to-max")
    assert (shared.num_updates, shared.schedule_length) == (4, 2), "the schedule is an epoch long"
    assert benchmark_run(folder, vocab_dir, "--epochs", "2", "--lr-decay-iters", "3").schedule_length == 3
    network, sizes = shared.build_network(), []
    gradients = []
    for run in (shared, padded):
        criterion = run.criterion()
        batches = list(run.batches(0))
        sizes.append([criterion.size(batch) for batch in batches])
        network.zero_grad()
        losses = [criterion.loss(network, batch, device=torch.device("cpu")).loss_sum for batch in batches]
        torch.stack(losses).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    ours, theirs = ([sum(values) for values in zip(*one)] for one in sizes)
    assert ours[:2] == theirs[:2] == [12, 72] and ours[2] < theirs[2] / 4, "no padding, no passage twice"
    engine = scoring_engine(network)
    scores = [run.evaluate(engine, run.validation[0], folder=None) for run in (shared, padded)]
    assert scores[0] == scores[1] and scores[0].count == 4


def test_what_does_not_fit_the_files_is_refused(folder: Path, vocab_dir: Path):
    with pytest.raises(ValueError, match="has rows of 128 positions, --seq-length is 64"):
        benchmark_run(folder, vocab_dir, "--epochs", "0", "--seq-length", "64")
    with pytest.raises(ValueError, match="--fast-decode does not go with the files of cloze_test"):
        benchmark_run(folder, vocab_dir, "--epochs", "0", "--fast-decode")
    with pytest.raises(ValueError, match="no --data-dir: give the folder that scripts/cloze_benchmark"):
        parse_settings(FinetuningSettings, ["--task", "cloze_test", "--epochs", "1"])


@pytest.mark.slow
def test_the_script_is_killed_and_goes_on(folder: Path, vocab_dir: Path, tmp_path: Path):
    """Two processes from the weights below the folder, whose place nothing has to say."""
    weights = folder / "blocklm-large-blank" / "200000"
    weights.mkdir(parents=True)
    model: GLMModel = benchmark_run(folder, vocab_dir, "--epochs", "0").build_network().model
    torch.save({"module": model.state_dict()}, weights / "mp_rank_00_model_states.pt")
    (weights.parent / "latest_checkpointed_iteration.txt").write_text("200000", encoding="utf-8")
    script = str(REPOSITORY / "scripts" / "cloze_benchmark" / "run.sh")
    command = [
        "bash", script, "--name", "me", "--config=Xx1x2", "--data_dir", str(folder), "--log_freq", "1",
        "--train_batch_size=1", "--eval-samples", "2", *SHAPE, "--fp32", "--device", "cpu", "--lr", "1e-3",
        "--save", str(tmp_path / "c"), "--summary-dir", str(tmp_path),
    ]  # fmt: skip
    options = {"cwd": tmp_path, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    options["env"] = environment() | {"GLM_VOCAB_DIR": str(vocab_dir), "NUM_GPUS_PER_WORKER": "2"}
    process = subprocess.Popen(command, **options)
    wait_for(process, "saved a checkpoint at iteration 2 ")
    for worker in workers(process.pid, "finetune_glm.py"):
        os.kill(worker.pid, signal.SIGKILL)
    process.communicate(timeout=100)
    assert process.returncode != 0
    done = subprocess.run(command, **options, timeout=200)
    output = done.stdout
    assert done.returncode == 0, output
    assert "blocklm-large-blank/200000" in output
    assert re.search("continuing after 0 epochs and [2-4] updates", output)
    lines = [
        json.loads(line.removeprefix("[PerfLog] ")) for line in output.splitlines() if line.startswith("[PerfLog]")
    ]
    events = {line["event"]: line["value"] for line in lines}
    assert set(events) == {
        "SUBMITTED_INFO", "LAUNCH_TRAINING", "INIT_START", "CONVERT_MODEL", "CREATE_OPTIMIZER", "MODEL_TO_FP16",
        "MODEL_TO_DDP", "INIT_END", "TRAIN_BEGIN", "EPOCH_BEGIN", "STEP_END", "EVALUATION", "EPOCH_END", "TRAIN_END",
        "FINISHED",
    }  # fmt: skip
    submitted = events["SUBMITTED_INFO"]
    assert set(submitted) == {"submmiter", "model", "config_path", "config"}
    assert (submitted["submmiter"], submitted["model"]) == ("cloze-me-Xx1x2", "cloze_test")
    assert json.loads(Path(submitted["config_path"]).read_text(encoding="utf-8"))["batch_size"] == 1
    measured = [row for row in metrics(tmp_path, "cloze-me-Xx1x2") if row["kind"] == "throughput"][-1]
    updates = measured["iteration"]
    assert measured["samples"] == 2 * updates and measured["rows"] > measured["samples"], "of both processes and parts"
    assert events["FINISHED"]["converged"] == (measured["accuracy"] >= 0.81)
    row = f"| 1x2 | 1 | {measured['samples_per_second']:.2f} | {measured['accuracy']:.4g} |"
    assert output.splitlines().count(row) == 1
    assert "questions/s" in output.splitlines()[output.splitlines().index(row) + 1]
    assert (tmp_path / "c" / "cloze-me-Xx1x2" / "best" / "mp_rank_00_model_states.pt").is_file()
