"""Samples to training batches: the one place where they are padded and become tensors.

b batch, s sequence
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_utils.batches import FilledSample, pack_batch
from data_utils.objective import Objective
from tasks.seq2seq.examples import Seq2SeqSample


@dataclass(frozen=True)
class Seq2SeqBatch:
    """Sources and targets of several samples; int64 arrays.

    Attributes:
        uids: of the samples, in order.
        input_ids: [b,s].
        position_ids: [b,2,s], positions and block positions.
        prefix_lengths: [b], that many first columns are seen by all, the rest causally. Where samples share rows it is
            [b,2,s] and b counts rows, see ``data_utils.batches.pack_batch``.
        target_ids: [b,s].
        loss_mask: [b,s], 1 where a target id is to be predicted.
    """

    uids: tuple[Any, ...]
    input_ids: np.ndarray
    position_ids: np.ndarray
    prefix_lengths: np.ndarray
    target_ids: np.ndarray
    loss_mask: np.ndarray

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.uids)


def collate(
    samples: Sequence[Seq2SeqSample],
    *,
    pad_id: int,
    visible_padding: bool = False,
    multiple_of: int = 1,
    share_rows: bool = False,
) -> Seq2SeqBatch:
    """Stack training samples.

    The padding of a source is cut out: its target follows directly, which no position depends on, and the rows are
    padded at their end, where nothing looks, to the longest of the batch rounded up to ``multiple_of``. With
    ``visible_padding`` the samples are stacked as they are; the original lets targets see the padding of their source.
    With ``share_rows`` several samples stand in a row.
    """
    assert samples, "a batch needs samples"
    assert all(sample.target_ids is not None and sample.loss_mask is not None for sample in samples), "no targets"
    kept = [_kept_columns(sample, visible_padding=visible_padding) for sample in samples]
    prefix_lengths = [sample.prefix_length if visible_padding else sample.context_length for sample in samples]
    if share_rows:
        return _in_shared_rows(samples, kept, prefix_lengths, multiple_of=multiple_of)
    longest = max(map(len, kept))
    width = longest if visible_padding else -(-longest // multiple_of) * multiple_of
    input_ids = np.full((len(samples), width), pad_id, dtype=np.int64)
    position_ids = np.zeros((len(samples), 2, width), dtype=np.int64)
    target_ids = np.zeros((len(samples), width), dtype=np.int64)
    loss_mask = np.zeros((len(samples), width), dtype=np.int64)
    for row, (sample, columns) in enumerate(zip(samples, kept, strict=True)):
        input_ids[row, : len(columns)] = sample.input_ids[columns]
        position_ids[row, :, : len(columns)] = sample.position_ids[:, columns]
        target_ids[row, : len(columns)] = sample.target_ids[columns]
        loss_mask[row, : len(columns)] = sample.loss_mask[columns]
    return Seq2SeqBatch(
        uids=tuple(sample.uid for sample in samples),
        input_ids=input_ids,
        position_ids=position_ids,
        prefix_lengths=np.array(prefix_lengths, dtype=np.int64),
        target_ids=target_ids,
        loss_mask=loss_mask,
    )


def _in_shared_rows(
    samples: Sequence[Seq2SeqSample],
    kept: Sequence[np.ndarray],
    prefix_lengths: Sequence[int],
    *,
    multiple_of: int,
) -> Seq2SeqBatch:
    """Stack the columns of samples that are kept, several samples in a row."""
    filled = []
    for sample, columns, prefix_length in zip(samples, kept, prefix_lengths, strict=True):
        lines = np.stack([sample.input_ids, sample.target_ids, sample.loss_mask, *sample.position_ids])  # [5,n]
        filled.append(FilledSample(lines[:, columns], prefix_length))
    batch = pack_batch(filled, Objective.DOCUMENT, multiple_of=multiple_of)
    return Seq2SeqBatch(
        uids=tuple(sample.uid for sample in samples),
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        prefix_lengths=batch.attention_mask,
        target_ids=batch.target_ids,
        loss_mask=batch.loss_mask,
    )


def _kept_columns(sample: Seq2SeqSample, *, visible_padding: bool) -> np.ndarray:
    """Return the columns of a sample that its batch holds: all, or source and target without their padding."""
    if visible_padding:
        return np.arange(len(sample.input_ids))
    predicted = np.flatnonzero(sample.loss_mask)
    end = int(predicted[-1]) + 1 if len(predicted) else sample.prefix_length
    return np.concatenate([np.arange(sample.context_length), np.arange(sample.prefix_length, end)])
