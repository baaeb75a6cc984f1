"""Log-likelihoods of continuations, what they have in common run only once.

A question is one row of the model, whatever the number of its continuations:

    shared start: context, start token ... | continuation 1 | continuation 2 | ...

The last position of the start predicts the first token of every continuation; a continuation feeds all its tokens but
the last. The mask lets it see the start and itself only, and positions are given explicitly, so that the figures are
those of a row of its own per continuation.

b rows, s positions, p positions of the start, r tokens of a continuation, n positions that predict, v vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from data_utils.rows import Row
from model.modeling_glm import GLMModel, evaluating
from mpu.initialize import ParallelTopology
from mpu.kernels.host_memory import send
from mpu.mappings import run_shared
from mpu.masks import PrefixMask

# Positions whose logits are in memory at the same time; larger blocks are slower on a CPU.
PROJECTED_AT_ONCE = {"cpu": 256, "cuda": 1024}
FEW_TOKENS = 256  # continuations of one row may have that many tokens, or as many as its start


@dataclass(frozen=True)
class Continuation:
    """What may follow the start.

    Attributes:
        input_ids: int [r-1], the tokens that are fed: all but the last.
        position_ids: int [2,r-1] (or [1,r-1]), their positions and block positions.
        target_ids: int [r], the tokens that are scored; the first of them is predicted by the start.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    target_ids: np.ndarray


@dataclass(frozen=True)
class Question:
    """A start and its continuations.

    Attributes:
        input_ids: int [p], the shared start.
        position_ids: int [2,p], its positions and block positions; [1,p] for a model with one row of positions.
        prefix_length: that many first positions of the start are seen by all, the rest causally.
        continuations: at least one.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    prefix_length: int
    continuations: tuple[Continuation, ...]

    @classmethod
    def of_rows(cls, rows: Sequence[Row]) -> Question | None:
        """Return rows that are equal up to their first target as a start and what follows it; None for other rows.

        From its first target to its end a row predicts at every position.
        """
        first = rows[0]
        start = int(first.loss_mask.argmax()) + 1  # its last position predicts the first target
        for row in rows[1:]:
            if (row.prefix_length, int(row.loss_mask.argmax()) + 1) != (first.prefix_length, start):
                return None
            same_ids = (row.input_ids[:start] == first.input_ids[:start]).all()
            if not (same_ids and (row.position_ids[:, :start] == first.position_ids[:, :start]).all()):
                return None
        continuations = tuple(
            Continuation(row.input_ids[start:], row.position_ids[:, start:], row.target_ids[start - 1 :])
            for row in rows
        )
        return cls(first.input_ids[:start], first.position_ids[:, :start], first.prefix_length, continuations)

    @property
    def length(self) -> int:
        """Return the number of positions of its row."""
        return len(self.input_ids) + sum(len(one.input_ids) for one in self.continuations)


class Score(NamedTuple):
    """The result for a continuation.

    Attributes:
        log_probability: the sum over its tokens, over the padded vocabulary.
        num_tokens: how many there are.
        greedy: every token is the model's first choice, given those before it.
    """

    log_probability: float
    num_tokens: int
    greedy: bool


class Questions(Protocol):
    """Questions by number; a sequence of them, or what makes each when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Question: ...


def score_questions(
    model: GLMModel,
    questions: Questions,
    *,
    lengths: Sequence[int] | np.ndarray | None = None,
    batch_size: int = 16,
    topology: ParallelTopology | None = None,
) -> list[list[Score]]:
    """Return a score per continuation of every question, on every rank.

    Rows of similar length share a batch of ``batch_size``; the scores of a question do not depend on the others, but
    for rounding. The data ranks of ``topology`` share the questions; every rank has to call it. There is no dropout,
    whatever the model's mode. With their ``lengths`` given, questions are asked for when their batch is due.
    """
    if lengths is None:
        lengths = [questions[number].length for number in range(len(questions))]
    order = sorted(range(len(questions)), key=lambda number: lengths[number])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    with evaluating(model):
        return run_shared(
            batches,
            lambda numbers: score_batch(model, [questions[number] for number in numbers]),
            topology=topology or ParallelTopology.single(),
        )


@torch.inference_mode()
def score_batch(model: GLMModel, questions: Sequence[Question]) -> list[list[Score]]:
    """Return the scores of questions that are run together, in one call of the model."""
    split = [_split(question) for question in questions]
    scores = iter(_score_rows(model, [row for rows in split for row in rows]))
    return [[score for _ in rows for score in next(scores)] for rows in split]


def _split(question: Question) -> list[Question]:
    """Return the rows of a question: more than one where its continuations are much longer than its start."""
    limit = max(FEW_TOKENS, len(question.input_ids))
    rows: list[list[Continuation]] = [[]]
    tokens = 0
    for continuation in question.continuations:
        fed = len(continuation.input_ids)
        if rows[-1] and tokens + fed > limit:
            rows.append([])
            tokens = 0
        rows[-1].append(continuation)
        tokens += fed
    return [replace(question, continuations=tuple(row)) for row in rows]


