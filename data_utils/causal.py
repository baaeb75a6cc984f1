"""Samples and masks of plain left-to-right language models (spec: pretraining 5.2, 5.3, 8).

The data side of the original's GPT-2 and Transformer-XL pre-training; blank infilling does not use it.
L sequence length, M memory length, b batch
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_utils.block_infilling import Sample
from data_utils.packing import ITEMS_PER_DOCUMENT, DocumentPicker, Documents, concatenate, item_generator


class CausalDataset:
    """Samples of L + 1 tokens: a piece of one document, or several documents end to end, padded (5.2)."""

    def __init__(
        self,
        documents: Documents,
        *,
        eos: int,
        seq_length: int,
        sample_across_documents: bool = True,
        weighted: bool = True,
        draw_following: bool = True,
    ) -> None:
        """``weighted`` draws documents by length, else evenly; ``draw_following`` draws the ones that fill up, too."""
        self.picker = DocumentPicker(documents, eos=eos)
        self.seq_length = seq_length
        self.sample_across_documents = sample_across_documents
        self.weighted = weighted
        self.draw_following = draw_following
        self._pad = eos
        self._num_documents = len(documents)

    def __len__(self) -> int:
        return ITEMS_PER_DOCUMENT * self._num_documents

    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index``: L + 1 tokens and their weights."""
        generator = item_generator(index)
        number = self._draw(generator)
        sample = self.picker.closed(number)
        excess = len(sample.tokens) - self.seq_length - 1
        if excess > 0:
            start = generator.randint(excess + 1)
            end = start + self.seq_length + 1
            return Sample(sample.tokens[start:end], sample.loss_mask[start:end])
        parts, length = [sample], len(sample.tokens)
        while self.sample_across_documents and length < self.seq_length + 1:
            number = self._draw(generator) if self.draw_following else (number + 1) % self._num_documents
            parts.append(self.picker.closed(number))
            length += len(parts[-1].tokens)
        joined = concatenate(parts)
        tokens = np.full(self.seq_length + 1, self._pad, dtype=np.int64)
        weights = np.zeros(self.seq_length + 1, dtype=np.int64)
        length = min(length, self.seq_length + 1)
        tokens[:length] = joined.tokens[:length]
        weights[:length] = joined.loss_mask[:length]
        return Sample(tokens, weights)

    def _draw(self, generator: np.random.RandomState) -> int:
        return self.picker.draw(generator) if self.weighted else generator.randint(self._num_documents)


@dataclass(frozen=True)
class SegmentSample:
    """One segment of a corpus read end to end, with what it may see of itself and of the segment before."""

    tokens: np.ndarray  # [L]
    targets: np.ndarray  # [L]
    loss_mask: np.ndarray  # [L]
    attention_mask: np.ndarray  # [L,M+L], 1 = visible


class SegmentDataset:
    """All documents end to end, cut into segments of L tokens, for segment recurrence (5.3)."""

    def __init__(self, documents: Documents, *, eos: int, seq_length: int, memory_length: int) -> None:
        self.documents = documents
        self.eos = eos
        self.seq_length = seq_length
        self.memory_length = memory_length
        self._ends = np.cumsum(np.asarray(documents.lengths, dtype=np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1]) // self.seq_length + 1

    def __getitem__(self, index: int) -> SegmentSample:
        """Return the segment that begins at token ``index * L`` of the corpus."""
        length, memory = self.seq_length, self.memory_length
        tokens, targets = (np.full(length, self.eos, dtype=np.int64) for _ in range(2))
        loss = np.zeros(length, dtype=np.int64)
        mask = np.ones((length, memory + length), dtype=np.int64)
        offset = index * length
        number = int(np.searchsorted(self._ends, offset, side="right"))
        first = number
        inside = offset - (int(self._ends[number - 1]) if number else 0)
        mask[:, : memory - min(memory, inside)] = 0
        filled = 0
        while filled < length and number < len(self.documents):
            document = self.documents[number]
            if number > first:
                mask[filled:, : filled + memory] = 0
            weights = np.ones(len(document.tokens) + 1, dtype=np.int64)
            weights[:-1] = document.loss_mask()
            closed = np.append(np.asarray(document.tokens, dtype=np.int64), self.eos)
            count = min(length - filled, len(closed) - 1 - inside)
            tokens[filled : filled + count] = closed[inside : inside + count]
            targets[filled : filled + count] = closed[inside + 1 : inside + count + 1]
            loss[filled : filled + count] = weights[inside + 1 : inside + count + 1]
            filled += count
            inside = 0
            number += 1
        return SegmentSample(tokens, targets, loss, mask)


@dataclass(frozen=True)
class CausalMasks:
    """What a left-to-right batch needs beside its tokens."""

    attention_mask: np.ndarray  # [b or 1,1,L,M+L], 1 = visible
    loss_mask: np.ndarray  # [b,L]
    position_ids: np.ndarray  # [b,L]


def causal_masks(
    tokens: np.ndarray,
    *,
    eos: int,
    loss_mask: np.ndarray | None = None,
    attention_mask: np.ndarray | None = None,
    reset_position_ids: bool = False,
    reset_attention_mask: bool = False,
    memory_length: int | None = None,
    clear_loss_at_eos: bool = True,
) -> CausalMasks:
    """Build the masks of a batch of tokens [b,L] (spec: pretraining 8).

    ``attention_mask`` [b,L,M+L], when given, restricts the causal one further. The resets begin anew after every eos.
    With a memory of M positions a row sees the M + 1 columns that end at its own.
    """
    batch_size, length = tokens.shape
    if loss_mask is None:
        loss_mask = np.ones((batch_size, length), dtype=np.float32)
    loss_mask = np.array(loss_mask, dtype=np.float32)
    memory = memory_length or 0
    causal = np.tril(np.ones((length, memory + length), dtype=np.float32), k=memory)
    if memory:
        causal = np.triu(causal, k=1 - length + memory)
    if attention_mask is None:
        rows = batch_size if reset_attention_mask else 1
        attention_mask = np.repeat(causal[None, None], rows, axis=0)
    else:
        attention_mask = np.asarray(attention_mask, dtype=np.float32)[:, None] * causal
    if clear_loss_at_eos:
        loss_mask[tokens == eos] = 0.0
    position_ids = np.repeat(np.arange(length)[None], batch_size, axis=0)
    if reset_position_ids or reset_attention_mask:
        for row in range(batch_size):
            for place in np.flatnonzero(tokens[row] == eos).tolist():
                if reset_attention_mask:
                    attention_mask[row, 0, place + 1 :, : place + 1] = 0.0
                if reset_position_ids:
                    position_ids[row, place + 1 :] = np.arange(length - place - 1)
    return CausalMasks(attention_mask, loss_mask, position_ids)
