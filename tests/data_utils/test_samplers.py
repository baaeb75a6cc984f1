"""Which samples a numbered batch holds."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_utils.loaders import BatchPlan, RandomSampleNumbers
from data_utils.objective.causal import SegmentPlan


@given(
    num_samples=st.integers(1, 200), per_rank=st.integers(1, 5), world_size=st.integers(1, 4), drop_last=st.booleans()
)
def test_ranks_share_every_pass_without_overlap(num_samples, per_rank, world_size, drop_last):
    size = per_rank * world_size
    if drop_last and num_samples < size:
        return
    plans = [
        BatchPlan(num_samples, size, rank=rank, world_size=world_size, drop_last=drop_last)
        for rank in range(world_size)
    ]
    seen = [number for index in range(len(plans[0])) for plan in plans for number in plan.numbers(index)]
    assert seen == list(range(num_samples - num_samples % size if drop_last else num_samples))


def test_passes_follow_each_other_without_end():
    plan = BatchPlan(10, 4, drop_last=False)
    assert [plan.numbers(index) for index in (2, 3, 3_000_000_002)] == [[8, 9], [0, 1, 2, 3], [8, 9]]


def test_an_order_is_followed():
    order = np.array([7, 7, 3, 1])
    assert BatchPlan(4, 2, order=order).numbers(1) == [3, 1]


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="3 samples do not fill one batch of 8"):
        BatchPlan(3, 8, world_size=2)


@pytest.mark.parametrize("length", [7, 1000, 2**28 - 1])
def test_sample_numbers_are_torchs(length):
    generator = torch.Generator()
    generator.manual_seed(67280421310721)
    theirs = torch.randint(length, (50,), generator=generator)
    assert RandomSampleNumbers(length, 50)[:].tolist() == theirs.tolist()


@pytest.mark.parametrize("length", [2**28 + 5, 2**32 - 1, 2**32, 10**13])
def test_sample_numbers_of_huge_data_stay_in_range(length):
    numbers = RandomSampleNumbers(length, 2000, seed=9)[:]
    assert numbers.dtype == np.int64
    assert 0 <= numbers.min() < length * 0.01
    assert length * 0.99 < numbers.max() < length


@pytest.mark.parametrize("length", [1000, 10**13])
def test_sample_numbers_are_the_same_from_any_place_on(length):
    """They are drawn in chunks, in any order of them, and the memory does not grow with the run."""
    count = 3 * RandomSampleNumbers.CHUNK + 10
    whole = RandomSampleNumbers(length, count)[:]
    places = [(count - 5, count), (0, 3), (RandomSampleNumbers.CHUNK - 2, RandomSampleNumbers.CHUNK + 2), (7, 7)]
    numbers = RandomSampleNumbers(length, count)
    for low, high in places:
        assert numbers[low:high].tolist() == whole[low:high].tolist()
    plan = BatchPlan(count, 4, order=RandomSampleNumbers(length, 10**12))
    tracemalloc.start()
    plan.numbers(3 * 10**5)
    assert tracemalloc.get_traced_memory()[1] < 40 * RandomSampleNumbers.CHUNK
    tracemalloc.stop()


def test_numbers_of_no_data_are_refused():
    with pytest.raises(ValueError, match="cannot draw from 0 samples"):
        RandomSampleNumbers(0, 5)


def test_rows_of_segments_read_their_stretch_in_order():
    plan = SegmentPlan(40, 4, num_batches=10, rank=1, world_size=2)
    assert [plan.numbers(index) for index in range(3)] == [[20, 30], [21, 31], [22, 32]]
    assert plan.numbers(15) == [35, 5]
    assert len(plan) == 10
