"""What patterns are made of: texts, the mask, and slots of a continuous prompt.

A pattern puts an example into two lists of pieces, A and B. Every piece is tokenized on its own, so its leading blank
matters.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Shortenable:
    """A text that may lose tokens at its end when the sample is too long."""

    text: str


@dataclass(frozen=True)
class Mask:
    """The mask token: the blank that the model fills."""


@dataclass(frozen=True)
class Slot:
    """A place for tokens of a continuous prompt; without one it vanishes."""


@dataclass(frozen=True)
class PromptTokens:
    """``count`` tokens of the continuous prompt."""

    count: int


Piece: TypeAlias = "str | Shortenable | Mask | Slot | PromptTokens"

MASK = Mask()
SLOT = Slot()
S = Shortenable


@dataclass(frozen=True)
class Parts:
    """The pieces of a pattern. ``b`` is empty for patterns of one list."""

    a: tuple[Piece, ...]
    b: tuple[Piece, ...] = ()

    @classmethod
    def of(cls, a: Sequence[Piece], b: Sequence[Piece] = ()) -> Parts:
        """Build them from any sequences."""
        return cls(tuple(a), tuple(b))

    @property
    def num_slots(self) -> int:
        """Return the number of slots for continuous prompts."""
        return sum(piece == SLOT for piece in (*self.a, *self.b))


def fill_slots(parts: Parts, num_tokens: int) -> Parts:
    """Distribute the tokens of a continuous prompt over the slots, A before B.

    Each slot takes its share rounded up as long as there are tokens; slots that get none vanish. With 0 tokens all
    do. The caller makes sure that there is a slot for the tokens.
    """
    left = num_tokens
    share = -(-num_tokens // parts.num_slots) if parts.num_slots else 0

    def filled(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
        nonlocal left
        result: list[Piece] = []
        for piece in pieces:
            if piece != SLOT:
                result.append(piece)
            elif count := min(share, left):
                result.append(PromptTokens(count))
                left -= count
        return tuple(result)

    return Parts(filled(parts.a), filled(parts.b))


def without_punctuation(text: str) -> str:
    """Return ``text`` without the ASCII punctuation at its end."""
    return text.rstrip(string.punctuation)


def lower_first(text: str) -> str:
    """Return ``text`` with its first character in lower case."""
    return text[:1].lower() + text[1:]
