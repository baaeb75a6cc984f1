"""The comparison of ways to fine-tune on few examples: real runs of the demo model, made once each, and the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.few_shots import COMMAND, few_shots, interval, write_subset
from benchmarks.harness import REPOSITORY
from benchmarks.pages import marks
from tests.helpers.small_corpus import write_entailment_split

CHECKPOINT = REPOSITORY / "model" / "demo"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("superglue")
    (folder / "RTE").mkdir()
    for name, count in (("train", 12), ("val", 5)):
        write_entailment_split(folder / "RTE", name, count)
    return folder


def words(data: Path, folder: Path, *more: str) -> list[str]:
    return [
        "--checkpoint", str(CHECKPOINT), "--data-dir", str(data), "--folder", str(folder), "--tasks", "rte",
        "--epochs", "1", "--device", "cpu", *more,
    ]  # fmt: skip


def test_seeds_draw_examples_and_all_takes_all(data: Path, tmp_path: Path):
    rows = (data / "RTE" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    drawn = {}
    for seed, size in ((1, "4"), (2, "4"), (1, "all")):
        folder = tmp_path / f"{size}-{seed}"
        count = write_subset(data / "RTE", folder, size=size, seed=seed)
        drawn[seed, size] = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(drawn[seed, size]) == count == (12 if size == "all" else 4)
        assert (folder / "val.jsonl").read_bytes() == (data / "RTE" / "val.jsonl").read_bytes()
    assert drawn[1, "all"] == rows and drawn[1, "4"] != drawn[2, "4"]
    assert all(set(part) <= set(rows) for part in drawn.values())
    with pytest.raises(ValueError, match=r"has 12 examples; --sizes 13 needs more"):
        write_subset(data / "RTE", tmp_path / "13", size="13", seed=1)


def test_an_interval_worked_out_by_hand():
    assert interval([50.0]) == "50.0"
    assert interval([40.0, 60.0]) == "50.0 ± 127.1"  # 12.706 * sqrt(200) / sqrt(2)
    assert interval([50.0] * 5) == "50.0 ± 0.0"


def test_runs_are_made_once_and_the_table_has_them_all(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    page = tmp_path / "page.md"
    page.write_text("\n".join(["# Few", "", *marks(COMMAND), ""]), encoding="utf-8")
    folder, kept = tmp_path / "runs", tmp_path / "runs" / "few_shots.jsonl"
    assert few_shots(words(data, folder, "--sizes", "4", "--methods", "cloze", "lora", "--seeds", "1")) == 0
    first = kept.read_text(encoding="utf-8")
    more = ["--sizes", "4", "all", "--methods", "cloze", "p-tuning", "head", "--seeds", "1", "--output", str(page)]
    assert few_shots(words(data, folder, *more)) == 0
    text = kept.read_text(encoding="utf-8")
    assert text.startswith(first)  # what was there has not been run again
    rows = [json.loads(line) for line in text.splitlines()]
    names = [(row["size"], row["method"], row["examples"]) for row in rows]
    assert names == [
        ("4", "cloze", 4), ("4", "lora", 4), ("4", "p-tuning", 4), ("4", "head", 4),
        ("all", "cloze", 12), ("all", "p-tuning", 12), ("all", "head", 12),
    ]  # fmt: skip
    # Two of every five examples of the split are entailed.
    assert all(row["majority"] == {"accuracy": 60.0} and row["accuracy"] % 20 == 0 for row in rows)
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| rte")]
    assert [line.split(" | ")[1] for line in lines] == ["4", "all 12"]
    assert all(line in capsys.readouterr().out for line in lines[:1]) and lines[1].count(" |  | ") == 1
    assert json.loads(page.with_suffix(".json").read_text(encoding="utf-8")) == rows
    with pytest.raises(ValueError, match="has runs of demo, not of other; give another --folder"):
        few_shots([*words(data, folder), "--checkpoint", str(tmp_path / "other")])


def test_mistakes_are_said_in_one_line(data: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="--sizes few: a number of examples or all is needed"):
        few_shots(words(data, tmp_path, "--sizes", "few"))
    with pytest.raises(ValueError, match=r"has 12 examples; --sizes 32 needs more"):
        few_shots(words(data, tmp_path, "--sizes", "32"))
