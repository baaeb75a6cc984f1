"""Plain left-to-right language modelling: "GPT2" and "GPT-XL" data of the original.

b batch, s sequence, m memory of segment recurrence, k columns (m + s), L sequence length, M memory length
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_utils.batches import Batch
from data_utils.corpora.store import Documents
from data_utils.objective import Objective
from data_utils.objective.packing import ITEMS_PER_DOCUMENT, DocumentPicker, ItemGenerator, Sample, seed_words

if TYPE_CHECKING:
    from data_utils.tokenizers.tokenizer import Tokenizer


class CausalDataset:
    """Samples of exactly L + 1 tokens: documents closed by eos, one after the other, padded."""

    def __init__(
        self,
        documents: Documents,
        *,
        tokenizer: Tokenizer,
        seq_length: int,
        sample_across_documents: bool = True,
        by_length: bool = True,
        random_followers: bool = True,
        accept: Callable[[np.ndarray], bool] | None = None,
    ) -> None:
        """Set up the data set.

        Args:
            documents: what to sample from.
            tokenizer: knows eos and pad.
            seq_length: L.
            sample_across_documents: fill a sample up with further documents instead of padding it.
            by_length: draw documents in proportion to their length, else all alike.
            random_followers: draw the further documents, else take the next ones.
            accept: sees the token ids of a drawn document; a rejected one is drawn again.
        """
        if seq_length < 1:
            raise ValueError(f"--seq-length is {seq_length}; at least 1 is needed")
        self.picker = DocumentPicker(documents, by_length=by_length, accept=accept)
        self.seq_length = seq_length
        self.sample_across_documents = sample_across_documents
        self.random_followers = random_followers
        self._eos = tokenizer.command_id("eos")
        self._pad = tokenizer.command_id("pad")
        self._length = ITEMS_PER_DOCUMENT * len(documents)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index``: L + 1 tokens."""
        size = self.seq_length + 1
        generator = ItemGenerator(seed_words(index))
        number = self.picker.pick_number(generator)
        document = self.picker.documents[number]
        tokens = np.full(size, self._pad, dtype=np.int64)
        loss_mask = np.zeros(size, dtype=np.int64)
        extra = len(document.tokens) + 1 - size
        start = generator.randint(extra + 1) if extra > 0 else 0
        length = 0
        while True:
            rest = min(len(document.tokens) - start, size - length)
            tokens[length : length + rest] = document.tokens[start : start + rest]
            loss_mask[length : length + rest] = document.loss_mask()[start : start + rest]
            length += rest
            if length < size:
                tokens[length], loss_mask[length] = self._eos, 1
                length += 1
            if length == size or not self.sample_across_documents:
                return Sample(tokens, loss_mask)
            if self.random_followers:
                number = self.picker.pick_number(generator)
            else:
                number = (number + 1) % len(self.picker.documents)
            document, start = self.picker.documents[number], 0


@dataclass(frozen=True)
class SegmentSample:
    """A stretch of the corpus for segment recurrence, int64."""

    tokens: np.ndarray  # [s]
    target_ids: np.ndarray  # [s], the next token, eos at the end of a document
    loss_mask: np.ndarray  # [s]
    attention_mask: np.ndarray  # [s,k], 1 = same document


class SegmentDataset:
    """All documents end to end in stretches of L tokens, for a memory of M tokens."""

    def __init__(self, documents: Documents, *, tokenizer: Tokenizer, seq_length: int, memory_length: int) -> None:
        if seq_length < 1 or memory_length < 0:
            raise ValueError(
                f"--seq-length {seq_length} with --mem-length {memory_length}; at least 1 and 0 are needed"
            )
        self.documents = documents
        self.seq_length = seq_length
        self.memory_length = memory_length
        self._eos = tokenizer.command_id("eos")
        self._pad = tokenizer.command_id("pad")
        self._ends = np.cumsum(np.asarray(documents.lengths, dtype=np.int64))
        self._num_tokens = int(self._ends[-1]) if len(self._ends) else 0

    def __len__(self) -> int:
        return self._num_tokens // self.seq_length + 1

    def __getitem__(self, index: int) -> SegmentSample:
        """Return the stretch that begins ``index * L`` tokens into the corpus, padded at the corpus' end."""
        size, memory = self.seq_length, self.memory_length
        place = index * size
        tokens = np.full(size, self._pad, dtype=np.int64)
        targets = tokens.copy()
        loss_mask = np.zeros(size, dtype=np.int64)
        attention_mask = np.ones((size, memory + size), dtype=np.int64)
        number = int(self._ends.searchsorted(place, side="right"))
        start = place - (int(self._ends[number - 1]) if number else 0)
        attention_mask[:, : memory - min(memory, start)] = 0
        length = 0
        while length < size and number < len(self.documents):
            document = self.documents[number]
            attention_mask[length:, : memory + length] *= length == 0  # a further document sees nothing before it
            copied = min(len(document.tokens) - start, size - length)
            here, following = slice(length, length + copied), slice(start + 1, start + 1 + copied)
            tokens[here] = document.tokens[start : start + copied]
            targets[here], loss_mask[here] = self._eos, 1
            known = len(document.tokens[following])  # all but the last token of a document have a next one
            targets[length : length + known] = document.tokens[following]
            loss_mask[length : length + known] = document.loss_mask()[following]
            length += copied
            number, start = number + 1, 0
        return SegmentSample(tokens, targets, loss_mask, attention_mask)


