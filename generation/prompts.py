"""Prompts from files: read them, fill their blanks, write and show the results."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from files.names import file_name_of, is_file_name
from files.progress import with_progress
from files.reading import described, lines_of, parse_json, read_text, value_of
from files.writing import write_whole
from generation.infill import BlankFiller, FilledPrompt
from generation.inputs import PromptInputs, check_text, complete_prompt, masks_taken_as_text, require_blank
from generation.sampling import DecodingSettings
from mpu.initialize import ParallelTopology
from mpu.mappings import run_shared

logger = logging.getLogger("glm")

PROMPT_KEYS = ("prompt", "text")
EMPTY_ANSWER = "(empty)"  # how an answer without text is shown
RESULT_KEYS = ("answers", "filled", "alternatives")
TEXT_SUFFIXES, LINES_SUFFIXES, JSON_SUFFIX = ("", ".txt"), (".jsonl", ".ndjson"), ".json"


@dataclass(frozen=True)
class PromptRecord:
    """A prompt, where it comes from (for messages), and the other fields of its line, which are passed on."""

    prompt: str
    source: str
    fields: dict[str, Any] = field(default_factory=dict)


def read_prompts(path: str | Path) -> list[PromptRecord]:
    """Read a file of prompts, whose suffix (in any case) says what is in it.

    ``.txt`` or none: a prompt a line. ``.jsonl``, ``.ndjson``: a line holds a JSON object with a text under ``prompt``
    (or ``text``), or a text alone. ``.json``: the same, or one list of such objects or texts. Empty lines are skipped.
    Raises ValueError with file and line for a malformed one, a field that results have themselves, no prompt at all,
    and another suffix.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*TEXT_SUFFIXES, *LINES_SUFFIXES, JSON_SUFFIX):
        raise ValueError(
            f"--input {path}: {path.suffix} is no format of prompts; known are .txt (or no suffix) with a prompt a "
            "line, .jsonl and .ndjson with a JSON object a line, and .json with a list of them or one a line"
        )
    text = read_text(path)
    if suffix == JSON_SUFFIX and text.lstrip().startswith("["):
        rows = parse_json(text, place=str(path))
        records = [_record(row, f"{path}, row {number}") for number, row in enumerate(rows, start=1)]
    else:
        lines = [(line, f"{path}, line {number}") for number, line in enumerate(lines_of(text), 1) if line.strip()]
        read = _text_record if suffix in TEXT_SUFFIXES else _json_record
        records = [read(line, place) for line, place in lines]
    if not records:
        raise ValueError(f"--input {path}: no prompt in it; write one a line, with [MASK] where a blank is")
    return records


def _text_record(line: str, place: str) -> PromptRecord:
    """Return a line of plain text. Raises ValueError for one that is meant as JSON."""
    if line.lstrip().startswith("{") and any(f'"{key}"' in line for key in PROMPT_KEYS):
        try:
            _json_record(line, place)
        except ValueError:
            pass
        else:
            raise ValueError(f"{place}: a JSON object in a file of plain text; call the file .jsonl")
    return PromptRecord(line, place)


def _json_record(line: str, place: str) -> PromptRecord:
    return _record(parse_json(line, place=place), place)


def _record(row: Any, place: str) -> PromptRecord:
    """Return what a JSON value, a text or an object, says."""
    if isinstance(row, str):
        return PromptRecord(row, place)
    if not isinstance(row, dict):
        raise ValueError(f"{place}: an object with a text under 'prompt' is needed, found {described(row)}")
    key = next((key for key in PROMPT_KEYS if row.get(key) is not None), PROMPT_KEYS[0])
    prompt = value_of(row, key, str, place=place)
    taken = next((name for name in RESULT_KEYS if name in row), None)
    if taken:
        raise ValueError(f"{place}: the field {taken!r} is one that the results add; give yours another name")
    try:
        json.dumps(row, allow_nan=False)
    except ValueError:
        raise ValueError(f"{place}: a number is NaN or too large, which JSON cannot say; write null instead") from None
    except RecursionError:
        raise ValueError(f"{place}: JSON nested too deeply") from None
    return PromptRecord(prompt, place, {name: value for name, value in row.items() if name not in (key, "prompt")})


