"""Scoring 4 choices per question: the context run once for all of them, against a row per choice.

    python -m benchmarks.choices [--json]

4 layers, hidden 512, 8 heads, vocabulary 30592, fp32; 8 questions of one length in batches of 4. Contexts of 64 and
256 tokens (questions of MMLU have about 60, passages of RACE 300), choices of 1 token (a letter) and 12 (a sentence).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from benchmarks.measuring import Row, compare, report
from data_utils.errors import run_main
from generation.api import prepack_for_inference
from generation.scoring import Continuation, Question, score_questions
from model.config import GLMConfig
from model.heads import MultiTokenCloze
from model.modeling_glm import GLMModel

VOCABULARY, START_TOKEN, MASK = 30592, 30522, 103
QUESTIONS, BATCH, CHOICES = 8, 4, 4
CASES = ((64, 1), (64, 12), (256, 1), (256, 12))  # tokens of a context, of a choice
TOLERANCE = 1e-3
GOAL = 4.0


def make_model() -> GLMModel:
    """Return the model with random weights, large enough that scores differ."""
    config = GLMConfig(4, 512, 8, VOCABULARY, max_position_embeddings=512, initializer_std=0.1)
    return GLMModel(config, generator=torch.Generator().manual_seed(1)).eval().requires_grad_(False)


def make_questions(context_length: int, choice_length: int) -> list[Question]:
    """Return questions whose blank is the last token of the context."""
    generator = np.random.default_rng(2)
    where = context_length - 2
    positions = np.array([[*range(context_length), where], [*[0] * context_length, 1]])
    blocks = np.stack([np.full(choice_length - 1, where), np.arange(2, choice_length + 1)])
    questions = []
    for _ in range(QUESTIONS):
        context = generator.integers(1000, 30000, context_length)
        context[where] = MASK
        choices = generator.integers(1000, 30000, (CHOICES, choice_length))
        continuations = tuple(Continuation(ids[:-1], blocks, ids) for ids in choices)
        questions.append(Question(np.append(context, START_TOKEN), positions, context_length, continuations))
    return questions


def together(model: GLMModel, questions: Sequence[Question]) -> np.ndarray:
    """Return the scores [questions, choices] with the context run once."""
    scores = score_questions(model, questions, batch_size=BATCH)
    return np.array([[one.log_probability for one in own] for own in scores])


def row_by_row(model: GLMModel, questions: Sequence[Question]) -> np.ndarray:
    """Return the scores with a row per choice, as fine-tuning runs them."""
    head, found = MultiTokenCloze(model), []
    for start in range(0, len(questions), BATCH):
        rows = [_rows(question) for question in questions[start : start + BATCH]]
        ids, positions, targets, mask = (torch.from_numpy(np.stack(parts)) for parts in zip(*rows))  # [b,c,...]
        prefix_lengths = torch.tensor([[q.prefix_length] * CHOICES for q in questions[start : start + BATCH]])
        with torch.inference_mode():
            found.append(head(ids, positions, prefix_lengths, targets, mask).numpy())
    return np.concatenate(found)


def _rows(question: Question) -> tuple[np.ndarray, ...]:
    """Return ids, positions, targets and their mask, one row per choice."""
    given = len(question.input_ids) - 1
    ids, positions, targets = [], [], []
    for one in question.continuations:
        ids.append(np.concatenate([question.input_ids, one.input_ids]))
        positions.append(np.concatenate([question.position_ids, one.position_ids], axis=1))
        targets.append(np.concatenate([np.zeros(given, dtype=np.int64), one.target_ids]))
    mask = np.zeros_like(np.stack(targets))
    mask[:, given:] = 1
    return np.stack(ids), np.stack(positions), np.stack(targets), mask


def measure() -> list[Row]:
    """Return a row per case; our side is prepared as ``generation.api.load_model`` leaves it."""
    prepared, plain = make_model(), make_model()
    prepack_for_inference(prepared)
    return [_measure(prepared, plain, *case) for case in CASES]


def _measure(model: GLMModel, plain: GLMModel, context_length: int, choice_length: int) -> Row:
    questions = make_questions(context_length, choice_length)
    return compare(
        f"{CHOICES} choices of {choice_length} after {context_length} tokens",
        partial(together, model, questions),
        partial(row_by_row, plain, questions),
        repeats=3,
        warm=True,
        amount=QUESTIONS,
        unit="questions/s",
        equal=bool(np.abs(together(model, questions) - row_by_row(plain, questions)).max() < TOLERANCE),
        goal=GOAL,
    )


def main() -> int:
    """Run the measurement."""
    return report(measure, description=__doc__)


if __name__ == "__main__":
    run_main(main)
