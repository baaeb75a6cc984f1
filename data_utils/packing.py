"""Pack documents into samples of up to L tokens for blank infilling (spec: pretraining 5, 5.1).

Item i depends on i and the documents only: its generator is seeded with i. Documents are drawn in proportion to their
length. N is the length of a sample, L the sequence length.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from data_utils.block_infilling import CommandVocabulary, Sample

ITEMS_PER_DOCUMENT = 1000  # the nominal length of a packed data set, as in the original
SEED_WORDS = 16  # 32-bit words that seed the generator of one item


class Document(Protocol):
    """Token ids of one document, and which of them are to be predicted (a prompt is only read)."""

    tokens: np.ndarray

    def loss_mask(self) -> np.ndarray:
        """Return 1 for each token that is to be predicted."""


class Documents(Protocol):
    """A sequence of documents that knows their lengths (prompt and text, without eos), int64."""

    lengths: np.ndarray

    def __len__(self) -> int:
        """Return the number of documents."""

    def __getitem__(self, index: int) -> Document:
        """Return one document."""


def item_generator(index: int) -> np.random.RandomState:
    """Return the generator of item ``index``: 16 words of a Python generator seed NumPy's (spec: pretraining 5)."""
    seeder = random.Random(index)
    return np.random.RandomState([seeder.randint(0, 2**32 - 1) for _ in range(SEED_WORDS)])


class DocumentPicker:
    """Draw documents in proportion to their length and close them with eos."""

    def __init__(self, documents: Documents, *, eos: int, accept: Callable[[np.ndarray], bool] | None = None) -> None:
        """``accept`` sees the token ids of a drawn document; a rejected one is drawn again."""
        self.documents = documents
        self.eos = eos
        self.accept = accept
        self._ends = np.cumsum(np.asarray(documents.lengths, dtype=np.int64))
        if not len(self._ends) or self._ends[-1] == 0:
            raise ValueError("the corpus holds no tokens: check --train-data and --text-field")

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens in all documents."""
        return int(self._ends[-1])

    def pick(self, generator: np.random.RandomState) -> Sample:
        """Draw a document that is accepted."""
        while True:
            number = self.draw(generator)
            if self.accept is None or self.accept(self.documents[number].tokens):
                return self.closed(number)

    def draw(self, generator: np.random.RandomState) -> int:
        """Draw the number of a document."""
        return int(np.searchsorted(self._ends, generator.randint(self.num_tokens), side="right"))

    def closed(self, number: int) -> Sample:
        """Return document ``number`` with eos at its end, and 1 for each token that is to be predicted."""
        document = self.documents[number]
        tokens = np.empty(len(document.tokens) + 1, dtype=np.int64)
        tokens[:-1] = document.tokens
        tokens[-1] = self.eos
        loss_mask = np.ones(len(tokens), dtype=np.int64)
        loss_mask[:-1] = document.loss_mask()
        return Sample(tokens, loss_mask)


class BlockDataset:
    """Samples of up to ``seq_length`` tokens, each document opened by ENC and closed by eos (spec: pretraining 5.1)."""

    def __init__(
        self,
        documents: Documents,
        *,
        vocabulary: CommandVocabulary,
        seq_length: int,
        sample_across_documents: bool = True,
        non_sentence_start: float = 0.0,
        accept: Callable[[np.ndarray], bool] | None = None,
    ) -> None:
        if seq_length < 2:
            raise ValueError(f"--seq-length is {seq_length}; at least 2 is needed")
        self.picker = DocumentPicker(documents, eos=vocabulary.command_id("eos"), accept=accept)
        self.seq_length = seq_length
        self.sample_across_documents = sample_across_documents
        self.non_sentence_start = non_sentence_start
        self._enc = vocabulary.command_id("ENC")
        self._sentence_end = vocabulary.sentence_end_table("document")
        self._length = ITEMS_PER_DOCUMENT * len(documents)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index``: at most ``seq_length`` tokens, not padded."""
        generator = item_generator(index)
        picked = self.picker.pick(generator)
        extra = len(picked.tokens) - self.seq_length + 1
        if extra > 0:
            start = self._move_to_sentence(generator, picked.tokens, generator.randint(extra))
            return self._cut(self._open(picked, start), self.seq_length)
        parts = [self._open(picked, 0)]
        length = len(parts[0].tokens)
        while self.sample_across_documents and length < self.seq_length:
            following = self._open(self.picker.pick(generator), 0)
            last = len(following.tokens) >= self.seq_length - length
            parts.append(self._cut(following, self.seq_length - length))
            length += len(parts[-1].tokens)
            if last:
                break
        return concatenate(parts)

    def _open(self, sample: Sample, start: int) -> Sample:
        """Put ENC in front of what begins at ``start``."""
        return Sample(
            np.concatenate([[self._enc], sample.tokens[start:]]), np.concatenate([[0], sample.loss_mask[start:]])
        )

    def _move_to_sentence(self, generator: np.random.RandomState, tokens: np.ndarray, start: int) -> int:
        """Move a drawn start to the beginning of a sentence, left or right, by at most half the sequence length."""
        if generator.random_sample() <= self.non_sentence_start:
            return start
        reach = self.seq_length // 2
        if generator.random_sample() < 0.5:
            low = max(0, start - reach)
            ends = np.flatnonzero(self._sentence_end[tokens[low:start]])
            return low + int(ends[-1]) + 1 if len(ends) else low
        high = min(len(tokens), start + reach)
        before = tokens[np.arange(start, high) - 1]  # the token before each possible start; that of 0 is the last one
        ends = np.flatnonzero(self._sentence_end[before])
        return start + int(ends[0]) if len(ends) else high

    def _cut(self, sample: Sample, length: int) -> Sample:
        """Cut a sample on the right to ``length`` tokens or fewer, after a sentence end where one is near."""
        tokens = sample.tokens
        excess = len(tokens) - length
        if excess <= 0:
            return sample
        kept = np.flatnonzero(self._sentence_end[tokens[1:length]])  # cuts after index 1 .. length - 1
        end = int(kept[-1]) + 2 if len(kept) else 1
        if end < length // 2:
            end = length
        return Sample(tokens[:end], sample.loss_mask[:end])


def concatenate(samples: Sequence[Sample]) -> Sample:
    """Join samples end to end."""
    if len(samples) == 1:
        return samples[0]
    return Sample(np.concatenate([s.tokens for s in samples]), np.concatenate([s.loss_mask for s in samples]))
