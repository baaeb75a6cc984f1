"""An example becomes ids, positions and targets, and samples become batches.

S source length, T target slots (``tgt_seq_length``; of the blank task ``int(S * blank_maskratio)``)
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_utils.batches import Batch, pack_batch, pad_batch
from data_utils.objective import Objective
from data_utils.rows import Row
from data_utils.tokenizers.tokenizer import Tokenizer
from tasks.multilingual.samples import question_prompt, summary_prompt
from tasks.seq2seq.readers import BLANK, Seq2SeqExample, Seq2SeqOptions
from tasks.settings import BLANK_TASKS, MULTILINGUAL_SUMMARIES, SQUAD_TASKS, SUMMARY_TASKS


@dataclass(frozen=True)
class Seq2SeqSample:
    """One example as the model takes it. Integer arrays are int64; n is S + T in training, S + 1 in evaluation.

    Attributes:
        input_ids: [n], the source padded to S, then sop and the target without its last id, padded.
        position_ids: [2, n], position and block position.
        prefix_length: S; the columns before it are visible to all, the rest is causal.
        context_length: ids of the source without padding. Where padding is hidden (``--mask-pad-token``) only these
            columns of the source are visible; columns from ``prefix_length`` on stay causal.
        target_ids: [n], zeros under the source; None in evaluation.
        loss_mask: [n], 1 where ``target_ids`` counts; None in evaluation.
        mask_positions: index of each blank to fill, in order. Empty when truncation left none: nothing is to be filled.
        uid: the example's guid.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    prefix_length: int
    context_length: int
    target_ids: np.ndarray | None
    loss_mask: np.ndarray | None
    mask_positions: tuple[int, ...]
    uid: str


def mask_name(task: str, options: Seq2SeqOptions) -> str:
    """Return the command token that stands for what is to be written; the same for blanks in the data."""
    if task in BLANK_TASKS:
        return "gMASK" if task == "blank" and options.task_mask else "MASK"
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
    target = [*tokenizer.encode(f" {example.target}"), tokenizer.special.eop][: options.tgt_seq_length]
    slots = options.tgt_seq_length if for_training else 1
    return _sample(
        source,
        [tokenizer.special.sop, *target] if for_training else [tokenizer.special.sop],
        target if for_training else None,
        [position] * slots,
        list(range(1, slots + 1)) if options.block_positions else [1] * slots,
        slots=slots,
        masks=(position,),
        uid=example.guid,
        pad=tokenizer.special.pad,
        size=options.src_seq_length,
    )


def _source_ids(
    task: str, example: Seq2SeqExample, *, tokenizer: Tokenizer, options: Seq2SeqOptions, mask: int
) -> tuple[list[int], int]:
    """Return at most S ids of the source, and where among them the mask stands."""
    size, encode, meta = options.src_seq_length, tokenizer.encode, example.meta
    first = tokenizer.special.cls
    if task in SUMMARY_TASKS:
        if task in MULTILINGUAL_SUMMARIES or options.summary_prompt == "tldr":
            prompt = encode(summary_prompt(task, meta))
            source = [first, *encode(f" {example.source}")[: max(size - 2 - len(prompt), 0)], *prompt]
        else:
            return [first, mask, *encode(" Content:"), *encode(f" {example.source}")][:size], 1
    elif task == "squad_generation":
        return _question_source(example, tokenizer=tokenizer, size=size, mask=mask)
    elif task == "mlqa":
        asked, answered = question_prompt(meta["question"], example.language if options.localized_prompts else "en")
        end = [tokenizer.token_to_id("."), *encode(asked), *encode(answered)]
        source = [first, *encode(f" {example.source}")[: max(size - 2 - len(end), 0)], *end]
    elif task in SQUAD_TASKS:
        question = encode(f" {meta['question']}")
        text = encode(f" {example.source}")[: size - len(question) - 3]
        return [first, *question, mask, tokenizer.token_to_id("."), *text][:size], 1 + len(question)
    elif task == "cmrc":
        question = encode(f"问题：{meta['question'].strip()}答案：")[: size - 2]
        text = encode(example.source)[: size - len(question) - 2]
        return [first, *question, mask, *text], 1 + len(question)
    else:
        assert task == "customization", task
        text = encode(example.source)[-(size - 3) :]
        return [first, *text, mask, tokenizer.special.eos], 1 + len(text)
    source = source[: size - 1]
    return [*source, mask], len(source)


