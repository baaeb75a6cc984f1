"""Scores of candidates in two ways: as the original computes them, and with what candidates have in common run once.

c candidates of a question
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from generation.scoring import Question, score_questions
from model.heads import MultiTokenCloze
from model.modeling_glm import GLMModel, evaluating
from mpu.initialize import ParallelTopology
from mpu.mappings import run_shared
from tasks.cloze_benchmark.questions import ClozeQuestion
from tasks.superglue.batches import collate
from tasks.superglue.objective import choice_scores

CANDIDATES_AT_ONCE = 10


def padded_scores(
    model: GLMModel,
    questions: Sequence[ClozeQuestion],
    *,
    width: int,
    batch_size: int,
    topology: ParallelTopology | None = None,
) -> list[np.ndarray]:
    """Return the scores [c] of the candidates of every question, from rows of ``width`` positions.

    The data ranks of ``topology`` share the questions; every rank has to call it.
    """
    head, device = MultiTokenCloze(model), model.word_embeddings.weight.device

    def scores_of(numbers: Sequence[int]) -> list[np.ndarray]:
        samples = [questions[number].sample for number in numbers]
        batch = collate(samples, pad_id=0, pad_to=width)
        tensors = {name: torch.from_numpy(array) for name, array in batch.arrays().items() if name != "labels"}
        parts = []
        for start in range(0, tensors["input_ids"].size(1), CANDIDATES_AT_ONCE):
            end = start + CANDIDATES_AT_ONCE
            part = {name: tensor[:, start:end].to(device) for name, tensor in tensors.items()}
            parts.append(choice_scores(head, batch, part))
        together = torch.cat(parts, dim=1).cpu().numpy()
        return [row[: sample.num_choices] for row, sample in zip(together, samples)]

    numbers = range(len(questions))
    batches = [numbers[first : first + batch_size] for first in range(0, len(questions), batch_size)]
    with evaluating(model), torch.inference_mode():
        return run_shared(batches, scores_of, topology=topology or ParallelTopology.single())


def shared_scores(model: GLMModel, questions: Sequence[ClozeQuestion], *, batch_size: int) -> list[np.ndarray]:
    """Return the same with what candidates have in common run once; a passage cut for each of them has nothing."""
    asked: list[Question] = []
    for question in questions:
        rows = question.sample.rows
        together = Question.of_rows(rows)
        asked += [together] if together is not None else [one for row in rows if (one := Question.of_rows([row]))]
    found = (
        score.log_probability for scores in score_questions(model, asked, batch_size=batch_size) for score in scores
    )
    return [np.array([next(found) for _ in question.sample.rows], dtype=np.float32) for question in questions]


def num_correct(scores: Sequence[np.ndarray], questions: Sequence[ClozeQuestion]) -> int:
    """Return how many questions have an answer as their best candidate."""
    return sum(int(one.argmax()) in question.right for one, question in zip(scores, questions, strict=True))
