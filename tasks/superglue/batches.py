"""Samples to batches: the one place where they are padded and become tensors.

b batch, s sequence, c choices (rows of a sample), l labels, p prompt tokens, r positions of an answer

Padding to the longest sample is trimmed padding; with ``share_rows`` samples stand in each other's room as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from data_utils.batches import fitting_rows, row_lengths, shared_positions
from data_utils.rows import stack_rows, stacked_positions
from generation.scoring import Question
from tasks.readers import NO_LABEL
from tasks.superglue.samples import COMPATIBLE_FAST_ANSWER, PROMPT, Kind, TaskSample

WIDTH_MULTIPLE = 8  # batches are padded to a multiple of this many positions


@dataclass(frozen=True)
class TaskBatch:
    """Samples of one kind, stacked; int64 arrays, or tensors after ``tensors``.

    Fields that a kind does not have are None:

    ==================== ============= ============ ============= ================ ==================
    field                single_token  multi_token  fast_decode   language_model   classification
    ==================== ============= ============ ============= ================ ==================
    input_ids            [b,s]         [b,c,s]      [b,s]         [b,s]            [b,s] or [b,c,s]
    position_ids         [b,2,s]       [b,c,2,s]    [b,2,s]       [b,2,s]          [b,2,s], [b,c,2,s]
    prefix_lengths       [b]           [b,c]        [b]           [b]              [b] or [b,c]
    target_ids           [b,l]         [b,c,s]      [b,c,r]       [b,s]
    loss_mask            [b,s]         [b,c,s]      [b,c,r]       [b,s]
    prompt_positions     [b,p]         [b,c,p]                    [b,p]
    segment_ids                        [b,c]
    choice_mask                        [b,c]        [b,c]                          [b,c]
    answer_ids                                      [b,c,r]
    answer_position_ids                             [b,c,2,r]
    answer_prefix_lengths                           [b,c]
    ==================== ============= ============ ============= ================ ==================

    Attributes:
        kind: of all samples.
        uids: of the samples, in order.
        labels: [b]; ``NO_LABEL`` for unlabelled examples, which no loss takes.
        position_ids: positions and block positions; without the dimension of 2 for a single row of positions.
        prefix_lengths: length of the context, which attends to itself in both directions; also the index of the first
            position that predicts something.
        target_ids: the verbalizer's id per label (single_token), else the token to predict at each position.
        loss_mask: 1 where something is predicted.
        prompt_positions: where the rows of ``input_ids`` have (as 0) the tokens of a continuous prompt, in order.
        segment_ids: which answer a row belongs to, where answers are cut into segments.
        choice_mask: 1 for real rows, 0 for those that fill up a sample with fewer.
        answer_ids, answer_position_ids, answer_prefix_lengths: what the answers feed after the context.
        shared_rows: [rows,width], where the model is run on rows that samples (or choices) share: the position among
            all b*s (or b*c*s) that stands there, -1 for padding. None where each has a row of its own.
        shared_starts: [b*c,2], of shared rows where answers of a sample begin alike (``model.shared_rows.SharedRows``).
    """

    kind: Kind
    uids: tuple[Any, ...]
    labels: Any
    input_ids: Any
    position_ids: Any
    prefix_lengths: Any
    target_ids: Any = None
    loss_mask: Any = None
    prompt_positions: Any = None
    segment_ids: Any = None
    choice_mask: Any = None
    answer_ids: Any = None
    answer_position_ids: Any = None
    answer_prefix_lengths: Any = None
    shared_rows: Any = None
    shared_starts: Any = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.uids)

    @property
    def num_real_tokens(self) -> int:
        """Return the tokens that the model reads, without padding and choices that fill up; of arrays, not tensors.

        What several choices have in common counts as often as it is read.
        """
        if self.shared_rows is not None:
            return int(np.count_nonzero(self.shared_rows >= 0))
        lengths = row_lengths(self.position_ids, self.input_ids.shape)
        total = lengths if self.choice_mask is None or lengths.ndim == 1 else lengths * (self.choice_mask != 0)
        if self.answer_ids is None:
            return int(total.sum())
        answers = row_lengths(self.answer_position_ids, self.answer_ids.shape)
        return int(total.sum() + (answers * (self.choice_mask != 0)).sum())

    def arrays(self) -> dict[str, Any]:
        """Return the arrays that there are, by field name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if name not in ("kind", "uids") and value is not None}

    def tensors(self) -> TaskBatch:
        """Return the batch as tensors that share its memory."""
        import torch

        changes: dict[str, Any] = {name: torch.from_numpy(value) for name, value in self.arrays().items()}
        return replace(self, **changes)


