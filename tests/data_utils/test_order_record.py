"""The record of the order of the data: what is written can be read, and samples can be made of it again."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_utils.loaders import BatchLoader, BatchPlan, RandomSampleNumbers
from data_utils.mixtures import EntryPicker, Mixture
from data_utils.objective.block_infilling import BlankInfillingCollator, BlankInfillingSettings
from data_utils.objective.packing import BlockDataset
from data_utils.order_record import OrderRecord, encode_origin, read_update
from tests.helpers.stand_ins import VOCABULARY, StandInDocuments, make_documents, make_text

LARGE = st.integers(0, 2**40)
SAMPLES = st.lists(st.tuples(LARGE, st.lists(st.tuples(LARGE, LARGE, st.integers(0, 2**20)), max_size=4)), max_size=6)
DATA = {"documents": "4 documents"}


@given(batches=st.lists(st.tuples(LARGE, SAMPLES), min_size=1, max_size=3), update=st.integers(1, 2**33))
@settings(deadline=None, max_examples=50)
def test_what_is_written_can_be_read(batches, update: int, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("order")
    OrderRecord(folder, documents=DATA, updates=0).add(update, [encode_origin(*batch) for batch in batches])
    found = read_update(folder, update)
    assert found.documents == [DATA]
    assert [(one.batch, one.samples) for one in found.ranks[0]] == batches


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("seq_length", [2, 3, 5, 24, 64])
def test_a_sample_is_made_again_of_its_pieces(seq_length: int, across: bool):
    lengths = [1, 2, 21, 22, 23, 30, 62, 63, 64, 90, 200]
    documents = make_documents(lengths, seed=5)
    prompted = StandInDocuments([{"tokens": make_text(40, seed=8).tolist(), "loss_masks": [0] * 7 + [1] * 36}])
    mixture = Mixture(["a", "b"], [documents, prompted], temperature=0.5)
    for options in (
        {"documents": documents},
        {"documents": mixture, "picker": EntryPicker(mixture), "num_entries": len(mixture.entries)},
    ):
        data = BlockDataset(
            tokenizer=VOCABULARY,
            seq_length=seq_length,
            sample_across_documents=across,
            non_sentence_start=0.3,
            **options,
        )
        for index in range(150):
            sample = data[index]
            again = data.sample_of(sample.pieces)
            np.testing.assert_array_equal(sample.tokens, again.tokens)
            np.testing.assert_array_equal(sample.loss_mask, again.loss_mask)


def loader(rank: int, num_ranks: int, **options) -> BatchLoader:
    data = BlockDataset(make_documents([30, 90, 200, 15], seed=5), tokenizer=VOCABULARY, seq_length=48)
    collator = BlankInfillingCollator(
        VOCABULARY, BlankInfillingSettings(), max_seq_length=48, rank=rank, world_size=num_ranks
    )
    order = RandomSampleNumbers(len(data), 400)
    plan = BatchPlan(len(order), 8, rank=rank, world_size=num_ranks, order=order)
    return BatchLoader(data, collator, plan, records_origin=True, **options)


def record(folder: Path, first: int, last: int, *, ranks: int, num_workers: int = 0) -> None:
    """Record updates ``first`` to ``last`` of two micro batches each."""
    for rank in range(ranks):
        order = OrderRecord(folder, documents=DATA, updates=first - 1, rank=rank, num_ranks=ranks)
        batches = loader(rank, ranks, num_workers=num_workers).batches(2 * first - 2, 2 * (last - first + 1))
        for update in range(first, last + 1):
            order.add(update, [next(batches).origin, next(batches).origin])
        order.sync()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("cut", [0, 1, 7])
def test_a_run_that_goes_on_has_the_record_of_a_straight_one(cut: int, tmp_path: Path):
    """Killed behind its checkpoint; the disk has lost the end of the last frame, or left zeros; workers are used."""
    record(tmp_path / "straight", 1, 9, ranks=2)
    record(tmp_path / "killed", 1, 6, ranks=2)
    for path in (tmp_path / "killed").iterdir():
        path.write_bytes(path.read_bytes()[: -cut or None] + b"\0" * (100 if cut == 1 else 0))
    record(tmp_path / "killed", 5, 9, ranks=2, num_workers=1)
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")
    update = read_update(tmp_path / "killed", 5)
    for rank, origins in enumerate(update.ranks):
        made = loader(rank, 2)
        assert [one.batch for one in origins] == [8, 9]
        for one in origins:
            assert one.samples == [(n, list(made.dataset[n].pieces)) for n in made.plan.numbers(one.batch)]


def test_a_run_goes_on_behind_a_full_disk(tmp_path: Path):
    record(tmp_path / "straight", 1, 5, ranks=1)
    record(tmp_path / "full", 1, 3, ranks=1)
    order = OrderRecord(tmp_path / "full", documents=DATA, updates=3)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (order.path.stat().st_size + 5, before[1]))
    try:
        with pytest.raises(OSError, match=r"rank-00000\.bin: no room for the record of the order"):
            order.add(4, [loader(0, 1)[6].origin, loader(0, 1)[7].origin])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(ValueError, match="there are updates 1 to 3"):
        read_update(tmp_path / "full", 4)
    record(tmp_path / "full", 4, 5, ranks=1)
    assert contents(tmp_path / "full") == contents(tmp_path / "straight")


def test_fewer_ranks_go_on(tmp_path: Path):
    record(tmp_path, 1, 6, ranks=2)
    record(tmp_path, 4, 7, ranks=1)
    assert [len(read_update(tmp_path, update).ranks) for update in (1, 3, 4, 7)] == [2, 2, 1, 1]
    record(tmp_path, 8, 8, ranks=2)
    assert len(read_update(tmp_path, 8).ranks) == 2
    (tmp_path / "rank-00001.bin").unlink()
    with pytest.raises(ValueError, match=r"rank-00001.bin is missing; the files of all ranks are needed"):
        read_update(tmp_path, 3)


def test_a_record_knows_its_documents(tmp_path: Path):
    record(tmp_path, 1, 2, ranks=1)
    order = OrderRecord(tmp_path, documents={"documents": "others"}, updates=2)
    order.add(3, [encode_origin(0, [])])
    assert read_update(tmp_path, 2).documents == [DATA]
    assert read_update(tmp_path, 3).documents == [{"documents": "others"}]


def test_what_is_not_recorded_is_one_line(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no record of the order \(rank-00000.bin\); give the folder order/"):
        read_update(tmp_path, 1)
    record(tmp_path, 3, 4, ranks=1)
    with pytest.raises(ValueError, match=r"update 2 is not recorded; there are updates 3 to 4$"):
        read_update(tmp_path, 2)
    content = bytearray((tmp_path / "rank-00000.bin").read_bytes())
    content[-1] ^= 1
    (tmp_path / "rank-00000.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"update 4 is not recorded; there are updates 3 to 3$"):
        read_update(tmp_path, 4)


def test_a_sample_takes_few_bytes(tmp_path: Path):
    """Two or three pieces of a document each, of samples in random order."""
    record(tmp_path, 1, 20, ranks=1)
    assert (tmp_path / "rank-00000.bin").stat().st_size < 20 * 16 * 16
