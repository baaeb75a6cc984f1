"""Samples to batches: the one place where they are padded and become tensors.

b batch, s sequence, c choices (rows of a sample), l labels, p prompt tokens, r positions of an answer

Padding to the longest sample is trimmed padding; with ``share_rows`` samples stand in each other's room as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from data_utils.batches import fitting_rows, shared_positions
from tasks.samples import Kind, TaskSample

# Fields whose last axis is the sequence; the ids are padded with the padding id, everything else with 0.
_ALONG_SEQUENCE: dict[Kind, frozenset[str]] = {
    "single_token": frozenset(("input_ids", "position_ids", "loss_mask")),
    "multi_token": frozenset(("input_ids", "position_ids", "target_ids", "loss_mask")),
    "language_model": frozenset(("input_ids", "position_ids", "target_ids", "loss_mask")),
    "fast_decode": frozenset(("input_ids", "position_ids")),
    "classification": frozenset(("input_ids", "position_ids")),
    "encoder": frozenset(("input_ids", "token_types", "padding_mask")),
}
# Fields of fast decode whose last axis is the answer.
_ALONG_ANSWER = frozenset(("target_ids", "loss_mask", "answer_ids", "answer_position_ids"))
# Fields that have one row per choice although the context has none.
_ANSWER_FIELDS = frozenset(("target_ids", "loss_mask", "answer_ids", "answer_position_ids", "answer_prefix_lengths"))
_ARRAY_FIELDS = tuple(field.name for field in fields(TaskSample) if field.name not in ("kind", "uid", "label"))


@dataclass(frozen=True)
class TaskBatch:
    """Samples of one kind, stacked; int64 arrays, or tensors after ``to_tensors``. See ``TaskSample`` for the fields.

    Attributes:
        kind: of all samples.
        uids: of the samples, in order.
        labels: [b].
        input_ids: [b,s], or [b,c,s] where samples have rows.
        position_ids: [b,2,s] or [b,c,2,s]; one dimension less with one row of positions.
        attention_mask: prefix_lengths [b] or [b,c].
        target_ids: [b,l] for single_token, [b,c,s] for multi_token, [b,c,r] for fast_decode, [b,s] for language_model.
        loss_mask: like target_ids, but [b,s] for single_token.
        prompt_positions: [b,p] or [b,c,p]; None without prompt tokens.
        segment_ids: [b,c].
        choice_mask: [b,c], 1 for real rows, 0 for those that fill up a sample with fewer; None without rows.
        answer_ids: [b,c,r].
        answer_position_ids: [b,c,2,r].
        answer_prefix_lengths: [b,c].
        token_types, padding_mask: [b,s] or [b,c,s], encoder only.
        shared_rows: [rows,width], where the model is run on rows that samples (or choices) share: the position among
            all b*s (or b*c*s) that stands there, -1 for padding. None where each has a row of its own.
    """

    kind: Kind
    uids: tuple[Any, ...]
    labels: Any
    input_ids: Any
    position_ids: Any = None
    attention_mask: Any = None
    target_ids: Any = None
    loss_mask: Any = None
    prompt_positions: Any = None
    segment_ids: Any = None
    choice_mask: Any = None
    answer_ids: Any = None
    answer_position_ids: Any = None
    answer_prefix_lengths: Any = None
    token_types: Any = None
    padding_mask: Any = None
    shared_rows: Any = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.uids)

    def arrays(self) -> dict[str, Any]:
        """Return the arrays that there are, by field name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if name not in ("kind", "uids") and value is not None}


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
    (the original's layout). Samples with fewer rows than others repeat their first one; ``choice_mask`` is 0 there.
    With ``share_rows`` the batch says how samples share rows.
    """
    assert samples, "a batch needs samples"
    kind = samples[0].kind
    assert all(sample.kind == kind for sample in samples), {sample.kind for sample in samples}
    length = pad_to or -(-max(sample.length for sample in samples) // multiple_of) * multiple_of
    assert length >= max(sample.length for sample in samples), f"samples longer than {length}"
    row_counts = [_num_choices(sample) for sample in samples]
    num_rows = max(row_counts)
    arrays: dict[str, np.ndarray] = {}
    for name in _ARRAY_FIELDS:
        values = [getattr(sample, name) for sample in samples]
        if values[0] is None or (name == "prompt_positions" and values[0].shape[-1] == 0):
            continue
        if name in _ALONG_SEQUENCE[kind]:
            fill = pad_id if name == "input_ids" else 0
            values = [_pad_end(value, length, fill) for value in values]
        elif kind == "fast_decode" and name in _ALONG_ANSWER:
            longest = max(value.shape[-1] for value in values)
            values = [_pad_end(value, longest, pad_id if name == "answer_ids" else 0) for value in values]
        if num_rows and (kind != "fast_decode" or name in _ANSWER_FIELDS):
            values = [_repeat_first(value, num_rows) for value in values]
        arrays[name] = np.stack(values).astype(np.int64)
    if num_rows:
        arrays["choice_mask"] = (np.arange(num_rows) < np.array(row_counts)[:, None]).astype(np.int64)
    if share_rows:
        arrays["shared_rows"] = _shared_rows(kind, arrays, multiple_of=multiple_of)
    labels = np.array([sample.label for sample in samples], dtype=np.int64)
    return TaskBatch(kind, tuple(sample.uid for sample in samples), labels, **arrays)


def _shared_rows(kind: Kind, arrays: Mapping[str, np.ndarray], *, multiple_of: int) -> np.ndarray:
    """Return ``TaskBatch.shared_rows`` for stacked samples; rows that only fill up a sample are left out."""
    assert kind in ("single_token", "multi_token", "language_model", "classification"), kind
    width = arrays["input_ids"].shape[-1]
    prefix_lengths = arrays["attention_mask"].reshape(-1)
    if kind in ("multi_token", "language_model"):
        predicted = arrays["loss_mask"].reshape(-1, width) != 0
        needed = np.maximum(prefix_lengths, ((np.arange(width) + 1) * predicted).max(axis=1))
    else:
        needed = np.minimum(prefix_lengths + 1, width)  # the head reads at the prefix_length at most
    if "choice_mask" in arrays:
        needed = needed * arrays["choice_mask"].reshape(-1)
    real = np.flatnonzero(needed)
    rows = [real[row].tolist() for row in fitting_rows(needed[real].tolist())]
    return shared_positions(needed.tolist(), rows, stride=width, multiple_of=multiple_of)


def to_tensors(batch: TaskBatch) -> TaskBatch:
    """Turn a batch's arrays into tensors that share their memory; the one place where arrays become tensors."""
    import torch

    return replace(batch, **{name: torch.from_numpy(value) for name, value in batch.arrays().items()})


def length_buckets(samples: Sequence[TaskSample]) -> list[int]:
    """Return the numbers of the samples by number of rows, then by length: neighbours waste no padding."""
    return sorted(range(len(samples)), key=lambda number: (_num_choices(samples[number]), samples[number].length))


def _num_choices(sample: TaskSample) -> int:
    """Return the number of rows, 0 for a sample without rows."""
    rows = sample.answer_ids if sample.kind == "fast_decode" else sample.input_ids
    assert rows is not None
    return rows.shape[0] if rows.ndim == 2 else 0


def _pad_end(values: np.ndarray, length: int, fill: int) -> np.ndarray:
    widths = [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])]
    return np.pad(values, widths, constant_values=fill)


def _repeat_first(values: np.ndarray, num_rows: int) -> np.ndarray:
    missing = num_rows - values.shape[0]
    return np.concatenate([values, np.repeat(values[:1], missing, axis=0)]) if missing else values
