"""How the targets of a sequence-to-sequence task are searched. Imports neither torch nor numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass

SUMMARY_TASKS = ("gigaword", "cnn_dm", "cnn_dm_original", "xsum")
SQUAD_TASKS = ("squad", "squad_v1")
BLANK_TASKS = ("blank", "extraction")
SEQ2SEQ_TASKS = (*SUMMARY_TASKS, "squad_generation", *SQUAD_TASKS, "cmrc", *BLANK_TASKS, "customization")
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class BeamSettings:
    """How targets are searched; raises ValueError for values that make no sense.

    Attributes:
        max_length: most tokens of a target, or of all blanks of a text together.
        num_beams: 1 is greedy.
        length_penalty: sums of log-probabilities are divided by length to this power.
        no_repeat_ngram_size: no n-gram of this size occurs twice in a target; 0 is off.
        min_length: fewest tokens.
        top_k, top_p: filters of the next token's logits; 0 is off.
        draw_candidates: draw the candidates at random, as the original does without ``--select-topk``.
        block_positions: the tokens of a target count in the second row of positions; without, it stays 1.
    """

    max_length: int
    num_beams: int = 1
    length_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    min_length: int = 0
    top_k: int = 0
    top_p: float = 0.0
    draw_candidates: bool = False
    block_positions: bool = True

    def __post_init__(self) -> None:
        least = {
            "--tgt-seq-length": (self.max_length, 1), "--num-beams": (self.num_beams, 1),
            "--no-repeat-ngram-size": (self.no_repeat_ngram_size, 0), "--min-tgt-length": (self.min_length, 0),
            "--top-k": (self.top_k, 0),
        }  # fmt: skip
        for flag, (value, minimum) in least.items():
            if value < minimum:
                raise ValueError(f"{flag} is {value}; it has to be at least {minimum}")
        if not 0.0 <= self.top_p <= 1.0:
            raise ValueError(f"--top-p is {self.top_p}; it has to lie between 0 (off) and 1")
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"--length-penalty is {self.length_penalty}; it has to be a number")
        if self.min_length > self.max_length:
            raise ValueError(
                f"--min-tgt-length {self.min_length} is above --tgt-seq-length {self.max_length}; change one of them"
            )

    def check_positions(self, max_position_embeddings: int) -> None:
        """Raise ValueError when a target may be longer than the model has block positions."""
        if self.block_positions and self.max_length > max_position_embeddings:
            raise ValueError(
                f"--tgt-seq-length {self.max_length} is above the model's {max_position_embeddings} block positions; "
                "lower it, or raise --max-position-embeddings"
            )
