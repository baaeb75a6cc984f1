"""Which steps use downstream batches, and which examples they hold, as recorded: multitask.json."""

from __future__ import annotations

import pytest

from data_utils.mixtures import MixedDataset, downstream_draw


def test_mixture(golden):
    recorded = golden.json("pretraining/multitask.json")
    assert set(recorded) == {"choose", "index"}
    for case in recorded["choose"]:
        assert set(case) == {"world_size", "rank", "iterations", "uniform"}
        for iteration, uniform in zip(case["iterations"], case["uniform"], strict=True):
            drawn = downstream_draw(iteration, rank=case["rank"], world_size=case["world_size"])
            assert drawn == pytest.approx(uniform, abs=1e-15)
    for case in recorded["index"]:
        mixture = MixedDataset(
            [range(length) for length in case["lengths"]],
            reweight=case["reweight"],
            temperature=case["temperature"],
            max_limit=case["max_limit"],
        )
        assert len(mixture) == case["len"]
        assert mixture.weights == pytest.approx(case["weights"], rel=1e-12)
        for index, (dataset, item) in zip(case["indices"], case["picked_dataset_and_item"], strict=True):
            assert mixture.locate(index) == (dataset, item)
            assert mixture[index] == item
