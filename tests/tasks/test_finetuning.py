"""The fine-tuning loop: epochs, the best of them, patience, signals, time, and updates that are not finite."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data_utils.batches import Batch
from mpu.initialize import ParallelTopology
from tasks.finetuning import FineTuner, FinetuningProgress, find_progress
from tasks.run import Score, TaskRun
from tasks.settings import FinetuningSettings
from tests.helpers.engines import make_batch, make_engine
from tests.helpers.stand_ins import VOCABULARY
from training.arguments import parse_settings
from training.engine import BlankInfilling, Engine, TorchEngine
from training.logging import Console, JsonLinesWriter, RunLog, perf_log, read_rows, start_perf_log
from training.loop import LONGEST_SKIPPED_STREAK

UPDATES_PER_EPOCH = 3  # of two micro batches of two samples
TIMES = {"elapsed_ms", "tokens_per_second", "real_tokens_per_second", "waiting_share", "memory_bytes"}


class Numbers(TaskRun):
    """A task whose samples are numbers of made-up batches; its metric is what ``quality`` says of an evaluation."""

    name, metrics = "numbers", ("quality",)
    training: Sequence[Any] = range(4 * UPDATES_PER_EPOCH)
    loss_samples: Sequence[Any] = range(100, 103)
    validation: Sequence[Any] = ("dev",)
    test: Sequence[Any] = ("test",)

    def __init__(self, configuration: FinetuningSettings, quality: Callable[[int], float]) -> None:
        super().__init__(configuration, tokenizer=VOCABULARY, topology=ParallelTopology.single())
        self.quality = quality
        self.epochs = 0

    def build_network(self) -> nn.Module:
        return make_engine(dropout=0.1).model

    def criterion(self) -> BlankInfilling:
        return BlankInfilling()

    def collate(self, samples: Sequence[int]) -> Batch:
        return make_batch(samples[0])

    def split_size(self, split: str) -> int:
        return 3

    def evaluate(self, engine: Engine, split: str, *, folder: Path | None) -> Score:
        self.epochs += split == "dev"
        return Score(f"numbers-{split}", 3, {"quality": self.quality(self.epochs)}, {})


def make_tuner(
    folder: Path, *words: str, quality: Callable[[int], float] = float, engine: TorchEngine | None = None
) -> FineTuner:
    """Return a run of three epochs that goes on where the last one in ``folder`` ended."""
    flags = ["--task", "numbers", "--epochs", "3", "--batch-size", "2", "--gradient-accumulation-steps", "2",
             "--log-interval", "2", "--eval-interval", "0", "--save", str(folder / "c"), "--experiment-name", "r",
             "--summary-dir", str(folder), "--auto-resume", *words]  # fmt: skip
    configuration = parse_settings(FinetuningSettings, flags, environment={})
    task, engine = Numbers(configuration, quality), engine or make_engine(dropout=0.1)
    progress = find_progress(engine, configuration, task.name)
    task.epochs = progress.epochs
    lines = JsonLinesWriter(configuration.run.metrics_path, iteration=progress.updates)
    log = RunLog(Console(total=task.num_updates, initial=progress.updates, progress=False), [lines])
    return FineTuner(engine, task, configuration, progress=progress, log=log)


def rows(folder: Path) -> list[dict[str, Any]]:
    loaded = read_rows(folder / "runs" / "r" / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMES} for row in loaded]


def assert_equal_runs(found: FineTuner, expected: FineTuner, folder: Path, other: Path) -> None:
    assert found.progress.epochs == 3 and rows(folder) == rows(other)
    places = [
        {**vars(tuner.progress), "interval": None, "identity": None, "throughput": None} for tuner in (found, expected)
    ]
    assert places[0] == places[1]
    for ours, theirs in zip(found.engine.model.parameters(), expected.engine.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_best_epoch_is_kept_and_tested(tmp_path: Path) -> None:
    quality = {1: 50.0, 2: 70.0, 3: 60.0}
    tuner = make_tuner(tmp_path, "--eval-interval", "4", quality=quality.__getitem__)
    assert tuner.train()
    assert (tuner.progress.updates, tuner.progress.epochs) == (9, 3)
    assert (tuner.progress.best, tuner.progress.best_epoch, tuner.progress.best_update) == (70.0, 1, 6)
    assert tuner.progress.waiting == 1
    weights = [parameter.detach().clone() for parameter in tuner.engine.model.parameters()]
    shorter = make_tuner(tmp_path / "two", "--exit-after", "6", quality=quality.__getitem__)
    shorter.train()
    for best, expected in zip(weights, shorter.engine.model.parameters(), strict=True):
        assert torch.equal(best, expected), "the weights at the end are those of the best epoch"
    results = json.loads((tmp_path / "runs" / "r" / "results.json").read_text(encoding="utf-8"))
    assert results == {"quality": 70.0, "type": "validation", "epoch": 1}
    assert not (tmp_path / "two" / "runs" / "r" / "test_results.json").exists(), "the run is not at its end"
    written = [(row["kind"], row["iteration"]) for row in rows(tmp_path)]
    assert written == [
        ("train", 2), ("evaluation", 3), ("train", 4), ("evaluation", 4), ("train", 6), ("evaluation", 6),
        ("train", 8), ("evaluation", 8), ("evaluation", 9),
    ]  # fmt: skip


def test_patience_ends_a_run_and_one_that_ended_makes_no_more_updates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuner = make_tuner(tmp_path, "--patience", "1", quality=lambda epoch: -float(epoch))
    assert tuner.train() and tuner.progress.updates == 2 * UPDATES_PER_EPOCH
    assert "no better result in 1 evaluations: stopping early" in capsys.readouterr().out
    again = make_tuner(tmp_path, "--patience", "1", quality=lambda epoch: -float(epoch))
    assert again.train() and again.progress.updates == 2 * UPDATES_PER_EPOCH
    assert (again.progress.best, again.progress.waiting) == (-1.0, 1)


@pytest.mark.parametrize("updates", [3, 4, 5], ids=["after an epoch", "within one", "within a log interval"])
def test_an_interrupted_run_is_the_unbroken_one(updates: int, tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    quality = {1: 2.0, 2: 1.0, 3: 3.0}.__getitem__
    expected = make_tuner(straight, quality=quality)
    expected.train()
    make_tuner(broken, "--exit-after", str(updates), quality=quality).train()
    found = make_tuner(broken, quality=quality, engine=make_engine(dropout=0.1, seed=9))
    assert found.progress.updates == updates
    found.train()
    assert_equal_runs(found, expected, broken, straight)


def test_evaluations_by_samples_and_a_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluated before training and every 8 samples, which are two updates; the third of them reaches the target."""
    flags = ["--eval-samples", "7", "--eval-at-start", "--stop-at", "quality=4", "--report", "--perf-log", "steps"]
    start_perf_log(parse_settings(FinetuningSettings, ["--task", "numbers", "--epochs", "3", *flags]), first=True)
    try:
        broken = make_tuner(tmp_path / "broken", *flags, "--exit-after", "3")
        assert broken.train() and (broken.progress.best_update, broken.progress.reached) == (2, False)
        capsys.readouterr()
        tuner = make_tuner(tmp_path / "broken", *flags)
        tuner.task.epochs = 2  # evaluations so far
        assert tuner.train() and (tuner.progress.updates, tuner.progress.reached) == (6, True)
    finally:
        perf_log.setLevel(logging.CRITICAL)
    output = capsys.readouterr().out
    assert "the target is reached (--stop-at quality=4): stopping" in output
    events = [json.loads(line.removeprefix("[PerfLog] ")) for line in output.splitlines() if "[PerfLog]" in line]
    assert all(event.keys() == {"event", "value", "metadata"} for event in events)
    assert all(event["metadata"].keys() == {"file", "lineno", "time_ms", "rank"} for event in events)
    assert [event["event"] for event in events] == [
        "INIT_END", "EVALUATION", "TRAIN_BEGIN", "EPOCH_BEGIN", "STEP_END", "EVALUATION", "STEP_END", "EPOCH_END",
        "EPOCH_BEGIN", "EVALUATION", "TRAIN_END", "FINISHED",
    ]  # fmt: skip
    evaluations = [event["value"] for event in events if event["event"] == "EVALUATION"][1:]  # first that of the loss
    assert [(value["global_steps"], value["eval_quality"]) for value in evaluations] == [(4, 3.0), (6, 4.0)]
    assert [event["value"]["num_trained_samples"] for event in events if event["event"] == "STEP_END"] == [16, 24]
    finished = events[-1]["value"]
    assert (finished["converged"], finished["final_quality"]) == (True, 4.0)
    table = output.splitlines()[output.splitlines().index("| GPUs | Batch Size | FPS | Quality |") :]
    assert re.fullmatch(r"\| 1x1 \| 2 \| [\d.]+ \| 4 \|", table[2]) and "samples/s" in table[3]
    measured = rows(tmp_path / "broken")[-1]
    assert (measured["kind"], measured["samples"], measured["rows"]) == ("throughput", 48, 48), (
        "before the break as well"
    )
    assert measured["samples_per_second"] == pytest.approx(48 / measured["seconds"])
    assert measured["samples_per_second"] == finished["training_sequences_per_second"]
    assert measured["samples_per_second"] < measured["samples_per_second_without_evaluations"]
    again = make_tuner(tmp_path / "broken", *flags)
    assert again.train() and again.progress.updates == 6


