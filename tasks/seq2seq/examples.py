"""What the files of a sequence-to-sequence task hold, and what the model is given of it.

Legend: S source length, T target slots (``target_length``; for blanks see ``tasks/seq2seq/blanks.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SUMMARY_TASKS = ("gigaword", "cnn_dm", "cnn_dm_original", "xsum")
SQUAD_TASKS = ("squad", "squad_v1")
BLANK_TASKS = ("blank", "extraction")
SEQ2SEQ_TASKS = (*SUMMARY_TASKS, "squad_generation", *SQUAD_TASKS, "cmrc", *BLANK_TASKS, "customization")
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Seq2SeqExample:
    """One example of a task, before any tokenizer's ids.

    Attributes:
        guid: ``<split>-<running index>``.
        source: the text to read; with ``[MASK]`` where blanks are to be filled.
        target: the text to write.
        reference: what a prediction is compared with, and the line of the ``.refs`` file.
        meta: what else the task needs: ``question``, ``answer``, ``answers``, ``idx`` (question id), ``context``,
            ``context_ids`` and ``context_offsets`` (SQuAD), ``blanks`` (the texts of the source's blanks in order; None
            when the files do not tell; absent while no blanks have been drawn).
    """

    guid: str
    source: str
    target: str
    reference: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Seq2SeqOptions:
    """How examples are read and become samples.

    Attributes:
        source_length: S, ``--src-seq-length``.
        target_length: T, ``--tgt-seq-length``.
        task_mask: the tokenizer has sMASK and gMASK (``--task-mask``), and the blank to fill is sMASK.
        mask_pad_token: padding of the source is hidden (customization only).
        block_positions: False: all block positions of the target are 1 (``--no-block-position``).
        blank_mask_ratio: share of the words that become blanks (``--blank-maskratio``).
        seed: of the drawing of blanks.
        compatible: do as the original where ours is better: windows without the answer are skipped in evaluation, too
            (squad_v1), the reference of a generated question is the answer, a mask in the user's text is taken for the
            appended one, and the shorter of two files decides (customization).
    """

    source_length: int
    target_length: int
    task_mask: bool = False
    mask_pad_token: bool = False
    block_positions: bool = True
    blank_mask_ratio: float = 0.1
    seed: int = 1234
    compatible: bool = False

    def __post_init__(self) -> None:
        """Check the lengths. Raises ValueError."""
        if self.source_length < 4 or self.target_length < 1:
            raise ValueError(
                f"--src-seq-length {self.source_length}, --tgt-seq-length {self.target_length}: at least 4 and 1 are "
                "needed"
            )
        if not 0 < self.blank_mask_ratio < 1:
            raise ValueError(f"--blank-maskratio {self.blank_mask_ratio}: a share of the words, between 0 and 1")


@dataclass(frozen=True)
class Seq2SeqSample:
    """One example as the model takes it. Integer arrays are int64; n is S + T in training, S + 1 in evaluation.

    Attributes:
        input_ids: [n], the source padded to S, then sop and the target without its last id, padded.
        position_ids: [2, n], position and block position.
        prefix_length: S; the columns before it are visible to all, the rest is causal.
        context_length: ids of the source without padding. Where padding is hidden (``--mask-pad-token``) only these
            columns of the source are visible; columns from ``prefix_length`` on stay causal.
        target_ids: [n], zeros under the source; None in evaluation.
        loss_mask: [n], 1 where ``target_ids`` counts; None in evaluation.
        mask_positions: index of each blank to fill, in order. Empty when truncation left none: nothing is to be filled.
        uid: the example's guid.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    prefix_length: int
    context_length: int
    target_ids: np.ndarray | None
    loss_mask: np.ndarray | None
    mask_positions: tuple[int, ...]
    uid: str
