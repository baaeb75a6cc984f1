"""Prompts from a file, results to a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_utils.whole_files import write_whole
from generation.infill import BlankFiller, FilledPrompt
from generation.inputs import require_blank
from generation.sampling import DecodingSettings
from mpu.initialize import ParallelTopology
from mpu.mappings import gather_numbered

PROMPT_KEYS = ("prompt", "text")


@dataclass(frozen=True)
class PromptRecord:
    """A prompt, where it comes from (for messages), and the other fields of its line, which are passed on."""

    prompt: str
    source: str
    fields: dict[str, Any] = field(default_factory=dict)


def read_prompts(path: str | Path) -> list[PromptRecord]:
    """Read a file of prompts: JSON objects with a key ``prompt`` (or ``text``) a line if it ends in .jsonl, else lines.

    Empty lines are skipped. Raises ValueError with file and line for a malformed one, and when there is no prompt.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise ValueError(f"--input {path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"--input {path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    records = []
    for number, line in enumerate(lines, start=1):
        source = f"{path} line {number}"
        if line.strip() and path.suffix == ".jsonl":
            records.append(_parse(line, source))
        elif line.strip():
            records.append(PromptRecord(line.removesuffix("\r"), source))
    if not records:
        raise ValueError(f"--input {path}: no prompt in it; write one a line, with [MASK] where a blank is")
    return records


def _parse(line: str, source: str) -> PromptRecord:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}: not valid JSON ({error.msg}, column {error.colno})") from None
    key = next((key for key in PROMPT_KEYS if isinstance(row, dict) and isinstance(row.get(key), str)), None)
    if key is None:
        raise ValueError(f"{source}: a JSON object with a string under 'prompt' is needed")
    return PromptRecord(row[key], source, {name: value for name, value in row.items() if name != key})


def fill_records(
    filler: BlankFiller,
    records: Sequence[PromptRecord],
    *,
    settings: DecodingSettings,
    seed: int,
    batch_size: int,
    topology: ParallelTopology | None = None,
) -> list[dict[str, Any]]:
    """Fill the blanks of all records, shared among the data ranks of ``topology``; return a row for each, in order.

    Every rank gets all rows. Raises ValueError, with the place of the prompt, when one has no blank or is too long;
    nothing is computed then.
    """
    for record in records:
        try:
            require_blank(filler.encode(record.prompt, settings=settings), tokenizer=filler.tokenizer)
        except ValueError as error:
            raise ValueError(f"{record.source}: {error}") from None
    topology = topology or ParallelTopology.single()
    own = range(len(records))[topology.data_parallel_rank :: topology.data_parallel_size]
    prompts = [records[number].prompt for number in own]
    filled = filler.fill(prompts, settings=settings, seed=seed, batch_size=batch_size, numbers=own)
    rows = {number: result_row(records[number], result) for number, result in zip(own, filled)}
    rows = gather_numbered(rows, topology=topology)
    return [rows[number] for number in range(len(records))]


def result_row(record: PromptRecord, filled: FilledPrompt) -> dict[str, Any]:
    """Return the row written for a prompt: the prompt, an answer per blank, the filled text, the other fields."""
    answers = [answer.strip() for answer in filled.answers]
    return {**record.fields, "prompt": record.prompt, "answers": answers, "filled": filled.text}


def write_results(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSON lines: to a temporary name, flushed, then renamed."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def format_result(row: dict[str, Any]) -> str:
    """Return the lines printed for a row: prompt, each answer alone, the text with the answers in place."""
    lines = [f"\nPrompt: {row['prompt']}"]
    lines += [f"  blank {number}: {answer}" for number, answer in enumerate(row["answers"], start=1)]
    if "truth" in row:
        lines.append(f"  truth:   {row['truth']}")
    return "\n".join([*lines, f"Filled: {row['filled']}"])
