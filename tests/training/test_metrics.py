"""Interval sums, progress line, writers and curves."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mpu.initialize import ParallelTopology, initialize_model_parallel
from tests.helpers.distributed import run
from tests.helpers.logs import logged_lines
from training.logging import (
    Console,
    JsonLinesWriter,
    RunLog,
    TensorBoardWriter,
    draw_loss_curves,
    read_rows,
    store_json,
)
from training.metrics import (
    OBJECTIVE_INDEX,
    OBJECTIVES,
    BatchSize,
    ComputeCost,
    EvaluationResult,
    IntervalMetrics,
    StepResult,
    dense_line,
    short_number,
)

SINGLE = ParallelTopology.single()


def step(mode: str, loss_sum: float, weight: float, *, skipped: bool = False, tokens: int = 10) -> StepResult:
    sums = torch.zeros(len(OBJECTIVES), 2)
    sums[OBJECTIVE_INDEX[mode]] = torch.tensor([loss_sum, weight])
    return StepResult(
        objective_sums=sums,
        loss=torch.tensor(loss_sum / weight),
        grad_norm=torch.tensor(0.5),
        skipped=torch.tensor(float(skipped)),
        size=BatchSize(2, 2, tokens, tokens * 3 // 4, filled=tokens // 2, room=tokens),
        learning_rate=1e-3,
        milliseconds={"forward": 2.0},
    )


def test_interval_means_are_over_updates_and_over_targets_per_objective():
    metrics = IntervalMetrics(torch.device("cpu"), topology=SINGLE)
    for result in (step("bert", 6.0, 2.0), step("bert", 8.0, 8.0), step("gpt", 5.0, 1.0)):
        metrics.add(result, seconds=100.0, fetch_seconds=0.001)
    report = metrics.report(3)
    assert report.loss == pytest.approx((3.0 + 1.0 + 5.0) / 3)
    assert report.objective_losses == pytest.approx({"bert": 1.4, "gpt": 5.0})
    assert report.elapsed_ms == pytest.approx(100000.0, rel=0.1)  # and the wait for the values, which is short
    assert report.tokens_per_second == pytest.approx(0.1, rel=0.1)
    assert report.milliseconds == pytest.approx({"forward": 2.0, "batch generator": 1.0})


def test_shares_of_waiting_padding_and_packing():
    """The first update of a process, in which the loader starts, does not count as waiting."""
    metrics = IntervalMetrics(torch.device("cpu"), topology=SINGLE)
    metrics.add(step("bert", 6.0, 2.0, tokens=16), seconds=500.0, fetch_seconds=400.0)
    metrics.add(step("bert", 6.0, 2.0, tokens=48), seconds=100.0, fetch_seconds=8.0)
    report = metrics.report(2)
    assert report.waiting_share == pytest.approx(0.08, rel=0.01)
    assert (report.num_tokens, report.num_real_tokens) == (64, 48)
    assert (report.padding_share, report.packing_efficiency) == (0.25, 0.5)
    row = report.row()
    assert (row["tokens"], row["real_tokens"], row["padding_share"], row["packing_efficiency"]) == (64, 48, 0.25, 0.5)
    metrics.add(step("bert", 6.0, 2.0), seconds=10.0, fetch_seconds=5.0)
    assert metrics.report(3).waiting_share == pytest.approx(0.5, rel=0.01)
    metrics.add(replace(step("bert", 6.0, 2.0), size=BatchSize(1, 1, 8, 8)))
    unpacked = metrics.report(4)
    assert unpacked.packing_efficiency is None and "packing_efficiency" not in unpacked.row()


def two_rank_intervals() -> list[dict]:
    """Rank 1 waits longer for batches that are wider; an interrupted interval goes on in other processes."""
    topology = initialize_model_parallel(1)
    rank = topology.data_parallel_rank
    metrics = IntervalMetrics(torch.device("cpu"), topology=topology)
    for number in range(3):
        if number == 2:
            state = metrics.state_dict()
            metrics = IntervalMetrics(torch.device("cpu"), topology=topology)
            metrics.load_state_dict(state)
            metrics.add(step("bert", 1.0, 1.0, tokens=0))
        metrics.add(step("bert", 6.0, 2.0, tokens=16 + 16 * rank), seconds=100.0, fetch_seconds=1.0 + 19.0 * rank)
    return [metrics.report(3).row()]


def test_the_rank_that_waits_longest_is_reported_and_tokens_are_those_of_all_ranks():
    for (row,) in run(two_rank_intervals, 2):
        assert row["waiting_share"] == pytest.approx(0.2, rel=0.01)
        assert (row["tokens"], row["real_tokens"], row["packing_efficiency"]) == (3 * 48, 3 * 36, 0.5)


def test_a_new_interval_starts_from_zero():
    metrics = IntervalMetrics(torch.device("cpu"), topology=SINGLE)
    metrics.add(step("bert", 6.0, 2.0))
    metrics.report(1)
    metrics.add(step("gpt", 5.0, 1.0))
    report = metrics.report(2)
    assert report.objective_losses == {"gpt": 5.0} and report.loss == 5.0 and report.num_steps == 1


def test_skipped_updates_are_counted_and_do_not_spoil_the_mean():
    metrics = IntervalMetrics(torch.device("cpu"), topology=SINGLE)
    metrics.add(step("bert", 6.0, 2.0))
    for _ in range(3):
        metrics.add(step("bert", float("nan"), 2.0, skipped=True))
    metrics.add(step("bert", 2.0, 2.0))
    report = metrics.report(5)
    assert report.loss == pytest.approx(2.0)
    assert (report.num_skipped, report.longest_streak) == (3, 3)


def test_streaks_go_on_across_intervals():
    metrics = IntervalMetrics(torch.device("cpu"), topology=SINGLE)
    for number in range(1, 5):
        metrics.add(step("bert", float("inf"), 1.0, skipped=True))
        assert metrics.report(number).longest_streak == number


def test_an_interrupted_interval_reports_what_a_straight_one_does():
    results = [step("bert", 6.1, 2.0), step("gpt", 5.3, 7.0), step("bert", 0.7, 3.0)]
    straight = IntervalMetrics(torch.device("cpu"), topology=SINGLE)
    for result in results:
        straight.add(result)
    first = IntervalMetrics(torch.device("cpu"), topology=SINGLE)
    first.add(results[0])
    first.add(results[1])
    state = json.loads(json.dumps(first.state_dict()))
    second = IntervalMetrics(torch.device("cpu"), topology=SINGLE)
    second.load_state_dict(state)
    second.add(results[2])
    expected, actual = (replace(m.report(3), seconds=1.0).row() for m in (straight, second))
    assert actual == expected


def test_dense_line_names_everything():
    metrics = IntervalMetrics(torch.device("cpu"), topology=SINGLE)
    metrics.add(step("sentence", 6.0, 2.0, tokens=4000))
    report = replace(metrics.report(100), seconds=2.0)
    line = dense_line(report, total=1000, utilisation=0.4, memory_bytes=2**30)
    assert line == (
        "step 100/1000 | ETA 0:30:00 | loss 3.000 (sentence 3.000) | lr 1.00e-03 | grad norm 0.50 | 2.0k tokens/s"
        " | waiting 0.0% | padding 25.0% | packed 50.0% | MFU 40.0% | 1.00 GB"
    )
    assert short_number(12) == "12" and short_number(1.5e6) == "1.5M"


def test_utilisation_is_given_only_where_the_peak_is_known():
    sizes = {"num_parameters": 10**9, "num_layers": 10, "hidden_size": 100, "seq_length": 50}
    known = ComputeCost.of(**sizes, device_name="NVIDIA A100-SXM4-80GB")
    assert known.utilisation(312e12 / known.flops_per_token, num_devices=1) == pytest.approx(1.0)
    assert known.flops_per_token == 6 * 10**9 + 12 * 10 * 100 * 50
    for name in (None, "some other device"):
        assert ComputeCost.of(**sizes, device_name=name).utilisation(1e6, num_devices=1) is None


def test_json_lines_of_a_resumed_run_continue_behind_the_checkpoint(tmp_path: Path):
    path = tmp_path / "runs" / "metrics.jsonl"
    writer = JsonLinesWriter(path, iteration=0)
    for iteration in (10, 20, 30):
        writer.write({"kind": "train", "iteration": iteration, "loss": float("nan")}, [])
    writer.close()
    with path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "itera')  # killed while writing
    writer = JsonLinesWriter(path, iteration=20)
    writer.write({"kind": "train", "iteration": 30, "loss": 1.0}, [])
    writer.close()
    rows = read_rows(path)
    assert [(row["iteration"], row["loss"]) for row in rows] == [(10, None), (20, None), (30, 1.0)]


def test_a_new_run_does_not_keep_old_json_lines(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n', encoding="utf-8")
    JsonLinesWriter(path, iteration=0).close()
    assert read_rows(path) == []


def test_the_evaluations_at_the_end_are_made_again_by_a_run_that_goes_on(tmp_path: Path):
    """A kill after them, or a finished run that is started again, does not double their rows."""
    path = tmp_path / "metrics.jsonl"
    train = {"kind": "train", "iteration": 4, "loss": 1.0}
    ends = [{"kind": kind, "iteration": 4, "prefix": f"the end of training for {data} data", "loss": 2.0}
            for kind, data in (("evaluation", "val"), ("test", "test"))]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in (train, *ends)), encoding="utf-8")
    writer = JsonLinesWriter(path, iteration=4)
    writer.write(ends[0], [])
    writer.close()
    assert read_rows(path) == [train, ends[0]]


@pytest.mark.parametrize(
    "row",
    [
        b'{"kind": "train", "itesation": 2, "loss": 1.0}', b'{"kind": "train", "iteration": "2"}', b'[1]', b'{"ki',
        b'{"kind": "train", "iteration": 2, "loss": "x"}', b'{"kind": "train", "iteration": -1}', b"\xff\xfe",
        b'{"kind": null, "iteration": 2}', b"[" * 100000, b'{"kind": "train", "iteration": 2.5}', b"\x00", b"5" * 5000,
    ],
)  # fmt: skip
def test_damaged_rows_are_dropped_with_a_warning(row: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = b'{"kind": "train", "iteration": %d, "loss": 1.0}'
    path.write_bytes(b"\n".join([good % 1, row, good % 3, good % 4, b""]))
    with logged_lines() as lines:
        JsonLinesWriter(path, iteration=3).close()
    assert [line for line in lines if "metrics.jsonl: 1 of 4 rows are damaged and left out: 2" in line], lines
    assert [row["iteration"] for row in read_rows(path)] == [1, 3]


def test_the_perplexity_of_nan_is_nan() -> None:
    assert math.isnan(EvaluationResult(math.nan, {}).perplexity)


def test_tensorboard_events_can_be_read_back(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = TensorBoardWriter(tmp_path, iteration=0)
    writer.write({}, [("Train/lr", 0.25, 7), ("Train/train_loss", 2.0, 7)])
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"Train/lr", "Train/train_loss"}
    assert [(event.step, event.value) for event in events.Scalars("Train/lr")] == [(7, 0.25)]


def test_curves_are_drawn_from_the_json_lines(tmp_path: Path):
    pytest.importorskip("matplotlib")
    metrics, picture = tmp_path / "metrics.jsonl", tmp_path / "loss.png"
    writer = JsonLinesWriter(metrics, iteration=0)
    for iteration in (1, 2):
        writer.write({"kind": "train", "iteration": iteration, "loss": 2.0 / iteration, "bert_loss": 1.0}, [])
    writer.write({"kind": "evaluation", "iteration": 2, "loss": 1.5}, [])
    writer.close()
    assert draw_loss_curves(metrics, picture, unigram_entropy=1.7) is None
    assert picture.read_bytes().startswith(b"\x89PNG") and list(tmp_path.glob("*.tmp*")) == []


def test_nothing_logged_means_a_note_instead_of_a_picture(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    note = draw_loss_curves(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert note is not None and not (tmp_path / "loss.png").exists()


def test_console_prints_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]):
    log = RunLog(Console(total=10, initial=0, progress=True))
    log.console.print("one")
    log.console.step()
    log.console.dense("step 1/10 | loss 2")
    log.close()
    silent = Console(total=10, initial=0, progress=True, silent=True)
    silent.print("nothing")
    silent.dense("a | b")
    assert capsys.readouterr().out.splitlines() == ["one", "step 1/10 | loss 2"]


def test_stored_json_is_whole(tmp_path: Path):
    store_json(tmp_path / "a" / "config.json", {"path": Path("x"), "number": 1})
    assert json.loads((tmp_path / "a" / "config.json").read_text(encoding="utf-8")) == {"path": "x", "number": 1}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["config.json"]
