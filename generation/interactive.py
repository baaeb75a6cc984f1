"""The interactive program: read a prompt, fill its blanks, print and keep the result."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import torch.distributed as dist

from generation.infill import BlankFiller, FilledPrompt, prompt_generator
from generation.inputs import PromptInputs, complete_prompt
from generation.sampling import DecodingSettings
from mpu.initialize import ParallelTopology

PROMPT_TEXT = "\nContext prompt (stop to exit) >>> "
STOP_WORD = "stop"
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
