"""Generic multiple choice in both directions: enc_multichoice."""

from __future__ import annotations

import numpy as np

from tasks.registry import TASKS
from tasks.superglue.batches import collate
from tasks.superglue.samples import EncodingOptions
from tests.helpers.golden_tokenizers import recorded_tokenizer

NAMES = {
    "text": "input_ids",
    "position": "position_ids",
    "mask": "prefix_lengths",
    "target": "target_ids",
    "logit_mask": "loss_mask",
}


def test_multichoice(golden, vocab_dir):
    task = TASKS["multichoice"]
    for entry in golden.json("superglue/enc_multichoice.json.gz"):
        assert set(entry) == {"case", "uids", "dataset_name", "samples"}
        case = entry["case"]
        assert set(case) == {"file", "tokenizer", "task_mask", "unidirectional", "seq_length", "no_block_position"}
        [file] = task.splits([str(golden.path("superglue/raw") / case["file"])])
        assert task.output_name(file) == entry["dataset_name"]
        tokenizer = recorded_tokenizer(case["tokenizer"], vocab_dir, task_mask=case["task_mask"])
        options = EncodingOptions(
            seq_length=case["seq_length"],
            unidirectional=case["unidirectional"],
            block_positions=not case["no_block_position"],
        )
        examples = task.examples(None, file)
        samples = task.build_samples(examples, tokenizer, options).samples
        assert [example.guid for example in examples] == entry["uids"]
        for sample, recorded in zip(samples, entry["samples"], strict=True):
            assert set(recorded) == {*NAMES, "label", "uid"}
            assert (sample.uid, sample.label or 0) == (recorded["uid"], recorded["label"])
            batch = collate([sample], pad_id=tokenizer.command_id("pad"), pad_to=case["seq_length"])
            for key, name in NAMES.items():
                assert (getattr(batch, name)[0] == np.array(recorded[key])).all(), (case, key)
