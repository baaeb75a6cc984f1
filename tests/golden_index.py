"""Which test reads which golden file, and which files wait for a later issue.

The golden vectors are inputs and outputs recorded from the original release. Tests read them from the folder named by
``GLM_GOLDEN_DIR`` (default ``tests/golden``). ``tests/test_golden_index.py`` asserts that every file of that folder is
in one of the two tables below, so that nothing is left out unnoticed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

READ_BY: dict[str, str] = {}

DEFERRED: dict[str, str] = {}


@dataclass(frozen=True)
class GoldenFolder:
    """A folder of golden vectors, laid out as ``model/``, ``pretraining/``, ``generation/`` ..."""

    root: Path

    @classmethod
    def from_environment(cls) -> GoldenFolder:
        """Return the folder named by ``GLM_GOLDEN_DIR``, else the repository's own copy."""
        return cls(Path(os.environ.get("GLM_GOLDEN_DIR", REPOSITORY / "tests" / "golden")))

    def path(self, name: str) -> Path:
        """Return the path of file or folder ``name``; skip the test when this folder does not hold it."""
        path = self.root / name
        if not path.exists():
            pytest.skip(f"{name} is not among the golden vectors of {self.root}")
        return path

    def files(self) -> list[str]:
        """List every golden file, relative to the root, without the documentation."""
        names = (p.relative_to(self.root).as_posix() for p in sorted(self.root.rglob("*")) if p.is_file())
        return [name for name in names if not name.endswith("README.md")]
