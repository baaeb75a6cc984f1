"""Choose which spans of a sample are blanked out (paper section 2.1).

Every draw comes from a ``random.Random`` in the original's order, so that a seed gives the original's spans.
A span is a half-open pair (start, end) of token indices. N is the length of a sample.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

Span = tuple[int, int]

SHORTEST_SHORT_SEQUENCE = 32  # lower bound of the drawn length of short sequences


def block_length_weights(average: float, max_block_length: int) -> list[float]:
    """Return the Poisson weights of the span lengths 1 .. max_block_length - 1, not normalised."""
    weights, term = [], math.exp(-average)
    for length in range(1, max_block_length):
        term *= average / length
        weights.append(term)
    return weights


class SpanLengths:
    """Draw span lengths from the truncated Poisson distribution."""

    def __init__(self, average: float, max_block_length: int, *, one_token_prob: float = 0.0) -> None:
        """``one_token_prob`` is a probability of length 1 besides."""
        weights = block_length_weights(average, max_block_length)
        if one_token_prob > 0.0 and weights:
            total = sum(weights)
            weights = [(1.0 - one_token_prob) * weight / total for weight in weights]
            weights[0] += one_token_prob
        self._cumulative = list(accumulate(weights))
        if not self._cumulative:
            raise ValueError(f"max_block_length is {max_block_length}; at least 2 is needed to draw a span")

    def draw(self, generator: random.Random) -> int:
        """Draw one length; consumes one uniform number."""
        cumulative = self._cumulative
        return 1 + bisect_right(cumulative, generator.random() * cumulative[-1], 0, len(cumulative) - 1)

    def draw_until(self, generator: random.Random, num_tokens: int) -> list[int]:
        """Draw lengths until their sum reaches ``num_tokens``."""
        cumulative, uniform = self._cumulative, generator.random
        scale, last = cumulative[-1], len(cumulative) - 1
        lengths: list[int] = []
        total = 0
        while total < num_tokens:
            length = 1 + bisect_right(cumulative, uniform() * scale, 0, last)
            lengths.append(length)
            total += length
        return lengths


def shuffle(generator: random.Random, items: list[Any]) -> None:
    """Shuffle in place with the draws of ``generator.shuffle``, in a third of its time."""
    bits = generator.getrandbits
    for last in range(len(items) - 1, 0, -1):
        size = (last + 1).bit_length()
        while (place := bits(size)) > last:
            pass
        items[last], items[place] = items[place], items[last]


def draw_below(generator: random.Random, stop: int, count: int) -> list[int]:
    """Draw ``count`` numbers below ``stop`` with the draws of ``generator.randrange``, in a third of its time."""
    bits, size = generator.getrandbits, stop.bit_length()
    numbers: list[int] = []
    for _ in range(count):
        while (number := bits(size)) >= stop:
            pass
        numbers.append(number)
    return numbers


def place_spans(generator: random.Random, lengths: Sequence[int], *, total_length: int, offset: int = 0) -> list[Span]:
    """Place spans of the given lengths, in this order, into [offset, offset + total_length) so that none touch.

    The lengths and one token between neighbours have to fit.
    """
    room = total_length - sum(lengths) - len(lengths) + 1
    assert room >= 0, (lengths, total_length)
    spans = []
    for place, length in zip(sorted(draw_below(generator, room + 1, len(lengths))), lengths, strict=True):
        start = offset + place
        spans.append((start, start + length))
        offset += length + 1
    return spans


def documents_of(tokens: np.ndarray, *, eos: int, enc: int) -> list[Span]:
    """Cut a sample [N] at its eos tokens into documents without ENC and eos, the last one first.

    What follows the last eos loses its last token: the original never blanks it.
    """
    ends = (tokens == eos).nonzero()[0].tolist()
    documents, start = [], 0
    for end in [*ends, len(tokens) - 1] if not ends or ends[-1] != len(tokens) - 1 else ends:
        first = start + 1 if start < len(tokens) and tokens[start] == enc else start
        documents.append((first, end))
        start = end + 1
    return documents[::-1]


def spans_in_documents(
    generator: random.Random, lengths: list[int], tokens: np.ndarray, *, eos: int, enc: int, ratio: float
) -> list[Span] | None:
    """Shuffle ``lengths`` and place them in the documents of a sample, short documents first.

    A document takes spans up to ``ratio`` of its length, the longest one takes the rest. Returns None when they do not
    all fit: the sample is then dropped.
    """
    lengths = list(lengths)
    shuffle(generator, lengths)
    documents = sorted(documents_of(tokens, eos=eos, enc=enc), key=lambda span: span[1] - span[0])
    spans: list[Span] = []
    next_length = 0
    for number, (start, end) in enumerate(documents):
        size = end - start
        longest = number == len(documents) - 1
        taken: list[int] = []
        total = 0
        while next_length < len(lengths):
            length = lengths[next_length]
            fits = total + length + len(taken) <= size if longest else total + length <= int(size * ratio)
            if not fits:
                break
            taken.append(length)
            total += length
            next_length += 1
        spans += place_spans(generator, taken, total_length=size, offset=start) if taken else []
    return spans if next_length == len(lengths) else None


def sentence_spans(
    generator: random.Random, tokens: np.ndarray, sentence_end: np.ndarray, *, eos: int, enc: int, ratio: float
) -> list[Span]:
    """Draw whole sentences until they cover ``ratio`` of a sample [N]; none where there is no candidate.

    ``sentence_end`` bool [N]. Text before an eos that lacks a sentence end is no candidate.
    """
    candidates: list[Span] = []
    start = 1 if len(tokens) and tokens[0] == enc else 0
    for index in (sentence_end | (tokens == eos)).nonzero()[0].tolist():
        if sentence_end[index] and start < index + 1:
            candidates.append((start, index + 1))
        start = index + 1
    if start < len(tokens):
        candidates.append((start, len(tokens)))
    shuffle(generator, candidates)
    spans, total, enough = [], 0, int(ratio * len(tokens))
    for span in candidates:
        spans.append(span)
        total += span[1] - span[0]
        if total >= enough:
            break
    return spans


def short_pieces(
    generator: random.Random, tokens: np.ndarray, boundary: np.ndarray, *, length: int, count: int, eos: int
) -> list[Span]:
    """Cut ``count`` pieces of about ``length`` tokens at sentence boundaries from a text [n] without its ENC.

    ``boundary`` bool [n]: sentence end or eos. A piece may be cut from anywhere, pieces may overlap.
    """
    if length >= len(tokens):
        return [(0, len(tokens))] * count
    pieces = []
    for _ in range(count):
        start = generator.randrange(0, len(tokens) - length)
        while start > 0 and (tokens[start] == eos or not boundary[start - 1]):
            start -= 1
        end = start + length
        while end > start and not boundary[end - 1]:
            end -= 1
        if end - start < length // 2:
            end = start + length
        pieces.append((start, end))
    return pieces


def context_next_to_blanks(spans: Sequence[Span], source_length: int, *, reach: int) -> tuple[int, ...]:
    """List the tokens of part A that are at most ``reach`` away from a blank, as places in part A.

    Args:
        spans: what is blanked out, in the text.
        source_length: length of part A, where one mask token stands for each span.
        reach: how many tokens on each side.
    """
    candidates: set[int] = set()  # the original draws from the iteration order of such a set
    start = removed = 0
    pieces = []
    for span_start, span_end in sorted(spans):
        pieces.append((start, span_start - removed))
        removed += span_end - span_start - 1
        start = span_end - removed
    pieces.append((start, source_length))
    for begin, end in pieces:
        if begin != 0:
            candidates.update(range(begin, min(begin + reach, end)))
        if end != 0:
            candidates.update(range(max(end - reach, begin), end))
    return tuple(candidates)
