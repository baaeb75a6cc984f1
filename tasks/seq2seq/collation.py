"""Samples to training batches.

b batch, s sequence
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_utils.batches import Batch, pack_batch, pad_batch
from data_utils.objective import Objective
from data_utils.rows import Row
from tasks.seq2seq.examples import Seq2SeqSample


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