def collate(
    samples: Sequence[TaskSample],
    *,
    pad_id: int,
    pad_to: int | None = None,
    multiple_of: int = 1,
    share_rows: bool = False,
) -> TaskBatch:
    """Stack samples of one kind into a batch of arrays.

    Rows are padded at their end to the longest of the batch, rounded up to ``multiple_of``, or to ``pad_to`` positions
    (the original's layout). Samples with fewer choices than others repeat their first one; ``choice_mask`` is 0 there.
    With ``share_rows`` the batch says how samples share rows; what the answers of one have in common stands there once.
    """
    assert samples, "a batch needs samples"
    kind, choices = samples[0].kind, samples[0].choices
    assert all(sample.kind == kind for sample in samples), {sample.kind for sample in samples}
    longest = max(sample.length for sample in samples)
    width = pad_to or -(-longest // multiple_of) * multiple_of
    assert width >= longest, f"samples longer than {width}"
    counts = [sample.num_choices for sample in samples]
    most = max(counts)
    rows = [row for sample in samples for row in _filled(sample.rows, most if choices else 1)]
    values = stack_rows(rows, width=width, pad_id=pad_id)  # [4 or 5,b*c,s]
    leading = (len(samples), most) if choices else (len(samples),)

    def shaped(array: np.ndarray) -> np.ndarray:  # [b*c,...] to [b,c,...]
        return array.reshape(*leading, *array.shape[1:])

    arrays: dict[str, np.ndarray] = {"prefix_lengths": shaped(np.array([row.prefix_length for row in rows]))}
    prompts = values[0] == PROMPT
    if prompts.any():
        arrays["prompt_positions"] = shaped(prompts.nonzero()[1].reshape(len(rows), -1))
        values[0][prompts] = 0
    arrays["input_ids"], arrays["position_ids"] = shaped(values[0]), shaped(stacked_positions(values))
    if kind in ("single_token", "multi_token", "language_model"):
        arrays["target_ids"], arrays["loss_mask"] = shaped(values[1]), shaped(values[2])
    if kind == "single_token":
        arrays["target_ids"] = np.array([sample.label_ids for sample in samples])
    if kind == "fast_decode":
        arrays |= _answer_arrays(samples, most, pad_id=pad_id, pad_to=COMPATIBLE_FAST_ANSWER if pad_to else 0)
    if samples[0].segment_ids is not None:
        arrays["segment_ids"] = np.array([_filled(sample.segment_ids or (), most) for sample in samples])
    if most:
        arrays["choice_mask"] = (np.arange(most) < np.array(counts)[:, None]).astype(np.int64)
    if share_rows:
        assert kind != "fast_decode", kind
        arrays |= _shared_arrays(samples, most if choices else 1, width=width, multiple_of=multiple_of)
    labels = np.array([NO_LABEL if sample.label is None else sample.label for sample in samples])
    return TaskBatch(kind, tuple(sample.uid for sample in samples), labels, **arrays)


def shared_question(sample: TaskSample) -> Question | None:
    """Return a sample as one context with its answers, so that the context is run once.

    None where its rows have contexts of their own (or it has no answers, segments, prompts): those are run row by row.
    """
    if sample.kind != "multi_token" or sample.segment_ids is not None or PROMPT in sample.rows[0].input_ids:
        return None
    return Question.of_rows(sample.rows)


def _shared_arrays(samples: Sequence[TaskSample], most: int, *, width: int, multiple_of: int) -> dict[str, np.ndarray]:
    """Return ``shared_rows`` and, where answers begin alike, ``shared_starts`` of samples of up to ``most`` rows."""
    starts = np.zeros((len(samples) * most, 2), dtype=np.int64)
    pieces: list[np.ndarray] = []  # positions that stand together
    for number, sample in enumerate(samples):
        first = number * most
        question = shared_question(sample) if len(sample.rows) > 1 else None
        start = 0 if question is None else len(question.input_ids)
        starts[first + 1 : first + len(sample.rows)] = first, start
        parts = [
            (first + index) * width + np.arange(start if index else 0, len(row))
            for index, row in enumerate(sample.rows)
        ]
        pieces += [np.concatenate(parts)] if start else parts
    lengths = list(map(len, pieces))
    rows = shared_positions(lengths, fitting_rows(lengths), stride=max(lengths), multiple_of=multiple_of)
    unit, place = np.divmod(rows, max(lengths))
    positions = np.array([np.pad(piece, (0, max(lengths) - len(piece))) for piece in pieces])[unit, place]
    arrays = {"shared_rows": np.where(rows >= 0, positions, -1)}
    return arrays | {"shared_starts": starts} if starts[:, 1].any() else arrays


def _answer_arrays(samples: Sequence[TaskSample], most: int, *, pad_id: int, pad_to: int) -> dict[str, np.ndarray]:
    """Return the fields of ``TaskBatch`` that are about the answers of ``fast_decode``, at least ``pad_to`` long."""
    rows = [row for sample in samples for row in _filled(sample.answers, most)]
    values = stack_rows(rows, width=max(pad_to, *map(len, rows)), pad_id=pad_id)
    arrays = {
        "answer_ids": values[0],
        "answer_position_ids": stacked_positions(values),
        "answer_prefix_lengths": np.array([row.prefix_length for row in rows]),
        "target_ids": values[1],
        "loss_mask": values[2],
    }
    return {name: array.reshape(len(samples), most, *array.shape[1:]) for name, array in arrays.items()}


def _filled(rows: Sequence[Any], count: int) -> Sequence[Any]:
    return [*rows, *[rows[0]] * (count - len(rows))]


def length_buckets(samples: Sequence[TaskSample]) -> list[int]:
    """Return the numbers of the samples by number of choices, then by length: neighbours waste no padding."""
    return sorted(range(len(samples)), key=lambda number: (samples[number].num_choices, samples[number].length))
