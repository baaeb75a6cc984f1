"""Tokenizing corpora into stores: order, cache, locks, crashes, and the loader options of the original."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from data_utils.corpora.files import Piece
from data_utils.corpora.lazy_format import LazyDocuments, read_lengths
from data_utils.corpora.named import TextDocument, find_corpus
from data_utils.corpora.prepare import main
from data_utils.corpora.splits import scatter_assignment
from data_utils.corpora.store import IndexedDataset, is_store
from data_utils.corpora.tokenization import CACHE_FOLDER, read_chunks, store_places
from data_utils.tokenizers.tokenizer import build_tokenizer
from tests.helpers import REPOSITORY
from tests.helpers.byte_corpus import ByteTokenizer, make_slowly, prepare
from tests.helpers.logs import logged_lines


def words(documents, offset=1):
    return [ByteTokenizer(offset).decode(d.tokens) for d in documents]


def rows_of(count, seed=0):
    generator = random.Random(seed)
    return ["".join(generator.choices("ab 中\n", k=generator.randint(0, 30))) + str(n) for n in range(count)]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A corpus of 300 documents, read in small chunks."""
    monkeypatch.setenv("GLM_CACHE_DIR", str(tmp_path / "user-cache"))
    monkeypatch.setattr("data_utils.corpora.tokenization.CHUNK_ROWS", 7)
    path = tmp_path / "data" / "corpus.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in rows_of(300)), encoding="utf-8")
    return path


def store_files(folder):
    return {p.suffix: p.read_bytes() for p in folder.iterdir()}


