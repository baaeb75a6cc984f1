"""mt5.json: tasks, rows, items and ROUGE of the original, with mt5_tiny.model's subwords."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mt5.data import (
    IGNORED,
    Encoder,
    Row,
    batch_inputs,
    choose,
    read_part,
    rouge_of_words,
)  # fmt: skip
from mt5.settings import TASKS, Part
from tests.helpers.golden_index import GoldenFolder
from tests.helpers.mt5_models import tiny_mt5


@pytest.fixture(scope="module")
def recorded(golden: GoldenFolder) -> dict[str, Any]:
    return golden.json("multilingual/mt5.json")


@pytest.fixture(scope="module")
def data_folder(recorded: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mt5")
    for name, content in recorded["files"].items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    return root / "data"


@pytest.fixture(scope="module")
def tokenizer(golden: GoldenFolder, tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(tiny_mt5(tmp_path_factory.mktemp("tiny"), golden))


def test_tasks(recorded: dict[str, Any]):
    ours = {f"{task}|{name}": one for task, subtasks in TASKS.items() for name, one in subtasks.items()}
    assert set(ours) == set(recorded["tasks"])
    for name, parts in recorded["tasks"].items():
        assert (list(ours[name].train), list(ours[name].valid)) == (parts["train"], parts["valid"])


def test_rows(recorded: dict[str, Any], data_folder: Path):
    for case in recorded["readers"]:
        size = None if case["size"] is None else float(case["size"])
        split = "train" if case["split"] == "train" else "valid"
        rows = read_part(Part(case["dataset"], case["lang"]), split, folders=[data_folder])
        if case["dataset"] != "mtgcrosssum":
            rows = [row.cut_by_characters(recorded["MAX_LEN"]) for row in rows]
        chosen = choose(rows, size, legacy=True)
        assert [row.text + row.prompt for row in chosen] == case["text"]
        assert [row.summary for row in chosen] == case["zh_sum"]


def test_sizes_of_splits(recorded: dict[str, Any]):
    for case in recorded["split_sizes"]:
        rows = [Row(str(number), "", "") for number in range(case["rows"])]
        head, tail = choose(rows, 0.8, legacy=True), choose(rows, -0.2, legacy=True)
        assert (len(head), len(tail)) == (case["head_0.8"], case["tail_0.2"])
        assert tail == rows[len(rows) - len(tail) :]
        assert [*choose(rows, 0.8), *choose(rows, -0.2)] == rows  # without the row that the original loses


def test_items(recorded: dict[str, Any], tokenizer: Any):
    lengths = recorded["items"]
    encoder = Encoder(tokenizer, max_len=lengths["source_len"], summary_len=lengths["summ_len"], legacy=True)
    items = []
    for case in lengths["rows"]:
        item = encoder.item(Row(case["text"], "", case["zh_sum"]))
        items.append(item)
        pads = case["source_mask"].count(0)
        assert [*item.source, *[0] * pads] == case["source_ids"]
        assert list(item.target) == [index for index in case["target_ids"] if index]
    inputs = batch_inputs(items, pad=encoder.pad, legacy=True)
    assert inputs["decoder_input_ids"].tolist() == lengths["decoder_input_ids"]
    assert inputs["labels"].tolist() == lengths["labels"]
    assert inputs["attention_mask"].sum(dim=1).tolist() == [sum(case["source_mask"]) for case in lengths["rows"]]


def test_rouge(recorded: dict[str, Any], tokenizer: Any):
    encoder = Encoder(tokenizer, max_len=60, summary_len=12, legacy=True)
    for case in recorded["rouge"]:
        words = encoder.words(case["prediction"]), encoder.words(case["reference"])
        assert words == (case["prediction_ids"], case["reference_ids"])
        scores = rouge_of_words([words])
        expected = {"r1": case["rouge1"], "r2": case["rouge2"], "rl": case["rougeLsum"]}
        assert scores == pytest.approx(expected, abs=1e-9)
    empty = Encoder(tokenizer, max_len=60, summary_len=12)
    assert rouge_of_words([(empty.words(""), empty.words("河边"))])["r1"] == 0.0  # the end token does not count


def test_what_is_mended(tokenizer: Any):
    """The prompt survives a long text, and the first target token is learned."""
    row = Row("The lighthouse keeper painted the door " * 5, " 中文摘要：", "灯塔看守人")
    encoder = Encoder(tokenizer, max_len=24, summary_len=12)
    item = encoder.item(row)
    prompt = encoder.ids(row.prompt)
    assert len(item.source) == 24
    assert list(item.source[-1 - len(prompt) :]) == [*prompt, encoder.end]
    short = encoder.item(Row("The door", row.prompt, "灯"))
    inputs = batch_inputs([item, short], pad=encoder.pad)
    assert inputs["decoder_input_ids"][:, 0].tolist() == [encoder.pad, encoder.pad]
    assert inputs["labels"][0].tolist() == list(item.target)
    rest = len(item.target) - len(short.target)
    assert inputs["labels"][1].tolist() == [*short.target, *[IGNORED] * rest]