@dataclass(frozen=True)
class SegmentPlan:
    """The numbered batches of segment recurrence: each row of the batch reads its own stretch in order.

    Row i of the global batch starts at sample ``i * (num_samples // global_batch_size)``.

    Attributes:
        num_samples: samples in the data set.
        global_batch_size: samples of all ranks together.
        num_batches: batches of the run, what counts as one pass.
        rank, world_size: data-parallel rank and number of ranks.
    """

    num_samples: int
    global_batch_size: int
    num_batches: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return self.num_batches

    def numbers(self, batch_index: int) -> list[int]:
        """Return the sample numbers of batch ``batch_index`` (any size) that are this rank's."""
        stretch = self.num_samples // self.global_batch_size
        low = self.rank * self.global_batch_size // self.world_size
        high = (self.rank + 1) * self.global_batch_size // self.world_size
        return [(batch_index + row * stretch) % self.num_samples for row in range(low, high)]


@dataclass(frozen=True)
class CausalMasks:
    """What goes with the input ids of a left-to-right batch."""

    attention_mask: np.ndarray  # int64 [1,1,s,k] or [b,1,s,k], 1 = visible
    loss_mask: np.ndarray  # int64 [b,s]
    position_ids: np.ndarray  # int64 [b,s]


def causal_masks(
    input_ids: np.ndarray,
    *,
    eos: int,
    reset_position_ids: bool = False,
    reset_attention_mask: bool = False,
    memory_length: int = 0,
    loss_mask: np.ndarray | None = None,
    attention_mask: np.ndarray | None = None,
) -> CausalMasks:
    """Return the masks and positions of ``input_ids`` [b,s].

    Args:
        input_ids: tokens [b,s].
        eos: end of a document.
        reset_position_ids: start counting again after each eos.
        reset_attention_mask: see nothing of the documents before.
        memory_length: M; columns of the memory come first, a row sees s - 1 columns back at most.
        loss_mask: [b,s]; None: all but the eos tokens of the input.
        attention_mask: [b,s,k] what else limits the attention (``SegmentSample``).
    """
    size = input_ids.shape[1]
    rows, columns = np.arange(size)[:, None], np.arange(memory_length + size)
    visible = columns <= rows + memory_length
    if memory_length:
        visible &= columns >= rows - (size - 1) + memory_length
    mask = visible[None]  # [1 or b,s,k]
    is_end = input_ids == eos
    document = np.cumsum(is_end, axis=1) - is_end  # [b,s], number of the document of each token in its row
    if reset_attention_mask:
        of_column = np.concatenate([np.zeros((len(input_ids), memory_length), dtype=np.int64), document], axis=1)
        mask = mask & (document[:, :, None] == of_column[:, None, :])
    if attention_mask is not None:
        mask = mask & (attention_mask != 0)
    positions = np.tile(np.arange(size), (len(input_ids), 1))
    if reset_position_ids:
        first = np.diff(document, axis=1, prepend=0) > 0  # first token of a further document
        positions -= np.maximum.accumulate(np.where(first, positions, 0), axis=1)
    if loss_mask is None:
        loss_mask = ~is_end
    return CausalMasks(mask[:, None].astype(np.int64), loss_mask.astype(np.int64), positions)


@dataclass(frozen=True)
class CausalCollator:
    """Turn samples of ``CausalDataset`` into a batch: every token is predicted from those before it."""

    eos: int
    reset_position_ids: bool = False
    reset_attention_mask: bool = False

    def __call__(self, samples: Sequence[Sample], *, batch_index: int) -> Batch:
        """Build a batch; nothing is drawn, so that its number does not matter."""
        tokens = np.stack([sample.tokens for sample in samples])  # [b,s+1]
        loss_mask = np.stack([sample.loss_mask for sample in samples])
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        masks = causal_masks(
            inputs,
            eos=self.eos,
            reset_position_ids=self.reset_position_ids,
            reset_attention_mask=self.reset_attention_mask,
        )
        loss_mask = loss_mask[:, 1:] * masks.loss_mask
        return Batch(
            inputs, targets, loss_mask, masks.position_ids, masks.attention_mask, Objective.DOCUMENT, layout="matrix"
        )


@dataclass(frozen=True)
class SegmentCollator:
    """Turn samples of ``SegmentDataset`` into a batch."""

    eos: int
    memory_length: int

    def __call__(self, samples: Sequence[SegmentSample], *, batch_index: int) -> Batch:
        """Build a batch; nothing is drawn, so that its number does not matter."""
        inputs = np.stack([sample.tokens for sample in samples])
        masks = causal_masks(
            inputs,
            eos=self.eos,
            memory_length=self.memory_length,
            loss_mask=np.stack([sample.loss_mask for sample in samples]),
            attention_mask=np.stack([sample.attention_mask for sample in samples]),
        )
        targets = np.stack([sample.target_ids for sample in samples])
        return Batch(
            inputs,
            targets,
            masks.loss_mask,
            masks.position_ids,
            masks.attention_mask,
            Objective.DOCUMENT,
            layout="matrix",
        )
