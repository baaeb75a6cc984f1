"""The loop: what happens at which update, signals, resuming in the middle of an interval, giving up."""

from __future__ import annotations

import gc
import itertools
import os
import re
import resource
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_utils.batches import Batch
from data_utils.order_record import OrderRecord, encode_origin
from model.checkpoints.reading import LoadReport
from mpu.initialize import ParallelTopology
from tests.helpers.engines import make_batch, make_engine
from training import signals
from training.arguments import parse_settings
from training.build import resume_position, with_writer
from training.checkpointing import ResumeState
from training.engine import TorchEngine
from training.logging import Console, JsonLinesWriter, RunLog, read_rows
from training.loop import LONGEST_SKIPPED_STREAK, Progress, Trainer, TrainingData, run_every
from training.metrics import ComputeCost, IntervalMetrics
from training.settings import BatchSettings, PretrainingSettings
from training.signals import StopRequest

MODES = ("bert", "sentence", "gpt")
TIMES = {"elapsed_ms", "tokens_per_second", "real_tokens_per_second", "waiting_share", "memory_bytes"}


def batches_from(start: int) -> Iterator[Batch]:
    return (make_batch(number, mode=MODES[number % 3]) for number in itertools.count(start))


def settings(folder: Path, *words: str) -> PretrainingSettings:
    flags = ["--block-lm", "--train-data", "x", "--save", str(folder), "--auto-resume", "--summary-dir", str(folder),
             "--train-iters", "12", "--log-interval", "3", "--save-interval", "5", "--eval-interval", "4",
             "--gradient-accumulation-steps", "2", *words]  # fmt: skip
    return parse_settings(PretrainingSettings, flags, environment={})


def trainer(
    folder: Path, *words: str, engine: TorchEngine | None = None, progress: Progress | None = None, **data: Any
) -> Trainer:
    given, progress = settings(folder, *words), progress or Progress()
    sources: dict[str, Any] = {"train": batches_from, "valid": lambda: [make_batch(99), make_batch(98, mode="gpt")]}
    return Trainer(
        with_writer(engine or make_engine(dropout=0.1), given),
        given,
        data=TrainingData(**{**sources, **data}, samples_per_batch=4),
        num_updates=given.run.train_iters,
        log=RunLog(
            Console(total=given.run.train_iters, initial=progress.updates, progress=False),
            [JsonLinesWriter(given.run.metrics_path, iteration=progress.updates)],
        ),
        progress=progress,
        cost=ComputeCost(1.0, None),
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    loaded = read_rows(folder / "runs" / "glm" / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMES} for row in loaded]


def test_reports_evaluations_and_checkpoints_are_due_when_the_flags_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = trainer(tmp_path, "--eval-at-start")
    assert run.train() and run.progress.updates == 12
    written = [(row["kind"], row["iteration"]) for row in rows(tmp_path)]
    assert written == [
        ("evaluation", 0), ("train", 3), ("evaluation", 4), ("train", 6), ("evaluation", 8), ("train", 9),
        ("train", 12), ("evaluation", 12), ("evaluation", 12),
    ]  # fmt: skip
    saved = sorted(int(path.parent.name) for path in (tmp_path / "glm").glob("*/mp_rank_00_model_states.pt"))
    assert saved == [5, 10, 12]
    printed = capsys.readouterr().out
    assert "validation loss at the end of training for val data" in printed
    assert "step 12/12 | ETA 0:00:00 | loss" in printed


def test_every_interval_length_can_be_zero(tmp_path: Path):
    run = trainer(tmp_path, "--eval-interval", "0", "--save-interval", "0", test=lambda: [make_batch(50)])
    run.train()
    kinds = [row["kind"] for row in rows(tmp_path)]
    assert kinds == ["train"] * 4 + ["evaluation", "test"]
    assert not run_every(0, 5) and run_every(5, 10) and not run_every(5, 11)