def _score_rows(model: GLMModel, questions: Sequence[Question]) -> list[list[Score]]:
    """Return the scores of questions, each of which is one row."""
    device = model.word_embeddings.weight.device
    width = max(question.length for question in questions)
    input_ids = np.zeros((len(questions), width), dtype=np.int64)  # padding is seen by nothing that counts
    position_ids = np.zeros((len(questions), len(questions[0].position_ids), width), dtype=np.int64)
    segment_ids = np.full((len(questions), width), -1, dtype=np.int64)  # 0 the start, k continuation k, -1 padding
    most = max(question.length - len(question.input_ids) + 1 for question in questions)
    query_positions = np.zeros((len(questions), most), dtype=np.int64)  # positions that predict
    predicting: list[np.ndarray] = []  # their flat indices in it
    targets: list[np.ndarray] = []
    places: list[np.ndarray] = []  # of the targets among the predicting positions
    count = 0
    for row, question in enumerate(questions):
        start = len(question.input_ids)
        fed = [one.input_ids for one in question.continuations]
        end = question.length
        input_ids[row, :end] = np.concatenate([question.input_ids, *fed])
        position_ids[row, :, :end] = np.concatenate(
            [question.position_ids, *(one.position_ids for one in question.continuations)], axis=1
        )
        segment_ids[row, :end] = np.repeat(np.arange(len(fed) + 1), [start, *map(len, fed)])
        positions = np.arange(start - 1, end)
        query_positions[row, : len(positions)] = positions
        predicting.append(row * most + np.arange(len(positions)))
        first = count + 1
        for one in question.continuations:
            targets.append(one.target_ids)
            places.append(np.array([count, *range(first, first + len(one.input_ids))]))
            first += len(one.input_ids)
        count = first

    def on_device(numbers: np.ndarray) -> Tensor:
        return send(torch.from_numpy(numbers), device)

    prefix_lengths = torch.tensor([question.prefix_length for question in questions])
    if any(len(question.continuations) > 1 for question in questions):
        mask = _mask(on_device(segment_ids), send(prefix_lengths, device))
    else:
        mask = PrefixMask.prefix(prefix_lengths).to(device)
    hidden = model(
        on_device(input_ids),
        on_device(position_ids if position_ids.shape[1] == 2 else position_ids[:, 0]),
        mask,
        output="hidden",
        query_positions=torch.from_numpy(query_positions),
    )
    hidden = hidden.flatten(0, 1)[on_device(np.concatenate(predicting))]  # [n,h]
    log_probabilities, best = _token_scores(
        model, hidden, np.concatenate(targets), places=np.concatenate(places), device=device
    )
    return _collect(questions, log_probabilities, best)


def _mask(segment_ids: Tensor, prefix_lengths: Tensor) -> PrefixMask:
    """Let the continuations ``segment_ids`` [b,s] (0: what they continue) see themselves and what they continue."""
    columns = torch.arange(segment_ids.size(1), device=segment_ids.device)
    causal = columns <= columns.unsqueeze(1)  # [s,s]
    seen, by = segment_ids.unsqueeze(1), segment_ids.unsqueeze(2)  # [b,1,s], [b,s,1]
    visible = causal & ((seen == 0) | (seen == by)) | (columns < prefix_lengths.reshape(-1, 1, 1))
    return PrefixMask.matrix(visible.unsqueeze(1))  # [b,1,s,s]


def _token_scores(
    model: GLMModel, hidden: Tensor, targets: np.ndarray, *, places: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Return for every target its fp32 log-probability and whether it is the first choice; ``hidden`` [n,h]."""
    order = np.argsort(places, kind="stable")
    found: list[Tensor] = []  # [2,targets] each
    at_once = PROJECTED_AT_ONCE.get(device.type, 1024)
    for first in range(0, len(hidden), at_once):
        logits = model.project(hidden[first : first + at_once]).float()  # [n,v]
        low, high = np.searchsorted(places[order], [first, first + len(logits)])
        which = order[low:high]
        rows = send(torch.from_numpy(places[which] - first), device)
        columns = send(torch.from_numpy(targets[which]), device)
        found.append(torch.stack([logits.log_softmax(dim=-1)[rows, columns], _are_best(logits, rows, columns).float()]))
    values, best = np.empty((2, len(targets)), dtype=np.float32)
    values[order], best[order] = torch.cat(found, dim=1).cpu().numpy()  # the one wait for the device
    return values, best != 0


def _are_best(logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Tell which ``columns`` [m] are the best of their ``rows`` [m] of ``logits`` [n,v]; ties go to the lowest id."""
    if logits.device.type != "cpu":
        return logits.argmax(dim=-1)[rows] == columns
    # On a CPU amax is much faster than argmax (docs/performance.md), which settles ties alone.
    highest = logits[rows, columns] == logits.amax(dim=-1)[rows]
    highest[highest.clone()] = logits[rows[highest]].argmax(dim=-1) == columns[highest]
    return highest


def _collect(questions: Sequence[Question], values: np.ndarray, best: np.ndarray) -> list[list[Score]]:
    """Sum the targets' figures by continuation, in double precision."""
    lengths = [len(one.target_ids) for question in questions for one in question.continuations]
    ends = np.cumsum(lengths)
    scores = iter(
        Score(float(values[end - length : end].sum(dtype=np.float64)), length, bool(best[end - length : end].all()))
        for end, length in zip(ends, lengths)
    )
    return [[next(scores) for _ in question.continuations] for question in questions]
