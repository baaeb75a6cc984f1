"""The mixture of downstream tasks for pre-training: multitask.json.gz."""

from __future__ import annotations

import numpy as np
import pytest

from data_utils.mixtures import MixedDataset
from tasks.multitask import FOLDERS, DownstreamCollator, PatternEnsemble
from tasks.registry import TASKS
from tasks.superglue.samples import EncodingOptions
from tests.helpers.golden_tokenizers import recorded_tokenizer

NAMES = {
    "text": "input_ids",
    "target": "target_ids",
    "loss_mask": "loss_mask",
    "position_id": "position_ids",
    "attention_mask": "attention_mask",
}


def test_mixture(golden, vocab_dir):
    recorded = golden.json("superglue/multitask.json.gz")
    assert set(recorded) == {
        "tasks", "dirs", "seq_length", "tokenizer", "pattern_ensemble", "dataset_lengths", "weights", "len",
        "picks_idx_dataset_sample", "items",
    }  # fmt: skip
    assert recorded["pattern_ensemble"]
    tokenizer = recorded_tokenizer(recorded["tokenizer"], vocab_dir)
    ensembles = []
    for name, folder, length in zip(recorded["tasks"], recorded["dirs"], recorded["seq_length"], strict=True):
        task = TASKS[name]
        assert FOLDERS[name] == folder
        examples = task.examples(golden.path("superglue/raw") / folder, "train")
        ensembles.append(PatternEnsemble(task, examples, tokenizer, EncodingOptions(seq_length=length)))
    assert [len(ensemble) for ensemble in ensembles] == recorded["dataset_lengths"]
    mixture = MixedDataset(ensembles)
    assert len(mixture) == recorded["len"]
    assert mixture.weights == pytest.approx(recorded["weights"], rel=1e-12)
    for index, dataset, item in recorded["picks_idx_dataset_sample"]:
        assert mixture.locate(index) == (dataset, item)
    for index, item in recorded["items"].items():
        assert set(item) == set(NAMES)
        dataset, _ = mixture.locate(int(index))
        pad_to = recorded["seq_length"][dataset]
        batch = DownstreamCollator(tokenizer.command_id("pad"), pad_to)([mixture[int(index)]], batch_index=0)
        counted = np.array(item["loss_mask"])
        for key, values in item.items():
            found = getattr(batch, NAMES[key])[0]
            if key == "target":  # what stands where no loss is taken is nothing
                found, values = found * counted, np.array(values) * counted
            assert (found == np.array(values)).all(), (index, key)
