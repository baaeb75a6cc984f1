"""Evaluating a sequence-to-sequence task: batches with a cache against one text at a time without, the same texts.

    python -m benchmarks.evaluate [--json]

4 layers, hidden 256, vocabulary 30592; 8 sources of 40 to 128 tokens, 5 beams, targets of at most 24 tokens, fp32. The
baseline runs the whole row of every beam anew for every token, as an evaluation without a cache does.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.generate import number_tokenizer
from benchmarks.measuring import Row, compare, report
from data_utils.errors import run_main
from generation.beam_search import BeamOptions, BeamSearch, Hypothesis
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from tasks.seq2seq.decoding import TargetDecoder, decode_shared
from tasks.seq2seq.samples import Seq2SeqSample
from tasks.seq2seq.settings import BeamSettings

VOCABULARY, SHORTEST, LONGEST, TARGET, BEAMS, TEXTS = 30592, 40, 128, 24, 5, 8
TOKENIZER = number_tokenizer()
SPECIAL = TOKENIZER.special
SETTINGS = BeamSettings(
    max_length=TARGET, num_beams=BEAMS, length_penalty=0.7, no_repeat_ngram_size=3, min_length=TARGET // 2
)


def make_model() -> GLMModel:
    """Return the model; weights large enough that choices are no near-ties."""
    config = GLMConfig(4, 256, 4, VOCABULARY, max_position_embeddings=LONGEST, initializer_std=0.1)
    return GLMModel(config, generator=torch.Generator().manual_seed(3)).eval()


def make_samples() -> list[Seq2SeqSample]:
    """Draw sources whose second token is the mask, as a summary's."""
    generator = np.random.default_rng(4)
    samples = []
    for number in range(TEXTS):
        length = int(generator.integers(SHORTEST, LONGEST + 1))
        ids = np.full(LONGEST + 1, SPECIAL.pad)
        ids[:length] = generator.integers(1000, 30000, length)
        ids[1], ids[-1] = SPECIAL.mask, SPECIAL.sop
        positions = np.stack([np.arange(LONGEST + 1), np.zeros(LONGEST + 1, dtype=np.int64)])
        positions[:, -1] = 1
        samples.append(Seq2SeqSample(ids, positions, LONGEST, length, None, None, (1,), str(number)))
    return samples


def ours(model: GLMModel, samples: list[Seq2SeqSample]) -> list[Hypothesis]:
    """Return the best hypothesis of every source, all in one batch."""
    decoder = TargetDecoder(model, TOKENIZER, settings=SETTINGS)
    return decode_shared(
        [sample.context_length for sample in samples],
        lambda numbers: [rows[0] for rows in decoder.search([samples[number] for number in numbers])],
        batch_size=TEXTS,
        topology=ParallelTopology.single(),
    )


def one_by_one(model: GLMModel, samples: list[Seq2SeqSample]) -> list[Hypothesis]:
    """Return the best hypothesis of every source: no batches of sources, no cache."""
    with torch.inference_mode():
        return [_search(model, sample) for sample in samples]


def _search(model: GLMModel, sample: Seq2SeqSample) -> Hypothesis:
    options = BeamOptions(
        num_beams=BEAMS, end_ids=(SPECIAL.eop,), pad_id=SPECIAL.pad, max_steps=TARGET,
        length_penalty=SETTINGS.length_penalty, no_repeat_ngram_size=SETTINGS.no_repeat_ngram_size,
        min_length=SETTINGS.min_length,
    )  # fmt: skip
    search, length, mask = BeamSearch(1, options=options), sample.context_length, int(sample.position_ids[0, LONGEST])
    source = sample.input_ids[:length].tolist()
    pieces = [[SPECIAL.sop] for _ in range(BEAMS)]
    while not search.finished:
        steps = len(pieces[0])
        input_ids = torch.tensor([source + piece for piece in pieces])  # [n,s]
        positions = torch.tensor([[[*range(length), *[mask] * steps], [*[0] * length, *range(1, steps + 1)]]])
        logits = model(input_ids, positions, torch.tensor([length]), output="last_logits").float()
        logits[:, TOKENIZER.num_tokens :] = -torch.inf
        tokens, parents = search.step(logits)
        pieces = [[*pieces[parent], token] for parent, token in zip(parents, tokens, strict=True)]
    return search.results()[0][0]


def measure() -> list[Row]:
    """Return one row; equal means the same tokens, and scores within rounding."""
    model, samples = make_model(), make_samples()
    found, expected = ours(model, samples), one_by_one(model, samples)
    equal = all(a.tokens == b.tokens and abs(a.score - b.score) < 1e-3 for a, b in zip(found, expected, strict=True))
    return [
        compare(
            f"beam search, {TEXTS} sources, {BEAMS} beams",
            lambda: ours(model, samples),
            lambda: one_by_one(model, samples),
            repeats=3,
            warm=True,
            amount=TEXTS,
            unit="texts/s",
            equal=equal,
        )
    ]


if __name__ == "__main__":
    run_main(lambda: report(measure, description=__doc__))
