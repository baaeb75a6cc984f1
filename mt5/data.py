"""Rows of the data sets of the baseline, and the batches that the model is fed.

b batch, s source tokens, t target tokens
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from files.reading import lines_of, read_text
from mt5.settings import Part, Settings
from tasks.multilingual.summaries import paper_sentences
from tasks.readers import MissingFileError, read_comma_separated, read_json_lines

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100  # labels that are not learned
PROMPTS = {"zh": " 中文摘要：", "en": " Please summarize in English:"}
TEXT_COLUMN = "text"
SPLITS = {"train": ("train", "train"), "valid": ("val", "dev.annotation")}  # of the csv files, of MTG
CHINESE_SUMMARIES = "scisummnet-zh.txt"


@dataclass(frozen=True)
class Row:
    """A text to summarize, what the model is asked for, and the summary."""

    text: str
    prompt: str
    summary: str

    def cut_by_characters(self, max_len: int) -> Row:
        """Return the row as the original cut it: so that text and prompt have ``max_len`` characters together."""
        room, stripped = max_len - len(self.prompt), self.text.strip()
        return replace(self, text=stripped[:room]) if len(stripped) > room else self


def read_parts(settings: Settings, split: str) -> list[Row]:
    """Return the rows of ``split`` (train or valid). Raises ValueError, naming the file, for what is not there."""
    rows: list[Row] = []
    for text in settings.parts.train if split == "train" else settings.parts.valid:
        part = Part.parse(text)
        found = read_part(part, split, folders=settings.folders())
        if settings.legacy and part.dataset != "mtgcrosssum":
            found = [row.cut_by_characters(settings.max_len) for row in found]
        chosen = choose(found, part.size, legacy=settings.legacy)
        if not chosen:
            raise ValueError(f"{text}: none of the {len(found)} rows is left; give more data")
        rows += chosen[: settings.limit or None]
    return rows


def read_part(part: Part, split: str, *, folders: Sequence[Path]) -> list[Row]:
    """Return all rows of a data set in the first of ``folders`` that has it."""
    csv_split, mtg_split = SPLITS[split]
    if part.dataset == "mtgcrosssum":
        source, target = part.language.split("2")
        names = [f"mtg_sum/{mtg_split}.doc.{source}", f"mtg_sum/{mtg_split}.sum.{target}"]
        return _parallel([_find(name, folders) for name in names], PROMPTS[target])
    if part.dataset == "ncls":
        return _table(_find(f"ncls/ncls_en2zh_{csv_split}.csv", folders), part.language)
    try:
        return _table(_find("scisummnet/scisummnet.csv", folders), part.language)
    except MissingFileError as error:
        folder = next((f / "scisummnet" for f in folders if (f / "scisummnet" / CHINESE_SUMMARIES).is_file()), None)
        if folder is None or part.language != "zh":
            raise MissingFileError(
                f"{error}; make it of the papers and their summaries: python scripts/prepare_scisummnet.py FOLDER"
            ) from None
        return [Row(text, PROMPTS["zh"], summary) for _, text, summary in read_papers(folder)]


def _find(name: str, folders: Sequence[Path]) -> Path:
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise MissingFileError(f"{folders[0] / name}: no such file; --data-dir names the folder above it")


def _table(path: Path, language: str) -> list[Row]:
    column = f"{language}_sum"
    return [
        Row(record.text(TEXT_COLUMN), PROMPTS[language], record.text(column))
        for record in read_comma_separated(path, header=True)
    ]


def _parallel(paths: Sequence[Path], prompt: str) -> list[Row]:
    documents, summaries = (lines_of(read_text(path)) for path in paths)
    if len(documents) != len(summaries):
        raise ValueError(
            f"{paths[0]} has {len(documents)} lines, {paths[1]} has {len(summaries)}: line n of one is the summary of "
            "line n of the other"
        )
    return [Row(document.strip(), prompt, summary.strip()) for document, summary in zip(documents, summaries)]


def read_papers(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (id, text, Chinese summary) of the papers of ScisummNet whose summaries are in ``scisummnet-zh.txt``.

    A text is all that stands in the sections of ``top1000_complete/ID/Documents_xml/ID.xml``, without the abstract; of
    a paper without sections it is everything.
    Raises ValueError for a paper that is missing or damaged.
    """
    for record in read_json_lines(folder / CHINESE_SUMMARIES):
        paper, summary = record.text("pid"), record.text("zh_sum")
        sentences = (sentence.strip() for sentence in paper_sentences(folder, paper))
        yield paper, " ".join(filter(None, sentences)), summary