def fill_records(
    filler: BlankFiller,
    records: Sequence[PromptRecord],
    *,
    settings: DecodingSettings,
    seed: int,
    batch_size: int,
    topology: ParallelTopology | None = None,
    done: dict[int, dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Fill the blanks of all records, shared among the data ranks of ``topology``; return a row for each, in order.

    A prompt without a blank is continued: it gets one at its end, as a typed one does. Every rank gets all rows, which
    hold the prompt, an answer per blank, the filled text and the record's other fields.
    ``done`` receives this rank's rows, by number, as they come: what is there when an error or a signal ends it.
    Raises ValueError, with the place of the prompt, when one is too long; nothing is computed then.
    """
    inputs = [_encode(filler, record, settings=settings) for record in records]
    _warn_of_masks_taken_as_text(filler, records)
    topology = topology or ParallelTopology.single()
    ranks = topology.data_parallel_size
    shares = [range(len(records))[rank::ranks] for rank in range(min(ranks, len(records)))]
    rows = {} if done is None else done

    def fill(numbers: Sequence[int]) -> list[dict[str, Any]]:
        share = [inputs[number] for number in numbers]
        options: dict[str, Any] = {"settings": settings, "seed": seed, "batch_size": batch_size, "numbers": numbers}
        batches = filler.fill_batches(share, **options)
        for batch, results in with_progress(batches, total=-(-len(share) // batch_size)):
            rows.update((numbers[n], _row(records[numbers[n]], result)) for n, result in zip(batch, results))
        return [rows[number] for number in numbers]

    return run_shared(shares, fill, topology=topology)


def _encode(filler: BlankFiller, record: PromptRecord, *, settings: DecodingSettings) -> PromptInputs:
    try:
        check_text(record.prompt)
        inputs = filler.encode(complete_prompt(record.prompt, tokenizer=filler.tokenizer), settings=settings)
        require_blank(inputs, tokenizer=filler.tokenizer)
    except ValueError as error:
        raise ValueError(f"{record.source}: {error}") from None
    return inputs


def _warn_of_masks_taken_as_text(filler: BlankFiller, records: Sequence[PromptRecord]) -> None:
    found = [(one.source, names) for one in records if (names := masks_taken_as_text(one.prompt, filler.tokenizer))]
    if found:
        (source, names), others = found[0], len(found) - 1
        more = f" (and such in {others} more)" if others else ""
        logger.warning("%s: %s is text and no blank to this tokenizer%s", source, " and ".join(names), more)


def _row(record: PromptRecord, result: FilledPrompt) -> dict[str, Any]:
    answers = [answer.strip() for answer in result.answers]
    row = {**record.fields, "prompt": record.prompt, "answers": answers, "filled": result.text}
    return row | ({"alternatives": list(result.alternatives)} if len(result.alternatives) > 1 else {})


def with_ids(records: Sequence[PromptRecord]) -> list[PromptRecord]:
    """Return records whose lines begin with an id and a tab, with the id among their fields.

    Raises ValueError with the line of one that does not, or of an id that is no name of a file or comes twice.
    """
    found: dict[str, str] = {}
    split = []
    for record in records:
        identity, tab, prompt = record.prompt.partition("\t")
        if not tab or not is_file_name(identity):
            raise ValueError(f"{record.source}: {described(record.prompt)}; --with-id needs an id, a tab and the text")
        if identity in found:
            raise ValueError(f"{record.source}: the id {identity!r} is that of {found[identity]}, too")
        found[identity] = record.source
        split.append(PromptRecord(prompt, record.source, {**record.fields, "id": identity}))
    return split


def keep_texts(folder: Path, prompt: str, texts: Sequence[str], *, name: str | None = None) -> Path:
    """Write the texts of a prompt, one a line, to a file of its own in ``folder``, and return it.

    It is called ``name``, or by the first 20 characters of the prompt and the time; a name that is taken gets a number.
    """
    stem = name or f"{file_name_of(prompt[:20])}-{time.strftime('%m-%d-%H-%M-%S')}"
    for number in itertools.count(1):
        path = folder / (f"{stem}.txt" if number == 1 else f"{stem}-{number}.txt")
        if name or not path.exists():
            break
    write_whole(path, "".join(" ".join(text.split("\n")) + "\n" for text in texts))
    return path


def write_results(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSON lines: to a temporary name, flushed, then renamed."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def format_result(row: dict[str, Any]) -> str:
    """Return the lines printed for a row: prompt, each answer alone, the text with the answers in place."""
    lines = [f"\nPrompt: {row['prompt']}"]
    lines += [f"  blank {number}: {answer or EMPTY_ANSWER}" for number, answer in enumerate(row["answers"], start=1)]
    if "truth" in row:
        lines.append(f"  truth:   {row['truth']}")
    return "\n".join([*lines, f"Filled: {row['filled']}"])
