"""Corpus rules, the original's token cache and splits against recorded results (pretraining/corpora.json ...)."""

from __future__ import annotations

import base64
import random
from pathlib import Path

import numpy as np
import pytest

from data_utils.corpora.files import Row
from data_utils.corpora.lazy_format import LazyDocuments, lazy_path, scatter_path
from data_utils.corpora.named import NAMED_CORPORA, Corpus, RowContext
from data_utils.corpora.splits import (
    document_order,
    first_two_thirds,
    parse_split,
    scatter_assignment,
    should_split,
    split_documents,
    split_indices,
)
from data_utils.corpora.store import Document, TextDocuments, concatenate_documents
from data_utils.corpora.tokenization import Chunk, ChunkTokenizer


def load(golden, name: str, keys: set[str]) -> dict:
    """Read a file and refuse anything in it that no test here handles."""
    content = golden.json(f"pretraining/{name}")
    assert set(content) == keys, f"not handled in {name}: {set(content) ^ keys}"
    return content


class CharacterTokenizer:
    """One id per character: its code point. The vectors were recorded with it."""

    num_tokens = 0x110000
    fingerprint = "characters"

    def __init__(self, eop: int = -1):
        self.eop = eop

    def encode_batch(self, texts, *, as_text):
        assert not as_text, "in named corpora command texts are commands"
        return [[ord(character) for character in text] for text in texts]

    def count_commands(self, texts):
        return {}

    def command_id(self, name):
        assert name == "eop"
        return self.eop


def looks_english(text: str) -> bool:
    """Stand in for the language detector: most characters are ASCII."""
    return 2 * sum(map(str.isascii, text)) > len(text)


def tokenized(corpus: str, row: object, context: RowContext, *, tokenizer: CharacterTokenizer | None = None):
    """Return the arrays of one row, made by the code that tokenizes whole corpora."""

    class OneRow(Corpus):
        def parse(self, row, row_number):
            return self.kind.rule(row.value, context)

    one_row = OneRow("row", ".", named=corpus)
    chunk = Chunk(0, [Row(Path("row"), 1, row)], 0)
    return ChunkTokenizer(one_row, np.int32, lambda: tokenizer or CharacterTokenizer())(chunk)


READER_KEYS = {
    "corpus", "tokenize", "json", "row_is_line", "keeps_punctuation", "global_random_seed", "rows", "documents",
}  # fmt: skip
CORPORA_KEYS = {"tokenizer", "readers", "wikipedia_key", "attributes"}


def test_rules_of_named_corpora(golden):
    for case in load(golden, "corpora.json", CORPORA_KEYS)["readers"]:
        assert set(case) == READER_KEYS
        corpus = NAMED_CORPORA[case["corpus"]]
        assert (corpus.row_format == "json lines", corpus.row_format != "records", corpus.keeps_curly_quotes) == (
            case["json"], case["row_is_line"], case["keeps_punctuation"],
        )  # fmt: skip
        # One generator for all rows, as recorded; in a run the draw depends on the number of the row.
        draw = random.Random(case["global_random_seed"]).random
        context = RowContext(draw=draw, is_english=looks_english)
        assert len(case["rows"]) == len(case["documents"])
        for row, expected in zip(case["rows"], case["documents"], strict=True):
            if case["tokenize"]:
                got = tokenized(case["corpus"], row, context)
                ends = np.cumsum(got.lengths)
                documents = [got.tokens[end - n : end].tolist() for end, n in zip(ends, got.lengths, strict=True)]
                pairs = [[ids[:n], ids[n:]] for ids, n in zip(documents, got.prompt_lengths.tolist(), strict=True)]
            else:
                pairs = [document.pieces for document in corpus.rule(row, context)]
            assert pairs == expected, (case["corpus"], row)


def test_attributes_of_named_corpora(golden):
    attributes = load(golden, "corpora.json", CORPORA_KEYS)["attributes"]
    assert set(attributes) == set(NAMED_CORPORA) - {"multilingual"}
    for name, expected in attributes.items():
        corpus = NAMED_CORPORA[name]
        assert set(expected) == {"json", "row_is_line", "keeps_punctuation"}
        assert expected["json"] in (None, corpus.row_format == "json lines")  # null: its reader never ran
        assert expected["row_is_line"] == (corpus.row_format != "records")
        assert expected["keeps_punctuation"] == corpus.keeps_curly_quotes


def test_wikipedia_key(golden):
    case = load(golden, "corpora.json", CORPORA_KEYS)["wikipedia_key"]
    assert set(case) == {
        "row", "eop_id", "summary_tokens", "summary_mask_lengths", "text_tokens", "text_mask_lengths",
    }  # fmt: skip
    context = RowContext(draw=random.Random(0).random, is_english=looks_english)
    got = tokenized("wikipedia-key", case["row"], context, tokenizer=CharacterTokenizer(case["eop_id"]))
    assert got.tokens.tolist() == case["summary_tokens"] + case["text_tokens"]
    assert got.lengths.tolist() == [len(case["summary_tokens"]), len(case["text_tokens"])]
    masks = [np.repeat(np.arange(len(case[k])) % 2, case[k]) for k in ("summary_mask_lengths", "text_mask_lengths")]
    assert got.predicted.tolist() == np.concatenate(masks).tolist()
    assert got.prompt_lengths.tolist() == [case["summary_mask_lengths"][0], case["text_mask_lengths"][0]]


