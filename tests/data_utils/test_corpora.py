"""Corpora: what an argument of --train-data means, every file format, and what is wrong with a row."""

from __future__ import annotations

import gzip
import json
import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_utils.corpora.files import Piece, find_files, parse_value, read_rows
from data_utils.corpora.language_detection import MODEL_VARIABLE
from data_utils.corpora.named import NAMED_CORPORA, Corpus, find_corpus, location_variable, read_documents
from tests.helpers.logs import logged_lines

ROWS = [{"text": "one"}, {"text": "zwei\nLinien"}, {"text": "三"}]
TEXTS = [row["text"] for row in ROWS]


def json_lines(rows=ROWS) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def texts(source, **options) -> list[str]:
    return [document.text for document in read_documents(str(source), **options)]


def write(path, data: bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# ------------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", json_lines()),
        ("a.json", json_lines()),
        ("a.jsonl", b"\xef\xbb\xbf" + json_lines()),
        ("a.jsonl", json_lines().replace(b"\n", b"\r\n\r\n  \n")),
        ("a.jsonl", json_lines().rstrip(b"\n")),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", json.dumps(ROWS, indent=2).encode()),
        ("a.json", json.dumps(TEXTS).encode()),
        ("a.json", json.dumps({"RECORDS": ROWS}).encode()),
        ("a.json", json.dumps({"RECORDS": ROWS}, indent=1).encode()),
        ("a.json", json.dumps({"version": 1, "RECORDS": ROWS}, indent=1).encode()),
    ],
)
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_json_files(tmp_path, name, data, compression):
    if compression == ".gz":
        data = gzip.compress(data)
    elif compression == ".zst":
        zstandard = pytest.importorskip("zstandard")
        half = len(data) // 2  # two frames
        data = zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    assert texts(write(tmp_path / (name + compression), data)) == TEXTS


def test_one_json_object(tmp_path):
    data = json.dumps({"text": "alone", "more": [1]}, indent=2).encode()
    assert texts(write(tmp_path / "a.json", data)) == ["alone"]