def test_any_number_of_processes_gives_the_same_store(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("data_utils.corpora.tokenization.MINIMUM_PARALLEL_BYTES", 0)
    documents = prepare(corpus, cache_dir=tmp_path / "s0")
    assert words(documents) == rows_of(300)
    log = tmp_path / "log"
    prepare(corpus, tokenizer=ByteTokenizer(log=str(log)), cache_dir=tmp_path / "s2", num_workers=2)
    assert str(os.getpid()) not in {line.split()[0] for line in log.read_text().splitlines()}
    assert store_files(tmp_path / "s0") == store_files(tmp_path / "s2")
    monkeypatch.setattr("data_utils.corpora.tokenization.CHUNK_ROWS", 1000)
    prepare(corpus, cache_dir=tmp_path / "s3")
    assert store_files(tmp_path / "s0") == store_files(tmp_path / "s3")


def test_chunks_hold_every_row_once(corpus):
    chunks = list(read_chunks(find_corpus(str(corpus)), [Piece(corpus, corpus.stat().st_size)] * 2))
    assert [chunk.first_row for chunk in chunks] == list(range(0, 600, 7))
    assert sum(len(chunk.rows) for chunk in chunks) == 600
    assert chunks[-1].position == 2 * corpus.stat().st_size


def test_few_chunks_are_under_way(corpus, monkeypatch, tmp_path):
    """The reader waits for the processes: it is never more than a few chunks ahead."""
    from data_utils.corpora import tokenization as module

    read, taken = [], []

    def counted(*arguments, **options):
        for chunk in read_chunks(*arguments, **options):
            read.append(chunk)
            yield chunk

    class Watched(module.StoreWriter):
        def add(self, *arguments):
            taken.append(len(read) - len(taken))
            super().add(*arguments)

    monkeypatch.setattr(module, "MINIMUM_PARALLEL_BYTES", 0)
    monkeypatch.setattr(module, "read_chunks", counted)
    monkeypatch.setattr(module, "StoreWriter", Watched)
    prepare(corpus, cache_dir=tmp_path / "s", num_workers=2)
    assert len(taken) == 43
    assert max(taken) <= 6


# ------------------------------------------------------------------------------------------------ cache


def test_store_is_made_once_and_again_when_something_changes(corpus, tmp_path):
    log = tmp_path / "log"

    def runs(**options):
        log.write_text("")
        prepare(corpus, tokenizer=ByteTokenizer(options.pop("offset", 1), log=str(log)), **options)
        return bool(log.read_text())

    assert runs()
    assert not runs()
    assert is_store(next((corpus.parent / CACHE_FOLDER).glob("*.idx")))
    assert runs(offset=2)  # another tokenizer has its own store
    assert not runs()
    with corpus.open("a") as file:
        file.write('{"text": "more"}\n')
    assert runs()
    assert words(prepare(corpus)) == [*rows_of(300), "more"]
    assert runs(cache_dir=tmp_path / "elsewhere")
    assert not runs(cache_dir=tmp_path / "elsewhere")


def test_moved_folder_keeps_its_stores_and_needs_no_raw_file(corpus, tmp_path):
    prepare(corpus)
    moved = corpus.parent.rename(tmp_path / "moved") / corpus.name
    log = tmp_path / "log"
    assert words(prepare(moved, tokenizer=ByteTokenizer(log=str(log)))) == rows_of(300)
    assert not log.exists()
    moved.unlink()
    assert words(prepare(moved)) == rows_of(300)
    with pytest.raises(ValueError, match="no such file"):
        prepare(moved, tokenizer=ByteTokenizer(2))


def test_read_only_folder_uses_the_users_cache(corpus, tmp_path):
    corpus.parent.chmod(0o555)
    try:
        with logged_lines() as lines:
            assert words(prepare(corpus)) == rows_of(300)
        assert [p.name for p in corpus.parent.iterdir()] == [corpus.name]
        assert str(tmp_path / "user-cache") in lines[0]
        assert prepare(corpus, tokenizer=ByteTokenizer(seconds=100))  # found, not made again
    finally:
        corpus.parent.chmod(0o755)


def test_store_can_be_named_itself(corpus, tmp_path, monkeypatch):
    prepare(corpus, cache_dir=tmp_path / "s")
    prefix = str(next((tmp_path / "s").glob("*.idx"))).removesuffix(".idx")
    for source in (prefix, prefix + ".idx", prefix + ".bin"):
        assert words(prepare(source)) == rows_of(300)
    with pytest.raises(ValueError, match="made by another tokenizer"):
        prepare(prefix, tokenizer=ByteTokenizer(2))
    Path(prefix + ".json").unlink()
    with logged_lines() as lines:
        assert words(prepare(prefix, tokenizer=ByteTokenizer(2))) == rows_of(300)
    assert "only their range is checked" in lines[0]
    with pytest.raises(ValueError, match=r"holds the id 229, the tokenizer has 0 \.\. 99: .* another tokenizer"):
        monkeypatch.setattr(ByteTokenizer, "num_tokens", 100)
        prepare(prefix)


def test_a_store_without_documents_is_refused(tmp_path):
    (tmp_path / "s.bin").write_bytes(b"")
    (tmp_path / "s.idx").write_bytes(b"MMIDIDX\0\0" + struct.pack("<QBQQq", 1, 8, 0, 1, 0))
    with pytest.raises(ValueError, match="s holds no document"):
        prepare(tmp_path / "s")


def test_large_vocabularies_get_wider_ids(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(ByteTokenizer, "num_tokens", 65537)
    assert prepare(corpus, tokenizer=ByteTokenizer(70000), cache_dir=tmp_path / "s").dtype == np.int32
    monkeypatch.setattr(ByteTokenizer, "num_tokens", 65536)
    assert prepare(corpus, cache_dir=tmp_path / "t").dtype == np.uint16


def test_processes_with_another_tokenizer_are_noticed(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("data_utils.corpora.tokenization.MINIMUM_PARALLEL_BYTES", 0)
    with pytest.raises(ValueError, match="use another tokenizer"):
        prepare(corpus, build=partial(ByteTokenizer, 2), num_workers=2, cache_dir=tmp_path / "s")
    assert store_files(tmp_path / "s") == {}


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_killed_process_leaves_no_store(corpus, tmp_path):
    folder, log = tmp_path / "s", tmp_path / "log"
    process = make_slowly(corpus, 1.0, log, folder)
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) >= 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(folder.glob("*.tmp"))
    assert not list(folder.glob("*.idx")) + list(folder.glob("*.json"))
    assert words(prepare(corpus, cache_dir=folder)) == rows_of(300)
    prepare(corpus, cache_dir=tmp_path / "t")
    assert store_files(folder) == store_files(tmp_path / "t")


def test_a_killed_process_takes_its_workers_along(corpus, tmp_path):
    log = tmp_path / "log"
    process = make_slowly(corpus, 1.0, log, tmp_path / "s", 2)
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) >= 2)
    workers = {int(line.split()[0]) for line in log.read_text().splitlines()}
    assert process.pid not in workers
    process.kill()
    process.wait()
    wait_for(lambda: not any(is_running(worker) for worker in workers))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_damaged_store_is_made_again(corpus, tmp_path):
    prepare(corpus, cache_dir=tmp_path / "s")
    path = next((tmp_path / "s").glob("*.bin"))
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with logged_lines() as lines:
        again = prepare(corpus, cache_dir=tmp_path / "s")
    assert "is damaged" in lines[0] and "it is made again" in lines[0] and "300 documents" in lines[1]
    assert words(again) == rows_of(300)


