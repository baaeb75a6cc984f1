"""The token store: layout, refusal of what is damaged or foreign, subsets and joins."""

from __future__ import annotations

import json
import pickle
import resource
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_utils.corpora.store import (
    ConcatenatedDocuments,
    Document,
    DocumentSubset,
    IndexedDataset,
    KnownIds,
    StoreWriter,
    TextDocuments,
    concatenate_documents,
    is_store,
)
from data_utils.corpora.verify import main as verify
from tests.helpers.logs import logged_lines


def write_store(prefix, documents, *, dtype=np.uint16, prompts=None, fingerprint="f", predicted=None, parts=2):
    """Write lists of ids in a few parts."""
    prompts = prompts or [0] * len(documents)
    writer = StoreWriter(prefix, dtype=dtype, prompts_inside=predicted is not None)
    for part in range(parts):
        chosen = range(part * len(documents) // parts, (part + 1) * len(documents) // parts)
        writer.add(
            np.array([i for n in chosen for i in documents[n]], dtype=dtype),
            np.array([len(documents[n]) for n in chosen], dtype=np.int32),
            np.array([prompts[n] for n in chosen], dtype=np.int32),
            None if predicted is None else np.array([i for n in chosen for i in predicted[n]], dtype=np.uint8),
        )
    writer.publish({"tokenizer_fingerprint": fingerprint})
    return prefix


DOCUMENTS = [[5, 6, 7], [], [65535, 0], [9]]


@pytest.mark.parametrize(("dtype", "code"), [(np.uint16, 8), (np.int32, 4)])
def test_files_are_in_the_public_layout(tmp_path, dtype, code):
    write_store(tmp_path / "s", DOCUMENTS, dtype=dtype)
    count, size = len(DOCUMENTS), np.dtype(dtype).itemsize
    lengths = [len(d) for d in DOCUMENTS]
    offsets = [size * sum(lengths[:n]) for n in range(count)]
    expected = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, count, count + 1)
    expected += struct.pack(f"<{count}i", *lengths) + struct.pack(f"<{count}q", *offsets)
    expected += struct.pack(f"<{count + 1}q", *range(count + 1))
    assert (tmp_path / "s.idx").read_bytes() == expected
    flat = [i for d in DOCUMENTS for i in d]
    assert (tmp_path / "s.bin").read_bytes() == struct.pack(f"<{len(flat)}{'H' if size == 2 else 'i'}", *flat)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.bin", "s.idx", "s.json", "s.prompts.npy"]


@settings(max_examples=30, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 65535), max_size=6), min_size=1, max_size=12),
    parts=st.integers(1, 4),
    in_memory=st.booleans(),
    data=st.data(),
)
def test_what_is_written_is_read(tmp_path_factory, documents, parts, in_memory, data):
    prompts = [data.draw(st.integers(0, len(d))) for d in documents]
    prefix = write_store(tmp_path_factory.mktemp("store") / "s", documents, prompts=prompts, parts=parts)
    store = IndexedDataset(prefix, "f", in_memory=in_memory)
    assert [d.tokens.tolist() for d in store] == documents
    assert [d.prompt_length for d in store] == prompts
    assert store.lengths.tolist() == [len(d) for d in documents]
    assert store.lengths.dtype == np.int64
    assert store[-1].tokens.tolist() == documents[-1]
    with pytest.raises(IndexError):
        store[len(documents)]


def test_prompts_inside_of_documents(tmp_path):
    predicted = [[0, 1, 0], [], [0, 1], [1]]
    store = IndexedDataset(write_store(tmp_path / "s", DOCUMENTS, predicted=predicted))
    assert [d.loss_mask().tolist() for d in store] == predicted


def test_loss_mask_of_a_prompt():
    assert Document(np.arange(4), 3).loss_mask().tolist() == [0, 0, 0, 1]


def test_another_tokenizer_is_refused(tmp_path):
    prefix = write_store(tmp_path / "s", DOCUMENTS)
    assert len(IndexedDataset(prefix, "f")) == len(DOCUMENTS)
    with pytest.raises(ValueError, match=r"made by another tokenizer \(fingerprint f, not g\)"):
        IndexedDataset(prefix, "g")


