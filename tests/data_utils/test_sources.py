"""Where text comes from: data sets of the library datasets, very many files, duplicates, and killed processes."""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data_utils.corpora import duplicates, tokenization
from data_utils.corpora.duplicates import SeenHashes
from data_utils.corpora.files import SourceLostError, pieces_of, read_rows
from data_utils.corpora.huggingface import DataSet
from data_utils.corpora.store import StoreWriter
from tests.helpers import REPOSITORY
from tests.helpers.byte_corpus import ByteTokenizer, make_slowly, prepare
from tests.helpers.logs import logged_lines


def words(documents):
    return [ByteTokenizer().decode(document.tokens) for document in documents]


def texts_of(count, seed=0):
    generator = random.Random(seed)
    return ["".join(generator.choices("ab 中\n", k=generator.randint(0, 30))) + str(n) for n in range(count)]


def write_rows(path, texts):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts), encoding="utf-8")
    return path


def store_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------ data sets


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory):
    """A folder of data files in two splits, and the same data set as ``save_to_disk`` writes it."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("data-sets")
    parts = {"train-0": texts_of(500, 1), "train-1": texts_of(700, 2), "validation": texts_of(40, 3)}
    for name, texts in parts.items():
        write_rows(folder / "files" / f"{name}.jsonl", texts)
    train = [{"text": text, "n": 1} for name in ("train-0", "train-1") for text in parts[name]]
    saved = {"train": train, "validation": [{"text": text, "n": 1} for text in parts["validation"]]}
    datasets.disable_progress_bars()
    made = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in saved.items()})
    made.save_to_disk(folder / "saved", num_shards={"train": 3, "validation": 1})
    made["train"].save_to_disk(folder / "one")
    return folder


def test_a_name_has_a_configuration_and_a_split():
    assert DataSet.parse("user/set") == DataSet("user/set")
    assert DataSet.parse("user/set,en:test") == DataSet("user/set", "en", "test")
    assert str(DataSet.parse("set:test")) == "hf:set:test"
    assert DataSet.parse("/a:b/set") == DataSet("/a:b/set")
    for location in (":train", "user/set:train[:10]"):
        with pytest.raises(ValueError, match=r"give the name of a data set, and a whole split"):
            DataSet.parse(location)


@pytest.mark.parametrize("name", ["files", "saved", "one", "files:train", "saved:train"])
def test_a_data_set_is_read_in_its_order_once(data_sets, tmp_path, monkeypatch, name):
    monkeypatch.setattr("data_utils.corpora.huggingface.PART_ROWS", 450)
    source = f"hf:{data_sets / name}"
    assert words(prepare(source, cache_dir=tmp_path)) == texts_of(500, 1) + texts_of(700, 2)
    before = store_files(tmp_path)
    with logged_lines() as lines:
        assert len(prepare(source, cache_dir=tmp_path)) == 1200
    assert not lines and store_files(tmp_path) == before


def test_splits_are_stores_of_their_own(data_sets, tmp_path):
    assert words(prepare(f"hf:{data_sets / 'files'}:validation", cache_dir=tmp_path)) == texts_of(40, 3)
    assert words(prepare(f"hf:{data_sets / 'saved'}:validation", cache_dir=tmp_path)) == texts_of(40, 3)
    assert len(list(tmp_path.glob("*.idx"))) == 2


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("files:test", {}, "no split 'test'; its splits are train, validation"),
        ("one:test", {}, "no split 'test'; its splits are train"),
        ("files", {"text_field": "body"}, "no field 'body'; its fields are text, n: .* --text-field"),
        ("saved", {"text_field": "body"}, "no field 'body'; its fields are text, n: .* --text-field"),
        ("files,german", {}, "german"),
        ("files", {"text_field": "n"}, "train.*:1: 'n' is int; a text is needed|part 1:1: 'n' is .*a text is needed"),
    ],
)
def test_what_a_data_set_lacks_is_one_line(data_sets, tmp_path, source, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        prepare(f"hf:{data_sets / source}", cache_dir=tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_program_is_no_data_set(data_sets, tmp_path):
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "program.py").write_text("raise SystemExit\n")
    with pytest.raises(ValueError, match=r"hf:\S+program: [^\n]*$"):
        prepare(f"hf:{folder}", cache_dir=tmp_path / "s")


def test_without_the_library_a_line_says_what_to_install(data_sets, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        prepare(f"hf:{write_rows(tmp_path / 'other' / 'a.jsonl', 'ab').parent}", cache_dir=tmp_path / "s")


# ------------------------------------------------------------------------------------------------ killed and continued


def wait_for(condition):
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["file", "data set"])
def test_a_killed_process_is_followed_by_one_that_goes_on(data_sets, tmp_path, kind):
    source = data_sets / "files" / "train-0.jsonl" if kind == "file" else f"hf:{data_sets / 'files'}"
    total = 500 if kind == "file" else 1200
    log, folder = tmp_path / "log", tmp_path / "s"
    process = make_slowly(source, 0.1, log, folder)
    wait_for(lambda: list(folder.glob("*.progress.json.tmp")) and len(log.read_text().splitlines()) > 5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = json.loads(next(folder.glob("*.progress.json.tmp")).read_text())["state"]["rows"]
    assert 0 < done < total
    log.unlink()
    with logged_lines() as lines:
        prepare(source, tokenizer=ByteTokenizer(log=str(log)), cache_dir=folder)
    assert f"going on behind row {done}" in lines[0]
    assert sum(int(line.split()[1]) for line in log.read_text().splitlines()) == total - done
    prepare(source, cache_dir=tmp_path / "t")
    assert store_files(folder) == store_files(tmp_path / "t")


def test_what_breaks_off_keeps_what_was_read(data_sets, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "CHUNK_ROWS", 50)
    rows = (data_sets / "files" / "train-1.jsonl").read_bytes()
    for name, whole in (("both", texts_of(500, 1)), ("cut", [])):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "train-1.jsonl.gz").write_bytes(gzip.compress(rows)[:-100])
        if whole:
            write_rows(folder / "train-0.jsonl", whole)
        with pytest.raises(SourceLostError, match=r"hf:\S+: Compressed file ended[^\n]*$"):
            prepare(f"hf:{folder}", cache_dir=tmp_path / f"{name}-store")
    progress = next((tmp_path / "both-store").glob("*.progress.json.tmp"))
    assert 0 < json.loads(progress.read_text())["state"]["rows"] <= 500
    assert not list((tmp_path / "cut-store").iterdir())


def test_nothing_is_continued_when_the_text_has_changed(tmp_path):
    path = write_rows(tmp_path / "data" / "a.jsonl", texts_of(400))
    process = make_slowly(path, 0.15, tmp_path / "log", tmp_path / "s")
    wait_for(lambda: list((tmp_path / "s").glob("*.progress.json.tmp")))
    process.kill()
    process.wait()
    write_rows(path, texts_of(300, 1))
    assert words(prepare(path, cache_dir=tmp_path / "s")) == texts_of(300, 1)
    assert not list((tmp_path / "s").glob("*.tmp"))


def test_progress_that_the_files_do_not_hold_is_no_progress(tmp_path):
    one, empty = np.array([1], np.uint16), np.zeros(1, np.int32)
    options = {"dtype": np.uint16, "key": {"a": 1}}
    writer = StoreWriter(tmp_path / "s", **options)
    writer.add(one, one, empty)
    writer.save({"rows": 1})
    writer.add(one, one, empty)
    writer.close()
    assert StoreWriter(tmp_path / "s", dtype=np.uint16, key={"a": 2}).saved is None  # what is there is deleted
    writer = StoreWriter(tmp_path / "s", **options)
    assert writer.saved is None
    writer.add(one, one, empty)
    writer.save({"rows": 1})
    writer.add(one, one, empty)
    writer.close()
    again = StoreWriter(tmp_path / "s", **options)
    assert (again.saved, again.num_documents, again.num_tokens) == ({"rows": 1}, 1, 1)
    again.close()
    (tmp_path / "s.bin.tmp").write_bytes(b"\0")
    assert StoreWriter(tmp_path / "s", **options).saved is None


# ------------------------------------------------------------------------------------------------ very many files


def test_a_file_that_is_divided_by_bytes_gives_every_line_once(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        "".join(json.dumps({"text": text}) + "\n" * (1 + n % 3) for n, text in enumerate("abc中" * 9)).encode()
    )
    whole = [(row.line, row.value) for row in read_rows(path)]
    assert len(whole) == 36
    size = path.stat().st_size
    for cut in range(size + 1):
        parts = [
            piece
            for start, end in ((0, cut), (cut, size))
            for piece in pieces_of([path], row_format="by name", text_unit="line", start=start, end=end)
        ]
        rows = [(r.line, r.value) for p in parts for r in read_rows(p.path, start=p.start, end=p.end)]
        assert rows == whole, cut


def test_more_files_than_may_be_open_at_a_time(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    count = 2000
    for number in range(count):
        (folder / f"{number:05d}.txt").write_text(f"text {number}\n")
    expected = [f"text {number}" for number in range(count)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, hard))
    try:
        assert words(prepare(folder, cache_dir=tmp_path / "s")) == expected
        given = [folder / f"{number:05d}.txt" for number in range(200)]
        with logged_lines() as lines:
            documents = prepare(*given, tmp_path / "many" / "0000[0-1].txt", cache_dir=tmp_path / "t")
        assert words(documents) == [*expected[:200], *expected[:2]]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert lines[0] == f"200 files of {folder} are kept in one store"
    assert len(list((tmp_path / "t").glob("*.idx"))) == 2
    (folder / "00003.txt").write_text("changed\n")
    assert words(prepare(*given, cache_dir=tmp_path / "t"))[3] == "changed"


# ------------------------------------------------------------------------------------------------ duplicates


def test_hashes_are_remembered_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "IN_MEMORY", 64)
    generator = np.random.default_rng(0)
    seen, known = SeenHashes(tmp_path), set()
    for _ in range(150):
        hashes = generator.integers(0, 5000, size=generator.integers(0, 80)).astype(np.uint64)
        expected = []
        for value in hashes.tolist():
            expected.append(value not in known)
            known.add(value)
        assert seen.first(hashes).tolist() == expected
    assert not list(tmp_path.iterdir())


def first_of_each(texts):
    return list(dict.fromkeys(texts))


def test_duplicates_are_dropped_on_demand(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "CHUNK_ROWS", 50)
    texts = [f"text {random.Random(n).randint(0, 300)}" for n in range(1000)]
    path = write_rows(tmp_path / "data" / "a.jsonl", texts)
    assert len(prepare(path, cache_dir=tmp_path / "s")) == 1000
    with logged_lines() as lines:
        documents = prepare(path, cache_dir=tmp_path / "s", drop_duplicates=True)
    once = first_of_each(texts)
    assert words(documents) == once
    assert lines[-1].endswith(f"dropped {1000 - len(once)} of 1000 documents, duplicates of earlier ones")
    assert documents.details["duplicates"] == 1000 - len(once) and documents.details["rows"] == 1000
    assert words(prepare(path, cache_dir=tmp_path / "s", drop_duplicates=True)) == once  # found again
    kept = prepare(path, cache_dir=tmp_path / "s", drop_duplicates=True, pre_tokenize=False)
    assert words(kept) == once
    assert len(prepare(path, cache_dir=tmp_path / "s")) == 1000


def test_duplicates_of_earlier_sources_are_left_out(tmp_path):
    a = write_rows(tmp_path / "data" / "a.jsonl", ["x", "y", "x"])
    b = write_rows(tmp_path / "data" / "b.jsonl", ["y", "z", "z"])
    with logged_lines() as lines:
        assert words(prepare(a, b, cache_dir=tmp_path / "s", drop_duplicates=True)) == ["x", "y", "z"]
    assert lines[-1] == f"{b}: 1 of 2 documents are left out, earlier sources hold them"
    assert words(prepare(b, a, cache_dir=tmp_path / "s", drop_duplicates=True)) == ["y", "z", "x"]
    with pytest.raises(ValueError, match=r"c\.jsonl holds no document that earlier sources do not hold"):
        prepare(a, write_rows(tmp_path / "data" / "c.jsonl", ["y"]), cache_dir=tmp_path / "s", drop_duplicates=True)
    store = next((tmp_path / "s").glob("a*.idx"))
    for path in store.parent.glob(f"{store.stem}.hashes.npy"):
        path.unlink()
    for given in ((store, b), (store,)):
        with pytest.raises(ValueError, match=r"hashes\.npy is missing"):
            prepare(*given, cache_dir=tmp_path / "s", drop_duplicates=True)


def test_a_killed_process_has_not_forgotten_what_it_saw(tmp_path, vocab_dir):
    texts = [f"text {random.Random(n).randint(0, 400)}. " * 40 for n in range(15_000)]
    path = write_rows(tmp_path / "data" / "a.jsonl", texts)
    command = [sys.executable, "-m", "data_utils.corpora.prepare", "--train-data", str(path), "--drop-duplicates"]
    command += ["--vocab-dir", str(vocab_dir), "--num-workers", "1", "--output"]
    process = subprocess.Popen([*command, str(tmp_path / "s")], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    wait_for(lambda: list((tmp_path / "s").glob("*.progress.json.tmp")))
    process.kill()
    process.wait()
    result = subprocess.run([*command, str(tmp_path / "s")], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "going on behind row" in result.stdout + result.stderr
    assert f"{len(set(texts))} documents of 1 sources are ready" in result.stdout