@pytest.mark.parametrize("given", ["accuracy", "=1", "accuracy=high", "accuracy=nan"])
def test_a_target_of_another_form_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=r"--stop-at is .* a metric and its value are needed"):
        parse_settings(FinetuningSettings, ["--task", "numbers", "--epochs", "1", "--stop-at", given])


def test_a_target_that_is_no_metric_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--stop-at f2=1: numbers has quality"):
        make_tuner(tmp_path, "--stop-at", "f2=1").train()


def test_a_signal_saves_and_leaves_by_the_door(tmp_path: Path) -> None:
    """The loop returns, so that the program can leave the process group and close its files."""

    def interrupted(epoch: int) -> float:
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return float(epoch)

    straight, broken = tmp_path / "straight", tmp_path / "broken"
    expected = make_tuner(straight)
    expected.train()
    before = signal.getsignal(signal.SIGTERM)
    tuner = make_tuner(broken, quality=interrupted)
    assert not tuner.train(), "the run is not at its end"
    assert tuner.progress.updates == UPDATES_PER_EPOCH + 1 and signal.getsignal(signal.SIGTERM) is before
    assert not (broken / "runs" / "r" / "test_results.json").exists()
    found = make_tuner(broken)
    found.train()
    assert_equal_runs(found, expected, broken, straight)


def test_a_run_that_never_is_finite_stops_with_one_line(tmp_path: Path) -> None:
    engine = make_engine()
    with torch.no_grad():
        engine.model.transformer.final_layernorm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="updates in a row had gradients that are not finite"):
        make_tuner(tmp_path, "--epochs", "1000", "--no-validation", engine=engine).train()
    assert rows(tmp_path)[-1]["iteration"] == LONGEST_SKIPPED_STREAK


def test_the_time_per_update_is_that_of_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only an evaluation moves the updates take no time."""
    now = 0.0

    def slow(epoch: int) -> float:
        nonlocal now
        now += 1000.0
        return float(epoch)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    make_tuner(tmp_path, quality=slow).train()
    lines = read_rows(tmp_path / "runs" / "r" / "metrics.jsonl")
    assert [row["elapsed_ms"] for row in lines if row["kind"] == "train"] == [0.0] * 4 and now == 4000.0


def test_no_epochs_are_an_evaluation(tmp_path: Path) -> None:
    tuner = make_tuner(tmp_path, "--epochs", "0")
    assert tuner.train() and tuner.progress == FinetuningProgress() and tuner.test.metrics == {"quality": 0.0}
