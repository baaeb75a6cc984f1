"""Notice what is wrong with a checkpoint before it is used: damaged bytes, files of different saves, odd tensors.

    <folder>/SHA256SUMS       the SHA-256 of each file, as ``sha256sum`` writes and checks them

Without that file (an older checkpoint, one of another program) the sums inside of zip archives are compared, CRC-32.
Every file of a save holds its random id and its own name, so that none can be taken for another.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from files.checksums import CHECKSUMS_FILE, READ_BYTES, read_checksums, sha256_of
from files.reading import value_of
from model.checkpoints.safe_loading import UnreadableCheckpointError, is_archive, release_pages

SAVE_ID_KEY = "save_id"
FILE_NAME_KEY = "file_name"
NO_CHECKSUMS = f"no {CHECKSUMS_FILE} lists its files: damaged bytes may go unnoticed"

CRC_THREADS = 4
RELEASE_BYTES = 1 << 24  # of mapped files that are kept in memory while tensors are looked through


# Bytes


def listed_checksums(folder: Path) -> dict[str, str]:
    """Return ``{file name: SHA-256}`` of the list in ``folder``; empty without one.

    Raises ``UnreadableCheckpointError`` when the list is damaged.
    """
    path = folder / CHECKSUMS_FILE
    if not path.is_file():
        return {}
    try:
        return read_checksums(path)
    except ValueError as error:
        raise UnreadableCheckpointError(f"{error}; use another copy, or delete it to go without") from error


def check_bytes(path: Path) -> None:
    """Raise ``UnreadableCheckpointError`` when a file is not what was written, as far as its list or archive tells."""
    _check_bytes(path, listed_checksums(path.parent).get(path.name))


def check_record_sums(path: Path) -> None:
    """Raise ``UnreadableCheckpointError`` when a file is no whole zip archive whose records have their CRC-32.

    That is nearly twice as fast as SHA-256; of other files nothing is said.
    """
    _check_bytes(path, None)


def _check_bytes(path: Path, expected: str | None) -> None:
    if not path.is_file():
        raise UnreadableCheckpointError(f"{path} does not exist; give a checkpoint folder")
    try:
        if expected is None:
            damage = damaged_record(path)
        else:
            damage = None if sha256_of(path) == expected else f"its SHA-256 is not the one that {CHECKSUMS_FILE} lists"
    except OSError as error:
        raise UnreadableCheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if damage is not None:
        raise UnreadableCheckpointError(
            f"{path} cannot be read: {damage}, so it is damaged or of another save; use another copy"
        )


def damaged_record(path: Path) -> str | None:
    """Return what is wrong with the records of a zip archive by their CRC-32; None for other files and whole ones."""
    if not is_archive(path):
        return None
    try:
        with zipfile.ZipFile(path) as file:
            entries = [entry for entry in file.infolist() if entry.CRC]  # zero: torch was told to leave them out
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "it is cut off, no whole archive"
    entries.sort(key=lambda entry: entry.file_size, reverse=True)
    shares = [entries[first::CRC_THREADS] for first in range(CRC_THREADS)]
    with ThreadPoolExecutor(CRC_THREADS) as pool:
        results = pool.map(lambda share: _first_damaged(path, share), shares)
        damaged = next(filter(None, results), None)
    return None if damaged is None else f"the record {damaged} has another CRC-32 than it was written with"


def _first_damaged(path: Path, entries: Sequence[zipfile.ZipInfo]) -> str | None:
    with zipfile.ZipFile(path) as file:
        for entry in entries:
            try:
                with file.open(entry) as record:
                    while record.read(READ_BYTES):
                        pass
            except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError):
                return ascii(entry.filename[:80])
    return None


# Files of one save


@dataclass(frozen=True)
class FileOrigin:
    """What a checkpoint's file says of the save it belongs to; None for what it does not say."""

    save_id: str | None
    iteration: int | None
    model_parallel_size: int | None
    file_name: str | None


def origin_of(content: Mapping[str, Any], *, file: Path) -> FileOrigin:
    """Return where a file comes from; raise ``UnreadableCheckpointError`` for values of another kind."""
    try:
        return FileOrigin(
            value_of(content, SAVE_ID_KEY, str, place=str(file), default=None),
            value_of(content, "iteration", int, place=str(file), default=None, at_least=0),
            value_of(content, "mp_world_size", int, place=str(file), default=None, at_least=1),
            value_of(content, FILE_NAME_KEY, str, place=str(file), default=None),
        )
    except ValueError as error:
        raise UnreadableCheckpointError(str(error)) from error


def check_same_save(origins: Mapping[str, FileOrigin], *, folder: Path, size: int | None) -> None:
    """Raise ``UnreadableCheckpointError`` unless the files, by name, are those of one save of ``size`` ranks.

    ``size`` None: the number of ranks is not looked at.
    """
    for name, origin in origins.items():
        if origin.file_name not in (None, name):
            raise UnreadableCheckpointError(
                f"{folder / name} was written as {origin.file_name}: files were swapped or renamed; copy them again"
            )
        if size is not None and origin.model_parallel_size not in (None, size):
            raise UnreadableCheckpointError(
                f"{folder / name} is of model-parallel size {origin.model_parallel_size}, the folder holds {size} of "
                "the files: copy all files of one save into it"
            )
    if not origins:
        return
    (first_name, first), *others = origins.items()
    for name, origin in others:
        if (origin.save_id, origin.iteration) != (first.save_id, first.iteration):
            what = "iteration" if origin.iteration != first.iteration else "id of the save"
            values = [vars(o)["iteration" if what == "iteration" else "save_id"] for o in (first, origin)]
            raise UnreadableCheckpointError(
                f"{folder} mixes files of different saves: {first_name} has {what} {values[0]}, {name} {values[1]}; "
                "copy all files of one save into it"
            )


# Tensors


def check_tensors(tensors: Mapping[str, Tensor], *, file: Path) -> None:
    """Raise ``UnreadableCheckpointError`` for a tensor that is no plain one of real numbers with values of its own."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_floating_point():
            kind = f"{tensor.dtype}, {tensor.layout}, {tensor.device.type}".replace("torch.", "")
            raise UnreadableCheckpointError(
                f"{file}: {name} is a tensor of another kind ({kind}) than the plain one of real numbers that is needed"
            )
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise UnreadableCheckpointError(
                f"{file}: {name} has shape {tuple(tensor.shape)}, more than the values it is stored with"
            )


@torch.no_grad()
def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with NaN or infinity among its values; None when there is none.

    One pass, and one wait for each device.
    """
    extremes: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            pair = torch.stack(torch.aminmax(tensor.detach()))  # NaN goes through
            extremes.setdefault(tensor.device, {})[name] = pair.double()
    for pairs in extremes.values():
        finite = torch.isfinite(torch.stack(list(pairs.values()))).all(dim=1).tolist()
        if not all(finite):
            return list(pairs)[finite.index(False)]
    return None


def check_finite(tensors: Mapping[str, Tensor], *, file: Path) -> None:
    """Raise ``UnreadableCheckpointError`` with the name of a tensor, read from ``file``, that is not finite.

    Pages of mapped files are given back.
    """
    for part in _parts(tensors):
        name = not_finite(part)
        release_pages(part.values())
        if name is not None:
            raise UnreadableCheckpointError(
                f"{file}: {name} holds NaN or infinity; use a checkpoint from before the training blew up"
            )


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        part[name] = tensor
        size += tensor.nbytes
        if size >= RELEASE_BYTES:
            yield part
            part, size = {}, 0
    yield part
