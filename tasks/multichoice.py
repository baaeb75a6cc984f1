"""Generic multiple choice: texts with a blank and the choices for it, from any file."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from generation.inputs import shorten
from tasks.cloze import TaskTokenizer, stack_padded
from tasks.examples import InputExample
from tasks.layout import CommandIds, PositionOptions, build_row, build_unidirectional_row
from tasks.processors import DataProcessor
from tasks.readers import Row, read_json_lines
from tasks.samples import EncodingOptions, TaskSample


class MultichoiceProcessor(DataProcessor):
    """inputs_pretokenized, choices_pretokenized, label (the right choice's number; 0 when it is missing).

    A split is the path of a file; the folder of the task's data only helps to find it.
    """

    def examples(self, data_dir: str | Path | None, split: str) -> list[InputExample]:
        path = Path(split)
        if data_dir is not None and not path.exists():
            path = Path(data_dir) / split
        examples = [example for row in read_json_lines(path) for example in self.convert(row, "")]
        if not examples:
            raise ValueError(f"{path}: no questions in it; give JSON lines with inputs_pretokenized")
        return examples

    def has_split(self, split: str) -> bool:
        return True

    def convert(self, row: Row, set_type: str) -> Iterable[InputExample]:
        text, choices = row.text("inputs_pretokenized"), row["choices_pretokenized"]
        if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
            raise row.error(f"choices_pretokenized is {choices!r}; it has to be a list of texts")
        label = row.get("label")
        if label is not None and label not in range(len(choices)):
            raise row.error(f"label {label!r}; there are {len(choices)} choices, counted from 0")
        number = str(row.number)
        meta = {"choices": choices, "source": f"{row.path}, line {row.line}"}
        yield InputExample(number, text, None, label, meta, number, num_choices=len(choices))


def expand_files(patterns: Sequence[str]) -> list[str]:
    """Return the files that the patterns match (``**`` goes into folders), in order.

    Raise ValueError for none, and for two whose predictions would overwrite each other.
    """
    found: list[str] = []
    for pattern in patterns:
        files = sorted(name for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
        if not files:
            raise ValueError(f"{pattern}: no such file; multichoice takes files or patterns of them")
        found += files
    titles = [file_title(name) for name in found]
    twice = [name for name, title in zip(found, titles) if titles.count(title) > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)}: predictions of the same name; rename one up to its first dot")
    return found


def file_title(path: str) -> str:
    """Return what the results of a file are called: its name up to the first dot."""
    return Path(path).name.split(".")[0]


@dataclass
class MultichoiceEncoder:
    """Turn examples into samples with one row per choice; choices are scored as they are, without an end token.

    Attributes:
        tokenizer: of the model.
        options: ``seq_length``, ``unidirectional`` and the numbering of positions count here.
        num_truncated: how many texts lost their beginning so far.
    """

    tokenizer: TaskTokenizer
    options: EncodingOptions
    num_truncated: int = 0

    def __post_init__(self) -> None:
        """Collect the command ids; left to right needs the mask for generation."""
        self.commands = CommandIds.of(self.tokenizer)
        options = self.options
        if options.continuous_prompt or options.fast_decode or options.segment_length:
            raise ValueError("multichoice has no --continuous-prompt, --fast-decode or --segment-length")
        self.generation_mask = self.tokenizer.command_id("gMASK") if options.unidirectional else None

    def sample(self, example: InputExample, *, label: int) -> TaskSample:
        """Return the sample of an example.

        A text that is too long keeps its end, or the surroundings of its last mask where the end has none. Raise
        ValueError, with the place of the example, for a choice that is empty or leaves no room for the text.
        """
        options, commands = self.options, self.commands
        place = example.meta.get("source", f"example {example.guid}")
        ids = self.tokenizer.encode(example.text_a)
        choices = [self.tokenizer.encode(choice) for choice in example.meta["choices"]]
        if not all(choices):
            raise ValueError(f"{place}: a choice is empty")
        if self.generation_mask is None and commands.mask not in ids:
            ids.append(commands.mask)
        room = options.seq_length - max(map(len, choices)) - 2
        if len(ids) > room:
            if room < 1:
                longest = max(map(len, choices))
                raise ValueError(
                    f"{place}: a choice of {longest} tokens leaves no room for the text; raise --seq-length "
                    f"{options.seq_length}"
                )
            ids = shorten(ids, room, mask_id=None if self.generation_mask is not None else commands.mask)
            self.num_truncated += 1
        if self.generation_mask is not None:
            mask = self.generation_mask
            rows = [build_unidirectional_row(ids, choice, commands=commands, mask_id=mask) for choice in choices]
        else:
            positions = PositionOptions(options.block_positions, options.masked_lm)
            length = options.seq_length
            rows = [
                build_row(ids, None, choice, commands=commands, max_length=length, options=positions)
                for choice in choices
            ]
        longest = max(len(row.ids) for row in rows)
        masked_lm = options.masked_lm
        return TaskSample(
            kind="multi_token",
            uid=example.guid,
            label=label,
            input_ids=stack_padded([row.ids for row in rows], longest, commands.pad),
            position_ids=stack_padded([row.position_rows(masked_lm=masked_lm) for row in rows], longest, 0),
            attention_mask=np.array([row.prefix_length for row in rows], dtype=np.int32),
            target_ids=stack_padded([row.targets for row in rows], longest, 0),
            loss_mask=stack_padded([row.loss_mask for row in rows], longest, 0),
        )
