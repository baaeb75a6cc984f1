"""Local JSON lines files as data sets of lm-evaluation-harness."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict


def lambada(**_: Any) -> DatasetDict:
    """Return the texts of GLM_LAMBADA_FILE, cut before the last occurrence of the last word."""
    rows = []
    for row in _rows("GLM_LAMBADA_FILE"):
        last = row["text"].split()[-1]
        rows.append({**row, "context": row["text"][: row["text"].rfind(last)].strip(), "last_word": last})
    return DatasetDict({"test": Dataset.from_list(rows)})


def multichoice(**_: Any) -> DatasetDict:
    """Return the questions of GLM_MULTICHOICE_FILE that have a label."""
    rows = _rows("GLM_MULTICHOICE_FILE")
    return DatasetDict({"test": Dataset.from_list([row for row in rows if row.get("label") is not None])})


def _rows(variable: str) -> list[dict[str, Any]]:
    if variable not in os.environ:
        raise ValueError(f"{variable} is not set; name the file of the task with it")
    lines = Path(os.environ[variable]).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]
