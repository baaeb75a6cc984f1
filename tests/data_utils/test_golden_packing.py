"""The three packing data sets and the causal masks are as recorded: packing.json, masks.json."""

from __future__ import annotations

import numpy as np
import pytest

from data_utils.objective.causal import CausalDataset, SegmentDataset, causal_masks
from data_utils.objective.packing import BlockDataset
from tests.helpers.stand_ins import StandInDocuments, StandInVocabulary

MASK_FIELDS = {
    "data", "eod_token", "reset_position_ids", "reset_attention_mask", "mem_length", "set_loss_mask",
    "attention_mask_in", "loss_mask_in", "expect",
}  # fmt: skip


@pytest.fixture(scope="module")
def recorded(golden):
    return golden.json("pretraining/packing.json")


@pytest.fixture(scope="module")
def vocabulary(recorded):
    return StandInVocabulary(recorded["tokenizer"])


def options_of(case: dict, names: dict[str, str]) -> dict:
    """Translate recorded options; an unknown one is an error."""
    options = dict(case["options"])
    ours = {names[name]: options.pop(name) for name in list(options) if name in names}
    if options.pop("filter_english", False):
        foreign = set(case["not_english_first_token"])
        ours["accept"] = lambda tokens: int(tokens[0]) not in foreign
    assert not options, f"options that nothing here reads: {options}"
    return ours


def test_every_part_is_checked(recorded):
    assert set(recorded) - {"tokenizer", "documents"} == {"block", "gpt2", "xl"}


def test_block_items(recorded, vocabulary):
    names = {"sample_across_doc": "sample_across_documents", "non_sentence_start": "non_sentence_start"}
    for case in recorded["block"]:
        documents = StandInDocuments(recorded["documents"][case["documents"]])
        dataset = BlockDataset(
            documents, tokenizer=vocabulary, seq_length=case["max_seq_len"], **options_of(case, names)
        )
        assert len(dataset) == case["len"]
        assert documents.lengths.sum() == case["total_len"]
        check_items(case, dataset)


def test_causal_items(recorded, vocabulary):
    names = {
        "sample_across_doc": "sample_across_documents",
        "random_across_doc_sampling": "random_followers",
        "weighted": "by_length",
    }
    for case in recorded["gpt2"]:
        documents = StandInDocuments(recorded["documents"][case["documents"]])
        dataset = CausalDataset(
            documents, tokenizer=vocabulary, seq_length=case["max_seq_len"], **options_of(case, names)
        )
        assert len(dataset) == case["len"]
        check_items(case, dataset)


def check_items(case: dict, dataset: BlockDataset | CausalDataset) -> None:
    for item in case["items"]:
        assert set(item) == {"index", "text", "loss_mask"}
        sample = dataset[item["index"]]
        assert sample.tokens.dtype == sample.loss_mask.dtype == np.int64
        assert sample.tokens.tolist() == item["text"], (case["documents"], case["options"], item["index"])
        assert sample.loss_mask.tolist() == item["loss_mask"], (case["documents"], case["options"], item["index"])


def test_segment_items(recorded, vocabulary):
    for case in recorded["xl"]:
        assert not case.get("options")
        dataset = SegmentDataset(
            StandInDocuments(recorded["documents"][case["documents"]]),
            tokenizer=vocabulary,
            seq_length=case["max_seq_len"],
            memory_length=case["mem_len"],
        )
        assert len(dataset) == case["len"]
        for item in case["items"]:
            assert set(item) == {"index", "text", "target", "loss_mask", "attention_mask_rows"}
            sample = dataset[item["index"]]
            assert sample.tokens.tolist() == item["text"], (case["documents"], item["index"])
            assert sample.target_ids.tolist() == item["target"]
            assert sample.loss_mask.tolist() == item["loss_mask"]
            rows = ["".join(str(visible) for visible in row) for row in sample.attention_mask.tolist()]
            assert rows == item["attention_mask_rows"]


def test_causal_masks(golden):
    for case in golden.json("pretraining/masks.json"):
        assert set(case) == MASK_FIELDS
        attention_mask, loss_mask = case["attention_mask_in"], case["loss_mask_in"]
        assert case["set_loss_mask"] == (loss_mask is None)
        masks = causal_masks(
            np.array(case["data"]),
            eos=case["eod_token"],
            reset_position_ids=case["reset_position_ids"],
            reset_attention_mask=case["reset_attention_mask"],
            memory_length=case["mem_length"] or 0,
            loss_mask=None if loss_mask is None else np.array(loss_mask),
            attention_mask=None if attention_mask is None else np.array(attention_mask),
        )
        expected = case["expect"]
        assert set(expected) == {"attention_mask", "loss_mask", "position_ids"}
        for name, values in expected.items():
            np.testing.assert_array_equal(getattr(masks, name), np.array(values), err_msg=name)
