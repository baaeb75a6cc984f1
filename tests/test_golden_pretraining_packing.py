"""Packed samples and causal masks as recorded: packing.json, masks.json."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data_utils.causal import CausalDataset, SegmentDataset, causal_masks
from data_utils.packing import BlockDataset
from tests.golden_vocabulary import StandInDocuments, StandInVocabulary


@pytest.fixture(scope="module")
def recorded(golden):
    return json.loads(golden.path("pretraining/packing.json").read_text(encoding="utf-8"))


def test_every_part_is_checked(recorded):
    assert {name for name, value in recorded.items() if isinstance(value, list)} == {"block", "gpt2", "xl"}


def test_block_samples(recorded):
    vocabulary = StandInVocabulary(recorded["tokenizer"])
    for case in recorded["block"]:
        options = dict(case["options"])
        accept = None
        if options.pop("filter_english", False):
            foreign = case["not_english_first_token"]

            def accept(tokens: np.ndarray, foreign: list[int] = foreign) -> bool:
                return tokens[0] not in foreign

        dataset = BlockDataset(
            StandInDocuments(recorded["documents"][case["documents"]]),
            vocabulary=vocabulary,
            seq_length=case["max_seq_len"],
            sample_across_documents=options.pop("sample_across_doc", True),
            non_sentence_start=options.pop("non_sentence_start", 0.0),
            accept=accept,
        )
        assert not options, f"unknown options {options}"
        assert (len(dataset), dataset.picker.num_tokens) == (case["len"], case["total_len"])
        for item in case["items"]:
            sample = dataset[item["index"]]
            assert sample.tokens.tolist() == item["text"]
            assert sample.loss_mask.tolist() == item["loss_mask"]


def test_causal_samples(recorded):
    eos = recorded["tokenizer"]["commands"]["eos"]
    for case in recorded["gpt2"]:
        options = dict(case["options"])
        dataset = CausalDataset(
            StandInDocuments(recorded["documents"][case["documents"]]),
            eos=eos,
            seq_length=case["max_seq_len"],
            sample_across_documents=options.pop("sample_across_doc", True),
            weighted=options.pop("weighted", True),
            draw_following=options.pop("random_across_doc_sampling", True),
        )
        assert not options, f"unknown options {options}"
        assert len(dataset) == case["len"]
        for item in case["items"]:
            sample = dataset[item["index"]]
            assert sample.tokens.tolist() == item["text"], case["options"]
            assert sample.loss_mask.tolist() == item["loss_mask"]


def test_segments(recorded):
    eos = recorded["tokenizer"]["commands"]["eos"]
    for case in recorded["xl"]:
        documents = StandInDocuments(recorded["documents"][case["documents"]])
        dataset = SegmentDataset(documents, eos=eos, seq_length=case["max_seq_len"], memory_length=case["mem_len"])
        assert len(dataset) == case["len"]
        for item in case["items"]:
            sample = dataset[item["index"]]
            assert sample.tokens.tolist() == item["text"]
            assert sample.targets.tolist() == item["target"]
            assert sample.loss_mask.tolist() == item["loss_mask"]
            assert ["".join(map(str, row)) for row in sample.attention_mask.tolist()] == item["attention_mask_rows"]


def test_causal_masks(golden):
    for case in json.loads(golden.path("pretraining/masks.json").read_text(encoding="utf-8")):
        masks = causal_masks(
            np.array(case["data"]),
            eos=case["eod_token"],
            loss_mask=case["loss_mask_in"],
            attention_mask=case["attention_mask_in"],
            reset_position_ids=case["reset_position_ids"],
            reset_attention_mask=case["reset_attention_mask"],
            memory_length=case["mem_length"],
            clear_loss_at_eos=case["set_loss_mask"],
        )
        expected = case["expect"]
        assert set(expected) == {"attention_mask", "loss_mask", "position_ids"}
        for name, values in expected.items():
            np.testing.assert_array_equal(getattr(masks, name), np.array(values), err_msg=f"{name} of {case}")