def test_one_process_makes_the_store_and_others_wait(corpus, tmp_path):
    folder, log = tmp_path / "s", tmp_path / "log"
    processes = [make_slowly(corpus, 0.1, log, folder) for _ in range(3)]
    outputs = [process.communicate()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert len({line.split()[0] for line in log.read_text().splitlines()}) == 1
    assert sum("300 documents" in output for output in outputs) == 1
    assert words(prepare(corpus, cache_dir=folder)) == rows_of(300)


# ------------------------------------------------------------------------------------------------ bad input


def write_bad(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\n{"text":\n\n{"text": 1}\n{"text": "fine"}\n')
    return path


def test_malformed_rows_stop_unless_they_may_be_skipped(tmp_path):
    path = write_bad(tmp_path)
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: not valid JSON .* \(--skip-malformed counts such rows"):
        prepare(path)
    assert list(tmp_path.glob(f"{CACHE_FOLDER}/*")) == []
    with logged_lines() as lines:
        documents = prepare(path, skip_malformed=True)
    assert words(documents) == ["good", "fine"]
    assert documents.details["malformed"]["count"] == 2
    assert [line.split(":")[1] for line in documents.details["malformed"]["first"]] == ["2", "4"]
    assert "skipped 2 malformed rows" in lines[1]
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: "):  # the store that lacks them is no way around
        prepare(path)


def test_a_file_that_ends_early_is_no_malformed_row(tmp_path):
    rows = [json.dumps({"text": f"row {n * 7919 % 10007}"}) for n in range(3000)]
    data = gzip.compress("".join(f"{row}\n" for row in rows).encode())
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"ends too early; \d+ lines before it were read .*do without its rest"):
        prepare(path)
    with logged_lines() as lines:
        documents = prepare(path, skip_malformed=True)
    assert documents.details["malformed"]["count"] == 0
    assert documents.details["rows"] == len(documents) > 1000
    assert any("the rest is lost" in line for line in lines)
    with logged_lines() as lines:
        prepare(path, skip_malformed=True)
    assert any("the rest is lost" in line for line in lines)
    with pytest.raises(ValueError, match="do without its rest"):
        prepare(path)


def test_command_texts_are_text_unless_they_may_be_commands(tmp_path, vocab_dir):
    text = "a [MASK] b <|endofpiece|>[CLS]"
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"text": text}) + "\n")
    build = partial(build_tokenizer, "GPT2BPETokenizer", vocab_dir=vocab_dir)
    tokenizer = build()
    options = {"tokenizer": tokenizer, "build": build, "cache_dir": tmp_path / "s"}
    commands = {token.id for token in tokenizer.command_tokens}

    def ids(source, **more):
        with logged_lines() as lines:
            [document] = prepare(source, **options, **more)
        return document.tokens.tolist(), [line for line in lines if "command tokens" in line]

    plain, [line] = ids(path)
    assert not commands & set(plain) and tokenizer.decode(plain) == text
    assert line.endswith("<|endofpiece|> 1, [CLS] 1, [MASK] 1; they are kept as plain text; --commands-in-text makes "
                         "commands of them")  # fmt: skip
    assert ids(path, commands_in_text=True)[0] == ids(f"wikipedia={path}")[0] == tokenizer.encode(text)
    assert ids(path, pre_tokenize=False)[0] == plain
    assert ids(path, pre_tokenize=False, commands_in_text=True)[0] == tokenizer.encode(text)


@pytest.mark.parametrize(("text", "is_kept"), [("a [MASK]", False), ("a b", True)])
def test_stores_of_an_earlier_version_in_which_texts_are_commands_are_made_again(tmp_path, vocab_dir, text, is_kept):
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"text": text}) + "\n")
    build = partial(build_tokenizer, "GPT2BPETokenizer", vocab_dir=vocab_dir)
    options = {"tokenizer": build(), "build": build, "cache_dir": tmp_path / "s"}
    prepare(path, commands_in_text=True, **options)
    made, earlier = (
        store_places(
            find_corpus(str(path), commands_in_text=commands_in_text),
            cache_dir=tmp_path / "s",
            fingerprint=options["tokenizer"].fingerprint,
        )[0]
        for commands_in_text in (True, False)
    )
    for suffix in (".bin", ".idx", ".prompts.npy"):
        Path(f"{made}{suffix}").replace(f"{earlier}{suffix}")
    details = json.loads(Path(f"{made}.json").read_text())
    for name in ("files", "sha256", "commands_in_text", "command_texts"):
        del details[name]
    Path(f"{earlier}.json").write_text(json.dumps(details))
    with logged_lines() as lines:
        [document] = prepare(path, **options)
    assert document.tokens.tolist() == options["tokenizer"].encode(text, as_text=True)
    assert is_kept != any("made again" in line for line in lines)


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n'])
def test_empty_corpus_is_refused(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"empty\.jsonl is empty: .* rows") as caught:
        prepare(path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.glob(f"{CACHE_FOLDER}/*")) == []


