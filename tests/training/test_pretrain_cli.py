"""pretrain_glm.py as a user runs it: tiny real runs, killed and resumed, and mistakes that end in one line."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import pretrain_glm
from change_mp import change_model_parallel_size
from data_utils.loader_speed import main as loader_speed
from data_utils.show import main as show
from files.errors import start_logging
from generate_samples import SampleSettings
from generation.api import load_model
from generation.sampling import DecodingSettings
from model.checkpoints.verify import main as verify
from mpu.kernels.prepacked import has_bf16_instructions
from scripts.convert_glm_checkpoint_to_transformers import main as to_transformers
from tasks.settings import FinetuningSettings
from tests.helpers import REPOSITORY, launching
from tests.helpers.launching import environment
from tests.helpers.launching import metrics as rows
from tests.helpers.logs import logged_lines
from tests.helpers.small_corpus import SmallCorpus, make_corpus
from training.arguments import parse_settings
from training.data import build_run_tokenizer
from training.settings import PretrainingSettings

start = partial(launching.start, "pretrain_glm.py")
run = partial(launching.run, "pretrain_glm.py")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def straight(corpus: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run 24 updates without a break; return the folder and what was printed."""
    folder = tmp_path_factory.mktemp("straight")
    words = [*corpus.words(), "--train-iters", "24", "--save", "c", "--save-interval", "7", "--eval-at-start",
             "--experiment-name", "s", "--auto-resume", "--keep-checkpoints", "2", "--record-order"]  # fmt: skip
    return folder, run(*words, cwd=folder)


def test_a_run_leaves_what_it_promises(straight: tuple[Path, str]):
    folder, output = straight
    summary = folder / "runs" / "s"
    assert json.loads((summary / "config.json").read_text(encoding="utf-8"))["hidden_size"] == 32
    assert list(summary.glob("events.out.tfevents.*"))
    assert (summary / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "c" / "s" / "latest_checkpointed_iteration.txt").read_text(encoding="utf-8") == "24"
    checkpoints = sorted(int(path.parent.name) for path in (folder / "c" / "s").glob("*/mp_rank_00_model_states.pt"))
    assert checkpoints == [21, 24]
    pattern = r" iteration        2/      24 \| elapsed time per iteration \(ms\): [\d.]+ \| learning rate 4.167E-03 \|"
    assert re.search(pattern + r" lm loss \d\.\d{6}E\+00 \|\n", output)
    lines = re.findall(r"^ validation loss at iteration \d+ \| LM loss: ", output, re.MULTILINE)
    assert len(lines) == 4, "the fifth is the end"
    assert " validation loss at the end of training for val data | LM loss: " in output
    assert "weights: random" in output
    screen = output[output.index("\ns\n  training on ") : output.index("validation loss at iteration 0")]
    assert "2 layers, hidden 32" in screen and "torch, fp32, 1 process of 1 thread on the CPU" in screen
    assert "an update   4 samples of at most 48 tokens = 4 a rank x 1 accumulated x 1 data ranks" in screen
    assert "length      updates 0 to 24, 4,608 tokens" in screen and "checkpoints c/s\n" in screen
    assert "--lr 0.01" in screen and "--weight-decay" not in screen, "only what is not the default"
    end = output[output.index("\ns is done in 0:") :]
    assert re.search(r"loss curves runs/s/loss.png\n +numbers +runs/s/metrics.jsonl\n +checkpoints c/s \(\d", end), end
    table = output[output.index("validation loss (nats per target token) at iterations 0 -> 24") :]
    assert re.search(r"token +\d\.\d{3} -> +\d\.\d{3}\n", table)
    assert "unigram entropy of the text" in table