def choose(rows: Sequence[Row], size: float | None, *, legacy: bool = False) -> Sequence[Row]:
    """Return the rows that ``Part.size`` stands for: the first, or for a negative size the last.

    The shares s and s - 1 (0.8 and -0.2) leave no row out; with ``legacy`` both are rounded down.
    """
    if size is None:
        return rows
    if size >= 0:
        return rows[: int(size * len(rows)) if size < 1 else int(size)]
    count = -int(size * len(rows)) if size > -1 else -int(size)
    if size > -1 and not legacy:
        count = len(rows) - int((1 + size) * len(rows))
    return rows[len(rows) - count :] if count else rows[:0]


@dataclass(frozen=True)
class Item:
    """Ids of a source, with its prompt, and of a summary; both end with the end token."""

    source: tuple[int, ...]
    target: tuple[int, ...]


class Encoder:
    """Makes items of rows with a tokenizer of transformers."""

    def __init__(self, tokenizer: Any, *, max_len: int, summary_len: int, legacy: bool = False) -> None:
        self.tokenizer, self.max_len, self.summary_len, self.legacy = tokenizer, max_len, summary_len, legacy
        self.end, self.pad = tokenizer.eos_token_id, tokenizer.pad_token_id

    def ids(self, text: str) -> list[int]:
        """Return the subwords of a text, its blanks collapsed."""
        return self.tokenizer(" ".join(text.split()), add_special_tokens=False).input_ids

    def item(self, row: Row) -> Item:
        """Return the ids of a row. The text gives way to its prompt, but as in the original both are cut together."""
        prompt = [] if self.legacy else self.ids(row.prompt)
        text = self.ids(row.text + row.prompt if self.legacy else row.text)
        source = text[: max(0, self.max_len - 1 - len(prompt))] + prompt
        return Item((*source, self.end), (*self.ids(row.summary)[: self.summary_len - 1], self.end))

    def words(self, text: str) -> str:
        """Return the subword ids of a text as words for ROUGE; the original counts the end token, too."""
        return " ".join(map(str, self.ids(text) + [self.end] * self.legacy))


def padded(rows: Iterable[Sequence[int]], value: int) -> Tensor:
    """Return rows of ids as int64 [b, longest]."""
    import torch

    rows = list(rows)
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def batch_inputs(items: Sequence[Item], *, pad: int, legacy: bool = False) -> dict[str, Tensor]:
    """Return what the model is fed: input_ids and attention_mask [b,s], decoder_input_ids and labels [b,t].

    The decoder sees the target shifted to the right, beginning with the padding token, and learns all of it. With
    ``legacy`` it begins with the first target token, which is then never learned.
    """
    source, target = padded((item.source for item in items), pad), padded((item.target for item in items), pad)
    mask = padded(([1] * len(item.source) for item in items), 0)
    if legacy:
        inputs, labels = target[:, :-1], target[:, 1:].clone()
        labels[labels == pad] = IGNORED
    else:
        labels = padded((item.target for item in items), IGNORED)
        inputs = target.roll(1, dims=1)
        inputs[:, 0] = pad
    return {"input_ids": source, "attention_mask": mask, "decoder_input_ids": inputs, "labels": labels}


def epoch_batches(
    count: int, *, batch_size: int, rank: int, size: int, seed: int, epoch: int, first: int = 0
) -> Iterator[tuple[int, list[int]]]:
    """Yield (update, row numbers) of one process, from update ``first`` on; all ``size`` of them share each batch.

    The order depends on seed and epoch alone, so that one process with a batch of 8 sees what two with 4 see. At the
    end a process may have no rows.
    """
    order = list(range(count))
    random.Random(f"mt5 {seed} {epoch}").shuffle(order)
    for update in range(first, num_updates(count, batch_size=batch_size, size=size)):
        start = update * batch_size * size + rank * batch_size
        yield update, order[start : min(start + batch_size, count)]


def num_updates(count: int, *, batch_size: int, size: int) -> int:
    """Return how many updates an epoch of ``count`` rows has."""
    return -(-count // (batch_size * size))


def rouge_of_words(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Return the mean F-measures r1, r2, rl of (prediction, reference), words of ``Encoder.words``."""
    from tasks.seq2seq.metrics import RougeTexts, rouge

    scores = rouge([RougeTexts(prediction, reference) for prediction, reference in pairs])
    return {name: score.fmeasure for name, score in zip(("r1", "r2", "rl"), scores.values())}
