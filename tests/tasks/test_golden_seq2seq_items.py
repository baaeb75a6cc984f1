"""Sequence to sequence: every item the original makes of small files of each task (seq2seq_items.json)."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer
from tasks.seq2seq.readers import Seq2SeqExample, Seq2SeqOptions, read_examples
from tasks.seq2seq.samples import Seq2SeqSample, build_blank_sample, build_sample, with_blanks
from tasks.settings import SEQ2SEQ_TASKS
from tests.helpers.golden_index import GoldenFolder
from tests.helpers.golden_tokenizers import TOKENIZERS

CASE_KEYS = {"task", "tokenizer", "flags", "src_seq_length", "tgt_seq_length", "seed", "files", "items"}
ITEM_KEYS = {"text", "target", "attention_mask", "loss_mask", "position_id", "uid", "meta", "example_idx"}
META_KEYS = {"ref", "question", "answer", "answers", "text_a"}
SWITCHES = {
    "--block-lm": {},
    "--task-mask": {"task_mask": True},
    "--mask-pad-token": {"mask_pad_token": True},
    "--no-block-position": {"block_positions": False},
}


def options_of(case: dict[str, Any]) -> Seq2SeqOptions:
    """Return the options of recorded flags; a flag we do not know is an error."""
    options: dict[str, Any] = {}
    flags = list(case["flags"])
    while flags:
        flag = flags.pop(0)
        if flag == "--blank-maskratio":
            options["blank_maskratio"] = float(flags.pop(0))
        else:
            options |= SWITCHES[flag]
    assert "--block-lm" in case["flags"]
    return Seq2SeqOptions(
        src_seq_length=case["src_seq_length"],
        tgt_seq_length=case["tgt_seq_length"],
        seed=case["seed"],
        compatible=True,
        **options,
    )


def tokenizer_of(case: dict[str, Any], vocab_dir: Path) -> Tokenizer:
    """Return the tokenizer a case names; ``..._fixed`` has the fixed command tokens."""
    name = case["tokenizer"]
    known = TOKENIZERS[name.removesuffix("_fixed")]
    fixed = {"fix_command_token": True} if name.endswith("_fixed") else {}
    return build_tokenizer(**{**known, **fixed}, task_mask="--task-mask" in case["flags"], vocab_dir=vocab_dir)


def write_files(files: dict[str, Any], folder: Path) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def mask_rows(sample: Seq2SeqSample) -> list[str]:
    """Return the 0/1 rows of the mask that hidden padding stands for."""
    size, start = len(sample.input_ids), sample.prefix_length
    rows = np.zeros((size, size), dtype=int)
    rows[:, : sample.context_length] = 1
    rows[start:, start:] = np.tril(np.ones((size - start, size - start), dtype=int))
    return ["".join(map(str, row)) for row in rows]


def check_mask(recorded: Any, sample: Seq2SeqSample, options: Seq2SeqOptions) -> None:
    if options.mask_pad_token:
        assert set(recorded) == {"shape", "row_strings"}
        assert recorded["shape"] == [1, len(sample.input_ids), len(sample.input_ids)]
        assert mask_rows(sample) == recorded["row_strings"]
    else:
        assert sample.prefix_length == recorded


def check_example(recorded: dict[str, Any], example: Seq2SeqExample) -> None:
    meta = dict(recorded["meta"])
    assert set(meta) <= META_KEYS
    assert example.reference == meta.pop("ref")
    if "text_a" in meta:
        assert example.source == meta.pop("text_a")
    if "answers" in meta:
        assert list(example.meta["answers"]) == meta.pop("answers")
    assert {key: example.meta[key] for key in meta} == meta
    if "example_idx" in recorded:
        assert example.meta["idx"] == recorded["example_idx"]


def check_sample(recorded: dict[str, Any], sample: Seq2SeqSample, options: Seq2SeqOptions) -> None:
    assert set(recorded) <= ITEM_KEYS
    assert sample.input_ids.tolist() == recorded["text"]
    assert sample.position_ids.tolist() == recorded["position_id"]
    for ours, theirs in ((sample.target_ids, "target"), (sample.loss_mask, "loss_mask")):
        assert (None if ours is None else ours.tolist()) == recorded.get(theirs)
    arrays = [sample.input_ids, sample.position_ids, sample.target_ids, sample.loss_mask]
    assert {array.dtype for array in arrays if array is not None} == {np.dtype(np.int64)}
    assert sample.uid == recorded["uid"]
    check_mask(recorded["attention_mask"], sample, options)


def check_split(case: dict[str, Any], split: str, folder: Path, vocab_dir: Path) -> None:
    task, options, tokenizer = case["task"], options_of(case), tokenizer_of(case, vocab_dir)
    examples = read_examples(task, folder, split, tokenizer=tokenizer, options=options)
    generator = random.Random(case["seed"])  # blanks were drawn in order of the items
    for example, recorded in zip(examples, case["items"][split], strict=True):
        check_example(recorded, example)
        chosen = {"tokenizer": tokenizer, "options": options, "for_training": "target" in recorded}
        if task == "blank":
            drawn = with_blanks(example, options=options, generator=generator)
            sample = build_blank_sample(task, drawn, **chosen)
        else:
            sample = build_sample(task, example, **chosen)
        check_sample(recorded, sample, options)


def cases() -> list[int]:
    path = GoldenFolder.from_environment().root / "generation" / "seq2seq_items.json"
    return list(range(len(json.loads(path.read_text(encoding="utf-8"))))) if path.exists() else [0]


@pytest.mark.parametrize("number", cases())
def test_items(number: int, golden, vocab_dir, tmp_path: Path):
    case = golden.json("generation/seq2seq_items.json")[number]
    assert set(case) == CASE_KEYS
    assert case["task"] in SEQ2SEQ_TASKS
    assert case["items"] and all(case["items"].values())
    write_files(case["files"], tmp_path)
    for split in case["items"]:
        check_split(case, split, tmp_path, vocab_dir)
