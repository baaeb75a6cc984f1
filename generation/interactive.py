"""Prompts that are typed, and prompts from a file: fill their blanks, print and keep the results."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch.distributed as dist

from files.writing import write_whole
from generation.infill import BlankFiller, FilledPrompt, prompt_generator
from generation.inputs import PromptInputs, complete_prompt, require_blank
from generation.sampling import DecodingSettings
from mpu.initialize import ParallelTopology
from mpu.mappings import run_shared

PROMPT_TEXT = "\nContext prompt (stop to exit) >>> "
STOP_WORD = "stop"
PROMPT_KEYS = ("prompt", "text")
CLEAR_SCREEN = "\033[H\033[2J\033[3J"


def open_samples_file(folder: Path | None) -> TextIO:
    """Open the file that receives prompts and answers, named by the minute; a second start in it overwrites.

    Without a folder (all ranks but the first) nothing is kept.
    """
    if folder is None:
        return open(os.devnull, "w", encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / time.strftime("sample-%m-%d-%H-%M.txt")).open("w", encoding="utf-8")


def read_on_first_rank(text: str) -> str:
    """Ask on the first rank and return the line on all ranks; raise EOFError on all of them at the end of the input."""
    line: list[str | None] = [None]
    if dist.get_rank() == 0:
        with suppress(EOFError):
            line = [input(text)]
    dist.broadcast_object_list(line)
    if line[0] is None:
        raise EOFError
    return line[0]


class InteractiveSession:
    """Ask for prompts until ``stop`` or the end of the input."""

    def __init__(
        self,
        filler: BlankFiller,
        *,
        settings: DecodingSettings,
        seq_length: int,
        seed: int,
        samples: TextIO,
        read_line: Callable[[str], str] = input,
    ) -> None:
        """Prepare a session; prompts need fewer than ``seq_length`` tokens, ``samples`` receives all texts."""
        self.filler = filler
        self.settings = settings
        self.seq_length = seq_length
        self.seed = seed
        self.samples = samples
        self.read_line = read_line
        self.num_filled = 0

    def run(self) -> None:
        """Ask, fill, print, again and again."""
        while (text := self._ask()) is not None:
            inputs = self._accept(text)
            if inputs is not None:
                self._answer(inputs)

    def _ask(self) -> str | None:
        """Return the next prompt that is not empty, or None at the end."""
        while True:
            try:
                text = self.read_line(PROMPT_TEXT)
            except EOFError:
                print()
                return None
            if text == STOP_WORD:
                return None
            if text:
                return text
            print("Prompt should not be empty!")

    def _accept(self, text: str) -> PromptInputs | None:
        """Return the inputs of a prompt, or say why it cannot be filled and return None."""
        text = complete_prompt(text, tokenizer=self.filler.tokenizer)
        self._store(text)
        try:
            inputs = self.filler.encode(text, settings=self.settings)
        except ValueError as error:
            print(f"\n{error}")
            return None
        if len(inputs) >= self.seq_length:
            print("\nContext length", len(inputs), "\nPlease give smaller context than the window length!")
            return None
        return inputs

    def _answer(self, inputs: PromptInputs) -> None:
        start = time.perf_counter()
        generator = prompt_generator(self.seed, self.num_filled)
        [filled] = self.filler.fill_inputs([inputs], settings=self.settings, generators=[generator])
        self.num_filled += 1
        self._show(filled, seconds=time.perf_counter() - start)
        self._store(filled.output_text + "\n")

    def _show(self, filled: FilledPrompt, *, seconds: float) -> None:
        if sys.stdout.isatty():
            print(CLEAR_SCREEN, end="")
        print(f"\nTaken time {seconds:.2f}\n", flush=True)
        print(f"\nContext: {filled.inputs.text}", flush=True)
        print(f"\nGLM: {filled.output_text}", flush=True)
        if filled.answers:
            print(f"\nFilled: {filled.text}", flush=True)

    def _store(self, text: str) -> None:
        self.samples.write(text)
        self.samples.flush()


def answer_typed_prompts(
    filler: BlankFiller,
    folder: Path,
    *,
    settings: DecodingSettings,
    seq_length: int,
    seed: int,
    topology: ParallelTopology,
) -> None:
    """Run a session that keeps its texts in ``folder``; the ranks of one model-parallel group answer together.

    Raises ValueError when there are several data ranks.
    """
    if topology.data_parallel_size > 1:
        raise ValueError(
            f"{topology.world_size} processes cannot share typed prompts: start as many as --model-parallel-size "
            f"({topology.model_parallel_size}), or give --input"
        )
    read_line = input if topology.world_size == 1 else read_on_first_rank
    with open_samples_file(folder if topology.rank == 0 else None) as samples:
        session = InteractiveSession(
            filler, settings=settings, seq_length=seq_length, seed=seed, samples=samples, read_line=read_line
        )
        session.run()


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

    Every rank gets all rows, which hold the prompt, an answer per blank, the filled text and the record's other fields.
    Raises ValueError, with the place of the prompt, when one has no blank or is too long; nothing is computed then.
    """
    for record in records:
        try:
            require_blank(filler.encode(record.prompt, settings=settings), tokenizer=filler.tokenizer)
        except ValueError as error:
            raise ValueError(f"{record.source}: {error}") from None
    topology = topology or ParallelTopology.single()
    ranks = topology.data_parallel_size
    shares = [range(len(records))[rank::ranks] for rank in range(min(ranks, len(records)))]

    def fill(numbers: Sequence[int]) -> list[dict[str, Any]]:
        prompts = [records[number].prompt for number in numbers]
        filled = filler.fill(prompts, settings=settings, seed=seed, batch_size=batch_size, numbers=numbers)
        return [
            {
                **records[number].fields,
                "prompt": records[number].prompt,
                "answers": [answer.strip() for answer in result.answers],
                "filled": result.text,
            }
            for number, result in zip(numbers, filled)
        ]

    return run_shared(shares, fill, topology=topology)


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
