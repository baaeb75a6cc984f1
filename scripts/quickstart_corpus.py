"""Build the quickstart's corpus: the English prose that every CPython carries, or the user's own text.

    python scripts/quickstart_corpus.py OUTPUT_FOLDER [--data FILE ...]

Writes ``train.jsonl`` and ``valid.jsonl`` (one document a line, key ``text``) and ``blanks.jsonl``: sentences of the
held-out documents with a phrase replaced by ``[MASK]`` (``prompt``) and what stood there (``truth``).
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from files.errors import run_main
from files.writing import write_whole

MINIMUM_CHARACTERS = 200  # shorter pieces are mostly headings and signatures
HELD_OUT_EVERY = 20  # one document in twenty is never trained on
NUM_BLANKS = 3
SEED = 1234


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


def deduplicate(documents: Iterator[str]) -> list[str]:
    """Drop paragraphs seen before, then documents that are too short; keep the order."""
    seen: set[str] = set()
    kept = []
    for document in documents:
        fresh = [p for p in document.split("\n") if p and p not in seen]
        seen.update(fresh)
        text = "\n".join(fresh)
        if len(text) >= MINIMUM_CHARACTERS:
            kept.append(text)
    return kept


def make_blanks(train: list[str], held_out: list[str], *, count: int = NUM_BLANKS) -> list[dict[str, str]]:
    """Blank out two or three words in a sentence of ``count`` different held-out documents.

    The blanked words are ones that the training text uses often, so that a small model has a chance.
    """
    frequency: dict[str, int] = {}
    for document in train:
        for word in re.findall(r"[a-z]+", document):
            frequency[word] = frequency.get(word, 0) + 1
    generator = random.Random(SEED)
    blanks = []
    for document in generator.sample(held_out, len(held_out)):
        sentences = [s.strip() for s in re.split(r"(?<=[.!?])\s+", document)]
        sentences = [s for s in sentences if re.fullmatch(r"[A-Z][A-Za-z ,']+\.", s) and 9 <= len(s.split()) <= 25]
        for sentence in sentences[:1]:
            words = sentence.split()
            spans = [(i, i + n) for n in (2, 3) for i in range(2, len(words) - n - 1)]
            spans = [(i, j) for i, j in spans if all(frequency.get(w, 0) >= 20 for w in words[i:j])]
            if spans:
                start, end = generator.choice(spans)
                prompt = " ".join([*words[:start], "[MASK]", *words[end:]])
                blanks.append({"prompt": prompt, "truth": " ".join(words[start:end])})
        if len(blanks) == count:
            break
    return blanks


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    """Write JSON lines, whole or not at all; leave a file that holds them already as it is."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.is_file() and path.read_text(encoding="utf-8") == content:
        return
    write_whole(path, content)


def main() -> int:
    """Build the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the three files")
    parser.add_argument("--data", nargs="+", default=[], help="your own text instead: .txt, .jsonl, .parquet ...")
    arguments = parser.parse_args()
    documents = deduplicate(user_documents(arguments.data) if arguments.data else cpython_documents())
    train = [d for i, d in enumerate(documents) if i % HELD_OUT_EVERY]
    held_out = [d for i, d in enumerate(documents) if i % HELD_OUT_EVERY == 0]
    if not train or not held_out:
        raise ValueError(
            f"the text has {len(documents)} documents of at least {MINIMUM_CHARACTERS} characters; two are needed "
            f"at least, one of them to hold out (in a .txt file every line is a document)"
        )
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_lines(arguments.output / "train.jsonl", [{"text": d} for d in train])
    write_lines(arguments.output / "valid.jsonl", [{"text": d} for d in held_out])
    write_lines(arguments.output / "blanks.jsonl", make_blanks(train, held_out))
    size = sum(map(len, train)) / 1e6
    print(f"corpus: {len(train)} documents, {size:.2f} M characters; {len(held_out)} documents held out")
    return 0


if __name__ == "__main__":
    run_main(main)