def test_unwritable_cache_is_refused(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"no folder for the tokenized store.*GLM_CACHE_DIR"):
        prepare(corpus, cache_dir=tmp_path / "file" / "cache")


# ------------------------------------------------------------------------------------------------ options


def test_sources_are_joined_in_their_order(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name}1\n{name}2\n")
    assert words(prepare(tmp_path / "b.txt", tmp_path / "a.txt")) == ["b1", "b2", "a1", "a2"]
    assert words(prepare(tmp_path / "*.txt")) == ["a1", "a2", "b1", "b2"]
    assert words(prepare(tmp_path)) == ["a1", "a2", "b1", "b2"]
    assert words(prepare(tmp_path / "a.txt", text_unit="file")) == ["a1\na2"]


def test_named_corpus_with_prompts(tmp_path, monkeypatch):
    (tmp_path / "rows").write_text('{"prompt": "Q: “x”", "text": "it’s"}\n', encoding="utf-8")
    monkeypatch.setenv("GLM_CORPUS_TEST", str(tmp_path / "rows"))
    [document] = prepare("test")
    assert words([document]) == ['Q: "x"it\'s']
    assert document.prompt_length == len('Q: "x"')


def test_pile_reports_its_sources(tmp_path):
    (tmp_path / "pile").write_text(json.dumps({"text": "abc", "meta": {"pile_set_name": "Pile-CC"}}) + "\n")
    with logged_lines() as lines:
        documents = prepare(f"pile={tmp_path / 'pile'}")
    assert documents.details["tokens_by_group"] == {"Pile-CC": 3}
    assert lines[-1].endswith("Pile-CC: 3 tokens")


def test_keys_and_contents_have_prompts_inside(tmp_path):
    (tmp_path / "rows").write_text(json.dumps({"key": ["a", "b"], "content": ["c", "d"]}) + "\n")
    source = f"wikipedia-key={tmp_path / 'rows'}"
    summary, text = prepare(source)
    assert words([summary]) == ["Summary: a b"]
    assert summary.loss_mask().tolist() == [0] * 9 + [1] * 3
    assert text.tokens.tolist() == [*ByteTokenizer().encode("a c"), 299, *ByteTokenizer().encode(" b d"), 299]
    assert text.loss_mask().tolist() == [0, 1, 1, 1, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="tokenized in advance"):
        prepare(source, pre_tokenize=False)


@pytest.mark.parametrize("in_memory", [False, True])
def test_text_that_is_tokenized_on_access(corpus, in_memory):
    ahead = prepare(corpus, in_memory=in_memory)
    on_access = prepare(corpus, in_memory=in_memory, pre_tokenize=False)
    assert [d.tokens.tolist() for d in ahead] == [d.tokens.tolist() for d in on_access]
    assert on_access.lengths.tolist() == [len(text.encode()) for text in rows_of(300)]
    assert len(pickle.dumps(on_access)) < 5000


def test_text_on_access_gets_plain_punctuation(tmp_path):
    (tmp_path / "rows").write_text(json.dumps({"text": "“x”"}, ensure_ascii=False) + "\n", encoding="utf-8")
    documents = prepare(f"wikipedia={tmp_path / 'rows'}", pre_tokenize=False)
    assert words(documents) == ['"x"']
    assert documents.lengths.tolist() == [len("“x”".encode())]


def test_half_and_shards(corpus):
    texts = rows_of(300)
    assert words(prepare(corpus, half_of_documents=True)) == texts[:200]
    generator = random.Random(7)
    expected = [scatter_assignment(300, 4, generator=generator) for _ in range(2)]  # one generator for both corpora
    for shard in range(4):
        chosen = [texts[i] for assignment in expected for i in assignment[shard]]
        assert words(prepare(corpus, corpus, num_shards=4, shard=shard, seed=7)) == chosen
    with pytest.raises(ValueError, match="shard 2 of 2 documents is empty"):
        (corpus.parent / "two.txt").write_text("a\nb\n")
        prepare(corpus.parent / "two.txt", num_shards=3, shard=2)


# ------------------------------------------------------------------------------------------------ the original's cache


