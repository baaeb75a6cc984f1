"""Find vocabulary files: the user's path, a vocabulary folder, the Hugging Face cache or hub (in this order)."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

HUB_TIMEOUT = 10  # seconds
CONNECTION_TIMEOUT = 3  # seconds


@dataclass(frozen=True)
class Vocabulary:
    """Where the files of a released vocabulary are: a folder below GLM_VOCAB_DIR, a repository of the hub."""

    folder: str
    files: tuple[str, ...]
    repository: str


VOCABULARIES = {
    "bert": Vocabulary("bert-uncased", ("vocab.txt",), "bert-base-uncased"),
    "gpt2": Vocabulary("gpt2", ("vocab.json", "merges.txt"), "gpt2"),
    "roberta": Vocabulary("roberta", ("vocab.json", "merges.txt"), "roberta-base"),
    "chinese": Vocabulary("chinese-sp", ("cog-pretrain.model",), "THUDM/glm-10b-chinese"),
}


def find_vocabulary(
    family: str,
    *,
    path: str | Path | None = None,
    vocab_dir: str | Path | None = None,
    cache_dir: str | None = None,
    variant: str | None = None,
) -> list[Path]:
    """Return the files of a vocabulary, in the order of ``Vocabulary.files``.

    ``path``: the file itself, or a folder that holds the files. ``vocab_dir``: laid out as ``VOCABULARIES`` says
    (default: GLM_VOCAB_DIR of the environment). ``variant``: another vocabulary of the family, whose folder and
    repository have its own name (``bert-base-chinese``).
    Raises ValueError with one line that says how to get them.
    """
    vocabulary = VOCABULARIES[family]
    if variant is not None:
        vocabulary = replace(vocabulary, folder=variant, repository=variant)
    if path is not None:
        return _at_path(Path(path), vocabulary.files)
    folder = vocab_dir or os.environ.get("GLM_VOCAB_DIR")
    if folder:
        files = [Path(folder) / vocabulary.folder / name for name in vocabulary.files]
        if all(file.is_file() for file in files):
            return files
    repository = vocabulary.repository
    if downloaded := _from_hub(repository, vocabulary.files, cache_dir):
        return downloaded
    looked = f"{Path(folder) / vocabulary.folder}, " if folder else ""
    raise ValueError(
        f"vocabulary {variant or family!r} not found (looked in {looked}the Hugging Face cache and hub {repository}): "
        f"download {' and '.join(vocabulary.files)} of {repository} into FOLDER/{vocabulary.folder} and set "
        "GLM_VOCAB_DIR=FOLDER"
    )


def sentencepiece_file(name: str | Path) -> Path:
    """Return the SentencePiece model that ``name`` names, with or without the ending ``.model``.

    Raises ValueError when there is no such file.
    """
    given = Path(name)
    for file in (given, given.with_name(f"{given.name}.model")):
        if file.is_file():
            return file
    raise ValueError(
        f"{name}: no such SentencePiece model; name the .model file that lies beside the checkpoint on its download "
        "page, or train one: bash scripts/train_tokenizer.sh FILES --vocab-size N"
    )


def _at_path(path: Path, names: tuple[str, ...]) -> list[Path]:
    files = [path / name for name in names] if path.is_dir() or len(names) > 1 else [path]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{missing[0]}: no such vocabulary file; --tokenizer-path names {' and '.join(names)}")
    return files


def _from_hub(repository: str, names: tuple[str, ...], cache_dir: str | None) -> list[Path] | None:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        return None
    offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
    for options in ({"local_files_only": True}, {"etag_timeout": HUB_TIMEOUT}):
        if "local_files_only" not in options and (offline or not _hub_answers()):
            return None
        try:
            return [Path(hf_hub_download(repository, name, cache_dir=cache_dir, **options)) for name in names]
        except Exception:  # the hub's errors have no common root; the caller reports
            continue
    return None


def _hub_answers() -> bool:
    """Return whether the hub can be reached: its library tries for minutes. Behind a proxy only the proxy knows."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=CONNECTION_TIMEOUT).close()
    except (OSError, ValueError):
        return False
    return True