# ---------------------------------------------------------------------------------------------- token cache

LAZY_KEYS = {"array", "string", "paths", "scatter"}


def write_lazy(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(base64.b64decode(content))
    return folder


@pytest.mark.parametrize("in_memory", [False, True])
def test_lazy_folder_of_ids(golden, tmp_path, in_memory):
    case = load(golden, "lazy_format.json", LAZY_KEYS)["array"]
    assert set(case) == {"source_path", "folder", "documents", "files_base64", "lengths", "half_lazy_loader_documents"}
    assert lazy_path(case["source_path"]) == case["folder"]
    documents = LazyDocuments(write_lazy(tmp_path / case["folder"], case["files_base64"]), in_memory=in_memory)
    assert {name: lengths.tolist() for name, lengths in documents.field_lengths.items()} == case["lengths"]
    assert not documents.is_text
    assert len(documents) == len(case["documents"])
    for document, (prompt, text) in zip(documents, case["documents"], strict=True):
        assert document.tokens.tolist() == prompt + text
        assert document.prompt_length == len(prompt)
        assert document.loss_mask().tolist() == [0] * len(prompt) + [1] * len(text)
    assert documents.lengths.tolist() == [len(prompt) + len(text) for prompt, text in case["documents"]]
    kept = first_two_thirds(documents)
    assert [d.tokens.tolist() for d in kept] == [p + t for p, t in case["documents"]][: len(kept)]
    assert len(kept) == case["half_lazy_loader_documents"]


@pytest.mark.parametrize("in_memory", [False, True])
def test_lazy_folder_of_text(golden, tmp_path, in_memory):
    case = load(golden, "lazy_format.json", LAZY_KEYS)["string"]
    assert set(case) == {"source_path", "folder", "documents", "files_base64", "lengths"}
    assert lazy_path(case["source_path"]) == case["folder"]
    folder = write_lazy(tmp_path / case["folder"], case["files_base64"])
    documents = LazyDocuments(folder, in_memory=in_memory)
    assert documents.is_text
    assert {name: lengths.tolist() for name, lengths in documents.field_lengths.items()} == case["lengths"]
    texts = TextDocuments(documents, encode=lambda text: list(map(ord, text)))
    for document, (prompt, text) in zip(texts, case["documents"], strict=True):
        assert document.tokens.tolist() == list(map(ord, prompt + text))
        assert document.prompt_length == len(prompt)


def test_paths_of_the_cache(golden):
    for source, expected in load(golden, "lazy_format.json", LAZY_KEYS)["paths"].items():
        for key, path in expected.items():
            if key == "lazy":
                assert lazy_path(source) == path
                continue
            number = int(key.removeprefix("scatter_").removesuffix("_lazy"))
            shard = scatter_path(source, number)
            assert (lazy_path(shard) if key.endswith("_lazy") else shard) == path


def test_scatter(golden):
    case = load(golden, "lazy_format.json", LAZY_KEYS)["scatter"]
    assert set(case) == {"global_seed", "documents", "scatters", "assignment", "note"}
    generator = random.Random(case["global_seed"])
    assert scatter_assignment(case["documents"], case["scatters"], generator=generator) == case["assignment"]


# ---------------------------------------------------------------------------------------------- splits

SPLIT_KEYS = {"get_split", "should_split", "split_ds", "concat"}


def test_fractions(golden):
    content = load(golden, "splits.json", SPLIT_KEYS)
    assert content["should_split"] == []
    for case in content["get_split"]:
        assert set(case) == {"split", "valid_data", "test_data", "result", "should_split"}
        fractions = parse_split(case["split"], valid_data=case["valid_data"], test_data=case["test_data"])
        np.testing.assert_allclose(fractions, case["result"], rtol=0, atol=1e-12)
        assert should_split(fractions) == case["should_split"]


class Numbers:
    """Documents that hold one number each."""

    def __init__(self, numbers, lengths=None):
        self.numbers = list(numbers)
        self.lengths = np.ones(len(self.numbers), np.int64) if lengths is None else lengths

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return Document(np.array([self.numbers[index]]))


def test_documents_of_each_part(golden):
    for case in load(golden, "splits.json", SPLIT_KEYS)["split_ds"]:
        assert set(case) == {"documents", "split", "shuffle", "parts"}
        order = document_order(case["documents"], shuffle=case["shuffle"])
        parts = split_indices(case["documents"], case["split"], order=order)
        subsets = split_documents(Numbers(range(case["documents"])), case["split"], order=order)
        assert [None if part is None else part.tolist() for part in parts] == case["parts"]
        if should_split(case["split"]):
            found = [subset and [int(document.tokens[0]) for document in subset] for subset in subsets]
            assert found == case["parts"]


def test_concatenation(golden):
    case = load(golden, "splits.json", SPLIT_KEYS)["concat"]
    assert set(case) == {"lengths", "cumulative_sizes", "items"}
    parts = [Numbers(range(10 * part, 10 * part + size)) for part, size in enumerate(case["lengths"])]
    joined = concatenate_documents(parts)
    assert joined.cumulative_sizes.tolist() == case["cumulative_sizes"]
    assert [int(joined[index].tokens[0]) for index in range(len(joined))] == case["items"]
