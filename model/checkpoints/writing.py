"""Write checkpoints so that one appears as a whole or not at all, with the SHA-256 of its files beside them.

Files go into ``<root>/.tmp-<tag>``, are made durable, and the folder gets its name; trackers are replaced last. Sums
are computed while a file is written. All files of one save carry its random id and the name they were written under.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from files.checksums import CHECKSUMS_FILE, HashingFile, sha256_of, write_checksums
from model.checkpoints.checks import FILE_NAME_KEY, SAVE_ID_KEY
from model.checkpoints.format import TRACKERS
from model.checkpoints.reading import REPLACED_PREFIX, shard_name

TEMPORARY_PREFIX = ".tmp-"


class NewFolder:
    """A folder that is being written: its files, their sums, and the id that they share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checksums: dict[str, str] = {}
        self._save_id = new_save_id()

    def write_shard(self, rank: int, content: Mapping[str, Any]) -> None:
        """Write the file of model-parallel rank ``rank``, marked as one of this folder."""
        path = self.path / shard_name(rank)
        self.checksums[path.name] = write_shard(path, stamped(content, path.name, save_id=self._save_id))

    @contextmanager
    def create(self, name: str) -> Iterator[HashingFile]:
        """Give a file of this name to write to."""
        with (self.path / name).open("wb") as file:
            hashing = HashingFile(file)
            yield hashing
            self.checksums[name] = hashing.sha256


@contextmanager
def new_folder(folder: Path) -> Iterator[NewFolder]:
    """Give an empty folder to write files into, which becomes ``folder`` when the block ends.

    When the block fails, nothing is left behind. An older folder of that name is replaced. Raises OSError, naming
    ``folder``, when there is no room.
    """
    temporary = prepare_folder(folder)
    new = NewFolder(temporary)
    try:
        yield new
        for file in temporary.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
            if file.name not in new.checksums:  # a small one that a library or we wrote
                new.checksums[file.name] = sha256_of(file)
        write_checksums(temporary / CHECKSUMS_FILE, new.checksums)
        publish_folder(folder)
    except BaseException as error:  # an interrupt leaves nothing behind either
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is None and str(folder) not in str(error):
            raise OSError(f"{folder} cannot be written: {error.strerror or error}") from error
        raise


def check_is_new(folder: Path) -> None:
    """Raise ValueError when ``folder`` holds something already, which would be replaced."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; name a new folder")


def prepare_folder(folder: Path) -> Path:
    """Make an empty temporary folder beside ``folder``, which a checkpoint is written to first, and return it."""
    recover_folder(folder)
    temporary = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    return temporary


def recover_folder(folder: Path) -> None:
    """Clear up what a process left that died while it replaced ``folder``: the old one is deleted or put back."""
    replaced = folder.with_name(f"{REPLACED_PREFIX}{folder.name}")
    if not replaced.is_dir():
        return
    if folder.is_dir():
        shutil.rmtree(replaced)
    else:
        replaced.rename(folder)


def new_save_id() -> str:
    """Return what tells the files of one save from those of another; no generator of a run is asked."""
    return secrets.token_hex(8)


def stamped(content: Mapping[str, Any], name: str, *, save_id: str) -> dict[str, Any]:
    """Return the content of a checkpoint's file with the save it belongs to and the name it is written under."""
    return {**content, SAVE_ID_KEY: save_id, FILE_NAME_KEY: name}


def write_shard(path: Path, content: Mapping[str, Any]) -> str:
    """Write one file of a checkpoint, wait until it is on the disk, and return its SHA-256.

    Raises OSError when it cannot be written.
    """
    with path.open("wb") as file:
        hashing = HashingFile(file)
        try:
            torch.save(content, hashing)  # type: ignore[arg-type]  # all it does is to write and flush
        except RuntimeError as error:  # what torch makes of a failed write, without its reason
            raise OSError(f"{path} cannot be written: {_reason(error)}") from error
        file.flush()
        os.fsync(file.fileno())
    return hashing.sha256


def _reason(error: BaseException) -> str:
    """Return what the system said of a failed write, which torch's own error follows on."""
    while error.__context__ is not None:
        error = error.__context__
    return error.strerror or str(error) if isinstance(error, OSError) else f"{str(error)[:100]} (is the disk full?)"


def publish_folder(folder: Path) -> None:
    """Give the complete temporary folder of ``folder`` its name; it replaces an older one."""
    temporary = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}")
    replaced = folder.with_name(f"{REPLACED_PREFIX}{folder.name}")
    sync_folder(temporary)
    if folder.exists():
        folder.rename(replaced)
    temporary.rename(folder)
    sync_folder(folder.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def write_trackers(root: Path, text: str) -> None:
    """Let both trackers of a run's folder hold ``text``, the tag of the newest checkpoint."""
    for name in TRACKERS:
        temporary = root / f"{TEMPORARY_PREFIX}{name}"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(root / name)
    sync_folder(root)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in ``folder`` durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