def test_store_of_another_program_opens(tmp_path):
    """Without sidecar and prompt lengths the two public files are enough."""
    prefix = write_store(tmp_path / "s", DOCUMENTS, dtype=np.int32)
    (tmp_path / "s.json").unlink()
    (tmp_path / "s.prompts.npy").unlink()
    for name in ("s", "s.idx", "s.bin"):
        assert is_store(tmp_path / name)
        assert [d.tokens.tolist() for d in IndexedDataset(tmp_path / name, "any")] == DOCUMENTS
    assert not is_store(tmp_path / "t")
    assert not is_store(f"{prefix}.json")


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".prompts.npy", ".json"])
def test_truncated_files_are_refused(tmp_path, suffix):
    write_store(tmp_path / "s", DOCUMENTS)
    path = tmp_path / f"s{suffix}"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"damaged.*again"):
        IndexedDataset(tmp_path / "s")


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no token store"):
        IndexedDataset(tmp_path / "s")
    (tmp_path / "s.idx").write_bytes(b"something else that is long enough")
    with pytest.raises(ValueError, match="not an index in Megatron's layout"):
        IndexedDataset(tmp_path / "s")
    write_store(tmp_path / "t", DOCUMENTS)
    details = json.loads((tmp_path / "t.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps({**details, "format_version": 99}))
    with pytest.raises(ValueError, match="format version 99"):
        IndexedDataset(tmp_path / "t")


def damaged_copies(prefix):
    """Yield every way to change one byte of the files of a store, or to cut or lengthen one."""
    for path in sorted(prefix.parent.glob(f"{prefix.name}.*")):
        data = path.read_bytes()
        for place in range(0, len(data), 7):
            yield path, data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
        yield path, data[:-1]
        yield path, data + b"\0"
        yield path, bytes(len(data))


def test_no_damage_goes_unnoticed(tmp_path):
    predicted = [[0, 1, 0], [], [0, 1], [1]]
    prefix = write_store(tmp_path / "s", DOCUMENTS, prompts=[1, 0, 1, 0], predicted=predicted)
    refused = 0
    for path, content in damaged_copies(prefix):
        intact = path.read_bytes()
        path.write_bytes(content)
        try:
            store = IndexedDataset(prefix)
            assert [d.tokens.tolist() for d in store] == DOCUMENTS
            assert [d.loss_mask().tolist() for d in store] == predicted
            assert json.loads(content) == json.loads(intact)  # blanks of the sidecar
        except ValueError as error:
            refused += 1
            assert path.name in str(error) and "\n" not in str(error)
        path.write_bytes(intact)
    assert refused > 150
    assert len(IndexedDataset(prefix)) == len(DOCUMENTS)


def test_a_large_store_is_compared_in_full_on_demand(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data_utils.corpora.store.HASHED_BYTES", 10)
    prefix = write_store(tmp_path / "s", DOCUMENTS)
    path = tmp_path / "s.bin"
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    assert len(IndexedDataset(prefix)) == len(DOCUMENTS)
    assert verify([str(tmp_path)]) == 0
    assert verify([str(prefix), "--full"]) == 2
    assert "s.bin is damaged: its SHA-256 is not the one that was written" in capsys.readouterr().err
    path.unlink()
    assert verify([str(tmp_path)]) == 2
    with pytest.raises(ValueError, match="holds no token store"):
        (tmp_path / "empty").mkdir()
        verify([str(tmp_path / "empty")])


def test_stores_of_an_earlier_version_are_checked_in_structure(tmp_path):
    prefix = write_store(tmp_path / "s", DOCUMENTS)
    sidecar = tmp_path / "s.json"
    details = json.loads(sidecar.read_text())
    old = {name: value for name, value in details.items() if name not in ("files", "sha256")}
    sidecar.write_text(json.dumps(old))
    with logged_lines() as lines:
        assert [d.tokens.tolist() for d in IndexedDataset(prefix)] == DOCUMENTS
    assert "without checksums" in lines[0]
    for name, value in [
        ("documents", 5), ("tokens", "7"), ("dtype", "int32"), ("prompts_inside", 0), ("kind", "x"), ("malformed", "x"),
        ("malformed", {"count": 1, "first": []}), ("malformed", {"count": -1, "first": []}), ("cut", [1]),
        ("sources", {}), ("files", {".bin": 3}),
    ]:  # fmt: skip
        sidecar.write_text(json.dumps({**old, name: value}))
        with pytest.raises(ValueError, match=r"s\.(json|idx).*damaged"):
            IndexedDataset(prefix)
    sidecar.write_text(json.dumps(old))
    (tmp_path / "s.prompts.npy").unlink()
    with pytest.raises(ValueError, match=r"s\.prompts\.npy is missing"):
        IndexedDataset(prefix)


def megatron_index(lengths, first_sequences, *, offsets=None):
    starts = np.cumsum(lengths) - lengths
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, len(lengths), len(first_sequences))
    arrays = (np.array(lengths, "<i4"), np.array(starts * 2 if offsets is None else offsets, "<i8"))
    return header + b"".join(array.tobytes() for array in (*arrays, np.array(first_sequences, "<i8")))


def test_sequences_of_another_program_are_joined_to_its_documents(tmp_path):
    (tmp_path / "s.bin").write_bytes(np.arange(10, dtype="<u2").tobytes())
    (tmp_path / "s.idx").write_bytes(megatron_index([2, 3, 1, 4], [0, 2, 2, 4]))
    store = IndexedDataset(tmp_path / "s")
    assert [d.tokens.tolist() for d in store] == [[0, 1, 2, 3, 4], [], [5, 6, 7, 8, 9]]
    assert store.lengths.tolist() == [5, 0, 5]
    with pytest.raises(ValueError, match=r"holds the id 9, the tokenizer has 0 \.\. 8"):
        KnownIds(store, 9, name="s")
    assert len(KnownIds(store, 10, name="s")) == 3
    for damaged in (
        megatron_index([2, 3, 1, 4], [0, 2, 3]),
        megatron_index([2, 3, 1, 4], [0, 3, 2, 4]),
        megatron_index([2, 3, 1, 4], []),
        megatron_index([2, 3, 1, 4], [0, 1, 2, 3, 4], offsets=[0, 4, 10, 14]),
        megatron_index([2, -3, 7, 4], [0, 1, 2, 3, 4]),
    ):
        (tmp_path / "s.idx").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"s\.idx is damaged"):
            IndexedDataset(tmp_path / "s")


def test_the_end_token_of_another_program_is_not_doubled(tmp_path):
    """Megatron's --append-eod, with and without --split-sentences: packing closes every document by itself."""
    (tmp_path / "s.bin").write_bytes(np.array([5, 6, 9, 7, 8, 9], "<u2").tobytes())
    (tmp_path / "s.idx").write_bytes(megatron_index([2, 1, 0, 3], [0, 2, 3, 4]))
    store = IndexedDataset(tmp_path / "s")
    documents = pickle.loads(pickle.dumps(KnownIds(store, 10, name="s", end=9)))
    assert [d.tokens.tolist() for d in documents] == [[5, 6], [], [7, 8]]
    assert documents.lengths.tolist() == [2, 0, 2]
    for end in (8, None):  # not the one of every document
        assert [d.tokens.tolist() for d in KnownIds(store, 10, name="s", end=end)] == [[5, 6, 9], [], [7, 8, 9]]
    (tmp_path / "s.idx").write_bytes(megatron_index([1, 5], [0, 1, 2]))
    assert len(KnownIds(IndexedDataset(tmp_path / "s"), 10, name="s", end=9)[1].tokens) == 5


def test_a_full_disk_leaves_nothing_and_names_the_store(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = StoreWriter(tmp_path / "s", dtype=np.uint16)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"the token store .*s cannot be written \(File too large\): make room"):
            for _ in range(100):
                writer.add(np.zeros(3000, np.uint16), np.array([3000]), np.array([0]))
        writer.discard()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_gives_up_leaves_nothing(tmp_path):
    writer = StoreWriter(tmp_path / "s", dtype=np.uint16)
    writer.add(np.arange(3), np.array([3]), np.array([0]))
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_an_opened_store_outlives_its_replacement(tmp_path):
    store = IndexedDataset(write_store(tmp_path / "s", DOCUMENTS))
    write_store(tmp_path / "s", [[1], [2], [3], [4]])
    assert [d.tokens.tolist() for d in store] == DOCUMENTS
    assert [d.tokens.tolist() for d in IndexedDataset(tmp_path / "s")] == [[1], [2], [3], [4]]


def test_another_process_maps_the_files_again(tmp_path):
    store = IndexedDataset(write_store(tmp_path / "s", [[7] * 5000, [8]]), "f")
    data = pickle.dumps(store)
    assert len(data) < 1000
    assert [d.tokens.tolist() for d in pickle.loads(data)] == [[7] * 5000, [8]]


def test_subsets_and_joins(tmp_path):
    store = IndexedDataset(write_store(tmp_path / "s", DOCUMENTS, prompts=[1, 0, 2, 0]))
    subset = DocumentSubset(store, [2, 0])
    joined = concatenate_documents([subset, store])
    assert isinstance(joined, ConcatenatedDocuments)
    assert [d.tokens.tolist() for d in joined] == [DOCUMENTS[2], DOCUMENTS[0], *DOCUMENTS]
    assert [d.prompt_length for d in joined] == [2, 1, 1, 0, 2, 0]
    assert joined.lengths.tolist() == [2, 3, 3, 0, 2, 1]
    assert joined.lengths.dtype == np.int64
    assert concatenate_documents([store]) is store


def test_text_is_tokenized_on_access(tmp_path):
    texts = [("问", "héllo"), ("", "x")]
    data = [(prompt + text).encode() for prompt, text in texts]
    prompts = [len(prompt.encode()) for prompt, _ in texts]
    raw = IndexedDataset(write_store(tmp_path / "s", [list(d) for d in data], dtype=np.uint8, prompts=prompts))
    documents = TextDocuments(raw, encode=lambda text: list(map(ord, text)), prepare=str.upper)
    assert documents.lengths.tolist() == [len(d) for d in data]
    assert [d.tokens.tolist() for d in documents] == [list(map(ord, "问HÉLLO")), [ord("X")]]
    assert [d.prompt_length for d in documents] == [1, 0]
