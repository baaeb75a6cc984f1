"""Names of files and folders: which ones may be taken from a user or a file, and one made of any text."""

from __future__ import annotations

import re

LONGEST_NAME = 200  # bytes; file systems take 255, and our own files add endings


def is_file_name(name: str) -> bool:
    """Tell whether ``name`` is that of a file in a folder: no path, not hidden, no line ends, not too long."""
    return (
        name == name.strip()
        and name.isprintable()
        and "/" not in name
        and not name.startswith(".")
        and 0 < len(name.encode("utf-8")) < LONGEST_NAME
    )


def file_name_of(text: str) -> str:
    """Return ``text`` without what a file's name cannot have on some system."""
    return re.sub(r"[\x00-\x1f/\\:*?\"<>|]", "_", text).strip(". ") or "_"
