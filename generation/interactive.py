"""Prompts that are typed: fill their blanks, keep and print the results."""

from __future__ import annotations

import importlib
import io
import itertools
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TextIO

from generation.infill import BlankFiller, FilledPrompt, prompt_generator
from generation.inputs import PromptInputs, check_text, complete_prompt, insert_answers, masks_taken_as_text
from generation.prompts import EMPTY_ANSWER, keep_texts
from generation.sampling import DecodingSettings
from mpu.initialize import ParallelTopology
from mpu.mappings import of_first_rank

PROMPT_TEXT = "\nContext prompt (stop to exit) >>> "
QUERY_TEXT = "\nPlease Input Query (stop to exit) >>> "  # of the multilingual release, whose pieces replace their masks
STOP_WORD = "stop"
HIGHLIGHTED = "\033[1;32m{}\033[0m"  # bold and green on a terminal


def marked(answer: str, *, highlight: bool) -> str:
    """Return how an answer is shown in its place: ``(empty)`` where it is, on a terminal so that it stands out."""
    text = answer.strip() or EMPTY_ANSWER
    start = answer[: len(answer) - len(answer.lstrip())]
    return start + (HIGHLIGHTED.format(text) if highlight else text)


def open_samples_file(folder: Path | None) -> TextIO:
    """Open a new file that receives prompts and answers, named by the minute; a second one in it gets a number.

    Without a folder (all ranks but the first) nothing is kept.
    """
    if folder is None:
        return open(os.devnull, "w", encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    name = time.strftime("sample-%m-%d-%H-%M")
    for number in itertools.count(1):
        with suppress(FileExistsError):
            return (folder / (f"{name}.txt" if number == 1 else f"{name}-{number}.txt")).open("x", encoding="utf-8")
    raise AssertionError("some number is free")


def read_on_first_rank(text: str, *, topology: ParallelTopology) -> str:
    """Ask on the first rank and return the line on all ranks; raise EOFError on all of them at the end of the input."""
    line: str | None = None
    if topology.rank == 0:
        with suppress(EOFError):
            line = input(text)
    line = of_first_rank(line, topology=topology)
    if line is None:
        raise EOFError
    return line


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
        folder: Path | None = None,
    ) -> None:
        """Prepare a session; prompts need fewer than ``seq_length`` tokens, ``samples`` receives all texts.

        Where pieces replace their masks, each prompt's texts go to a file of their own in ``folder`` instead.
        """
        self.filler = filler
        self.settings = settings
        self.seq_length = seq_length
        self.seed = seed
        self.samples = samples
        self.read_line = read_line
        self.folder = folder
        self.replaces = settings.fill == "replace"
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
                text = self.read_line(QUERY_TEXT if self.replaces else PROMPT_TEXT)
                check_text(text)
            except EOFError:
                print()
                return None
            except ValueError as error:  # bytes that are no UTF-8, which some locales let through to here
                print(f"\nThe prompt is not UTF-8 text: {error}")
                continue
            if text == STOP_WORD:
                return None
            if text:
                return text
            print("Query should not be empty!" if self.replaces else "Prompt should not be empty!")

    def _accept(self, text: str) -> PromptInputs | None:
        """Return the inputs of a prompt, or say why it cannot be filled and return None."""
        text = complete_prompt(text, tokenizer=self.filler.tokenizer)
        self._store(text)
        if names := masks_taken_as_text(text, self.filler.tokenizer):
            print(f"\nnote: {' and '.join(names)} is text and no blank to this tokenizer")
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
        seconds = time.perf_counter() - start
        self._store(filled.output_text + "\n")
        self._show(filled, seconds=seconds)
        if self.replaces and self.folder is not None:
            try:
                print(f"\nkept in {keep_texts(self.folder, filled.inputs.text, filled.alternatives or (filled.text,))}")
            except OSError as error:
                print(f"\nnot kept in {self.folder}: {error.strerror}")

    def _show(self, filled: FilledPrompt, *, seconds: float) -> None:
        terminal = sys.stdout is not None and sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(f"\nTaken time {seconds:.2f}\n", flush=True)
        print(f"\nContext: {filled.inputs.text}", flush=True)
        print(f"\nGLM: {filled.output_text}", flush=True)
        if filled.answers and not self.replaces:
            shown = [marked(answer, highlight=terminal) for answer in filled.answers]
            text = insert_answers(filled.inputs.text, shown, tokenizer=self.filler.tokenizer)
            print(f"\nFilled: {text}", flush=True)

    def _store(self, text: str) -> None:
        """Keep a text at once. A disk that is full costs the transcript and not the session."""
        try:
            self.samples.write(text)
            self.samples.flush()
        except OSError as error:
            print(f"\nnot kept in {getattr(self.samples, 'name', 'the samples file')}: {error.strerror}")


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
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is no UTF-8 does not take the others with it
    if sys.stdin is not None and sys.stdin.isatty():
        with suppress(ImportError):  # not every Python has it
            importlib.import_module("readline")  # lines can be edited, and earlier ones called back
    read_line = input if topology.world_size == 1 else partial(read_on_first_rank, topology=topology)
    own_files = settings.fill == "replace"
    with open_samples_file(folder if topology.rank == 0 and not own_files else None) as samples:
        session = InteractiveSession(
            filler,
            settings=settings,
            seq_length=seq_length,
            seed=seed,
            samples=samples,
            read_line=read_line,
            folder=folder if topology.rank == 0 else None,
        )
        session.run()
