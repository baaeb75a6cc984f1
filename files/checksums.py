"""SHA-256 of files, and lists of them as ``sha256sum`` writes and checks them.

Standard library only.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from files.reading import lines_of, read_text
from files.writing import write_whole

READ_BYTES = 1 << 20
CHECKSUMS_FILE = "SHA256SUMS"  # beside the files it lists
logger = logging.getLogger("glm")


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while data := file.read(READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


class HashingFile:
    """A binary file to write to from its beginning to its end, which knows the SHA-256 of what it was given."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        """Write ``data``; the sum of much of it is computed while the system takes it."""
        if len(data) < READ_BYTES:
            self._digest.update(data)
            return self._file.write(data)
        with ThreadPoolExecutor(1) as helper:
            hashed = helper.submit(self._digest.update, data)
            written = self._file.write(data)
            hashed.result()
        return written

    def read_again(self) -> None:
        """Take what is in the file already, up to its end, as what was written; the next write comes behind it."""
        self._file.seek(0)
        self._digest = hashlib.sha256()
        while data := self._file.read(READ_BYTES):
            self._digest.update(data)

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of everything written, as 64 hexadecimal digits."""
        return self._digest.hexdigest()


def write_checksums(path: str | Path, checksums: Mapping[str, str]) -> None:
    """Write ``{name: SHA-256}`` as the file that ``sha256sum --check`` reads in the folder of the files."""
    write_whole(path, "".join(f"{checksum}  {name}\n" for name, checksum in sorted(checksums.items())))


def read_checksums(path: str | Path) -> dict[str, str]:
    """Return ``{name: SHA-256}``. Raises ValueError for a file that is none of ``sha256sum``."""
    checksums = {}
    for number, line in enumerate(lines_of(read_text(path)), start=1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](\S.*)", line)
        if match is None:
            raise ValueError(f"{path}, line {number}: not a checksum and a file name, as sha256sum writes them")
        checksums[match[2]] = match[1]
    return checksums


def warn_when_edited(path: Path) -> None:
    """Warn when a file of settings is not what the list beside it says: people edit them, so that is no error."""
    checksums = path.with_name(CHECKSUMS_FILE)
    expected = read_checksums(checksums).get(path.name) if checksums.is_file() else None
    if expected is not None and sha256_of(path) != expected:
        logger.warning(f"{path} is not what {CHECKSUMS_FILE} lists: it was edited since, or damaged")
