"""Numbered batches: the same whatever the number of workers and wherever the run starts."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from data_utils.loaders import BatchLoader, BatchPlan
from data_utils.objective.block_infilling import Batch, BlankInfillingCollator, BlankInfillingSettings
from data_utils.objective.causal import CausalCollator, CausalDataset, SegmentCollator, SegmentDataset, SegmentPlan
from data_utils.objective.packing import BlockDataset
from tests.helpers.stand_ins import EOS, VOCABULARY, make_documents

SETTINGS = BlankInfillingSettings(bert_prob=0.4, gap_sentence_prob=0.3, short_seq_prob=0.2, block_mask_prob=0.2)
DOCUMENTS = make_documents([30, 90, 200, 15], seed=5)


class CountedDataset(BlockDataset):
    """Remembers which items were asked for."""

    def __getitem__(self, index: int):
        self.asked = [*getattr(self, "asked", []), index]
        return super().__getitem__(index)


def make_loader(*, num_workers: int = 0, rank: int = 0, world_size: int = 1) -> BatchLoader:
    dataset = CountedDataset(DOCUMENTS, tokenizer=VOCABULARY, seq_length=48)
    collator = BlankInfillingCollator(VOCABULARY, SETTINGS, max_seq_length=48, rank=rank, world_size=world_size)
    plan = BatchPlan(len(dataset), 3 * world_size, rank=rank, world_size=world_size)
    return BatchLoader(dataset, collator, plan, num_workers=num_workers)


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.objective == other.objective
        for name in ("input_ids", "target_ids", "loss_mask", "position_ids", "attention_mask"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(num_workers):
    assert_same(list(make_loader(num_workers=num_workers).batches(4, 7)), list(make_loader().batches(4, 7)))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_without_end_can_be_left(num_workers):
    loader = make_loader(num_workers=num_workers)
    assert_same(list(islice(loader.batches(), 3)), [loader[index] for index in range(3)])


@pytest.mark.parametrize("world_size", [1, 2])
def test_resuming_goes_on_where_the_run_was(world_size):
    for rank in range(world_size):
        straight = list(make_loader(rank=rank, world_size=world_size).batches(0, 8))
        resumed = make_loader(rank=rank, world_size=world_size)
        assert_same(list(resumed.batches(5, 3)), straight[5:])
        assert min(resumed.dataset.asked) >= 5 * 3 * world_size  # earlier samples were not read


def test_batches_go_on_after_the_last_sample():
    loader = make_loader()
    assert len(loader.plan) == 4000 // 3
    batches = list(loader.batches(len(loader.plan) - 1, 3))
    assert loader.dataset.asked[3:6] == [0, 1, 2]
    assert not np.array_equal(batches[1].input_ids, loader[0].input_ids)  # the same text, other blanks


def test_workers_leave_torchs_random_state_alone():
    state = torch.get_rng_state()
    next(make_loader(num_workers=1).batches())
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_become_tensors_that_share_their_memory():
    batch = make_loader()[0]
    tensors = batch.tensors()
    for name in ("input_ids", "target_ids", "loss_mask", "position_ids", "attention_mask"):
        tensor = getattr(tensors, name)
        assert tensor.dtype == torch.int64
        assert tensor.data_ptr() == getattr(batch, name).ctypes.data


def test_causal_batches():
    dataset = CausalDataset(DOCUMENTS, tokenizer=VOCABULARY, seq_length=20)
    collator = CausalCollator(EOS, reset_position_ids=True, reset_attention_mask=True)
    batch = BatchLoader(dataset, collator, BatchPlan(len(dataset), 4))[0]
    assert batch.input_ids.shape == batch.target_ids.shape == batch.position_ids.shape == (4, 20)
    assert batch.attention_mask.shape == (4, 1, 20, 20)
    np.testing.assert_array_equal(batch.input_ids[:, 1:], batch.target_ids[:, :-1])
    assert not batch.loss_mask[batch.input_ids == EOS].any()
    for row in range(4):
        for place in np.flatnonzero(batch.input_ids[row, :-1] == EOS):
            assert batch.position_ids[row, place + 1] == 0
            assert not batch.attention_mask[row, 0, place + 1 :, : place + 1].any()


def test_segments_of_a_row_follow_each_other():
    dataset = SegmentDataset(DOCUMENTS, tokenizer=VOCABULARY, seq_length=10, memory_length=6)
    plan = SegmentPlan(len(dataset), 2, num_batches=5)
    loader = BatchLoader(dataset, SegmentCollator(EOS, memory_length=6), plan)
    text = np.concatenate([DOCUMENTS[index].tokens for index in range(len(DOCUMENTS))])
    rows = np.concatenate([batch.input_ids for batch in loader.batches(0, 5)], axis=1)
    np.testing.assert_array_equal(rows[0], text[:50])
    np.testing.assert_array_equal(rows[1], text[170:220])  # 34 segments, the second row starts in the middle
    assert loader[0].attention_mask.shape == (2, 1, 10, 16)
