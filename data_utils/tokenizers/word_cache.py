"""Remember the ids of words, so that the tokenizer library sees every word only once.

Text repeats its words: looking one up is several times faster than encoding it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

CACHED_CHARACTERS = 1 << 22  # some 100 MB of Python objects


class WordCache:
    """Encode sequences of words through ``encode_words``, which gets only the words not seen before."""

    def __init__(self, encode_words: Callable[[list[str]], Iterable[list[int]]], *, capacity: int = CACHED_CHARACTERS):
        """Hold words of about ``capacity`` characters in total; beyond that start again from nothing."""
        self._encode_words = encode_words
        self._capacity = capacity
        self._ids: dict[str, list[int]] = {}
        self._num_characters = 0

    def encode(self, sequences: Sequence[Sequence[str]]) -> list[list[int]]:
        """Return for each sequence the ids of its words, concatenated."""
        missing = list(set(chain.from_iterable(sequences)).difference(self._ids))
        if missing:
            self._ids.update(zip(missing, self._encode_words(missing)))
            self._num_characters += sum(map(len, missing))
        look_up = self._ids.__getitem__
        encoded = [list(chain.from_iterable(map(look_up, words))) for words in sequences]
        if self._num_characters > self._capacity:
            self._ids = {}
            self._num_characters = 0
        return encoded

    def __getstate__(self) -> dict[str, object]:
        """Leave the words behind: another process collects its own."""
        return {**self.__dict__, "_ids": {}, "_num_characters": 0}
