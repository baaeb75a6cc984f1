"""Names of files and folders: which ones may be taken from a user or a file, one made of any text, those of runs.

The folder of a run ends in the time of its start, ``my-glm-11-28-17-56``; ``my-glm`` beside it leads to the newest.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

LONGEST_NAME = 200  # bytes; file systems take 255, and our own files add endings
# Month, day, hour, minute, and a number where two runs begin in one minute.
_DATED = re.compile(r"(.+)[-_][0-9]{2}-[0-9]{2}-[0-9]{2}-[0-9]{2}(-[0-9]+)?")


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


def undated(name: str) -> str | None:
    """Return the name of a run without the time of its start; None of a name without one."""
    dated = _DATED.fullmatch(name)
    return dated[1] if dated else None


def point_to_newest(folder: Path) -> None:
    """Let the name without a date, beside the ``folder`` of a run, lead to it. A folder of that name stays."""
    name = undated(folder.name)
    link = folder.with_name(name or folder.name)
    if name is None or (link.exists() and not link.is_symlink()):
        return
    new = folder.with_name(f".{folder.name}.link")
    with contextlib.suppress(OSError):  # a file system without links
        new.unlink(missing_ok=True)
        new.symlink_to(folder.name)
        new.replace(link)
