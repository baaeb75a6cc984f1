"""Shards of a corpus, which several machines make, joined to what one machine makes; stores of very many tokens."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from data_utils.corpora import merge as merging
from data_utils.corpora import tokenization
from data_utils.corpora.files import Shard
from data_utils.corpora.merge import merge, sharded_stores
from data_utils.corpora.store import IndexedDataset, StoreWriter, verify_store
from data_utils.corpora.tokenization import Preparation
from data_utils.objective.packing import BlockDataset, DocumentPicker, ItemGenerator, seed_words
from tests.helpers import REPOSITORY
from tests.helpers.byte_corpus import ByteTokenizer, prepare
from tests.helpers.logs import logged_lines

GROUPS = ("Pile-CC", "ArXiv", "Github")


def write_corpus(folder):
    """Write files of all kinds: lines that may be divided, and what may not."""
    folder.mkdir()
    generator = random.Random(0)

    def rows(count):
        return [
            {"text": "".join(generator.choices("ab 中", k=generator.randint(0, 3))), "meta": {"pile_set_name": group}}
            for group in generator.choices(GROUPS, k=count)
        ]

    def lines(count):
        return "".join(json.dumps(row) + "\n" for row in rows(count)).encode()

    (folder / "a.jsonl").write_bytes(lines(400))
    (folder / "aa.jsonl").write_bytes(b"")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines(300)))
    (folder / "c.json").write_text(json.dumps(rows(50)))
    (folder / "d.jsonl").write_bytes(lines(100))
    return folder


def make_shards(source, folder, count, numbers=None, **options):
    made = Preparation(ByteTokenizer(), ByteTokenizer, cache_dir=folder, progress=False, **options)
    for number in numbers or range(1, count + 1):
        made.make_shard([str(source)], Shard(number, count))


def join(folder, **options):
    [(prefix, count)] = sharded_stores(folder)
    store = merge(prefix, count, **options)
    for path in folder.glob("*-shard-*"):
        path.unlink()
    return store


def contents(folder, prefix):
    """Return the files of a store by suffix, the parts of its ids as one, and its description without checksums."""
    found = {path.name.removeprefix(prefix.name): path.read_bytes() for path in sorted(folder.glob(f"{prefix.name}.*"))}
    details = json.loads(found.pop(".json"))
    parts = [found.pop(name) for name in list(found) if name.startswith(".bin.")]
    if parts:
        assert ".bin" not in found
        found[".bin"] = b"".join(parts)
    return found, {name: value for name, value in details.items() if name not in ("files", "sha256")}


@pytest.mark.parametrize("count", [1, 4, 16])
@pytest.mark.parametrize("drop_duplicates", [False, True])
@pytest.mark.parametrize("kind", ["files", "pile", "text"])
def test_shards_are_joined_to_what_one_machine_makes(tmp_path, monkeypatch, count, drop_duplicates, kind):
    monkeypatch.setattr(tokenization, "CHUNK_ROWS", 23)
    monkeypatch.setattr(merging, "COPIED_DOCUMENTS", 7)
    folder = write_corpus(tmp_path / "corpus")
    if kind == "pile":  # its rule draws numbers, which depend on the place of a row in the whole corpus
        (folder / "c.json").unlink()
    source = f"pile={folder}" if kind == "pile" else folder
    options = {"drop_duplicates": drop_duplicates, "pre_tokenize": kind != "text"}
    prepare(source, cache_dir=tmp_path / "one", **options)
    make_shards(source, tmp_path / "shards", count, **options)
    store = join(tmp_path / "shards")
    expected, found = (contents(tmp_path / name, store.prefix) for name in ("one", "shards"))
    assert found == expected
    one = IndexedDataset(tmp_path / "one" / store.prefix.name)
    assert [d.tokens.tolist() for d in store] == [d.tokens.tolist() for d in one]
    assert [part.tolist() for part in store.parts() if len(part)]
    assert len(verify_store(store.prefix, full=True)) == len(one)
    with logged_lines() as lines:
        assert len(prepare(source, cache_dir=tmp_path / "shards", **options)) == len(one)
    assert not lines, "training finds the store"


def test_an_empty_file_that_can_not_be_one_is_no_shard(tmp_path):
    folder = write_corpus(tmp_path / "corpus")
    (folder / "e.parquet").write_bytes(b"")
    for make in (lambda: prepare(folder, cache_dir=tmp_path / "s"), lambda: make_shards(folder, tmp_path / "s", 2)):
        with pytest.raises(ValueError, match=r"e\.parquet"):
            make()


def test_one_file_is_that_of_one_machine(tmp_path):
    folder = write_corpus(tmp_path / "corpus")
    prepare(folder, cache_dir=tmp_path / "one")
    make_shards(folder, tmp_path / "shards", 3)
    join(tmp_path / "shards", one_file=True)
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "shards" / path.name).read_bytes() == path.read_bytes()


def test_prompts_inside_of_documents_are_joined(tmp_path):
    path = tmp_path / "rows"
    rows = [{"key": ["a", "b"], "content": ["c" * n, "d"]} for n in range(1, 30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"wikipedia-key={path}"
    prepare(source, cache_dir=tmp_path / "one")
    make_shards(source, tmp_path / "shards", 3)
    store = join(tmp_path / "shards")
    assert contents(tmp_path / "shards", store.prefix) == contents(tmp_path / "one", store.prefix)
    one = IndexedDataset(tmp_path / "one" / store.prefix.name)
    assert [d.loss_mask().tolist() for d in store] == [d.loss_mask().tolist() for d in one]


def test_the_ids_of_shards_are_not_copied(tmp_path):
    make_shards(write_corpus(tmp_path / "corpus"), tmp_path / "shards", 3)
    numbers = {path.stat().st_ino for path in (tmp_path / "shards").glob("*-shard-*.bin")}
    [(prefix, count)] = sharded_stores(tmp_path / "shards")
    merge(prefix, count)
    assert {path.stat().st_ino for path in (tmp_path / "shards").glob(f"{prefix.name}.bin.*")} == numbers


def test_without_hard_links_they_are(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError("no links here")

    make_shards(write_corpus(tmp_path / "corpus"), tmp_path / "shards", 2)
    monkeypatch.setattr(os, "link", refuse)
    assert len(join(tmp_path / "shards")) == len(prepare(tmp_path / "corpus", cache_dir=tmp_path / "one"))


def test_what_is_missing_or_does_not_fit_is_one_line(tmp_path):
    folder, shards = write_corpus(tmp_path / "corpus"), tmp_path / "shards"
    shards.mkdir()
    with pytest.raises(ValueError, match="holds no store of a shard"):
        sharded_stores(shards)
    make_shards(folder, shards, 4, [1, 3])
    command = [sys.executable, "-m", "data_utils.corpora.merge", str(shards)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "shard 2/4, 4/4 is missing: run prepare again with --shard 2/4" in result.stderr
    make_shards(folder, shards, 4, [2])
    with (folder / "d.jsonl").open("a") as file:
        file.write('{"text": "more"}\n')
    make_shards(folder, shards, 4, [4])
    [(prefix, count)] = sharded_stores(shards)
    with pytest.raises(ValueError, match=r"shard-00004-of-00004: sources is not that of .*: make this shard again"):
        merge(prefix, count)
    assert not list(shards.glob("*.tmp"))
    make_shards(folder, shards, 5, [1])
    with pytest.raises(ValueError, match="has shards of 4 and of 5"):
        sharded_stores(shards)


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "a/4", "-1/4", "1/0", ""])
def test_numbers_of_shards(text):
    with pytest.raises(ValueError, match=r"--shard .*: give the number of a shard and how many there are"):
        Shard.parse(text)
    assert Shard.parse("03/16") == Shard(3, 16)


def test_command(tmp_path, vocab_dir):
    folder, text_options = write_corpus(tmp_path / "corpus"), ["--vocab-dir", str(vocab_dir)]
    command = [sys.executable, "-m", "data_utils.corpora.prepare", "--train-data", str(folder), *text_options]
    for number in (1, 2):
        words = [*command, "--output", str(tmp_path / "s"), "--shard", f"{number}/2"]
        result = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        assert f"shard {number}/2 of 1 sources is ready in" in result.stdout
    words = [sys.executable, "-m", "data_utils.corpora.merge", str(tmp_path / "s")]
    result = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "of 2 shards; the shards are not needed any more: rm" in result.stdout


def test_a_data_set_is_divided_by_its_files(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"text": f"text {n}"} for n in range(300)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "set")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_utils.corpora.huggingface.PART_ROWS", 37)
        prepare(f"hf:{tmp_path / 'set'}", cache_dir=tmp_path / "one")
        make_shards(f"hf:{tmp_path / 'set'}", tmp_path / "shards", 4)
        store = join(tmp_path / "shards")
    assert contents(tmp_path / "shards", store.prefix) == contents(tmp_path / "one", store.prefix)
    assert len(store) == 300


# ------------------------------------------------------------------------------------------------ large stores


def write_large(prefix, num_documents, length, tail):
    """Write a store of zeros, a sparse file, whose last document ends in ``tail``."""
    writer = StoreWriter(prefix, dtype=np.uint16)
    size = num_documents * length
    writer.add(np.zeros(0, np.uint16), np.zeros(0, np.int32), np.zeros(0, np.int32))
    for name, value in ((".lengths", length), (".prompts", 0)):
        writer._files[name].write(np.full(num_documents, value, "<i4").tobytes())
    writer._files[".bin"].truncate(2 * size)
    writer._files[".bin"].seek(2 * (size - len(tail)))
    writer._files[".bin"].write(np.array(tail, "<u2").tobytes())
    writer.num_documents, writer.num_tokens = num_documents, size
    writer.publish({"kind": "tokens", "tokenizer_fingerprint": "bytes+1", "corpus": "large", "sources": [], "rows": 0,
                    "cut": [], "tokens_by_group": {}, "commands_in_text": False, "command_texts": {}})  # fmt: skip


@pytest.mark.parametrize("bits", [31, 32])
def test_more_tokens_than_a_number_of_four_bytes_counts(tmp_path, bits):
    prefix, length = tmp_path / "large", 1 << 20
    count = (1 << (bits - 20)) + 5
    write_large(prefix, count, length, [7, 8, 9])
    store = IndexedDataset(prefix)
    assert store.num_tokens == count * length > 1 << bits and len(store) == count
    assert store[count - 1].tokens[-4:].tolist() == [0, 7, 8, 9] and store[count - 2].tokens[-1] == 0
    picker = DocumentPicker(store)
    picked = [picker.pick_number(ItemGenerator(seed_words(index))) for index in range(300)]
    assert max(picked) > count * 0.97 and min(picked) < count * 0.03 and len(set(picked)) > 250


def test_shards_are_joined_to_more_tokens_than_a_number_of_four_bytes_counts(tmp_path):
    length, count = 1 << 20, 2100
    for number, tail in ((1, [5, 6]), (2, [7, 8])):
        write_large(tmp_path / f"large-shard-{number:05d}-of-00002", count, length, tail)
    [(prefix, shards)] = sharded_stores(tmp_path)
    store = merge(prefix, shards)
    assert store.num_tokens == 2 * count * length > 1 << 32
    assert store[count - 1].tokens[-2:].tolist() == [5, 6]
    assert store[count].tokens[:2].tolist() == [0, 0] and store[2 * count - 1].tokens[-2:].tolist() == [7, 8]
    assert not store[count].tokens.any()


def test_samples_do_not_depend_on_how_the_ids_are_divided(tmp_path):
    folder = write_corpus(tmp_path / "corpus")
    make_shards(folder, tmp_path / "shards", 5)
    parts, one = join(tmp_path / "shards"), prepare(folder, cache_dir=tmp_path / "one")

    class Tokenizer(ByteTokenizer):
        class special:
            eos, cls = 298, 297

        def sentence_end_table(self, kind):
            return np.zeros(300, bool)

    data = [BlockDataset(documents, tokenizer=Tokenizer(), seq_length=40) for documents in (parts, one)]
    for index in range(50):
        assert data[0][index].tokens.tolist() == data[1][index].tokens.tolist()
