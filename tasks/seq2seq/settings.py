"""Settings of a sequence-to-sequence run, made from a parsed command line. Imports neither torch nor numpy."""

from __future__ import annotations

import argparse
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


@dataclass(frozen=True)
class Seq2SeqSettings:
    """Lengths, loss and decoding of a sequence-to-sequence task.

    Attributes:
        source_length, target_length: most ids of a source and of a target.
        label_smoothing: share of the loss that every id of the vocabulary gets.
        blank_mask_ratio: share of the words that the task ``blank`` masks.
        mask_pad_token: hide the padding of sources even with ``--compatible``.
        beams: the search.
    """

    source_length: int
    target_length: int
    label_smoothing: float
    blank_mask_ratio: float
    mask_pad_token: bool
    beams: BeamSettings


def seq2seq_settings(values: argparse.Namespace) -> Seq2SeqSettings:
    """Turn a parsed command line into settings.

    Candidates are drawn only where the original is asked for: with ``--compatible`` and without ``--select-topk``.

    Raises:
        ValueError: lengths that are missing, values out of range.
    """
    for flag, value, minimum in (
        ("--src-seq-length", values.src_seq_length, 8),
        ("--tgt-seq-length", values.tgt_seq_length, 1),
    ):
        if value is None:
            raise ValueError(f"no {flag}: {values.task} needs the longest source and target in tokens")
        if value < minimum:
            raise ValueError(f"{flag} is {value}; at least {minimum} is needed")
    if not 0.0 <= values.label_smoothing < 1.0:
        raise ValueError(f"--label-smoothing is {values.label_smoothing}; it has to be at least 0 and below 1")
    if not 0.0 < values.blank_maskratio < 1.0:
        raise ValueError(f"--blank-maskratio is {values.blank_maskratio}; it has to lie between 0 and 1")
    if not values.block_lm:
        raise ValueError(f"{values.task} needs --block-lm: targets are generated as blanks")
    return Seq2SeqSettings(
        source_length=values.src_seq_length,
        target_length=values.tgt_seq_length,
        label_smoothing=values.label_smoothing,
        blank_mask_ratio=values.blank_maskratio,
        mask_pad_token=values.mask_pad_token,
        beams=BeamSettings(
            max_length=values.tgt_seq_length,
            num_beams=values.num_beams,
            length_penalty=values.length_penalty,
            no_repeat_ngram_size=values.no_repeat_ngram_size,
            min_length=values.min_tgt_length,
            top_k=values.top_k,
            top_p=values.top_p,
            draw_candidates=values.compatible and not values.select_topk,
            block_positions=not values.no_block_position,
        ),
    )
