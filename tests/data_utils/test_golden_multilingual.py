"""multilingual.json: entries by length, splits in blocks, fractions, scaled corpora, mixtures, samples of them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from data_utils.corpora.store import ConcatenatedDocuments
from data_utils.mixtures import (
    EntryPicker,
    LengthSampled,
    MixedDataset,
    Mixture,
    loader_fractions,
    measured_shares,
    mixture_weights,
    scaled,
    split_in_blocks,
)
from data_utils.objective.packing import BlockDataset
from mpu.masks import PrefixMask
from tests.helpers.stand_ins import StandInDocuments, StandInVocabulary

KNOWN = {
    "tokenizer", "documents", "note", "length_sampling", "split", "fractions", "scale", "multi_sampling",
    "block_dataset", "mask_matrix",
}  # fmt: skip


@pytest.fixture(scope="module")
def recorded(golden) -> dict[str, Any]:
    content = golden.json("pretraining/multilingual.json")
    assert set(content) == KNOWN
    return content


@pytest.fixture(scope="module")
def corpora(recorded) -> dict[str, StandInDocuments]:
    return {name: StandInDocuments(documents) for name, documents in recorded["documents"].items()}


def test_entries_by_length(recorded, corpora):
    case = recorded["length_sampling"]
    entries = LengthSampled(corpora[case["documents"]])
    assert len(entries) == case["len"]
    assert [entries.number(index) for index in range(len(entries))] == case["document_of_index"]


def test_splits_in_blocks(recorded):
    for case in recorded["split"]:
        documents = StandInDocuments([{"tokens": [number], "loss_masks": [1]} for number in range(case["documents"])])
        if case["block_size"] is None:
            continue  # the order of pre-training in English: splits.json
        parts = split_in_blocks(documents, case["split"], block_size=case["block_size"])
        assert [None if part is None else part.indices.tolist() for part in parts] == case["parts"]


def test_fractions(recorded):
    for case in recorded["fractions"]:
        found = loader_fractions(case["sizes"], fraction=case["loader_fraction"], temperature=case["temperature"])
        assert found.tolist() == pytest.approx(case["sample_fractions"], rel=1e-12)


def test_scaled_corpora(recorded, corpora):
    for case in recorded["scale"]:
        generator = random.Random(case["global_random_seed"])
        documents = corpora[case["documents"]]
        found = scaled(documents, case["ratio"], generator=generator, block_size=case["block_size"])
        assert len(found) == case["len"]
        assert found.indices.tolist() == case["document_of_index"]


def test_draws_by_temperature(recorded, corpora):
    case = recorded["multi_sampling"]
    names = sorted(corpora)
    mixture = Mixture(names, [corpora[name] for name in names], temperature=case["temperature"])
    assert [len(part) for part in mixture.entries.datasets] == case["lengths"]
    assert mixture.shares.tolist() == pytest.approx(case["weights"], rel=1e-12)
    assert len(mixture.entries) == case["len"]
    for index, (name, number) in zip(case["indices"], case["picked"], strict=True):
        source, entry = mixture.entries.locate(index)
        assert (names[source], mixture.entries.datasets[source].number(entry)) == (name, number)
        assert mixture.locate(index)[0] == source


def test_samples(recorded, corpora):
    vocabulary = StandInVocabulary(recorded["tokenizer"])
    temperature = recorded["multi_sampling"]["temperature"]
    mixtures = {
        "length sampled a": Mixture(["a"], [corpora["a"]]),
        "concatenation of length sampled a and b": Mixture(["a", "b"], [corpora["a"], corpora["b"]]),
        "temperature sampled a b c": Mixture(
            ["a", "b", "c"], [corpora[name] for name in "abc"], temperature=temperature
        ),
    }
    for case in recorded["block_dataset"]:
        mixture = mixtures[case["source"]]
        assert len(mixture.entries) == case["source_len"]
        dataset = BlockDataset(
            mixture, tokenizer=vocabulary, seq_length=case["max_seq_len"], picker=EntryPicker(mixture),
            num_entries=len(mixture.entries),
        )  # fmt: skip
        assert len(dataset) == case["len"]
        for item in case["items"]:
            sample = dataset[item["index"]]
            assert sample.tokens.tolist() == item["text"]
            assert sample.loss_mask.tolist() == item["loss_mask"]


def test_measured_shares(recorded, corpora):
    """They are near the shares of the draws: documents are of about one length here."""
    vocabulary = StandInVocabulary(recorded["tokenizer"])
    mixture = Mixture(["a", "b"], [corpora["a"], corpora["b"]], temperature=0.3)
    picker = EntryPicker(mixture)
    dataset = BlockDataset(mixture, tokenizer=vocabulary, seq_length=48, picker=picker)
    found = measured_shares(dataset, range(400))
    assert found.sum() == pytest.approx(1)
    assert found == pytest.approx(mixture_weights([30, 101], temperature=0.3), abs=0.08)
    assert not picker.noting


def test_the_mask_is_that_of_prefix_lengths(recorded):
    case = recorded["mask_matrix"]
    import torch

    mask = PrefixMask.prefix(torch.tensor(case["sep"]))
    length = case["seq_length"]
    keys = mask.visible_keys(query_length=length, key_length=length, device="cpu")
    assert keys.visible[:, 0].long().tolist() == case["mask"]


def test_a_mixture_has_no_empty_corpus(corpora):
    empty = StandInDocuments([])
    with pytest.raises(ValueError, match="sw: no documents; leave the corpus out"):
        Mixture(["a", "sw"], [corpora["a"], empty])
    assert isinstance(Mixture(["a"], [corpora["a"]]).entries, ConcatenatedDocuments)
    assert isinstance(Mixture(["a"], [corpora["a"]], temperature=0.5).entries, MixedDataset)
