"""Read the files of the language-model tasks.

What is wrong with a file is said in one line with its name and line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_utils.tokenizers.tokenizer import Tokenizer
from tasks.readers import read_json_lines, read_text
from tasks.seq2seq.detokenizers import replace_all

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
FILE_HINT = "--valid-data names it"
_LINE_ENDS = [(" \n", "\n"), ("\n ", "\n")]
_PTB = [(" '", "'"), *_LINE_ENDS, (" n't", "n't"), (" N ", "1 "), ("$ 1", "$1"), ("# 1", "#1")]
_WIKITEXT_NUMBERS = [("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")]
_WIKITEXT_MARKS = [(f" {mark} ", f"{mark} ") for mark in ":;.!?,"]
_WIKITEXT_PAIRS = [
    (
        re.compile(rf"{re.escape(opening)}\s*([^{re.escape(closing)}]*?)\s*{re.escape(closing)}"),
        rf"{opening}\1{closing}",
    )
    for opening, closing in ("()", "[]", "{}", '""', "''")
]
_WIKITEXT_REST = [
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    *_LINE_ENDS,
    (" N ", " 1 "),
    (" 's", "'s"),
]


def ptb_text(text: str) -> str:
    """Return Penn Treebank text as running text."""
    return replace_all(text, _PTB)


def wikitext_text(text: str) -> str:
    """Return WikiText as running text.

    The original's rule for apostrophes before digits matches a slash followed by an apostrophe, a blank, a digit and a
    slash, and puts its own pattern there; it is kept so that perplexities stay comparable.
    """
    text = replace_all(text, _WIKITEXT_NUMBERS[:1])
    text = re.sub("/' [0-9]/", "/'[0-9]/", text)
    text = replace_all(text, [*_WIKITEXT_NUMBERS[1:], *_WIKITEXT_MARKS])
    for pattern, replacement in _WIKITEXT_PAIRS:
        text = pattern.sub(replacement, text)
    return replace_all(text, _WIKITEXT_REST)


@dataclass(frozen=True)
class TokenDocuments:
    """Texts to predict as a whole.

    Attributes:
        documents: the ids of each, int32; some may be empty.
        num_original_tokens: words of the file, as the data set's publishers count them.
    """

    documents: tuple[np.ndarray, ...]
    num_original_tokens: int

    @property
    def num_tokens(self) -> int:
        """Return the number of ids."""
        return sum(map(len, self.documents))


@dataclass(frozen=True)
class Ending:
    """A passage of LAMBADA.

    Attributes:
        place: file and line, for messages.
        context: the ids of what is given.
        label: those of its last word, which is to be predicted.
    """

    place: str
    context: list[int]
    label: list[int]


def read_documents(path: Path, *, task: str, tokenizer: Tokenizer, limit: int | None = None) -> TokenDocuments:
    """Return the documents of a file: all of it for ``wikitext``, its lines for ``language_model``.

    Lines without text are left out. ``limit``: take only that many first lines of the file.

    Raises:
        ValueError: a file that is missing, empty, not UTF-8, or of JSON by its name.
    """
    if path.suffix.lower() in JSON_SUFFIXES:
        raise ValueError(f"{path}: a file of JSON; {task} evaluates plain text, for example in a .txt file")
    text = read_text(path, hint=FILE_HINT).replace("\r\n", "\n")  # a carriage return alone ends no line
    text = "\n".join(text.split("\n")[:limit])
    if not text.strip():
        raise ValueError(f"{path}, line 1: no text; {task} evaluates running text")
    if task == "wikitext":
        # Blanks separate words, and line ends count as words, as in the published figures.
        num_words = sum(word != "" for word in text.strip().split(" "))
        [ids] = tokenizer.encode_batch([wikitext_text(text)])
        return TokenDocuments((np.array(ids, dtype=np.int32),), num_words)
    assert task == "language_model", task
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    encoded = tokenizer.encode_batch(lines)
    documents = tuple(np.array(ids, dtype=np.int32) for ids in encoded)
    return TokenDocuments(documents, sum(len(line.split()) for line in lines))


def read_endings(path: Path, *, tokenizer: Tokenizer, limit: int | None = None) -> list[Ending]:
    """Return the passages of a LAMBADA file: JSON lines with a field ``text``.

    ``limit``: take only that many first passages.

    Raises:
        ValueError: a file that is missing, empty or malformed; a text without words.
    """
    read_text(path, hint=FILE_HINT)
    contexts: list[str] = []
    labels: list[str] = []
    places: list[str] = []
    for row in read_json_lines(path):
        if len(places) == limit:
            break
        text = row.text("text")
        words = text.split()
        if not words:
            raise row.error("the text is empty; its last word is to be predicted")
        contexts.append(text[: text.rfind(words[-1])].strip())
        labels.append(f" {words[-1]}")
        places.append(f"{row.path}, line {row.line}")
    if not places:
        raise ValueError(f'{path}, line 1: no passages; lines like {{"text": "..."}} are needed')
    endings = list(map(Ending, places, tokenizer.encode_batch(contexts), tokenizer.encode_batch(labels)))
    for ending in endings:
        if not ending.label:
            raise ValueError(f"{ending.place}: the tokenizer makes nothing of the last word")
    return endings