def test_a_checkpoint_knows_what_it_is(straight: tuple[Path, str], corpus: SmallCorpus, tmp_path: Path):
    """Alone in another folder, cut for two ranks, and exported: no flag of a model is needed any more."""
    saved = shutil.copytree(straight[0] / "c" / "s" / "24", tmp_path / "saved")
    assert verify([str(saved), "--full"]) == 0
    cut = change_model_parallel_size(saved, 2)
    assert cut is not None
    exported = tmp_path / "exported"
    to_transformers([str(cut), "--output", str(exported)])
    run_flags = parse_settings(PretrainingSettings, [*corpus.words(), "--train-iters", "1"], environment={})
    expected = build_run_tokenizer(run_flags)
    said: set[str] = set()
    for folder in (saved, cut, exported):
        for program in (SampleSettings, FinetuningSettings, PretrainingSettings):
            task = {FinetuningSettings: ["--task", "rte", "--epochs", "0"]}.get(program, [])
            data = {PretrainingSettings: ["--train-data", "x.txt", "--train-iters", "1"]}.get(program, [])
            settings = parse_settings(program, ["--load-pretrained", str(folder), *task, *data], environment={})
            assert settings.tokenizer.tokenizer_path == str(folder / "tokenizer.model")
            tokenizer = build_run_tokenizer(settings)
            assert tokenizer.fingerprint == expected.fingerprint
            size = tokenizer.padded_size(settings.tokenizer.make_vocab_size_divisible_by)
            assert settings.network(vocab_size=size) == run_flags.network(vocab_size=size)
            assert settings.batch.seq_length == run_flags.model.max_position_embeddings
        [filled] = load_model(folder).fill("the [MASK] of it.", settings=DecodingSettings(max_length=4, top_k=1))
        said.add(filled.text)
    printed = launching.run(
        "generate_samples.py", "--load-pretrained", str(saved), "--prompt", "the [MASK] of it.", "--top-k", "1",
        "--out-seq-length", "4", cwd=tmp_path,
    )  # fmt: skip
    assert len(said) == 1 and f"Filled: {said.pop()}" in printed
    wrong = ["--load-pretrained", str(saved), "--num-attention-heads", "4"]
    with pytest.raises(
        ValueError, match=r"--num-attention-heads 4 contradicts \S+/saved/config.json, which has 2: leave"
    ):
        parse_settings(SampleSettings, wrong, environment={})
    with logged_lines() as lines:
        build_run_tokenizer(
            parse_settings(SampleSettings, ["--load", str(saved), "--block-mask-prob", "0.1"], environment={})
        )
    assert len(lines) == 1 and "was trained with another tokenizer, or with other command tokens" in lines[0]


def test_training_lowers_the_loss_and_evaluations_repeat(straight: tuple[Path, str]):
    evaluations = [row for row in rows(straight[0], "s") if row["kind"] == "evaluation"]
    assert evaluations[-1]["loss"] < evaluations[0]["loss"] - 0.5
    assert evaluations[-1]["loss"] == evaluations[-2]["loss"]  # iteration 24 twice: the same batches
    train = [row for row in rows(straight[0], "s") if row["kind"] == "train"]
    assert [row["iteration"] for row in train] == list(range(2, 25, 2))
    assert {"bert_loss", "sent_loss", "gpt_loss"} <= {key for row in train for key in row}


