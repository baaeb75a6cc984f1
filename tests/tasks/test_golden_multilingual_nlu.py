"""XNLI, PAWS-X and PANX as the multilingual release reads, prompts and encodes them: nlu_prompts.json."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer
from tasks.registry import TASKS
from tasks.superglue.batches import collate
from tasks.superglue.patterns import Mask, Shortenable
from tasks.superglue.readers import InputExample
from tasks.superglue.samples import EncodingOptions

TASK_NAMES = ("xnli", "pawsx", "panx")
FIELDS = {
    "text": "input_ids", "position": "position_ids", "mask": "prefix_lengths", "target": "target_ids",
    "logit_mask": "loss_mask",
}  # fmt: skip


@cache
def tokenizer_of(file: Path, task_mask: bool) -> Tokenizer:
    return build_tokenizer("ChineseSPTokenizer", model_type=str(file), task_mask=task_mask)


@pytest.fixture
def recorded(golden):
    return golden.json("multilingual/nlu_prompts.json")


@pytest.fixture
def tokenizer(golden) -> Tokenizer:
    return tokenizer_of(golden.path("multilingual/mglm_tiny.model"), True)


def read(recorded: dict[str, Any], name: str, split: str, folder: Path) -> list[InputExample]:
    for file, content in recorded["files"][name].items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content, encoding="utf-8")
    return TASKS[name].examples(folder, split)


def example_of(entry: dict[str, Any]) -> InputExample:
    return InputExample(**{key: value for key, value in entry.items() if key in InputExample.__dataclass_fields__})


def check_sample(name: str, entry: dict[str, Any], example: InputExample, tokenizer: Tokenizer) -> None:
    options = EncodingOptions(
        seq_length=entry["seq_length"], pattern_id=entry["pattern_id"], multi_token=entry.get("multi_token", False)
    )
    result = TASKS[name].build_samples([example], tokenizer, options)
    [sample], found = result.samples, dict(entry["sample"])
    assert sample.uid == found.pop("uid")
    assert (sample.label or 0) == found.pop("label")
    found.pop("prompt_pos")
    if "num_truncated" in entry:  # the original counts pieces, we count examples
        assert (result.num_truncated > 0) == (entry["num_truncated"] > 0)
    batch = collate([sample], pad_id=tokenizer.special.pad, pad_to=entry["seq_length"])
    assert set(found) <= set(FIELDS), set(found)
    for key, values in found.items():
        ours = getattr(batch, FIELDS[key])[0] if FIELDS[key] != "target_ids" or sample.choices else sample.label_ids
        assert np.array_equal(np.asarray(ours), np.array(values)), key


@pytest.mark.parametrize("name", TASK_NAMES)
def test_examples(name: str, recorded, tmp_path):
    task = TASKS[name]
    assert list(task.labels) == recorded[name]["labels"]
    pattern = 4 if name == "xnli" else 0
    assert {label: [word] for label, word in task.patterns.verbalizers(pattern).items()} == recorded[name][
        "verbalizers"
    ]
    for split, entries in recorded[name]["examples"].items():
        examples = read(recorded, name, split, tmp_path)
        if name == "panx":  # the original loses the last sentence, and takes every hundredth word of the dev set
            examples = examples[99::100] if split == "dev" else examples[: len(entries)]
        assert len(examples) == len(entries) == recorded[name]["splits"][split]
        for example, entry in zip(examples, entries):
            assert all(getattr(example, key) == entry[key] for key in ("guid", "text_a", "text_b", "label", "idx"))
            assert entry["meta"].items() <= dict(example.meta).items()


@pytest.mark.parametrize("name", TASK_NAMES)
def test_prompts_and_samples(name: str, recorded, tokenizer):
    for entry in recorded[name]["encoded"]:
        example = example_of(recorded[name]["examples"][entry["split"]][entry["index"]])
        parts = TASKS[name].patterns.rendered(example, entry["pattern_id"])
        for side, expected in ((parts.a, entry["parts_a"]), (parts.b, entry["parts_b"])):
            pieces = [
                {"mask": True}
                if isinstance(piece, Mask)
                else {"text": getattr(piece, "text", piece), "shortenable": isinstance(piece, Shortenable)}
                for piece in side
            ]
            assert pieces == expected
        check_sample(name, entry, example, tokenizer)


def test_over_long_pairs(recorded, tokenizer):
    for entry in recorded["truncation"]:
        meta = {"index": 0} | (entry.get("meta") or {})
        guid = entry["sample"]["uid"]
        example = InputExample(guid, entry["text_a"], entry["text_b"], entry["label"], meta=meta)
        check_sample(entry["task"], entry, example, tokenizer)


def test_without_task_masks_the_prompts_are_the_same(recorded, golden):
    entry = recorded["no_task_mask"]
    example = InputExample(entry["sample"]["uid"], entry["text_a"], entry["text_b"], entry["label"])
    tokenizer = tokenizer_of(golden.path("multilingual/mglm_tiny.model"), False)
    check_sample(entry["task"], entry, example, tokenizer)


def test_order_of_a_pattern_ensemble(recorded, tokenizer):
    for name, case in recorded["dataset"].items():
        task, examples = TASKS[name], [example_of(entry) for entry in recorded[name]["examples"]["train"]]
        ids = task.patterns.pattern_ids if case["pattern_ensemble"] else (4,)
        samples = [
            sample
            for pattern in ids
            for sample in task.build_samples(examples, tokenizer, EncodingOptions(64, pattern_id=pattern)).samples
        ]
        assert (len(examples), len(samples)) == (case["num_examples"], case["len"])
        for item in case["items"]:
            batch = collate([samples[item["index"]]], pad_id=tokenizer.special.pad, pad_to=64)
            assert batch.input_ids[0].tolist() == item["text"]
            assert samples[item["index"]].uid == item["uid"]


def test_prediction_file(recorded):
    entry = recorded["output"]
    examples = [InputExample("x", "a", "b", idx=index) for index in entry["idx"]]
    lines = TASKS[entry["task"]].prediction_lines(examples, entry["predictions"])
    assert "".join(f"{line}\n" for line in lines) == entry["file"]
