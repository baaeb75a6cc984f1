"""Examples as arrays: what the model's heads are fed.

s sequence, c choices (answers to choose from), l labels, p prompt tokens, r positions of an answer

A sample is as long as it needs to be; ``tasks.collation`` pads it, and padding is never attended to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["single_token", "multi_token", "fast_decode", "language_model", "classification", "encoder"]
COMPATIBLE_FAST_ANSWER = 16  # positions that the original gives every answer in the fast-decode form


@dataclass(frozen=True)
class TaskSample:
    """One example, ready for a head. Fields that a kind does not have are None.

    All arrays are int32, which halves what a large data set takes; those of batches are int64.

    ==================== ============= ============ ============= ================ ================
    field                single_token  multi_token  fast_decode   language_model   classification
    ==================== ============= ============ ============= ================ ================
    input_ids            [s]           [c,s]        [s]           [s]              [s] or [c,s]
    position_ids         [2,s]         [c,2,s]      [2,s]         [2,s]            [2,s] or [c,2,s]
    attention_mask       []            [c]          []            []               [] or [c]
    target_ids           [l]           [c,s]        [c,r]         [s]
    loss_mask           [s]           [c,s]        [c,r]         [s]
    prompt_positions     [p]           [c,p]                      [p]
    segment_ids                        [c] or None
    answer_ids                                      [c,r]
    answer_position_ids                             [c,2,r]
    answer_prefix_lengths                               [c]
    ==================== ============= ============ ============= ================ ================

    Attributes:
        kind: which head the sample is for; ``encoder`` is ``classification`` for a BERT (``input_ids``, ``token_types``
            and ``padding_mask``, all [s] or [c,s]).
        uid: the example's guid.
        label: class index, or index of the right choice; 0 for unlabelled examples.
        attention_mask: the prefix length: that of the context, which attends to itself in both directions. Its value
            is also the index of the first position that predicts something.
        position_ids: positions and block positions; [s] or [c,s] with ``masked_lm``.
        target_ids: the verbalizer's id per label (single_token), else the token to predict at each position.
        loss_mask: 1 where something is predicted.
        prompt_positions: where the rows of ``input_ids`` have (as 0) the tokens of a continuous prompt, in order.
        segment_ids: which answer a row belongs to, where answers are cut into segments; a row is then no choice.
        answer_ids, answer_position_ids, answer_prefix_lengths: what the answers of ``fast_decode`` feed after
            the context.
    """

    kind: Kind
    uid: str | int
    label: int
    input_ids: np.ndarray
    position_ids: np.ndarray | None = None
    attention_mask: np.ndarray | None = None
    target_ids: np.ndarray | None = None
    loss_mask: np.ndarray | None = None
    prompt_positions: np.ndarray | None = None
    segment_ids: np.ndarray | None = None
    answer_ids: np.ndarray | None = None
    answer_position_ids: np.ndarray | None = None
    answer_prefix_lengths: np.ndarray | None = None
    token_types: np.ndarray | None = None
    padding_mask: np.ndarray | None = None

    @property
    def length(self) -> int:
        """Return the number of positions of its longest row (for bucketing)."""
        return self.input_ids.shape[-1]

    @property
    def num_rows(self) -> int:
        """Return the number of rows that the model runs for it."""
        return self.input_ids.shape[0] if self.input_ids.ndim == 2 else 1


@dataclass(frozen=True)
class EncodingOptions:
    """How examples become samples.

    Attributes:
        seq_length: the longest sample, all its positions counted.
        cloze: score answers by the language model; otherwise a classification head.
        pattern_id: the pattern.
        multi_token: score the verbalizer of a label as a sequence of tokens.
        fast_decode: encode the context once and the answers after it.
        segment_length: cut answers into pieces of that many tokens; 0 does not.
        continuous_prompt, num_prompt_tokens, prefix_prompt: tokens of the continuous prompt in the pattern's slots, and
            right after [CLS].
        wsc_negative: WSC with a list of candidates.
        loss_func: cross_entropy, hinge, generative or mix; it decides on the form of WSC's samples.
        block_positions: number the answer's positions in the second row.
        masked_lm: one row of positions.
        sentinel_token: the answer's position is ``max_position_embeddings``.
        max_position_embeddings: of the model.
        unidirectional: generic multiple choice, left to right.
        encoder: classification samples for a BERT (``--pretrained-bert``).
        reserve_position: classification samples keep one position after the context (``--pool-token start`` reads it).
        compatible: do as the original where ours is better: prefix prompts as ordinary tokens, continuous prompts in
            labelled texts, answers of fast decode cut to 16 tokens, WSC without candidates in rows.
    """

    seq_length: int = 512
    cloze: bool = True
    pattern_id: int = 0
    multi_token: bool = False
    fast_decode: bool = False
    segment_length: int = 0
    continuous_prompt: bool = False
    num_prompt_tokens: int = 0
    prefix_prompt: int = 0
    wsc_negative: bool = False
    loss_func: str = "cross_entropy"
    block_positions: bool = True
    masked_lm: bool = False
    sentinel_token: bool = False
    max_position_embeddings: int = 512
    unidirectional: bool = False
    encoder: bool = False
    reserve_position: bool = False
    compatible: bool = False


@dataclass(frozen=True)
class SampleSet:
    """The samples of some examples, in their order.

    Attributes:
        samples: one per example.
        num_truncated: how often a text was shortened.
    """

    samples: tuple[TaskSample, ...]
    num_truncated: int
