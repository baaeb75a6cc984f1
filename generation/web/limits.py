"""What clients may ask for, and all of them together: fields with their option's help and bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from generation.infill import BlankFiller


def limit(default: float, help: str, at_least: float, at_most: float) -> Any:
    """Declare a limit, which a server can be started with another value of."""
    return field(default=default, metadata={"help": help, "at_least": at_least, "at_most": at_most})


@dataclass(frozen=True)
class Limits:
    """What a client can ask for, and how much of it at the same time."""

    out_seq_length: int = limit(256, "tokens of an answer", 1, 4096)
    candidates: int = limit(8, "beams or samples of a blank", 1, 64)
    blanks: int = limit(20, "blanks of a text", 1, 1000)
    seconds: float = limit(120.0, "until a request is stopped, which gets what is there; waiting included", 1, 86400)
    body: int = limit(65536, "bytes of a request", 1000, 10**8)
    queue: int = limit(100, "requests that wait; one more is refused", 0, 10000)
    cache_tokens: int = limit(
        32768, "tokens whose keys and values are kept at the same time: the memory; other requests wait", 1000, 10**9
    )

    def describe(self, filler: BlankFiller) -> dict[str, Any]:
        """Return the limits that concern a client, for this model."""
        longest = min(self.out_seq_length, filler.model.config.max_position_embeddings)
        return {"body": self.body, "blanks": self.blanks, "candidates": self.candidates, "out_seq_length": longest,
                "seconds": self.seconds}  # fmt: skip