def test_a_loss_that_is_low_enough_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = trainer(tmp_path, "--stop-at", "loss=100", "--report", test=lambda: [make_batch(50)])
    assert run.train() and run.progress.updates == 4 and run.state()["reached"]
    assert [row["kind"] for row in rows(tmp_path)] == ["train", "evaluation", "test", "throughput"]
    assert (tmp_path / "glm" / "4").is_dir()
    assert "| GPUs | Batch Size | FPS | Loss |" in capsys.readouterr().out
    restored = run.engine.load(tmp_path / "glm", run.checkpoint)
    assert resume_position(restored, batch=BatchSettings(), data_parallel_size=1).reached
    with pytest.raises(ValueError, match="--stop-at accuracy=1: pre-training has the metrics loss, perplexity"):
        settings(tmp_path, "--stop-at", "accuracy=1")


def test_garbage_is_collected_at_fixed_updates_and_in_evaluations(tmp_path: Path):
    """A collection that comes by itself stops one rank while the others wait for it."""
    collections: list[int] = []
    run = trainer(tmp_path, "--train-iters", "120", "--eval-interval", "0", "--save-interval", "0", valid=None)

    def counted(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and not gc.isenabled():
            collections.append(run.progress.updates)

    def enabled() -> Iterator[Batch]:
        assert gc.isenabled()
        yield make_batch(50)

    run.data = replace(run.data, test=enabled)
    gc.callbacks.append(counted)
    try:
        run.train()
    finally:
        gc.callbacks.remove(counted)
    assert collections == [50, 100]
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_no_updates_means_an_evaluation_only(tmp_path: Path):
    trainer(tmp_path, "--train-iters", "0").train()
    assert [row["kind"] for row in rows(tmp_path)] == ["evaluation"]
    assert not (tmp_path / "glm").exists()


def test_interrupted_and_resumed_writes_the_same_rows(tmp_path: Path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    trainer(straight).train()
    first = trainer(broken, "--exit-after", "7")  # in the middle of a log interval
    assert first.train() and first.progress.updates == 7
    engine = make_engine(dropout=0.1, seed=9)
    given = settings(broken)
    state = engine.load(given.checkpoint.save, given.checkpoint)
    start = resume_position(state, batch=given.batch, data_parallel_size=1)
    assert (start.updates, start.batches) == (7, 14)
    trainer(broken, engine=engine, progress=start).train()
    assert rows(broken) == rows(straight)


def test_the_place_in_the_data_is_kept_in_samples(tmp_path: Path):
    trainer(tmp_path, "--exit-after", "3").train()
    given = settings(tmp_path)
    batch, state = given.batch, make_engine().load(given.checkpoint.save, given.checkpoint)
    assert state.data_state["samples"] == 3 * 2 * 4
    larger = replace(batch, batch_size=8)
    assert resume_position(state, batch=larger, data_parallel_size=1).batches == 3
    assert resume_position(state, batch=batch, data_parallel_size=4).batches == 2


def test_evaluations_do_not_change_the_training(tmp_path: Path):
    often, never = tmp_path / "often", tmp_path / "never"
    trainer(often, "--eval-interval", "1").train()
    trainer(never, "--eval-interval", "0").train()
    assert [r for r in rows(often) if r["kind"] == "train"] == [r for r in rows(never) if r["kind"] == "train"]


@pytest.mark.parametrize("words", [(), ("--async-save",)])
def test_a_signal_saves_and_leaves(tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    def interrupted(start: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches_from(start)):
            if number == 8:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    before = signal.getsignal(signal.SIGTERM)
    run = trainer(tmp_path, "--save-interval", "0", *words, train=interrupted)
    assert not run.train() and run.progress.updates == 5
    printed = capsys.readouterr().out
    assert 0 < printed.index("saved a checkpoint at iteration 5") < printed.index("stopped at 5 of 12")
    assert (tmp_path / "glm" / "latest_checkpointed_iteration.txt").read_text(encoding="utf-8") == "5"
    assert signal.getsignal(signal.SIGTERM) is before


def test_checkpoints_beside_training_are_whole_and_a_failed_one_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def until_the_disk_is_full(start: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches_from(start)):
            if number == 18:
                assert run.engine.writer is not None and run.engine.writer.done(wait=True)
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
            yield batch

    run = trainer(tmp_path, "--async-save", "--train-iters", "100", train=until_the_disk_is_full)
    try:
        with pytest.raises(OSError, match=r"cannot save a checkpoint in .*; earlier checkpoints are untouched"):
            run.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 10 <= run.progress.updates <= 15, "at the latest when the next one is due"
    assert re.findall(r"saved a checkpoint at iteration (\d+)", capsys.readouterr().out) == ["5"]
    assert {path.name for path in (tmp_path / "glm").iterdir() if path.is_dir()} == {"5"}
    assert make_engine().load(tmp_path / "glm", run.checkpoint).iteration == 5


def test_a_second_interrupt_is_not_held_back(monkeypatch: pytest.MonkeyPatch):
    """One that follows at once is the first, handed on by a launcher."""
    monkeypatch.setattr(signals, "REPEATED", 0.05)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.06)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_never_is_finite_stops_with_one_line(tmp_path: Path):
    engine = make_engine()
    with torch.no_grad():
        engine.model.transformer.final_layernorm.weight[0] = float("nan")
    words = ("--train-iters", "1000", "--gradient-accumulation-steps", "1", "--eval-interval", "0")
    with pytest.raises(ValueError, match="updates in a row had gradients that are not finite"):
        trainer(tmp_path, *words, engine=engine).train()
    assert rows(tmp_path)[-1]["iteration"] == -(-LONGEST_SKIPPED_STREAK // 3) * 3


def test_a_run_that_blows_up_leaves_its_checkpoints(tmp_path: Path) -> None:
    """Nothing is saved, and so nothing rotated away, while updates are skipped; a resumed run gets its chance again."""
    engine = make_engine()

    def diverging(start: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches_from(start)):
            if number == 14:  # of two for every update: within the eighth
                with torch.no_grad():
                    engine.model.transformer.final_layernorm.weight[0] = float("nan")
            yield batch

    words = ("--train-iters", "1000", "--keep-checkpoints", "1", "--save-interval", "3", "--eval-interval", "0")
    with pytest.raises(ValueError, match="updates in a row had gradients that are not finite"):
        trainer(tmp_path, *words, engine=engine, train=diverging).train()
    folders = [path.name for path in (tmp_path / "glm").iterdir() if path.is_dir()]
    assert folders == ["6"] and (tmp_path / "glm" / "latest").read_text(encoding="utf-8") == "6"
    written = rows(tmp_path)
    assert written[-1]["loss"] is None and written[-1]["skipped"] == 3
    assert "streak" not in trainer(tmp_path).metrics.state_dict()


def test_a_checkpoint_waits_for_an_update_that_is_finite(tmp_path: Path) -> None:
    engine = make_engine()
    weight = engine.model.transformer.final_layernorm.weight

    def stumbling(start: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches_from(start)):
            if number in (8, 12):  # the fifth and the sixth update are skipped
                with torch.no_grad():
                    weight[0] = float("nan") if number == 8 else 1.0
            yield batch

    trainer(tmp_path, "--train-iters", "9", engine=engine, train=stumbling).train()
    assert sorted(path.name for path in (tmp_path / "glm").iterdir() if path.is_dir()) == ["7", "9"]


@pytest.mark.parametrize("updates", [2, 200])
def test_a_run_with_nothing_to_predict_ends(updates: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def empty(start: int) -> Iterator[Batch]:
        for batch in batches_from(start):
            yield replace(batch, loss_mask=np.zeros_like(batch.loss_mask))

    words = ("--train-iters", str(updates), "--save-interval", "0", "--eval-interval", "0")
    run = trainer(tmp_path, *words, train=empty)
    with pytest.raises(ValueError, match="nothing to predict in"):
        run.train()
    assert run.progress.updates == min(updates, 102) and not (tmp_path / "glm").exists()
    assert (capsys.readouterr().out.count("warning: nothing to predict") == 1) == (updates > 2)


@pytest.mark.parametrize(("workers", "remedy"), [("0", "now 0: batches are made"), ("3", "now 3")])
def test_waiting_for_data_is_said_once_with_what_helps(
    workers: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def slow(start: int) -> Iterator[Batch]:
        for batch in batches_from(start):
            time.sleep(0.05)
            yield batch

    trainer(tmp_path, "--num-workers", workers, "--train-iters", "42", "--save-interval", "0", train=slow).train()
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "spent waiting for data" in line]
    assert line.startswith("warning: ") and f"more workers (--num-workers, {remedy}" in line
    assert "data_utils.loader_speed" in line and printed.index("step 21/42") < printed.index(line)
    waited = [row["waiting_share"] for row in read_rows(tmp_path / "runs" / "glm" / "metrics.jsonl") if "loss" in row
              and row["kind"] == "train"]  # fmt: skip
    assert len(waited) == 14 and all(0 < share <= 1 for share in waited)


def test_a_full_disk_of_measurements_costs_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    assert trainer(tmp_path, "--metrics-file", str(tmp_path / "metrics.jsonl")).train()
    warnings = [line for line in capsys.readouterr().out.splitlines() if "the run goes on" in line]
    assert len(warnings) == 1 and "metrics.jsonl: [Errno 28] No space left on device" in warnings[0]
    assert (tmp_path / "glm" / "latest").read_text(encoding="utf-8") == "12"


def test_a_full_disk_ends_the_record_of_the_order_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def recorded(start: int) -> Iterator[Batch]:
        return (replace(batch, origin=encode_origin(start, [])) for batch in batches_from(start))

    run = trainer(tmp_path, train=recorded)
    run.order = OrderRecord(tmp_path / "order", documents={}, updates=0)
    run.order.add(1, [])
    os.dup2(os.open("/dev/full", os.O_WRONLY), run.order._file.fileno())
    assert run.train() and run.order is None
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "the run goes on" in line]
    assert line.startswith("warning: the order of the data is recorded no further") and "No space left" in line
    assert (tmp_path / "glm" / "latest").read_text(encoding="utf-8") == "12"


def test_lines_that_nobody_reads_end_the_run_with_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, written = os.pipe()
    with os.fdopen(written, "w", encoding="utf-8") as out:
        os.close(read)
        monkeypatch.setattr("sys.stdout", out)
        run = trainer(tmp_path, "--save-interval", "0")
        assert not run.train()
    assert (tmp_path / "glm" / "latest").read_text(encoding="utf-8") == str(run.progress.updates) == "3"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("samples", "12", "data_state: samples is '12'; a whole number"),
        ("samples", -1, "data_state: samples is -1; at least 0"),
        ("interval", 3, "data_state: interval is 3; an object"),
        ("data", [], "data_state: data is \\[\\]; an object"),
    ],
)
def test_a_place_of_another_kind_is_named(name: str, value: Any, message: str) -> None:
    state = ResumeState(4, {"samples": 16, name: value}, LoadReport((), (), (), (), iteration=4, file=Path("c/r/4")))
    with pytest.raises(ValueError, match=f"c/r/4, {message}"):
        resume_position(state, batch=BatchSettings(), data_parallel_size=1)


@pytest.mark.parametrize("state", [{}, {"sums": [1.0]}, {"sums": ["x"] * 9}, {"sums": [0.0] * 9, "skipped": None}])
def test_a_log_interval_of_another_kind_is_named(state: dict[str, Any]) -> None:
    metrics = IntervalMetrics(torch.device("cpu"), topology=ParallelTopology.single())
    with pytest.raises(ValueError, match="the unfinished log interval of the checkpoint: "):
        metrics.load_state_dict(state)
