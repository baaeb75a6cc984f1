"""An example becomes ids, positions and targets. ``build_sample`` is the one way.

Legend: S source length, T target length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tasks.seq2seq.blanks import blank_command, build_blank_sample, with_blanks
from tasks.seq2seq.examples import (
    BLANK_TASKS,
    SEQ2SEQ_TASKS,
    SQUAD_TASKS,
    SUMMARY_TASKS,
    Seq2SeqExample,
    Seq2SeqOptions,
    Seq2SeqSample,
)

if TYPE_CHECKING:
    from data_utils.tokenizers.tokenizer import Tokenizer

__all__ = ["SEQ2SEQ_TASKS", "Seq2SeqExample", "Seq2SeqOptions", "Seq2SeqSample", "build_sample", "mask_name"]


def mask_name(task: str, options: Seq2SeqOptions) -> str:
    """Return the command token that stands for what is to be written; the same for blanks in the data."""
    if task in BLANK_TASKS:
        return blank_command(task, options)
    return "sMASK" if options.task_mask and task != "cmrc" else "MASK"


def build_sample(
    task: str,
    example: Seq2SeqExample,
    *,
    tokenizer: Tokenizer,
    options: Seq2SeqOptions,
    for_training: bool,
    epoch: int = 0,
) -> Seq2SeqSample:
    """Return the sample of an example.

    Args:
        task: one of ``SEQ2SEQ_TASKS``.
        example: from ``read_examples``.
        tokenizer, options: of the run.
        for_training: with targets for the loss; without, the source and sop, from where the model writes on.
        epoch: blanks of the blank task are drawn anew in every epoch.
    """
    if task in BLANK_TASKS:
        drawn = with_blanks(example, options=options, epoch=epoch)
        return build_blank_sample(task, drawn, tokenizer=tokenizer, options=options, for_training=for_training)
    mask = tokenizer.command_id(mask_name(task, options))
    source, position = _source_ids(task, example, tokenizer=tokenizer, options=options, mask=mask)
    if options.compatible:
        position = source.index(mask)
    target = [*tokenizer.encode(f" {example.target}"), tokenizer.special.eop] if for_training else None
    return _place(source, position, target, tokenizer=tokenizer, options=options, uid=example.guid)


def _source_ids(
    task: str, example: Seq2SeqExample, *, tokenizer: Tokenizer, options: Seq2SeqOptions, mask: int
) -> tuple[list[int], int]:
    """Return at most S ids of the source, and where among them the mask stands."""
    size, encode, meta = options.source_length, tokenizer.encode, example.meta
    first = tokenizer.special.cls
    if task in SUMMARY_TASKS:
        return [first, mask, *encode(" Content:"), *encode(f" {example.source}")][:size], 1
    if task == "squad_generation":
        return _question_source(example, tokenizer=tokenizer, size=size, mask=mask)
    if task in SQUAD_TASKS:
        question = encode(f" {meta['question']}")
        text = encode(f" {example.source}")[: size - len(question) - 3]
        return [first, *question, mask, tokenizer.token_to_id("."), *text][:size], 1 + len(question)
    if task == "cmrc":
        question = encode(f"问题：{meta['question']}答案：")[: size - 2]
        text = encode(example.source)[: size - len(question) - 2]
        return [first, *question, mask, *text], 1 + len(question)
    assert task == "customization", task
    text = encode(example.source)[-(size - 3) :]
    return [first, *text, mask, tokenizer.special.eos], 1 + len(text)


def _question_source(example: Seq2SeqExample, *, tokenizer: Tokenizer, size: int, mask: int) -> tuple[list[int], int]:
    """Return the source of question generation; an over-long context is cut around the answer."""
    answer_part = tokenizer.encode(f" Answer: {example.meta['answer']}")[: size - 2]
    context = tokenizer.encode(f"{example.source.rstrip()} Question:")
    room = size - 2 - len(answer_part)
    if len(context) > room:
        answer = tokenizer.encode(f" {example.meta['answer']}")
        found = _find(answer, context)
        start = 0 if found is None else max(found - room // 2, 0)
        context = context[start : start + room]
    return [tokenizer.special.cls, *context, mask, *answer_part], 1 + len(context)


def _find(part: list[int], ids: list[int]) -> int | None:
    """Return where ``part`` first stands in ``ids``."""
    starts = (start for start in range(len(ids) - len(part) + 1) if ids[start : start + len(part)] == part)
    return next(starts, None)


def _place(
    source: list[int],
    position: int,
    target: list[int] | None,
    *,
    tokenizer: Tokenizer,
    options: Seq2SeqOptions,
    uid: str,
) -> Seq2SeqSample:
    """Lay out source and target; ``target`` None is the sample that the model continues."""
    size, pad = options.source_length, tokenizer.special.pad
    slots = 1 if target is None else options.target_length
    written = [] if target is None else target[:slots]
    padded = written + [pad] * (slots - len(written))
    ids = source + [pad] * (size - len(source)) + [tokenizer.special.sop, *padded[: slots - 1]]
    positions = np.full((2, size + slots), position, dtype=np.int64)
    positions[0, :size] = np.arange(size)
    positions[1, :size] = 0
    positions[1, size:] = np.arange(1, slots + 1) if options.block_positions else 1
    target_ids = loss_mask = None
    if target is not None:
        target_ids = np.array([0] * size + padded, dtype=np.int64)
        loss_mask = np.zeros(size + slots, dtype=np.int64)
        loss_mask[size : size + len(written)] = 1
    return Seq2SeqSample(
        input_ids=np.array(ids, dtype=np.int64),
        position_ids=positions,
        prefix_length=size,
        context_length=len(source),
        target_ids=target_ids,
        loss_mask=loss_mask,
        mask_positions=(position,),
        uid=uid,
    )
