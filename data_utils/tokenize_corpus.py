"""Tokenize corpora once into stores on disk, and find them again.

    python -m data_utils.tokenize_corpus --train-data corpus.jsonl --output stores --tokenizer-type GPT2BPETokenizer

``prepare_documents`` is what training calls. A store belongs to a source, a tokenizer and the way the source is read;
it lies in ``.glm_cache`` beside the source, or below ``GLM_CACHE_DIR`` (default ``~/.cache/glm``) where the source's
folder is read-only. It is made again when the source files have changed. Nothing half-written is ever found: a store
counts from the moment its sidecar has its name, and one process at a time makes it while others wait.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_utils.corpora.files import TEXT_UNITS
from data_utils.corpora.language_detection import DetectorMissingError
from data_utils.corpora.lazy_format import LazyDocuments, first_two_thirds, is_lazy_folder, lazy_path, scatter
from data_utils.corpora.named import Corpus, find_corpus
from data_utils.corpora.parallel_tokenization import (
    ChunkTokenizer,
    TokenizedChunk,
    read_chunks,
    tokenize_chunks,
)
from data_utils.corpora.store import (
    FORMAT_VERSION,
    Documents,
    IndexedDataset,
    StoreWriter,
    TextDocuments,
    concatenate_documents,
    is_store,
    read_details,
)
from data_utils.errors import run_main

if TYPE_CHECKING:
    from data_utils.tokenizers.tokenizer import Tokenizer

logger = logging.getLogger("glm")

CACHE_FOLDER = ".glm_cache"
MALFORMED_LISTED = 20  # in the sidecar
MINIMUM_PARALLEL_BYTES = 4 << 20  # below, starting processes takes longer than tokenizing
LARGEST_UINT16_VOCABULARY = 1 << 16


def build_from_settings(settings: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that keyword arguments of ``build_tokenizer`` describe."""
    from data_utils.tokenizers.tokenizer import build_tokenizer

    return build_tokenizer(**settings)