def write_lazy(folder: Path, documents: list[TextDocument]) -> Path:
    """Write ids of the byte tokenizer as the original did."""
    folder.mkdir(parents=True)
    for name in ("prompt", "text"):
        ids = [ByteTokenizer().encode(getattr(document, name)) for document in documents]
        (folder / name).write_bytes(np.array([i for part in ids for i in part], dtype="<i4").tobytes())
        (folder / f"{name}.len.pkl").write_bytes(pickle.dumps([len(part) for part in ids], protocol=4))
    return folder


def test_lazy_folder_stands_in_for_a_source_that_is_gone(tmp_path):
    folder = write_lazy(tmp_path / "wiki.lazy", [TextDocument("ab"), TextDocument("c", "p")])
    for source in (folder, tmp_path / "wiki.jsonl", f"wikipedia={tmp_path / 'wiki.json'}"):
        with logged_lines() as lines:
            documents = prepare(source)
        assert words(documents) == ["ab", "pc"]
        assert [d.prompt_length for d in documents] == [0, 1]
        assert "does not say which tokenizer" in lines[0]
    (tmp_path / "wiki.txt").write_text("raw\n")
    assert words(prepare(tmp_path / "wiki.txt")) == ["raw"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize("value", [Evil(), [Evil()], "text", [1.5], [-1], [True], {"a": 1}])
def test_pickles_that_are_no_lengths(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    folder = write_lazy(tmp_path / "x.lazy", [TextDocument("ab")])
    (folder / "text.len.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match=r"text\.len\.pkl is not a list of lengths"):
        LazyDocuments(folder)
    assert not Path("evil").exists()


def test_a_damaged_byte_of_a_lazy_folder_is_noticed_from_its_first_opening_on(tmp_path):
    folder = write_lazy(tmp_path / "x.lazy", [TextDocument("ab", "p")])
    with logged_lines() as lines:
        assert words(LazyDocuments(folder)) == ["pab"]
    assert "SHA256SUMS" in lines[0]
    for name in ("prompt", "text", "prompt.len.pkl", "text.len.pkl"):
        intact = (folder / name).read_bytes()
        (folder / name).write_bytes(bytes([intact[0] ^ 1]) + intact[1:])
        with pytest.raises(ValueError, match=rf"{name} is (damaged: its SHA-256|not a list of lengths)"):
            LazyDocuments(folder)
        (folder / name).write_bytes(intact)
    for name in ("prompt", "prompt.len.pkl"):
        intact = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(ValueError, match=rf"{name} is missing"):
            LazyDocuments(folder)
        (folder / name).write_bytes(intact)
    (folder / "SHA256SUMS").unlink()
    (folder / "text").write_bytes(np.array([999, 98], "<i4").tobytes())
    with pytest.raises(ValueError, match=r"x\.lazy holds the id 999, the tokenizer has 0 \.\. 299"):
        prepare(folder)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04]r\xff\xff\xff\x7f.",  # a place in the memo that takes 16 GB
        b"\x80\x04]B\xff\xff\xff\xffx.",  # a text of 4 GB
        b"\x80\x04\x95" + b"\xff" * 8 + b"].",  # a frame of more than there is
        b"\x80\x04](\x8a\xff" + b"\x01" * 255 + b"e.",  # a number of 2040 bits
        b"(" * 100_000,
        b"\x80\x04K\x01a.",
    ],
)
def test_pickles_that_ask_for_more_than_they_hold(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match="x is not a list of lengths"):
        read_lengths(tmp_path / "x")


def test_damaged_lazy_folder(tmp_path):
    folder = write_lazy(tmp_path / "x.lazy", [TextDocument("ab")])
    (folder / "text").write_bytes(b"123")
    with pytest.raises(ValueError, match="damaged"):
        LazyDocuments(folder)
    (folder / "text.len.pkl").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="not a list of lengths"):
        read_lengths(folder / "text.len.pkl")


# ------------------------------------------------------------------------------------------------ command


def test_command(corpus, tmp_path, capsys, vocab_dir):
    arguments = ["--train-data", str(corpus), "--output", str(tmp_path / "s"), "--vocab-dir", str(vocab_dir)]
    assert main(arguments) == 0
    assert "300 documents of 1 sources are ready" in capsys.readouterr().out
    store = IndexedDataset(next((tmp_path / "s").glob("*.idx")))
    assert len(store) == 300
    assert store.details["kind"] == "tokens"


def test_command_ends_in_one_line(tmp_path, vocab_dir):
    command = [sys.executable, "-m", "data_utils.corpora.prepare", "--output", str(tmp_path)]
    command += ["--train-data", str(write_bad(tmp_path)), "--vocab-dir", str(vocab_dir)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "bad.jsonl:2: not valid JSON" in result.stderr
