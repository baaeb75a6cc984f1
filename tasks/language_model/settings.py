"""Frozen settings of a language-model evaluation. Imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LanguageModelSettings:
    """How texts are cut into windows.

    Attributes:
        seq_length: ids of a window, and of a LAMBADA example, with the command tokens.
        overlap: ids by which a window of a long document moves on; that many of it are scored.
        unidirectional: the context is written as well, so that every id sees only those before it.
        block: the text follows a mask in a context; without ``--block-lm`` it is plain left to right.
        block_positions: ids of the text count in the second row of positions; without, it stays 1.
        compatible: accept an overlap so large that the first id of a window is not scored, as the original does.
    """

    seq_length: int
    overlap: int = 32
    unidirectional: bool = False
    block: bool = True
    block_positions: bool = True
    compatible: bool = False

    @property
    def window_length(self) -> int:
        """Return the most ids of a text in one window."""
        return self.seq_length - 1

    @property
    def left_to_right(self) -> bool:
        """Tell whether every id sees only those before it."""
        return self.unidirectional or not self.block

    def check_overlap(self) -> None:
        """Raise ValueError where windows that move on by the overlap would leave ids out."""
        length = self.window_length
        assert self.overlap >= 1
        left_out = self.overlap > length or (self.overlap == length and self.left_to_right and not self.compatible)
        if left_out:
            most = length - 1 if self.left_to_right else length
            raise ValueError(
                f"--overlapping-eval {self.overlap} would leave ids unscored in windows of --seq-length "
                f"{self.seq_length}; at most {most} is possible"
            )
