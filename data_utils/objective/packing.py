"""Pack documents into samples of up to L tokens for blank infilling.

Item i depends on i and the documents only: its generator is seeded with i. Documents are drawn in proportion to their
length. N is the length of a sample, L the sequence length.
"""

from __future__ import annotations

import struct
from _random import Random as Twister  # what random.Random builds on, without its handling of seeds of other types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from data_utils.corpora.store import Document, Documents

if TYPE_CHECKING:
    from data_utils.tokenizers.tokenizer import Tokenizer

ITEMS_PER_DOCUMENT = 1000  # the nominal length of a packed data set, as in the original
SEED_WORDS = 16  # 32-bit words that seed the generator of one item
WORD = 1 << 32


@dataclass(frozen=True)
class Sample:
    """A packed piece of text.

    Attributes:
        tokens: ids, int64 [N].
        loss_mask: the weight of predicting each of them, int64 [N].
        pieces: the tokens of documents it is made of, as (document, first token, how many).
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    pieces: Sequence[tuple[int, int, int]] = ()


class ItemGenerator:
    """The random numbers of one item: those of NumPy's legacy ``RandomState``, at a tenth of its cost.

    The original seeds a Python generator with the item number, and NumPy's with 16 words of it. Both libraries use the
    same Mersenne Twister and seed it from a list of words in the same way (Python takes the words of one long integer),
    so a Python generator can stand in for NumPy's, whose set-up costs more than packing a sample.
    """

    __slots__ = ("_bits", "random_sample")

    def __init__(self, words: list[int]) -> None:
        """Draw as ``np.random.RandomState(words)`` does; those of item i are ``seed_words(i)``."""
        if words[-1]:
            twister = Twister(int.from_bytes(struct.pack(f"<{len(words)}I", *words), "little"))
        else:  # the long integer would have fewer words: take NumPy's state as it is
            twister = Twister()
            state = np.random.RandomState(words).get_state(legacy=False)["state"]
            twister.setstate((*state["key"].tolist(), state["pos"]))
        self._bits = twister.getrandbits
        #: draws a float in [0, 1)
        self.random_sample: Callable[[], float] = twister.random

    def randint(self, stop: int) -> int:
        """Draw an integer in [0, stop) as ``RandomState.randint`` does: mask the bits, reject what is too large."""
        last = stop - 1
        if last <= 0:
            return 0  # NumPy draws nothing here
        mask = (1 << last.bit_length()) - 1
        bits = self._bits
        if last < WORD:
            while (value := bits(32) & mask) > last:
                pass
        else:
            while (value := (bits(32) << 32 | bits(32)) & mask) > last:
                pass
        return value


def seed_words(index: int) -> list[int]:
    """Return the 16 words that seed the generator of item ``index``."""
    bits = Twister(index).getrandbits
    words: list[int] = []
    while len(words) < SEED_WORDS:
        word = bits(33)  # what randint(0, 2**32 - 1) draws, until it is in range
        if word < WORD:
            words.append(word)
    return words


class DocumentPicker:
    """Draw documents, in proportion to their length unless told otherwise."""

    def __init__(
        self, documents: Documents, *, by_length: bool = True, accept: Callable[[np.ndarray], bool] | None = None
    ) -> None:
        """``accept`` sees the token ids of a drawn document; a rejected one is drawn again."""
        self.documents = documents
        self.by_length = by_length
        self.accept = accept
        self._ends = np.cumsum(np.asarray(documents.lengths, dtype=np.int64))
        if not len(self._ends) or self._ends[-1] == 0:
            raise ValueError("the corpus holds no tokens: check --train-data and --text-field")
        self._num_tokens = int(self._ends[-1])

    def pick_number(self, generator: ItemGenerator) -> int:
        """Draw the number of a document."""
        while True:
            if self.by_length:
                number = int(self._ends.searchsorted(generator.randint(self._num_tokens), side="right"))
            else:
                number = generator.randint(len(self._ends))
            if self.accept is None or self.accept(self.documents[number].tokens):
                return number


class Picker(Protocol):
    """Draws the documents of samples."""

    @property
    def documents(self) -> Documents:
        """Return what is drawn from."""

    def pick_number(self, generator: ItemGenerator) -> int:
        """Draw the number of a document."""


class BlockDataset:
    """Samples of up to ``seq_length`` tokens, each document opened by ENC and closed by eos."""

    def __init__(
        self,
        documents: Documents,
        *,
        tokenizer: Tokenizer,
        seq_length: int,
        sample_across_documents: bool = True,
        non_sentence_start: float = 0.0,
        accept: Callable[[np.ndarray], bool] | None = None,
        picker: Picker | None = None,
        num_entries: int | None = None,
    ) -> None:
        """``picker`` draws documents otherwise than by length, from ``num_entries`` entries."""
        if seq_length < 2:
            raise ValueError(f"--seq-length is {seq_length}; at least 2 is needed")
        self.picker = DocumentPicker(documents, accept=accept) if picker is None else picker
        self.seq_length = seq_length
        self.sample_across_documents = sample_across_documents
        self.non_sentence_start = non_sentence_start
        self._eos, self._enc = tokenizer.special.eos, tokenizer.special.cls
        self._sentence_end = tokenizer.sentence_end_table("document")
        self._length = ITEMS_PER_DOCUMENT * (len(documents) if num_entries is None else num_entries)

    @property
    def opening(self) -> int:
        """Return the id that opens every document."""
        return self._enc

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index``: at most ``seq_length`` tokens, not padded."""
        generator = ItemGenerator(seed_words(index))
        picker = self.picker
        number = picker.pick_number(generator)
        document = picker.documents[number]
        tokens = np.empty(self.seq_length, dtype=np.int64)
        loss_mask = np.ones(self.seq_length, dtype=np.int64)
        extra = len(document.tokens) + 2 - self.seq_length
        start = 0
        if extra > 0:
            start = self._move_to_sentence(generator, document.tokens, generator.randint(extra))
        length, whole = self._append(tokens, loss_mask, 0, document, start)
        pieces = [(number, start, length - 1 - whole)]
        while extra <= 0 and whole and length < self.seq_length and self.sample_across_documents:
            number, before = picker.pick_number(generator), length
            length, whole = self._append(tokens, loss_mask, length, picker.documents[number], 0)
            pieces.append((number, 0, length - before - 1 - whole))
        return Sample(tokens[:length], loss_mask[:length], pieces)

    def sample_of(self, pieces: Sequence[tuple[int, int, int]]) -> Sample:
        """Return the sample that was made of ``pieces``, without drawing anything."""
        tokens: list[Any] = []
        loss_mask: list[Any] = []
        room = self.seq_length
        for number, start, length in pieces:
            document, end = self.picker.documents[number], start + length
            whole = end == len(document.tokens) and length + 2 <= room
            tokens += [[self._enc], document.tokens[start:end], [self._eos] * whole]
            loss_mask += [[0], document.loss_mask()[start:end], [1] * whole]
            room -= 1 + length + whole
        ids, weights = (np.concatenate(parts).astype(np.int64) for parts in (tokens, loss_mask))
        return Sample(ids, weights, pieces)

    def _append(
        self, tokens: np.ndarray, loss_mask: np.ndarray, length: int, document: Document, start: int
    ) -> tuple[int, bool]:
        """Write ENC, a document from ``start`` on and eos behind the first ``length`` tokens of a sample.

        What does not fit is cut off, after a sentence end where there is one in the second half of the room. Returns
        the new length and whether the whole document is there.
        """
        text = document.tokens
        rest = len(text) - start
        room = self.seq_length - length
        copied = min(rest, room - 1)
        first = length + 1  # the document's first token in the sample
        tokens[length] = self._enc
        loss_mask[length] = 0
        tokens[first : first + copied] = text[start : start + copied]
        if document.prompt_length or document.predicted is not None:
            loss_mask[first : first + copied] = document.loss_mask()[start : start + copied]
        if rest + 2 <= room:
            tokens[first + rest] = self._eos
            return first + rest + 1, True
        half = room // 2
        low = max(first, length + half - 1)
        ends = self._sentence_end[tokens[low : length + room]].nonzero()[0]
        if len(ends):
            return low + int(ends[-1]) + 1, False
        return length + (room if half > 1 else 1), False

    def _move_to_sentence(self, generator: ItemGenerator, text: np.ndarray, start: int) -> int:
        """Move a drawn start to the beginning of a sentence, left or right, by at most half the sequence length."""
        if generator.random_sample() <= self.non_sentence_start:
            return start
        reach = self.seq_length // 2
        if generator.random_sample() < 0.5:
            low = max(0, start - reach)
            ends = self._sentence_end[text[low:start]].nonzero()[0]
            return low + int(ends[-1]) + 1 if len(ends) else low
        if start == 0 and self._sentence_end[self._eos]:  # the original looks at the last token, the eos
            return start
        high = min(len(text) + 1, start + reach)
        low = max(start, 1)
        ends = self._sentence_end[text[low - 1 : high - 1]].nonzero()[0]  # the token before each possible start
        return low + int(ends[0]) if len(ends) else high