@dataclass(frozen=True)
class Preparation:
    """How sources become stores.

    Attributes:
        tokenizer: reads and makes the ids.
        build_tokenizer: makes the same tokenizer in another process; picklable.
        cache_dir: folder of the stores; None: beside each source.
        num_workers: processes that tokenize; 0 and 1 use this one.
        skip_malformed: pass over malformed rows instead of stopping at the first.
        pre_tokenize: keep ids; otherwise keep text and tokenize on access.
        in_memory: read stores into memory instead of mapping them.
        progress: show a progress bar.
    """

    tokenizer: Any
    build_tokenizer: Callable[[], Tokenizer]
    cache_dir: str | Path | None = None
    num_workers: int = 0
    skip_malformed: bool = False
    pre_tokenize: bool = True
    in_memory: bool = False
    progress: bool = True

    def documents(self, source: str, **reading: Any) -> Documents:
        """Return the documents of one argument of ``--train-data``; ``reading`` are fields of ``Corpus``.

        Raises:
            ValueError: see ``prepare_documents``.
        """
        if is_store(source):
            return self._open_given_store(source)
        corpus = find_corpus(source, **reading)
        lazy = _lazy_folder(corpus.location)
        if lazy is not None:
            logger.info(f"{source}: reading the original's cache {lazy}, which does not say which tokenizer made it")
            return LazyDocuments(
                lazy, encode=self.tokenizer.encode, prepare=corpus.for_tokens, in_memory=self.in_memory
            )
        if corpus.kind.has_prompts_inside and not self.pre_tokenize:
            raise ValueError(f"corpus {source!r} has prompts inside of documents: it needs to be tokenized in advance")
        return self._open(self.find_or_build(corpus), corpus)

    def find_or_build(self, corpus: Corpus) -> Path:
        """Return the prefix of an up-to-date store of a corpus; make it where there is none."""
        places = store_places(
            corpus,
            cache_dir=self.cache_dir,
            fingerprint=self.tokenizer.fingerprint if self.pre_tokenize else None,
        )
        try:
            files = corpus.files()
        except ValueError:
            for prefix in places:
                if read_details(prefix) is not None:  # the raw files are not needed any more
                    return self._checked(prefix)
            raise
        for prefix in places:
            if _is_current(prefix, files):
                return self._checked(prefix)
        prefix = _first_writable(places)
        with _locked(prefix):
            if not _is_current(prefix, files):
                self._build(corpus, files, prefix)
        return self._checked(prefix)

    def _open(self, prefix: Path, corpus: Corpus) -> Documents:
        if self.pre_tokenize:
            return IndexedDataset(prefix, self.tokenizer.fingerprint, in_memory=self.in_memory)
        texts = IndexedDataset(prefix, in_memory=self.in_memory)
        return TextDocuments(texts, encode=self.tokenizer.encode, prepare=corpus.for_tokens)

    def _open_given_store(self, source: str) -> Documents:
        """Open a store that the user named."""
        store = IndexedDataset(source, in_memory=self.in_memory)
        if store.details is None:
            logger.info(f"{source}: no sidecar (.json) tells which tokenizer made these ids; they are not checked")
            return store
        if store.details.get("kind") == "text":
            return TextDocuments(store, encode=self.tokenizer.encode)
        return IndexedDataset(source, self.tokenizer.fingerprint, in_memory=self.in_memory)

    def _checked(self, prefix: Path) -> Path:
        """Refuse a store with malformed rows left out unless they may be."""
        details = read_details(prefix)
        assert details is not None
        malformed = details.get("malformed", {})
        if malformed.get("count") and not self.skip_malformed:
            raise ValueError(_stop_line(malformed["first"][0]))
        return prefix

    def _build(self, corpus: Corpus, files: Sequence[Path], prefix: Path) -> None:
        """Tokenize a corpus into a store."""
        total = sum(path.stat().st_size for path in files)
        parallel = self.num_workers if total >= MINIMUM_PARALLEL_BYTES else 0
        if self.pre_tokenize:
            dtype = np.uint16 if self.tokenizer.num_tokens <= LARGEST_UINT16_VOCABULARY else np.int32
            build = self.build_tokenizer if parallel > 1 else lambda: self.tokenizer
            chunk_tokenizer = ChunkTokenizer(corpus, dtype, build)
        else:
            chunk_tokenizer = ChunkTokenizer(corpus, np.uint8, None)
        sources = _source_list(prefix, files)
        writer = StoreWriter(prefix, dtype=chunk_tokenizer.dtype, prompts_inside=corpus.kind.has_prompts_inside)
        num_rows, malformed, groups = 0, _Malformed(), Counter[str]()
        try:
            chunks = tokenize_chunks(read_chunks(corpus, files), chunk_tokenizer, num_workers=parallel)
            with contextlib.closing(chunks), self._progress_bar(corpus.name, total) as advance:
                for chunk in chunks:
                    self._check(chunk)
                    writer.add(chunk.tokens, chunk.lengths, chunk.prompt_lengths, chunk.predicted)
                    num_rows += chunk.num_rows
                    malformed.add(chunk.malformed)
                    groups.update(chunk.group_tokens)
                    advance(chunk.position)
            if writer.num_tokens == 0:
                raise ValueError(
                    f"corpus {corpus.name} is empty: {num_rows} rows ({malformed.count} malformed) of {len(files)} "
                    f"files gave {writer.num_documents} documents without any text"
                )
            writer.publish(
                {
                    "kind": "tokens" if self.pre_tokenize else "text",
                    "tokenizer_fingerprint": self.tokenizer.fingerprint if self.pre_tokenize else None,
                    "corpus": corpus.name,
                    "sources": sources,
                    "rows": num_rows,
                    "malformed": {"count": malformed.count, "first": malformed.first},
                    "tokens_by_group": dict(groups),
                }
            )
        except DetectorMissingError as error:
            writer.discard()
            raise ValueError(f"corpus {corpus.name}: {error}") from None
        except BaseException:
            writer.discard()
            raise
        what = "tokens" if self.pre_tokenize else "bytes of text"
        logger.info(f"{corpus.name}: {writer.num_documents} documents, {writer.num_tokens} {what} -> {prefix}")
        if malformed.count:
            logger.info(f"{corpus.name}: skipped {malformed.count} malformed rows; the first: {malformed.first[0]}")
        for group, count in sorted(groups.items()):
            logger.info(f"{corpus.name}: {group}: {count} {what}")

    def _check(self, chunk: TokenizedChunk) -> None:
        """Stop at malformed rows, and where a process has another tokenizer than this one."""
        if chunk.malformed and not self.skip_malformed:
            raise ValueError(_stop_line(chunk.malformed[0]))
        if self.pre_tokenize and chunk.fingerprint != self.tokenizer.fingerprint:
            raise ValueError(
                f"the tokenizing processes use another tokenizer ({chunk.fingerprint}) than this one "
                f"({self.tokenizer.fingerprint}): its files have changed, or its settings differ"
            )

    @contextlib.contextmanager
    def _progress_bar(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Give a function that takes the number of bytes read so far."""
        from tqdm import tqdm

        with tqdm(
            total=total, desc=f"tokenize {name}"[:40], unit="B", unit_scale=True, disable=not self.progress, leave=False
        ) as bar:
            yield lambda position: bar.update(max(0, min(position, total) - bar.n))


class _Malformed:
    """Count malformed rows and keep the first ones."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, lines: Sequence[str]) -> None:
        self.count += len(lines)
        self.first += lines[: MALFORMED_LISTED - len(self.first)]


def _stop_line(malformed: str) -> str:
    return f"{malformed}; mend the row, or pass over malformed rows with --skip-malformed"


def prepare_documents(
    sources: Sequence[str],
    *,
    tokenizer: Any,
    tokenizer_settings: Mapping[str, Any] | Callable[[], Tokenizer],
    cache_dir: str | Path | None = None,
    text_field: str = "text",
    text_unit: str = "line",
    num_workers: int = 0,
    skip_malformed: bool = False,
    pre_tokenize: bool = True,
    in_memory: bool = False,
    half_of_documents: bool = False,
    num_shards: int | None = None,
    shard: int = 0,
    seed: int = 1234,
    progress: bool = True,
) -> Documents:
    """Return the documents of ``--train-data``, tokenized once and kept on disk.

    Args:
        sources: registered names, ``name=path``, files, folders, globs, stores; joined in this order.
        tokenizer: makes the ids.
        tokenizer_settings: keyword arguments of ``build_tokenizer`` that make the same tokenizer in another process (or
            a picklable function that does).
        cache_dir: folder of the stores; None: beside each source.
        text_field, text_unit: of files given by path; see ``Corpus``.
        num_workers: processes that tokenize; the result does not depend on it.
        skip_malformed: pass over malformed rows, counted and reported.
        pre_tokenize: keep ids; otherwise keep text, tokenize on access, and measure lengths in bytes.
        in_memory: read stores into memory instead of mapping them (``--no-lazy-loader``).
        half_of_documents: only the first two thirds of each corpus (``--half-lazy-loader``).
        num_shards, shard, seed: deal the documents of each corpus out to shards and take one (``--loader-scatter``).
        progress: show a progress bar.

    Raises:
        ValueError: unknown name, missing or empty files, a malformed row, a store of another tokenizer; one line.
    """
    build = tokenizer_settings if callable(tokenizer_settings) else partial(build_from_settings, tokenizer_settings)
    preparation = Preparation(
        tokenizer=tokenizer,
        build_tokenizer=build,
        cache_dir=cache_dir,
        num_workers=num_workers,
        skip_malformed=skip_malformed,
        pre_tokenize=pre_tokenize,
        in_memory=in_memory,
        progress=progress,
    )
    parts = [preparation.documents(source, text_field=text_field, text_unit=text_unit) for source in sources]
    if num_shards is not None:
        parts = scatter(parts, num_shards=num_shards, shard=shard, seed=seed)
    if half_of_documents:
        parts = [first_two_thirds(part) for part in parts]
    return concatenate_documents(parts)


# ------------------------------------------------------------------------------------------------------ places


def store_places(corpus: Corpus, *, cache_dir: str | Path | None, fingerprint: str | None) -> list[Path]:
    """List the prefixes under which the store of a corpus may lie, the preferred one first.

    The name holds a hash of everything that changes what is in the store. Beside the source it does not depend on where
    the source lies, so that a folder can be moved with its stores.
    """
    beside = _folder_of(corpus.location)
    key = {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "named": corpus.named,
        "text_field": None if corpus.named else corpus.text_field,
        "text_unit": None if corpus.named else corpus.text_unit,
        "keep_line_ends": corpus.keep_line_ends,
    }
    stem = re.sub(r"[^\w.-]+", "_", Path(corpus.location).name).strip("_") or "all"
    absolute = os.path.abspath(corpus.location)

    def place(folder: Path, location: str) -> Path:
        text = json.dumps({**key, "location": location}, sort_keys=True)
        return folder / f"{stem}-{hashlib.sha256(text.encode('utf-8')).hexdigest()[:10]}"

    if cache_dir is not None:
        return [place(Path(cache_dir), absolute)]
    user = os.environ.get("GLM_CACHE_DIR")
    fallback = Path(user) if user else Path.home() / ".cache" / "glm"
    return [place(beside / CACHE_FOLDER, os.path.relpath(corpus.location, beside)), place(fallback, absolute)]


def _folder_of(location: str) -> Path:
    """Return the folder that holds a file or folder, or the last one of a glob without wild cards."""
    path = Path(location)
    while has_magic(str(path)):
        path = path.parent
        if not has_magic(str(path)):
            return path
    return path.absolute().parent


def _source_list(prefix: Path, files: Sequence[Path]) -> list[dict[str, Any]]:
    """Describe the source files as they are now; their paths are relative to the store's folder."""
    return [
        {"file": os.path.relpath(path, prefix.parent), "size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}
        for path in files
    ]


def _is_current(prefix: Path, files: Sequence[Path]) -> bool:
    """Tell whether a whole store of these very files is there."""
    try:
        details = read_details(prefix)
    except ValueError:  # damaged, or of another version: made again
        return False
    return details is not None and details.get("sources") == _source_list(prefix, files)


def _first_writable(places: Sequence[Path]) -> Path:
    """Return the first place whose folder can be written, made where it is missing.

    Raises:
        ValueError: none can.
    """
    for prefix in places:
        folder = prefix.parent
        existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
        # A folder without any write bit is meant to be left alone, even by a user who could write all the same.
        if existing.stat().st_mode & 0o222 and os.access(existing, os.W_OK):
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                return prefix
    tried = ", ".join(str(prefix.parent) for prefix in places)
    raise ValueError(f"no folder for the tokenized store can be written (tried {tried}): name one with GLM_CACHE_DIR")


@contextlib.contextmanager
def _locked(prefix: Path) -> Iterator[None]:
    """Hold the lock of a store; it ends with the process, however that ends."""
    import fcntl

    with prefix.with_name(prefix.name + ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info(f"waiting for another process that makes {prefix}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lazy_folder(location: str) -> Path | None:
    """Return the original's cache of a source where it was named, or where the source itself is gone."""
    if is_lazy_folder(location):
        return Path(location)
    if has_magic(location) or Path(location).exists():
        return None
    folder = Path(lazy_path(location))
    return folder if is_lazy_folder(folder) else None


# ------------------------------------------------------------------------------------------------------ command


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of this command; tokenizer flags are those of training."""
    parser = argparse.ArgumentParser(
        prog="python -m data_utils.tokenize_corpus",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--train-data", nargs="+", required=True, help="registered names, files, folders or globs")
    parser.add_argument("--output", required=True, help="folder of the stores; give it to training as --data-cache-dir")
    parser.add_argument("--text-field", default="text", help="field of the text in rows of files given by path")
    parser.add_argument("--text-unit", default="line", choices=TEXT_UNITS, help="what of a text file is a document")
    parser.add_argument("--num-workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--skip-malformed", action="store_true", help="count and skip malformed rows")
    parser.add_argument("--no-pre-tokenize", action="store_true", help="keep text, to be tokenized on access")
    tokenizer = parser.add_argument_group("tokenizer", "as in training: a store belongs to one tokenizer")
    tokenizer.add_argument("--tokenizer-type", default="BertWordPieceTokenizer")
    tokenizer.add_argument("--tokenizer-model-type", default=None)
    tokenizer.add_argument("--tokenizer-path", default=None)
    tokenizer.add_argument("--vocab-dir", default=None, help="folder of vocabularies (default: $GLM_VOCAB_DIR)")
    tokenizer.add_argument("--cache-dir", default=None, help="folder of downloaded vocabularies")
    tokenizer.add_argument("--task-mask", action="store_true", help="with [gMASK] and [sMASK]")
    tokenizer.add_argument(
        "--decoder-mask",
        action="store_true",
        help="with [dBLOCK], which --block-mask-prob or --context-mask-ratio add in training",
    )
    tokenizer.add_argument(
        "--num-sentinels",
        type=int,
        default=0,
        help="numbered mask tokens; --sentinel-token adds --max-position-embeddings - 1 of them",
    )
    tokenizer.add_argument("--fix-command-token", action="store_true", help="corrected Chinese command tokens")
    return parser  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Make the stores."""
    values = get_parser().parse_args(argv)
    settings = {
        "tokenizer_type": values.tokenizer_type,
        "model_type": values.tokenizer_model_type,
        "path": values.tokenizer_path,
        "task_mask": values.task_mask,
        "decoder_mask": values.decoder_mask,
        "num_sentinels": values.num_sentinels,
        "fix_command_token": values.fix_command_token,
        "vocab_dir": values.vocab_dir,
        "cache_dir": values.cache_dir,
    }
    documents = prepare_documents(
        values.train_data,
        tokenizer=build_from_settings(settings),
        tokenizer_settings=settings,
        cache_dir=values.output,
        text_field=values.text_field,
        text_unit=values.text_unit,
        num_workers=values.num_workers,
        skip_malformed=values.skip_malformed,
        pre_tokenize=not values.no_pre_tokenize,
        progress=sys.stderr.isatty(),
    )
    print(f"{len(documents)} documents of {len(values.train_data)} sources are ready in {values.output}")
    return 0


if __name__ == "__main__":
    run_main(main)
