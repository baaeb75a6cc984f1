"""Evaluating a language model: batched, trimmed rows with logits at the targets only, against whole rows one by one.

    python -m benchmarks.evaluate_lm [--json]

4 layers, hidden 256, vocabulary 30592, fp32, one thread. LAMBADA: 32 passages of 60 to 110 tokens and a last word of
one or two, rows of --seq-length 256. Perplexity: a text of 1,000 tokens, --seq-length 256, --overlapping-eval 64, in
both directions. The baseline runs each row alone, padded to its full length, with the logits of every position.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch

from benchmarks.generate import number_tokenizer
from benchmarks.measuring import Row, compare, report
from data_utils.batches import pad_batch
from data_utils.errors import run_main
from data_utils.objective import Objective
from generation.scoring import Score
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from tasks.language_model.readers import Ending, TokenDocuments
from tasks.language_model.run import score_windows
from tasks.language_model.samples import WindowTable, document_windows, ending_windows
from tasks.language_model.settings import LanguageModelSettings

VOCABULARY, SEQ_LENGTH, OVERLAP, BATCH = 30592, 256, 64, 16
PASSAGES, SHORTEST, LONGEST, TOKENS = 32, 60, 110, 1000
TOLERANCE = 1e-4


def make_model() -> GLMModel:
    """Return the model; weights large enough that choices are no near-ties."""
    config = GLMConfig(4, 256, 4, VOCABULARY, max_position_embeddings=SEQ_LENGTH, initializer_std=0.1)
    return GLMModel(config, generator=torch.Generator().manual_seed(1)).eval().requires_grad_(False)


def make_passages() -> WindowTable:
    """Draw passages and their last words."""
    generator = np.random.default_rng(2)

    def draw(least: int, most: int) -> list[int]:
        return generator.integers(1000, 30000, int(generator.integers(least, most + 1))).tolist()

    endings = [Ending(str(number), draw(SHORTEST, LONGEST), draw(1, 2)) for number in range(PASSAGES)]
    return ending_windows(endings, settings=LanguageModelSettings(seq_length=SEQ_LENGTH), tokenizer=number_tokenizer())


def make_windows(*, unidirectional: bool) -> WindowTable:
    """Draw a text and cut it into windows."""
    ids = np.random.default_rng(3).integers(1000, 30000, TOKENS).astype(np.int32)
    settings = LanguageModelSettings(seq_length=SEQ_LENGTH, overlap=OVERLAP, unidirectional=unidirectional)
    return document_windows(TokenDocuments((ids,), TOKENS), settings=settings, tokenizer=number_tokenizer())


def ours(model: GLMModel, table: WindowTable) -> list[Score]:
    """Return the scores as an evaluation finds them."""
    return score_windows(model, table, batch_size=BATCH)


@torch.inference_mode()
def one_by_one(model: GLMModel, table: WindowTable) -> list[Score]:
    """Return the scores of whole rows with all their logits, one row at a time."""
    scores = []
    for number in range(len(table)):
        batch = pad_batch([table.row(number)], Objective.DOCUMENT, multiple_of=SEQ_LENGTH + 1).tensors()
        logits = model(batch.input_ids, batch.position_ids, batch.attention_mask).float()  # [1,s,v]
        values = torch.nn.functional.cross_entropy(logits[0], batch.target_ids[0], reduction="none")
        loss = float((values * batch.loss_mask[0]).sum(dtype=torch.float64))
        greedy = bool(((logits.argmax(dim=-1) == batch.target_ids) | (batch.loss_mask == 0)).all())
        scores.append(Score(-loss, int(batch.loss_mask.sum()), greedy))
    return scores


def same(first: list[Score], second: list[Score]) -> bool:
    """Tell whether scores agree, but for rounding."""
    return all(
        math.isclose(one.log_probability, other.log_probability, rel_tol=TOLERANCE) and one[1:] == other[1:]
        for one, other in zip(first, second, strict=True)
    )


def measure() -> list[Row]:
    """Return a row per kind of evaluation."""
    torch.set_num_threads(1)
    model = make_model()
    tables = {
        "LAMBADA": make_passages(),
        "perplexity": make_windows(unidirectional=False),
        "perplexity, unidirectional": make_windows(unidirectional=True),
    }
    return [
        compare(
            name,
            partial(ours, model, table),
            partial(one_by_one, model, table),
            repeats=3,
            warm=True,
            amount=len(table),
            unit="windows/s",
            equal=same(ours(model, table), one_by_one(model, table)),
        )
        for name, table in tables.items()
    ]


def main() -> int:
    """Run the measurement."""
    return report(measure, description=__doc__)


if __name__ == "__main__":
    run_main(main)
