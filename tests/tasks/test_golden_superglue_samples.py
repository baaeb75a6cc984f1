"""Encoded samples: every enc_* file but multiple choice (enc_multichoice has its own module), and collate.

enc_cloze_bert, enc_cloze_gpt2, enc_cloze_roberta, enc_cloze_chinese, enc_truncated_bert, enc_truncated_gpt2,
enc_truncated_chinese, enc_multitoken_bert, enc_multitoken_gpt2, enc_multitoken_chinese, enc_prompt_bert,
enc_prompt_gpt2, enc_prompt_chinese, enc_fast_bert, enc_fast_gpt2, enc_segment_bert, enc_segment_gpt2, enc_wsc_bert,
enc_wsc_gpt2, enc_flags_bert, enc_flags_gpt2, enc_edge_bert, enc_edge_gpt2, enc_priming_bert, enc_priming_gpt2,
enc_priming_chinese, enc_classification
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_utils.tokenizers.tokenizer import Tokenizer
from tasks.registry import TASKS
from tasks.superglue.batches import TaskBatch, collate
from tasks.superglue.readers import DataOptions, InputExample
from tasks.superglue.samples import EncodingOptions, TaskSample
from tests.helpers.golden_tokenizers import recorded_tokenizer

FILES = sorted(
    {word.strip(".,") for word in __doc__.replace("\n", " ").split() if word.startswith("enc_")}
    - {"enc_*", "enc_multichoice"}
)
# Which of our fields the recorded arrays are, by kind of sample.
NAMES = {
    "text": "input_ids",
    "position": "position_ids",
    "mask": "prefix_lengths",
    "target": "target_ids",
    "logit_mask": "loss_mask",
    "prompt_pos": "prompt_positions",
    "segment_id": "segment_ids",
}
FAST_NAMES = {
    "text": "input_ids",
    "position": "position_ids",
    "mask": "prefix_lengths",
    "dec_text": "answer_ids",
    "dec_position": "answer_position_ids",
    "dec_mask": "answer_prefix_lengths",
    "dec_target": "target_ids",
    "dec_logit_mask": "loss_mask",
}
LANGUAGE_MODEL_NAMES = {
    "text": "input_ids",
    "target": "target_ids",
    "attention_mask": "prefix_lengths",
    "loss_mask": "loss_mask",
    "position_id": "position_ids",
    "prompt_pos": "prompt_positions",
}
CASE_KEYS = {
    "task", "dir", "split", "first_n", "pattern_id", "tokenizer", "task_mask", "seq_length", "priming", "multi_token",
    "fast_decode", "segment_length", "continuous_prompt", "num_prompt_tokens", "prefix_prompt", "wsc_negative",
    "loss_func", "no_block_position", "masked_lm", "sentinel_token", "add_sentinel_token", "cloze_eval",
    "pretrained_bert",
}  # fmt: skip


def options_of(case: dict[str, Any]) -> EncodingOptions:
    return EncodingOptions(
        seq_length=case["seq_length"],
        cloze_eval=case.get("cloze_eval", True),
        pattern_id=case.get("pattern_id", 0),
        multi_token=case.get("multi_token", False),
        fast_decode=case.get("fast_decode", False),
        segment_length=case.get("segment_length", 0),
        continuous_prompt=case.get("continuous_prompt", False),
        num_prompt_tokens=case.get("num_prompt_tokens", 0),
        prefix_prompt=case.get("prefix_prompt", 0),
        wsc_negative=case.get("wsc_negative", False),
        loss_func=case.get("loss_func", "cross_entropy"),
        block_positions=not case.get("no_block_position", False),
        masked_lm=case.get("masked_lm", False),
        sentinel_token=case.get("sentinel_token", False),
        compatible=True,
    )


class Case:
    """A recorded case: its examples, and how to encode them."""

    def __init__(self, golden, vocab_dir: Path, case: dict[str, Any]) -> None:
        assert set(case) <= CASE_KEYS, set(case) - CASE_KEYS
        self.task, self.options, self.split = TASKS[case["task"]], options_of(case), case["split"]
        self.tokenizer: Tokenizer = recorded_tokenizer(
            case["tokenizer"],
            vocab_dir,
            task_mask=case.get("task_mask", False),
            num_sentinels=case.get("add_sentinel_token", 0),
        )
        data = DataOptions(cloze_eval=self.options.cloze_eval, wsc_negative=self.options.wsc_negative)
        processor = self.task.processor(self.task.name, data)
        self.examples = processor.examples(golden.path("superglue/raw") / case["dir"], case["split"])[: case["first_n"]]

    def encode(self, example: InputExample) -> tuple[TaskSample, int]:
        result = self.task.build_samples([example], self.tokenizer, self.options, for_training=self.split == "train")
        [sample] = result.samples
        return sample, result.num_truncated


def names_of(sample: TaskSample) -> dict[str, str]:
    special = {"fast_decode": FAST_NAMES, "language_model": LANGUAGE_MODEL_NAMES}
    return special.get(sample.kind, NAMES)


def context_of(batch: TaskBatch, *, end: int = 0) -> np.ndarray:
    """Return 1 in the context but for its last ``end`` positions."""
    return (np.arange(batch.input_ids.shape[-1]) < batch.prefix_lengths[..., None] - end).astype(np.int64)


def fields_of(batch: TaskBatch, recorded: dict[str, Any], names: dict[str, str], sep: int) -> dict[str, Any]:
    """Return what the recorded fields are of a batch. Those for a stock BERT follow from ids and prefix lengths."""
    ids = batch.input_ids
    bert = {"types": ((ids == sep).cumsum(-1) - (ids == sep)) > 0, "padding_mask": context_of(batch)}
    return {key: bert[key] if key in bert else getattr(batch, names[key]) for key in recorded}


def check_sample(sample: TaskSample, recorded: dict[str, Any], case: Case, note: Any):
    names = names_of(sample)
    expected = {key: value for key, value in recorded.items() if key not in ("guid", "uid", "label")}
    assert sample.uid == recorded["uid"] == recorded["guid"], note
    assert (sample.label or 0) == recorded["label"], note
    batch = collate([sample], pad_id=case.tokenizer.command_id("pad"), pad_to=case.options.seq_length)
    for key, found in fields_of(batch, expected, names, case.tokenizer.command_id("sep")).items():
        values = np.array(expected[key], dtype=np.int64)
        if key == "types":  # the original fills types up with the id of the end token
            values, found = values * context_of(batch, end=1)[0], found * context_of(batch, end=1)
        if found is None:
            assert values.size == 0, (key, note)
        else:
            assert found[0].shape == values.shape, (key, note)
            assert (found[0] == values).all(), (key, note)
    unrecorded = set(batch.arrays()) - {names[key] for key in expected if key in names}
    known = {"labels", "choice_mask", "answer_prefix_lengths"}
    assert unrecorded <= known | ({"position_ids", "prefix_lengths"} if "types" in recorded else set()), note


@pytest.mark.parametrize("name", [name for name in FILES if "priming" not in name])
def test_samples(golden, vocab_dir, name):
    for entry in golden.json(f"superglue/{name}.json.gz"):
        assert set(entry) == {"case", "samples", "num_truncated"}
        case = Case(golden, vocab_dir, entry["case"])
        assert [sample["guid"] for sample in entry["samples"]] == [example.guid for example in case.examples]
        num_truncated, comparable = 0, True
        for example, recorded in zip(case.examples, entry["samples"], strict=True):
            note = (entry["case"], example.guid)
            if "error" in recorded:  # the original fails: we say why in one line, or do better
                comparable = False
                try:
                    case.encode(example)
                except ValueError as error:
                    assert "\n" not in str(error)
                continue
            sample, truncated = case.encode(example)
            num_truncated += truncated
            check_sample(sample, recorded, case, note)
        if comparable:
            assert num_truncated == entry["num_truncated"], entry["case"]


@pytest.mark.parametrize("name", [name for name in FILES if "priming" in name])
def test_labelled_texts(golden, vocab_dir, name):
    for entry in golden.json(f"superglue/{name}.json.gz"):
        assert set(entry) == {"case", "samples", "num_truncated"}
        assert entry["case"]["priming"]
        case = Case(golden, vocab_dir, entry["case"])
        for example, recorded in zip(case.examples, entry["samples"], strict=True):
            if "error" in recorded:
                with pytest.raises(ValueError):
                    case.task.labelled_texts([example], case.tokenizer, case.options)
                continue
            assert set(recorded) == {"guid", "ids"}
            [[first, *ids, last]] = case.task.labelled_texts([example], case.tokenizer, case.options)
            if recorded["ids"] and isinstance(recorded["ids"][0], str):
                # The original lists the field names of a language-model sample here; that mode never ran with wsc.
                assert case.task.name == "wsc" and case.tokenizer.command_id("MASK") not in ids
            else:
                assert ids == recorded["ids"], (entry["case"], example.guid)
            assert (first, last) == tuple(case.tokenizer.command_id(name) for name in ("ENC", "eos"))


def test_collate(golden, vocab_dir):
    for entry in golden.json("superglue/collate.json.gz"):
        assert set(entry) == {"name", "from", "batch", "dtypes"}
        samples = []
        for source in entry["from"]:
            case = Case(golden, vocab_dir, source["case"])
            samples.append(case.encode(case.examples[source["sample"]])[0])
        pad_id = case.tokenizer.command_id("pad")
        batch = collate(samples, pad_id=pad_id, pad_to=case.options.seq_length)
        tensors = batch.tensors()
        recorded = {key: value for key, value in entry["batch"].items() if key != "uid"}
        names = {**names_of(samples[0]), "label": "labels"}
        if samples[0].kind != "language_model":
            names["loss_mask"] = "choice_mask"
        assert list(batch.uids) == entry["batch"]["uid"]
        for key, found in fields_of(batch, recorded, names, case.tokenizer.command_id("sep")).items():
            expected = np.array(recorded[key], dtype=np.int64)
            if key == "types":
                expected, found = (array * context_of(batch, end=1) for array in (expected, found))
            if found is None:
                assert expected.size == 0, (entry["name"], key)
                continue
            assert found.shape == expected.shape, (entry["name"], key)
            assert (found == expected).all(), (entry["name"], key)
            if key in names:
                assert str(getattr(tensors, names[key]).dtype) == entry["dtypes"][key]
        # The original adds the mask of choices to fast-decode batches only when their numbers differ.
        extra = set(batch.arrays()) - {names[key] for key in recorded if key in names}
        known = {"choice_mask"} if samples[0].kind == "fast_decode" else set()
        assert extra <= known | ({"position_ids", "prefix_lengths"} if "types" in recorded else set()), entry["name"]
