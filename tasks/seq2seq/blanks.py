"""Blanks in the middle of a text: drawing them, their answers, and samples that fill them.

Legend: S source length, P slots for all pieces: T for extraction, ``int(S * blank_mask_ratio)`` for blank.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tasks.seq2seq.examples import Seq2SeqExample, Seq2SeqOptions, Seq2SeqSample

if TYPE_CHECKING:
    from data_utils.tokenizers.tokenizer import Tokenizer

BLANK = "[MASK]"


def draw_blanks(text: str, *, ratio: float, generator: random.Random) -> tuple[str, tuple[str, ...]]:
    """Return ``text`` with a share of its words replaced by blanks, and what stood there.

    Adjacent words that are chosen make one blank. A text of few words (``int(words * ratio)`` is 0) keeps them all.
    """
    words = text.split()
    chosen = set(generator.sample(range(len(words)), int(len(words) * ratio)))
    source: list[str] = []
    answers: list[list[str]] = []
    for index, word in enumerate(words):
        if index not in chosen:
            source.append(word)
        elif index - 1 in chosen:
            answers[-1].append(word)
        else:
            source.append(BLANK)
            answers.append([word])
    return " ".join(source), tuple(" ".join(answer) for answer in answers)


def with_blanks(
    example: Seq2SeqExample, *, options: Seq2SeqOptions, epoch: int = 0, generator: random.Random | None = None
) -> Seq2SeqExample:
    """Return the example with blanks drawn and their answers in ``meta["blanks"]``; one that has them stays as it is.

    The blanks follow from seed, ``epoch`` and the example alone. ``generator`` draws them instead, for those who need
    the original's order.
    """
    if "blanks" in example.meta:
        return example
    generator = generator or random.Random(f"{options.seed} {epoch} {example.guid}")
    source, answers = draw_blanks(example.source, ratio=options.blank_mask_ratio, generator=generator)
    return replace(example, source=source, meta={**example.meta, "blanks": answers})


def find_answers(source: str, target: str) -> tuple[str, ...] | None:
    """Return what stands in ``target`` at each ``[MASK]`` of ``source``, at least one word each.

    None when the texts do not agree outside of the blanks. Where several readings agree, earlier blanks are short.
    """
    pattern, words = source.split(), target.split()
    # agrees[i][j]: pattern[i:] can stand for words[j:]
    agrees = np.zeros((len(pattern) + 1, len(words) + 1), dtype=bool)
    agrees[len(pattern), len(words)] = True
    for i in range(len(pattern) - 1, -1, -1):
        for j in range(len(words) - 1, -1, -1):
            if pattern[i] == BLANK:
                agrees[i, j] = agrees[i + 1, j + 1] or agrees[i, j + 1]
            else:
                agrees[i, j] = pattern[i] == words[j] and agrees[i + 1, j + 1]
    if not agrees[0, 0]:
        return None
    answers: list[str] = []
    start = 0
    for i, word in enumerate(pattern):
        end = start + 1
        if word == BLANK:
            while not agrees[i + 1, end]:
                end += 1
            answers.append(" ".join(words[start:end]))
        start = end
    return tuple(answers)


def blank_command(task: str, options: Seq2SeqOptions) -> str:
    """Return the name of the command token that stands for a blank of the data."""
    return "gMASK" if task == "blank" and options.task_mask else "MASK"


def build_blank_sample(
    task: str, example: Seq2SeqExample, *, tokenizer: Tokenizer, options: Seq2SeqOptions, for_training: bool
) -> Seq2SeqSample:
    """Return the sample of an example whose blanks are drawn; a blank that truncation cuts off is not asked for."""
    size = options.source_length
    data_mask, mask = tokenizer.special.mask, tokenizer.command_id(blank_command(task, options))
    source = [mask if index == data_mask else index for index in tokenizer.encode(f" {example.source}")[:size]]
    positions = tuple(index for index, token in enumerate(source) if token == mask)
    pad, sop = tokenizer.special.pad, tokenizer.special.sop
    prefix = source + [pad] * (size - len(source))
    if not for_training:
        piece = _Pieces()
        piece.add([sop], [0], positions[0] if positions else 0, block_positions=options.block_positions)
        return piece.sample(prefix, len(source), 1, pad=pad, positions=positions, uid=example.guid, scored=False)
    pieces = _Pieces()
    answers: Sequence[str] = example.meta["blanks"] or ()
    end = tokenizer.special.eop
    for position, answer in zip(positions, tokenizer.encode_batch([f" {text}" for text in answers]), strict=False):
        pieces.add([sop, *answer], [*answer, end], position, block_positions=options.block_positions)
    slots = int(size * options.blank_mask_ratio) if task == "blank" else options.target_length
    return pieces.sample(prefix, len(source), slots, pad=pad, positions=positions, uid=example.guid, scored=True)


class _Pieces:
    """The texts of the blanks, one after the other: ids, targets, positions and block positions."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.targets: list[int] = []
        self.positions: list[int] = []
        self.blocks: list[int] = []

    def add(self, ids: list[int], targets: list[int], position: int, *, block_positions: bool) -> None:
        """Append the piece of one blank."""
        self.ids += ids
        self.targets += targets
        self.positions += [position] * len(ids)
        self.blocks += range(1, len(ids) + 1) if block_positions else [1] * len(ids)

    def sample(
        self,
        prefix: list[int],
        context_length: int,
        slots: int,
        *,
        pad: int,
        positions: tuple[int, ...],
        uid: str,
        scored: bool,
    ) -> Seq2SeqSample:
        """Return the pieces behind ``prefix``, cut or padded to ``slots``; ``scored``: with targets."""
        size = len(prefix)

        def behind(values: Sequence[int], pieces: list[int], filler: int) -> np.ndarray:
            cut = pieces[:slots]
            return np.array([*values, *cut, *[filler] * (slots - len(cut))], dtype=np.int64)

        zeros = [0] * size
        return Seq2SeqSample(
            input_ids=behind(prefix, self.ids, pad),
            position_ids=np.stack([behind(range(size), self.positions, 0), behind(zeros, self.blocks, 0)]),
            prefix_length=size,
            context_length=context_length,
            target_ids=behind(zeros, self.targets, pad) if scored else None,
            loss_mask=behind(zeros, [1] * len(self.targets), 0) if scored else None,
            mask_positions=positions,
            uid=uid,
        )
