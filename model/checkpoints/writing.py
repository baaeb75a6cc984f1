"""Write checkpoints so that one appears as a whole or not at all.

Files go into ``<root>/.tmp-<tag>``, are made durable, and the folder gets its name; trackers are replaced last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from model.checkpoints.reading import REPLACED_PREFIX, TRACKERS

TEMPORARY_PREFIX = ".tmp-"


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write files into, which becomes ``folder`` when the block ends.

    When the block fails, nothing is left behind. An older folder of that name is replaced.
    """
    temporary = prepare_folder(folder)
    try:
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        publish_folder(folder)
    except BaseException:  # an interrupt leaves nothing behind either
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_is_new(folder: Path) -> None:
    """Raise ValueError when ``folder`` holds something already, which would be replaced."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; name a new folder")


def prepare_folder(folder: Path) -> Path:
    """Make an empty temporary folder beside ``folder``, which a checkpoint is written to first, and return it."""
    temporary = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    return temporary


def write_shard(path: Path, content: dict[str, Any]) -> None:
    """Write one file of a checkpoint and wait until it is on the disk; raise OSError when it cannot be written."""
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # what torch makes of a failed write, without its reason
            raise OSError(f"{path} cannot be written: {_reason(error)}") from error
        file.flush()
        os.fsync(file.fileno())


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
