"""Write the texts of XTREME's tasks as corpora of pre-training, one per language: FOLDER/LANGUAGE_0001.json.gz.

    python scripts/multilingual_texts.py xtreme/download texts

They come from training and development files alone, for a small model of one's own (docs/multilingual.md).
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from files.errors import run_main
from files.writing import whole_file
from tasks.multilingual.files import language_of
from tasks.readers import read_document, read_tab_separated

QUESTIONS = ("mlqa/MLQA_V1/dev/*.json", "tydiqa/tydiqa-goldp-v1.1-train/*.json")
PAIRS = ("xnli/train*.tsv", "xnli/dev*.tsv", "pawsx/dev*.tsv")
ROWS_OF_A_DOCUMENT = 10


def documents(root: Path) -> Iterator[tuple[str, str]]:
    """Yield languages and texts: contexts of questions, and rows of pairs put together."""
    for path in (path for pattern in QUESTIONS for path in sorted(root.glob(pattern))):
        language = language_of(path).split("-", maxsplit=1)[0]
        for article in read_document(path).rows("data"):
            for paragraph in article.rows("paragraphs"):
                yield language, " ".join(paragraph.text("context").split())
    for path in (path for pattern in PAIRS for path in sorted(root.glob(pattern))):
        rows = list(read_tab_separated(path, header=False))
        for start in range(0, len(rows), ROWS_OF_A_DOCUMENT):
            chosen = rows[start : start + ROWS_OF_A_DOCUMENT]
            yield language_of(path), " ".join(dict.fromkeys(row.text(column) for row in chosen for column in (0, 1)))


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("download", type=Path, help="folder of XTREME's tasks: mlqa, tydiqa, xnli, pawsx")
    parser.add_argument("folder", type=Path, help="where the texts are written")
    values = parser.parse_args(argv)
    texts: dict[str, dict[str, None]] = {}
    for language, text in documents(values.download):
        texts.setdefault(language, {})[text] = None
    if not texts:
        raise ValueError(f"{values.download}: none of {', '.join((*QUESTIONS, *PAIRS))} is there")
    values.folder.mkdir(parents=True, exist_ok=True)
    for language, found in sorted(texts.items()):
        with whole_file(values.folder / f"{language}_0001.json.gz") as file:
            file.write(gzip.compress("\n\n".join([*found, ""]).encode("utf-8"), mtime=0))
        print(f"{language}: {len(found):,} documents, {sum(map(len, found)):,} characters")
    return 0


if __name__ == "__main__":
    run_main(main)
