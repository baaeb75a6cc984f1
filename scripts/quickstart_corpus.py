"""Build the quickstart's corpus: the English prose that every CPython carries, or the user's own text.

    python scripts/quickstart_corpus.py OUTPUT_FOLDER [--data FILE ...]

Writes ``train.jsonl`` and ``valid.jsonl`` (one document a line, key ``text``) and ``blanks.jsonl``: passages of the
held-out documents with a word replaced by ``[MASK]`` (``prompt``) and what stood there (``truth``). Documents of fewer
than 200 characters are joined to their neighbours; a paragraph that was there before is left out. A corpus that is
there stays as it is, and other text for it is refused.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from files.errors import run_main
from files.writing import write_whole

MINIMUM_CHARACTERS = 200  # of a document; in Python's own texts shorter ones are mostly headings and signatures
HELD_OUT_EVERY = 20  # one document in twenty is never trained on
NUM_BLANKS = 200
NUM_WORDS = 500  # the blanked words are among those that the training text uses most
SURROUNDINGS = 150  # characters of a blank's passage on each side, at most
SEED = 1234
# A word; in scripts without blanks between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) a character.
JOINED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{JOINED}]|[^\W\d_{JOINED}]+(?:['’][^\W\d_{JOINED}]+)*")


def prose(text: str) -> str:
    """Return ``text`` without doctest, code and markup lines, one paragraph a line."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        if ">>>" in paragraph or "::=" in paragraph:
            continue
        line = re.sub(r"[*`]+", "", " ".join(paragraph.split()))
        letters = sum(c.isalpha() or c == " " for c in line)
        if len(line) > 40 and letters > 0.88 * len(line) and line[-1] in ".!?:":
            kept.append(line)
    return "\n".join(kept)


def cpython_documents() -> Iterator[str]:
    """Yield the language reference of ``pydoc_data.topics`` in parts, then the doc strings of the standard library."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        paragraphs = prose(topics[name]).split("\n")
        for start in range(0, len(paragraphs), 8):
            yield "\n".join(paragraphs[start : start + 8])
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        strings = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                strings.append(ast.get_docstring(node) or "")
        yield prose("\n\n".join(strings))


def user_documents(paths: list[str]) -> Iterator[str]:
    """Yield the documents of the user's files (any format that ``--train-data`` takes)."""
    from data_utils.corpora.named import read_documents

    for path in paths:
        for document in read_documents(path):
            yield document.text


def deduplicate(documents: Iterable[str]) -> Iterator[str]:
    """Yield the documents without paragraphs that stood in an earlier one, and without those that are then empty."""
    seen: set[str] = set()
    for document in documents:
        fresh = [p for p in document.split("\n") if p.strip() and p not in seen]
        seen.update(fresh)
        if fresh:
            yield "\n".join(fresh)


def join_short(documents: Iterable[str]) -> list[str]:
    """Join documents that are too short to those after them, the last of all to the one before."""
    joined: list[str] = []
    for document in documents:
        if joined and len(joined[-1]) < MINIMUM_CHARACTERS:
            joined[-1] += f"\n{document}"
        else:
            joined.append(document)
    if len(joined) > 1 and len(joined[-1]) < MINIMUM_CHARACTERS:
        joined[-2:] = ["\n".join(joined[-2:])]
    return joined


def frequent_words(documents: Iterable[str]) -> list[str]:
    """Return the words used most, the first most of all; in a script without blanks a character is a word."""
    counts = Counter(match[0] for document in documents for match in WORD.finditer(document))
    return [word for word, _ in counts.most_common(NUM_WORDS)]


def make_blanks(
    documents: Sequence[str], words: Collection[str] | None, *, count: int = NUM_BLANKS
) -> list[dict[str, str]]:
    """Return passages of ``documents``, drawn at random, with one of ``words`` (None: any) blanked out, and that word.

    Words that the training text uses often give a small model a chance.
    """
    paragraphs = [p for document in documents for p in document.split("\n") if "MASK]" not in p]
    places = [(p, found.span()) for p in paragraphs for found in WORD.finditer(p) if words is None or found[0] in words]
    blanks = []
    for paragraph, (start, end) in random.Random(SEED).sample(places, min(count, len(places))):
        before, after = paragraph[max(0, start - SURROUNDINGS) : start], paragraph[end : end + SURROUNDINGS]
        if start > SURROUNDINGS and " " in before.rstrip():
            before = before[before.index(" ") + 1 :]
        if end + SURROUNDINGS < len(paragraph) and " " in after.lstrip():
            after = after[: after.rindex(" ")]
        blanks.append({"prompt": f"{before}[MASK]{after}", "truth": paragraph[start:end]})
    return blanks


def main() -> int:
    """Build the three files, or leave those that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the three files")
    parser.add_argument("--data", nargs="+", default=[], help="your own text instead: .txt, .jsonl, .parquet ...")
    arguments = parser.parse_args()
    folder = arguments.output
    is_there = (folder / "train.jsonl").is_file()
    if is_there and not arguments.data:
        print(f"corpus: that of {folder} as it is")
        return 0
    given = list(user_documents(arguments.data) if arguments.data else cpython_documents())
    kept = list(deduplicate(given))
    documents = join_short(kept) if arguments.data else [text for text in kept if len(text) >= MINIMUM_CHARACTERS]
    train = [text for number, text in enumerate(documents) if number % HELD_OUT_EVERY]
    held_out = documents[::HELD_OUT_EVERY]
    if not train:
        raise ValueError(
            f"the text is {len(documents)} documents of at least {MINIMUM_CHARACTERS} characters, shorter ones joined; "
            "two are needed at least, one of them to hold out: give more text"
        )
    blanks = make_blanks(held_out, set(frequent_words(train)))
    if not blanks:
        raise ValueError(
            f"the documents held out ({len(held_out)} of {len(documents)}) use none of the {NUM_WORDS} most frequent "
            "words of the others, so that there is no blank to fill: give more text"
        )
    files = {
        "blanks.jsonl": blanks,
        "valid.jsonl": [{"text": text} for text in held_out],
        "train.jsonl": [{"text": text} for text in train],  # the last: with it the corpus is there
    }
    contents = {
        name: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) for name, rows in files.items()
    }
    if is_there:
        if (folder / "train.jsonl").read_text(encoding="utf-8") != contents["train.jsonl"]:
            raise ValueError(
                f"{folder} has a corpus of other text, and a model that was trained on it: leave out --data to go on "
                "with them, or name another folder for this text"
            )
        print(f"corpus: that of {folder}, made of the same text")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_whole(folder / name, content)
    size = sum(map(len, train)) / 1e6
    repeated = sum(len(text.split("\n")) for text in given) - sum(len(text.split("\n")) for text in kept)
    print(
        f"corpus: {len(given)} documents became {len(train)} to train on ({size:.2f} M characters) and {len(held_out)} "
        f"held out, with {len(blanks)} blanks\n"
        f"  left out: {repeated} paragraphs that were empty or stood in an earlier document"
        + ("" if arguments.data else f", {len(kept) - len(documents)} short texts")
    )
    return 0


if __name__ == "__main__":
    run_main(main)