def _question_source(example: Seq2SeqExample, *, tokenizer: Tokenizer, size: int, mask: int) -> tuple[list[int], int]:
    """Return the source of question generation; an over-long context is cut around the answer."""
    answer_part = tokenizer.encode(f" Answer: {example.meta['answer']}")[: size - 2]
    context = tokenizer.encode(f"{example.source.rstrip()} Question:")
    room = size - 2 - len(answer_part)
    if len(context) > room:
        answer = tokenizer.encode(f" {example.meta['answer']}")
        place = find_ids(answer, context)
        start = 0 if place is None else max(place - room // 2, 0)
        context = context[start : start + room]
    return [tokenizer.special.cls, *context, mask, *answer_part], 1 + len(context)


def find_ids(part: Sequence[int], ids: Sequence[int]) -> int | None:
    """Return where ``part`` first stands in ``ids``."""
    starts = (start for start in range(len(ids) - len(part) + 1) if ids[start : start + len(part)] == part)
    return next(starts, None)


def _sample(
    source: list[int],
    written: list[int],
    targets: list[int] | None,
    positions: list[int],
    blocks: list[int],
    *,
    slots: int,
    masks: tuple[int, ...],
    uid: str,
    pad: int,
    size: int,
) -> Seq2SeqSample:
    """Lay out a source, padded to ``size``, and what is written after it, cut or padded to ``slots``.

    ``targets`` None is the sample that the model continues.
    """

    def behind(prefix: Sequence[int], values: list[int], filler: int) -> np.ndarray:
        return np.array([*prefix, *values[:slots], *[filler] * (slots - len(values))], dtype=np.int64)

    zeros = [0] * size
    return Seq2SeqSample(
        input_ids=behind(source + [pad] * (size - len(source)), written, pad),
        position_ids=np.stack([behind(range(size), positions, 0), behind(zeros, blocks, 0)]),
        prefix_length=size,
        context_length=len(source),
        target_ids=None if targets is None else behind(zeros, targets, pad),
        loss_mask=None if targets is None else behind(zeros, [1] * len(targets), 0),
        mask_positions=masks,
        uid=uid,
    )


def draw_blanks(text: str, *, ratio: float, generator: random.Random) -> tuple[str, tuple[str, ...]]:
    """Return ``text`` with a share of its words replaced by blanks, and what stood there.

    Adjacent words that are chosen make one blank. A text of few words (``int(words * ratio)`` is 0) keeps them all.
    """
    words = text.split()
    hidden = set(generator.sample(range(len(words)), int(len(words) * ratio)))
    source: list[str] = []
    answers: list[list[str]] = []
    for index, word in enumerate(words):
        if index not in hidden:
            source.append(word)
        elif index - 1 in hidden:
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
    source, answers = draw_blanks(example.source, ratio=options.blank_maskratio, generator=generator)
    return replace(example, source=source, meta={**example.meta, "blanks": answers})


def build_blank_sample(
    task: str, example: Seq2SeqExample, *, tokenizer: Tokenizer, options: Seq2SeqOptions, for_training: bool
) -> Seq2SeqSample:
    """Return the sample of an example whose blanks are drawn; a blank that truncation cuts off is not asked for."""
    size, special = options.src_seq_length, tokenizer.special
    mask = tokenizer.command_id(mask_name(task, options))
    source = [mask if token == special.mask else token for token in tokenizer.encode(f" {example.source}")[:size]]
    masks = tuple(index for index, token in enumerate(source) if token == mask)
    layout: dict[str, Any] = {"masks": masks, "uid": example.guid, "pad": special.pad, "size": size}
    if not for_training:
        return _sample(source, [special.sop], None, [masks[0] if masks else 0], [1], slots=1, **layout)
    written: list[int] = []
    targets: list[int] = []
    positions: list[int] = []
    blocks: list[int] = []
    answers = tokenizer.encode_batch([f" {text}" for text in example.meta["blanks"] or ()])
    for position, answer in zip(masks, answers, strict=False):
        length = len(answer) + 1
        written += [special.sop, *answer]
        targets += [*answer, special.eop]
        positions += [position] * length
        blocks += range(1, length + 1) if options.block_positions else [1] * length
    slots = int(size * options.blank_maskratio) if task == "blank" else options.tgt_seq_length
    return _sample(source, written, targets, positions, blocks, slots=slots, **layout)


def collate(
    samples: Sequence[Seq2SeqSample],
    *,
    pad_id: int,
    visible_padding: bool = False,
    multiple_of: int = 1,
    share_rows: bool = False,
) -> Batch:
    """Stack training samples.

    The padding of a source is cut out: its target follows directly, which no position depends on, and the rows are
    padded at their end, where nothing looks, to the longest of the batch rounded up to ``multiple_of``. With
    ``visible_padding`` the samples are stacked as they are; the original lets targets see the padding of their source.
    With ``share_rows`` several samples stand in a row.
    """
    assert samples, "a batch needs samples"
    rows = [_row(sample, visible_padding=visible_padding) for sample in samples]
    if share_rows:
        return pack_batch(rows, Objective.DOWNSTREAM, multiple_of=multiple_of)
    return pad_batch(rows, Objective.DOWNSTREAM, pad_id=pad_id, multiple_of=1 if visible_padding else multiple_of)


def _row(sample: Seq2SeqSample, *, visible_padding: bool) -> Row:
    """Return the row of a sample, without the padding of source and target unless it is visible."""
    assert sample.target_ids is not None and sample.loss_mask is not None, "no targets"
    values = np.stack([sample.input_ids, sample.target_ids, sample.loss_mask, *sample.position_ids])  # [5,n]
    if visible_padding:
        return Row(values, sample.prefix_length)
    predicted = np.flatnonzero(sample.loss_mask)
    end = int(predicted[-1]) + 1 if len(predicted) else sample.prefix_length
    columns = np.concatenate([np.arange(sample.context_length), np.arange(sample.prefix_length, end)])
    return Row(values[:, columns], sample.context_length)
