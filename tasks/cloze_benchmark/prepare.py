"""Make the files of the ReCoRD benchmark in a folder: download and unpack ReCoRD.zip unless it is there, write HDF5.

python -m tasks.cloze_benchmark.prepare FOLDER
"""

from __future__ import annotations

import argparse
import shutil
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path

from files.errors import check_bounds, run_main
from files.writing import whole_file

DEFAULT_FOLDER = "/home/data/perf/glm"
ARCHIVE = "ReCoRD.zip"
ADDRESS = "https://dl.fbaipublicfiles.com/glue/superglue/data/v2/ReCoRD.zip"
TEXTS = ("train.jsonl", "val.jsonl", "test.jsonl")
SPARSE = "glm_train_eval_hdf5_sparse"
FILES = {"train": f"{SPARSE}/train_hdf5/train_sparse.hdf5", "dev": f"{SPARSE}/eval_hdf5/eval_sparse.hdf5"}


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.cloze_benchmark.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", nargs="?", default=DEFAULT_FOLDER, help="where everything goes (default: %(default)s)"
    )
    parser.add_argument("--seq-length", type=int, default=512, help="positions of a row (default: %(default)s)")
    parser.add_argument("--tokenizer-type", default="BertWordPieceTokenizer")
    parser.add_argument("--tokenizer-model-type", default="bert-large-uncased")
    parser.add_argument("--tokenizer-path", default=None)
    parser.add_argument("--vocab-dir", default=None, help="folder of vocabularies (default: $GLM_VOCAB_DIR)")
    return parser


def texts_of(folder: Path) -> Path:
    """Return the folder of the texts; without them they are unpacked, from an archive that is downloaded if need be.

    Raises OSError without a network, ValueError for a file that is no such archive.
    """
    texts, archive = folder / "ReCoRD", folder / ARCHIVE
    if all((texts / name).is_file() for name in TEXTS[:2]):
        return texts
    if not archive.is_file():
        try:
            with whole_file(archive) as file, urllib.request.urlopen(ADDRESS, timeout=60) as answer:
                shutil.copyfileobj(answer, file)
        except OSError as error:
            raise OSError(f"{ADDRESS} cannot be downloaded ({error}); put {ARCHIVE} into {folder} yourself") from error
    try:
        with zipfile.ZipFile(archive) as packed:
            for name in TEXTS:
                with packed.open(f"ReCoRD/{name}") as source, whole_file(texts / name) as file:
                    shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError) as error:
        raise ValueError(
            f"{archive} is not the archive of ReCoRD ({error}); remove it, or put that one there"
        ) from None
    return texts


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is not there, and say what is."""
    values = get_parser().parse_args(argv)
    check_bounds(values, ("seq_length",), at_least=8)

    from data_utils.tokenizers.tokenizer import build_tokenizer
    from tasks.cloze_benchmark.questions import encode_questions, read_examples
    from tasks.cloze_benchmark.store import StoredQuestions, write_questions

    folder = Path(values.folder)
    texts, tokenizer = texts_of(folder), None
    for split, name in FILES.items():
        path, done = texts / name, "is there"
        if not path.is_file():
            tokenizer = tokenizer or build_tokenizer(
                values.tokenizer_type,
                model_type=values.tokenizer_model_type,
                path=values.tokenizer_path,
                vocab_dir=values.vocab_dir,
            )
            questions = encode_questions(read_examples(texts, split), tokenizer, seq_length=values.seq_length)
            write_questions(path, questions, seq_length=values.seq_length, with_answers=split == "dev")
            done = "is written"
        stored = StoredQuestions(path)
        if stored.seq_length != values.seq_length:
            raise ValueError(
                f"{path} has rows of {stored.seq_length} positions, --seq-length is {values.seq_length}; remove the "
                "file, or give that length"
            )
        print(
            f"{path} {done}: {len(stored):,} questions, {stored.num_rows:,} candidates, {stored.seq_length} positions"
        )
    return 0


if __name__ == "__main__":
    run_main(main)