def test_parquet_file(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([{"body": t, "n": 1} for t in TEXTS]), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet", text_field="body") == TEXTS
    with pytest.raises(ValueError, match=r"a\.parquet:1: no 'text'; it has body, n: name .* --text-field"):
        texts(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", b"something else")
    with pytest.raises(ValueError, match=r"b\.parquet:1: not a parquet file that can be read"):
        texts(tmp_path / "b.parquet")


def test_text_units(tmp_path):
    path = write(tmp_path / "a.txt", b"\nfirst\r\n second \n\n\nthird")
    assert texts(path) == ["first", " second ", "third"]
    assert texts(path, text_unit="paragraph") == ["first\r\n second", "third"]
    assert texts(path, text_unit="file") == ["first\r\n second \n\n\nthird"]
    with pytest.raises(ValueError, match="line, paragraph, file"):
        texts(path, text_unit="page")


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.lists(st.none(), max_size=2))),
    part=st.integers(1, 7),
)
def test_lists_are_read_in_parts(tmp_path_factory, values, part):
    path = write(tmp_path_factory.mktemp("list") / "a.json", json.dumps(values, indent=1).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_utils.corpora.files.READ_BYTES", part)
        assert [parse_value(row) for row in read_rows(path)] == values


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{bad", "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        ('{"text": "中文"}'.encode("gb18030"), "not UTF-8 .* iconv -f GB18030"),
        (b'{"text": 3}', "'text' is a whole number; a text is needed"),
        (b'{"text": null}', "'text' is null; a text is needed"),
        (b'{"text": ["x"]}', "'text' is a list; a text is needed"),
        (b'{"other": "x"}', "no 'text'; it has other: name the field of the text with --text-field"),
        (b'{"text": "a", "text": "b"}', "the key 'text' stands twice"),
        (b'{"text": "a", "id": ' + b"9" * 5000 + b"}", "a number of too many digits"),
        (b"[1]", "an object with the key 'text' is needed, not a list"),
        (b"3", "an object"),
        (b"[" * 100_000, "JSON nested too deeply"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_malformed_rows_are_named(tmp_path, line, problem):
    path = write(tmp_path / "a.jsonl", b'{"text": "ok"}\n\n' + line + b'\n{"text": "after"}\n')
    with pytest.raises(ValueError, match=rf"a\.jsonl:3: .*{problem}") as caught:
        texts(path)
    assert len(str(caught.value).splitlines()) == 1
    assert texts(path, skip_malformed=True) == ["ok", "after"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_compression_is_named(tmp_path, suffix):
    rows = [{"text": f"row {n * 7919 % 10007} {n}"} for n in range(5000)]
    if suffix == ".gz":
        data = gzip.compress(json_lines(rows))
    else:
        data = pytest.importorskip("zstandard").compress(json_lines(rows))
    path = write(tmp_path / f"a.jsonl{suffix}", data[: len(data) // 2])
    lost = (
        rf"a\.jsonl{suffix}:\d+: the compressed file ends too early; \d+ lines before it were read .* the rest is lost"
    )
    with pytest.raises(ValueError, match=lost):
        texts(path)
    with logged_lines() as lines:
        read = texts(path, skip_malformed=True)
    assert read == [row["text"] for row in rows][: len(read)]
    assert len(lines) == 1 and re.search(lost, lines[0])
    if suffix == ".gz":
        assert len(read) > 1000


def test_broken_list_is_named(tmp_path):
    path = write(tmp_path / "a.json", b'[{"text": "x"},\n{"text": }]')
    with pytest.raises(ValueError, match=r"a\.json:2: not valid JSON .*; 1 elements before it were read"):
        texts(path)
    assert texts(path, skip_malformed=True) == ["x"]
    with pytest.raises(ValueError, match=r"b\.json:1: .*the list does not end"):
        texts(write(tmp_path / "b.json", b'[{"text": "x"}'))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'[{"text": "x"}] trailing', "the list ends, but more text follows it: 'trailing'"),
        (b'[{"text": "x"}]\n[{"text": "y"}]', "the list ends, but more text follows it"),
        (b'[{"text": "x"} {"text": "y"}]', "the list does not end, '{' follows"),
        (b'[{"text": "x"},]', "not valid JSON"),
        (b'{"RECORDS": [{"text": "x"}]', "behind the list: not valid JSON"),
        (b'{"RECORDS": [{"text": "x"}], "RECORDS": []}', "the key 'RECORDS' stands twice"),
        (b'[{"text": "x"}, "\xff"]', "not UTF-8"),
        (b'[{"text": "x"}, ' + b"[" * 100_000, "JSON nested too deeply"),
    ],
)
def test_lists_end_where_the_file_ends(tmp_path, data, problem):
    path = write(tmp_path / "a.json", data)
    with pytest.raises(ValueError, match=rf"a\.json:\d: .*{problem}") as caught:
        texts(path)
    assert "the rest is lost" in str(caught.value)


def test_what_follows_the_records_may_be_more_of_their_object(tmp_path):
    assert texts(write(tmp_path / "a.json", b'{"RECORDS": [{"text": "x"}], "more": [1]}')) == ["x"]


def test_a_number_that_python_does_not_read_costs_one_element(tmp_path):
    path = write(tmp_path / "a.json", b'["x", {"n": ' + b"9" * 5000 + b'}, {"text": "y"}]')
    assert texts(path, skip_malformed=True) == ["x", "y"]


def test_joined_files_may_each_have_a_mark(tmp_path):
    assert texts(write(tmp_path / "a.jsonl", 2 * (b"\xef\xbb\xbf" + json_lines()))) == 2 * TEXTS


def test_suffixes_in_any_case(tmp_path):
    write(tmp_path / "a.JSONL.GZ", gzip.compress(json_lines()))
    write(tmp_path / "b.Txt", b"line\n")
    assert texts(tmp_path) == [*TEXTS, "line"]


def test_parquet_values_that_python_cannot_hold(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    dates = pyarrow.array([253402300800000, None], pyarrow.timestamp("ms"))  # the year 10000
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "d": dates}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == ["a", "b"]
    with pytest.raises(
        ValueError, match=r"a\.parquet:1: 'd' is a timestamp\[ms\] that cannot be read; a text is needed"
    ):
        texts(tmp_path / "a.parquet", text_field="d")


def test_a_parquet_text_that_is_not_utf8_costs_one_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    column = pyarrow.array([b"a", b"\xff", b"b"], pyarrow.binary()).view(pyarrow.string())
    zones = pyarrow.array([0, 0, 0], pyarrow.timestamp("ms", tz="Nowhere/Land"))
    parquet.write_table(pyarrow.table({"text": column, "d": zones}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet:2: 'text' is a string that cannot be read"):
        texts(tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet", skip_malformed=True) == ["a", "b"]


def test_long_windows_of_zst(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = compressor.compress(json_lines()) + compressor.flush()
    assert texts(write(tmp_path / "a.jsonl.zst", data)) == TEXTS


@pytest.mark.parametrize(
    "name", [n for n, corpus in NAMED_CORPORA.items() if not corpus.row_format.startswith("text ")]
)
@pytest.mark.parametrize("row", [[1], 3, {"text": 3, "title": 3, "ans-content": 3, "key": 3, "maintext": 3}])
def test_named_corpora_refuse_foreign_rows(tmp_path, name, row):
    content = [row] if NAMED_CORPORA[name].row_format == "records" else row
    path = write(tmp_path / "a.jsonl", json.dumps(content).encode())
    with pytest.raises(ValueError, match=r"a\.jsonl:1: "):
        list(Corpus(name, str(path), named=name).documents())


# ------------------------------------------------------------------------------------------------ names and places


def test_unknown_name_lists_the_nearest_first():
    with pytest.raises(ValueError, match=r"no corpus 'wikpedia'.*nearest first: wikipedia, wikip") as caught:
        find_corpus("wikpedia")
    assert all(name in str(caught.value) for name in NAMED_CORPORA)


@pytest.mark.parametrize("source", ["missing.jsonl", "folder/missing", "*.nothing"])
def test_missing_files(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no such file or folder|no file matches"):
        texts(source)


def test_suffix_that_tells_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"a\.pdf: unknown suffix '\.pdf'; known are \.jsonl"):
        texts(write(tmp_path / "a.pdf", b"x"))
    write(tmp_path / "a.jsonl", json_lines())
    with pytest.raises(ValueError, match=r"a\.pdf: unknown suffix"):
        next(read_documents(f"{tmp_path}/a.*"))  # before anything is read


def test_place_of_a_named_corpus(tmp_path, monkeypatch):
    monkeypatch.delenv("GLM_CORPORA_DIR", raising=False)
    with pytest.raises(ValueError, match=r"say where it lies: cc-news=PATH, or GLM_CORPUS_CC_NEWS=PATH"):
        find_corpus("cc-news")
    assert find_corpus("cc-news=/some/where").location == "/some/where"
    assert find_corpus("cc-news=/some/where").named == "cc-news"
    write(tmp_path / "cc-news.jsonl", b"")
    monkeypatch.setenv("GLM_CORPORA_DIR", str(tmp_path))
    assert find_corpus("cc-news").location == str(tmp_path / "cc-news.jsonl")
    write(tmp_path / "cc-news" / "part", b"")
    assert find_corpus("cc-news").location == str(tmp_path / "cc-news")
    monkeypatch.setenv(location_variable("cc-news"), "/else/where")
    assert find_corpus("cc-news").location == "/else/where"
    with pytest.raises(ValueError, match=r"neither .*pile nor .* exists"):
        find_corpus("pile")


def test_folders_and_globs_are_sorted(tmp_path):
    for name in ("b.jsonl", "a/z.jsonl", "a/b.txt", "c.lazy/text.txt", ".hidden/x.txt", "README.md"):
        write(tmp_path / name, b'{"text": "x"}\n')
    names = [str(p.relative_to(tmp_path)) for p in find_files(tmp_path)]
    assert names == ["a/b.txt", "a/z.jsonl", "b.jsonl"]
    assert [p.name for p in find_files(tmp_path, any_suffix=True)] == ["README.md", "b.txt", "z.jsonl", "b.jsonl"]
    assert [p.name for p in find_files(f"{tmp_path}/**/*.jsonl")] == ["z.jsonl", "b.jsonl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no corpus file"):
        find_files(tmp_path / "empty")


def test_links_are_followed_once_and_what_is_left_out_is_named(tmp_path):
    folder, other = tmp_path / "data", tmp_path / "other"
    write(folder / "a.txt", b"a")
    write(folder / "notes.md", b"")
    write(other / "deep" / "b.txt", b"b")
    (other / "back").symlink_to(folder)  # a circle of two
    (folder / "linked").symlink_to(other)
    (folder / "self").symlink_to(folder)
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    with logged_lines() as lines:
        assert texts(folder) == ["a", "b"]
    for name in ("linked/back leads to", "self leads to", "gone.txt", "notes.md"):
        assert any(name in line for line in lines), name
    with logged_lines() as lines:
        assert texts(f"{folder}/**/*.txt") == ["a", "b"]
        assert texts(f"{tmp_path}/*/**/b.*") == ["b"] * 2  # below data and below other
    assert any("self leads to" in line for line in lines)
    with pytest.raises(ValueError, match=r"gone\.txt is a link to .*nowhere, which does not exist"):
        texts(folder / "gone.txt")


def test_named_corpus_reads_any_suffix(tmp_path):
    write(tmp_path / "wiki" / "AA" / "wiki_00", json_lines())
    write(tmp_path / "wiki" / "AA" / "wiki_01", json_lines([{"text": ""}]))
    documents = list(find_corpus(f"wikipedia={tmp_path / 'wiki'}").documents())
    assert [d.text for d in documents] == [*TEXTS, ""]


def test_downsampling_depends_on_the_row_alone(tmp_path):
    rows = [{"text": f"paper {n}", "meta": {"pile_set_name": "ArXiv"}} for n in range(2000)]
    corpus = Corpus("pile", str(write(tmp_path / "a.jsonl", json_lines(rows))), named="pile")
    kept = [d.text for d in corpus.documents()]
    assert 0.25 < len(kept) / len(rows) < 0.35
    read = list(corpus.rows(Piece(tmp_path / "a.jsonl")))
    backwards = [d.text for n in reversed(range(len(read))) for d in corpus.parse(read[n], n)]
    assert backwards[::-1] == kept
    assert pickle.loads(pickle.dumps(corpus)) == corpus


def test_missing_language_detector_is_not_a_malformed_row(tmp_path, monkeypatch):
    monkeypatch.setenv(MODEL_VARIABLE, str(tmp_path / "lid.bin"))
    path = write(tmp_path / "a.jsonl", json_lines([{"text": "word " * 30}]))
    with pytest.raises(ValueError, match=r"no language model at .*lid\.bin: download lid\.176\.bin"):
        list(read_documents(f"openwebtext={path}", skip_malformed=True))