@pytest.mark.slow
def test_killed_and_resumed_equals_straight(corpus: SmallCorpus, straight: tuple[Path, str], tmp_path: Path):
    words = [*corpus.words(), "--train-iters", "24", "--save", "c", "--save-interval", "7", "--eval-at-start"]
    process = start(*words, "--experiment-name", "k", "--auto-resume", "--record-order", cwd=tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(" iteration        8/"):  # one update behind the checkpoint of iteration 7
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait(timeout=60) == -signal.SIGKILL
    recorded = (tmp_path / "runs" / "k" / "order" / "rank-00000.bin").read_bytes()
    run(*corpus.words(), "--train-iters", "0", "--save", "c", "--load", "c/k", "--record-order", cwd=tmp_path)
    assert (tmp_path / "runs" / "k" / "order" / "rank-00000.bin").read_bytes() == recorded, "an evaluation"
    output = run(*corpus.words(), "--train-iters", "24", "--save", "c", "--save-interval", "7", "--load", "c/k",
                 "--num-workers", "1", "--record-order", cwd=tmp_path)  # fmt: skip
    resumed_at = int(re.search(r"continuing from iteration (\d+)", output).group(1))
    assert resumed_at in (7, 14, 21)
    assert re.search(r"loaded \d+", output)
    assert rows(tmp_path, "k") == rows(straight[0], "s")
    whole = (straight[0] / "runs" / "s" / "order" / "rank-00000.bin").read_bytes()
    assert recorded and whole.startswith(recorded), "what a kill leaves is whole"
    assert (tmp_path / "runs" / "k" / "order" / "rank-00000.bin").read_bytes() == whole


def test_the_samples_of_any_update_are_shown(
    corpus: SmallCorpus, straight: tuple[Path, str], capsys: pytest.CaptureFixture[str]
):
    flags, record = [*corpus.words(), "--train-iters", "24"], str(straight[0] / "runs" / "s" / "order")
    shown = []
    for more in (["--record", record], []):
        assert show(["--step", "17", *more, *flags]) == 0
        shown.append(capsys.readouterr().out)
    assert "== update 17, data rank 0, batch 16: the record and the data agree\nsample 64: document " in shown[0]
    assert "batch 16: made again" in shown[1]
    assert shown[0].replace("the record and the data agree", "made again") == shown[1]
    assert shown[0].count("\nsample ") == 4 == shown[0].count("who sees whom")
    assert "<|startofpiece|>" in shown[0]
    with pytest.raises(ValueError, match=r"update 25 is not recorded; there are updates 1 to 24$"):
        show(["--step", "25", "--record", record, *flags])
    with pytest.raises(ValueError, match=r"the record is of 59 documents .*, the flags give 60 documents .*: give"):
        show(["--step", "2", "--record", record, *flags, "--split", "2,1,0"])
    with pytest.raises(ValueError, match=r"batch 1: the record has sample \(4, \[.*the data give \(3, \["):
        show(["--step", "2", "--record", record, *flags, "--batch-size", "3"])


def test_the_loader_alone_is_measured_and_compared(
    corpus: SmallCorpus, straight: tuple[Path, str], capsys: pytest.CaptureFixture[str]
):
    flags, metrics = [*corpus.words(), "--seconds", "0.1"], str(straight[0] / "runs" / "s" / "metrics.jsonl")
    assert loader_speed([*flags, "--json", "--needed", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["keeps_up"] and found["samples"] == 4 * found["batches"] > 0
    assert 0 < found["real_tokens"] < found["tokens"] and 0 < found["packing_efficiency"] <= 1
    assert loader_speed([*flags, "--needed", "1e15"]) == 1
    assert "times what is needed, a model would wait; what helps: more workers (--num-workers, now 0" in (
        capsys.readouterr().out
    )
    loader_speed([*flags, "--needed", metrics])
    assert re.search(
        r"needed: [\d,]+ real tokens/s \(\S+/metrics.jsonl, iteration \d+, had it", capsys.readouterr().out
    )
    loader_speed([*flags, "--needed", "H100", "--num-workers", "1"])
    assert re.search(r"needed: [\d,]+ real tokens/s \(the plan: 1 x H100 at \d+% of", capsys.readouterr().out)
    for wrong in ("0", "nan", "H1000", "no/metrics.jsonl"):
        with pytest.raises(ValueError, match="--needed is"):
            loader_speed([*flags, "--needed", wrong])


@pytest.mark.slow
def test_a_signal_saves_and_leaves_and_a_second_start_finishes(
    corpus: SmallCorpus, straight: tuple[Path, str], tmp_path: Path
):
    words = [*corpus.words(), "--train-iters", "24", "--save", "c", "--save-interval", "0", "--experiment-name", "t",
             "--auto-resume", "--eval-at-start"]  # fmt: skip
    process = start(*words, cwd=tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(" iteration        4/"):
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert rest.splitlines()[-1].endswith("of 24; run the same command to go on")
    stopped_at = int(re.search(r"stopped at (\d+) of", rest).group(1))
    assert stopped_at < 24
    output = run(*[word for word in words if word != "--eval-at-start"], cwd=tmp_path)
    assert f"continuing from iteration {stopped_at}" in output
    assert rows(tmp_path, "t") == rows(straight[0], "s")


@pytest.mark.slow
def test_workers_accumulation_and_bf16_run(corpus: SmallCorpus, tmp_path: Path):
    config = tmp_path / "ds.json"
    config.write_text(
        json.dumps(
            {
                "train_micro_batch_size_per_gpu": 2,
                "gradient_accumulation_steps": 2,
                "fp16": {"enabled": True},
                "optimizer": {"type": "Adam", "params": {"lr": 1e-3, "betas": [0.9, 0.98], "eps": 1e-6}},
            }
        ),
        encoding="utf-8",
    )
    output = run(
        *corpus.words(), "--train-iters", "4", "--num-workers", "2", "--checkpoint-activations", "--deepspeed",
        "--deepspeed_config", str(config), "--exit-after", "3", "--save", "c", "--shuffle", "--short-seq-prob", "0.5",
        cwd=tmp_path,
    )  # fmt: skip
    bf16 = has_bf16_instructions()
    assert f"precision: {'bf16' if bf16 else 'fp32'} instead of fp16" in output
    assert "batch_size = 2" in output and ("ZeRO stage 1" in output) == bf16
    folder = (tmp_path / "c" / "glm").resolve()  # the newest run of that name
    assert re.fullmatch(r"glm-\d\d-\d\d-\d\d-\d\d", folder.name)
    assert (folder / "latest_checkpointed_iteration.txt").read_text(encoding="utf-8") == "3"


@pytest.mark.slow
def test_pretrained_weights_start_a_new_run(corpus: SmallCorpus, straight: tuple[Path, str], tmp_path: Path):
    output = run(*corpus.words(), "--train-iters", "2", "--load-pretrained", str(straight[0] / "c" / "s"), cwd=tmp_path)
    assert re.search(r"loaded \d+", output) and "weights: random" not in output
    (name,) = (path.name for path in (tmp_path / "runs").iterdir())
    last = [row for row in rows(straight[0], "s") if row["kind"] == "evaluation"][-1]["loss"]
    first = rows(tmp_path, name)[0]
    assert first["kind"] == "train" and first["iteration"] == 2 and first["loss"] < last + 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--load", "nowhere"], "nowhere"),
        (["--load-pretrained", "nowhere"], "nowhere"),
        (["--train-data", "absent.jsonl"], "absent.jsonl"),
        (["--train-data", "no-such-corpus"], "no-such-corpus"),
        (["--train-data", "empty.jsonl"], "empty.jsonl"),
        (["--train-data", "broken.jsonl"], "broken.jsonl"),
        (["--tokenizer-path", "absent.model"], "absent.model"),
        (["--batch-size", "none"], "--batch-size"),
        (["--seq-length", "65"], "--seq-length 65"),
    ],
)
def test_mistakes_end_in_one_line(corpus: SmallCorpus, tmp_path: Path, words: list[str], message: str):
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n', encoding="utf-8")
    process = subprocess.run(
        [sys.executable, str(REPOSITORY / "pretrain_glm.py"), *corpus.words(), "--train-iters", "2", *words],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 2, process.stdout + process.stderr
    errors = [line for line in process.stderr.splitlines() if "Traceback" in line or line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0], process.stderr


def test_the_length_of_a_run_is_not_forgotten(
    corpus: SmallCorpus, straight: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(straight[0])
    words = [*corpus.words(), "--save", "c", "--load", "c/s"]
    with pytest.raises(ValueError, match="no --train-iters: give the number of updates, or 0 to evaluate only"):
        pretrain_glm.main(words)
    start_logging()
    assert pretrain_glm.main([*words, "--train-iters", "20"]) == 0
    assert "warning: nothing to train: the run has made 24 updates" in capsys.readouterr().out


def test_help_needs_neither_torch_nor_numpy():
    process = subprocess.run(
        [sys.executable, str(REPOSITORY / "pretrain_glm.py"), "--help"],
        env=environment(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "--train-data" in process.stdout and "--text-field" in process.stdout
    check = "import sys, pretrain_glm; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, env=environment(), check=True)


@pytest.mark.slow
def test_another_tokenizer_does_not_continue_a_run(corpus: SmallCorpus, straight: tuple[Path, str]):
    words = [word for word in corpus.words() if word != "--task-mask"]
    words += ["--train-iters", "26", "--save", "c", "--experiment-name", "s", "--auto-resume"]
    process = subprocess.run(
        [sys.executable, str(REPOSITORY / "pretrain_glm.py"), *words],
        cwd=straight[0], env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 2
    assert "was trained with another tokenizer" in process.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_downstream_tasks_are_mixed_in_and_resumed(corpus: SmallCorpus, vocab_dir: Path, tmp_path: Path):
    """Sentences with a label, as SST-2 has them; a broken run draws the same batches as an unbroken one."""
    folder = tmp_path / "tasks" / "SST-2"
    folder.mkdir(parents=True)
    rows = [f"the dog {'sings' if n % 2 else 'sleeps'} by the river\t{n % 2}" for n in range(20)]
    (folder / "train.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n", encoding="utf-8")
    words = corpus.words()
    place = words.index("--tokenizer-type")
    words[place : place + 4] = ["--tokenizer-type", "BertWordPieceTokenizer", "--tokenizer-model-type",
                                "bert-base-uncased", "--vocab-dir", str(vocab_dir)]  # fmt: skip
    words += ["--train-iters", "12", "--save", "c", "--multi-task-data", "sst2", "--multi-task-ratio", "0.5",
              "--data-dir", str(tmp_path / "tasks"), "--auto-resume", "--save-interval", "0"]  # fmt: skip
    output = run(*words, "--experiment-name", "whole", cwd=tmp_path)
    assert "mixed in: sst2, 40 examples in all patterns" in output
    whole = rows_of(tmp_path, "whole")
    assert any("multi_loss" in row for row in whole) and any("bert_loss" in row for row in whole)
    run(*words, "--experiment-name", "broken", "--exit-after", "6", cwd=tmp_path)
    run(*words, "--experiment-name", "broken", cwd=tmp_path)
    assert rows_of(tmp_path, "broken") == whole


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the training rows of a run."""
    return [row for row in rows(folder, name) if row["kind"] == "train"]
