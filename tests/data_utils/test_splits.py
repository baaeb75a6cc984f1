"""Splits: what is refused, and what survives a round trip through files."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_utils.corpora.splits import (
    document_order,
    load_order,
    parse_split,
    save_order,
    save_texts,
    split_documents,
    split_indices,
)
from data_utils.corpora.store import Document
from tests.helpers.logs import logged_lines


@pytest.mark.parametrize("split", ["", "a,b", "1,-1", "nan,1", "inf", "1,,2", "0", "0,1", "1e308,1e308"])
def test_split_that_is_no_proportion(split):
    with pytest.raises(ValueError, match="--split"):
        parse_split(split)


def test_a_fourth_part_is_told():
    with logged_lines() as lines:
        assert parse_split("1,2,1,4") == [0.25, 0.5, 0.25]
    assert "only the first three" in lines[0]


def test_split_that_leaves_nothing():
    with pytest.raises(ValueError, match="no document to train on"):
        parse_split("0,1,1", valid_data=["x"], test_data=["y"])


@given(num_documents=st.integers(1, 300), proportions=st.lists(st.integers(1, 1000), min_size=3, max_size=3))
def test_every_document_is_in_a_part(num_documents, proportions):
    fractions = [p / sum(proportions) for p in proportions]
    parts = split_indices(num_documents, fractions, order=document_order(num_documents))
    assert all(len(part) >= 1 or num_documents < 3 for part in parts)
    # Rounding errors of the fractions may leave the last document out, as in the original.
    assert len(set(np.concatenate(parts).tolist())) >= num_documents - 1


def test_a_part_that_rounds_to_nothing_warns():
    with logged_lines() as lines:
        split_indices(10, [0.949, 0.05, 0.001], order=document_order(10))
    [line] = lines
    assert "rounds to none" in line


class Words:
    """Documents of one word each."""

    def __init__(self, words):
        self.words = words
        self.lengths = np.array([len(word) for word in words])

    def __len__(self):
        return len(self.words)

    def __getitem__(self, index):
        return Document(np.array(list(map(ord, self.words[index]))))


def test_one_part_gets_everything():
    documents = Words(["a", "b"])
    assert split_documents(documents, [1.0, 0.0, 0.0]) == [documents, None, None]


def test_saved_order_is_the_order(tmp_path):
    order = document_order(20)
    save_order(tmp_path / "folder" / "order.npy", order)
    assert load_order(tmp_path / "folder" / "order.npy", 20).tolist() == order.tolist()
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["order.npy"]
    with pytest.raises(ValueError, match="21 documents"):
        load_order(tmp_path / "folder" / "order.npy", 21)


def test_orders_that_cannot_be_used(tmp_path):
    path = tmp_path / "order.npy"
    with pytest.raises(ValueError, match="--load-splits"):
        load_order(path, 3)
    path.write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"--load-splits: .*order\.npy"):
        load_order(path, 3)
    np.save(path, np.array([0, 1, 3]))
    with pytest.raises(ValueError, match="outside"):
        load_order(path, 3)
    np.save(path, np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="is no order: it lacks 1 documents, such as 2"):
        load_order(path, 3)
    header = path.read_bytes()[:-24]
    for shape in (b"(3,)", b"(3,\n", b"[3,]"):
        path.write_bytes(header.replace(b"(3,)", shape) + bytes(16))
        with pytest.raises(ValueError, match="--load-splits"):
            load_order(path, 3)
    np.save(path, np.array(["a"], dtype=object))
    with pytest.raises(ValueError, match=r"--load-splits: .*order\.npy"):
        load_order(path, 1)


def test_texts_are_saved_one_per_line(tmp_path):
    save_texts(tmp_path / "test.txt", Words(["ab\ncd", "中"]), decode=lambda ids: "".join(map(chr, ids)))
    assert (tmp_path / "test.txt").read_text(encoding="utf-8") == "ab cd\n中\n"
