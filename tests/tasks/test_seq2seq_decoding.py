"""Texts that a model writes do not depend on the batch, on padding, or on the number of ranks; losses under TP."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.infill import prompt_generator
from generation.sampling import DecodingSettings
from model.modeling_glm import GLMModel
from mpu.cross_entropy import vocab_parallel_cross_entropy
from mpu.initialize import ParallelTopology, initialize_model_parallel
from tasks.seq2seq.decoding import TargetDecoder, decode_shared
from tasks.seq2seq.samples import Seq2SeqSample, collate
from tests.helpers.distributed import run
from tests.helpers.small_models import TINY_COMMAND_IDS, WordTokenizer, random_model
from training.engine import BlankInfilling

IDS = TINY_COMMAND_IDS
TOKENIZER = WordTokenizer(IDS, num_tokens=58)
SOURCE, TARGET = 24, 7
BEAMS = DecodingSettings(max_length=TARGET, num_beams=3, length_penalty=0.7, no_repeat_ngram_size=3, min_length=2)


def make_samples(count: int, *, seed: int, num_masks: int = 1, training: bool = False) -> list[Seq2SeqSample]:
    """Return made-up samples with sources of all lengths, padded to ``SOURCE``."""
    generator = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        length = int(generator.integers(num_masks + 1, SOURCE + 1))
        source = generator.integers(0, 50, length)
        masks = tuple(sorted(int(m) for m in generator.choice(length, num_masks, replace=False)))
        source[list(masks)] = IDS["MASK"]
        written = int(generator.integers(1, TARGET + 1)) if training else 0
        target = np.append(generator.integers(0, 50, written), IDS["eop"])[:TARGET] if training else np.array([])
        slots = TARGET if training else 1
        padded = np.full(slots, IDS["pad"])
        padded[: len(target)] = target
        input_ids = np.full(SOURCE + slots, IDS["pad"])
        input_ids[:length] = source
        input_ids[SOURCE:] = [IDS["sop"], *padded[: slots - 1]]
        positions = np.stack([np.arange(SOURCE + slots), np.zeros(SOURCE + slots, dtype=np.int64)])
        positions[0, SOURCE:], positions[1, SOURCE:] = masks[0], np.arange(1, slots + 1)
        loss_mask = np.zeros(SOURCE + slots, dtype=np.int64)
        loss_mask[SOURCE : SOURCE + len(target)] = 1
        target_ids = np.concatenate([np.zeros(SOURCE, dtype=np.int64), padded])
        given = (target_ids, loss_mask) if training else (None, None)
        samples.append(Seq2SeqSample(input_ids, positions, SOURCE, length, *given, masks, str(number)))
    return samples


def ending_model(*, seed: int) -> GLMModel:
    """Return a random model that often ends a text before it has to."""
    model = random_model(seed=seed)
    with torch.no_grad():
        model.word_embeddings.weight[IDS["eop"]] *= 3.0
    return model


def written(
    samples: Sequence[Seq2SeqSample],
    model: GLMModel,
    *,
    batch_size: int,
    settings: DecodingSettings = BEAMS,
    visible_padding: bool = False,
    topology: ParallelTopology | None = None,
    blanks: bool = False,
    seen: list[int] | None = None,
) -> list:
    """Return the hypotheses of every sample, or its blanks; ``seen`` collects what this rank decodes."""
    decoder = TargetDecoder(model, TOKENIZER, settings=settings, visible_padding=visible_padding)

    def decode(numbers: Sequence[int]) -> list:
        if seen is not None:
            seen.extend(numbers)
        chosen = [samples[number] for number in numbers]
        if blanks:
            return decoder.fill_blanks(chosen)
        generators = [prompt_generator(7, number) for number in numbers] if settings.draw_candidates else []
        return decoder.search(chosen, generators=generators)

    lengths = [sample.context_length for sample in samples]
    return decode_shared(lengths, decode, batch_size=batch_size, topology=topology or ParallelTopology.single())


def assert_equal(found: list, expected: list) -> None:
    """Assert that hypotheses have the same tokens in the same order, and the same scores but for rounding."""
    assert [[h.tokens for h in row] for row in found] == [[h.tokens for h in row] for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose([h.score for h in row], [h.score for h in wanted], atol=2e-5)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), draws=st.booleans(), visible=st.booleans())
def test_hypotheses_do_not_depend_on_the_batch(seed: int, draws: bool, visible: bool) -> None:
    samples, model = make_samples(9, seed=seed), ending_model(seed=seed)
    options = DecodingSettings(**{**vars(BEAMS), "draw_candidates": draws})
    alone = written(samples, model, batch_size=1, settings=options, visible_padding=visible)
    assert any(len(row[0].tokens) for row in alone)
    for size in (4, 16):
        assert_equal(written(samples, model, batch_size=size, settings=options, visible_padding=visible), alone)


def test_texts_that_are_done_leave_the_batch() -> None:
    samples, model, fed = make_samples(12, seed=5), ending_model(seed=5), []
    model.register_forward_pre_hook(lambda _module, inputs: fed.append(inputs[0].size(0)))
    options = DecodingSettings(max_length=TARGET, num_beams=2)
    found = written(samples, model, batch_size=12, settings=options)
    assert fed[:3] == [12, 12, 24], "contexts, start tokens, beams"
    assert fed[2:] == sorted(fed[2:], reverse=True) and fed[-1] < 24
    assert any(len(rows[0].tokens) < TARGET for rows in found)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000))
def test_filled_blanks_do_not_depend_on_the_batch(seed: int) -> None:
    samples, model = make_samples(9, seed=seed, num_masks=2), ending_model(seed=seed)
    options = DecodingSettings(max_length=2 * TARGET, no_repeat_ngram_size=3)
    alone = written(samples, model, batch_size=1, settings=options, blanks=True)
    for size in (4, 16):
        assert written(samples, model, batch_size=size, settings=options, blanks=True) == alone
    for sample, text in zip(samples, alone, strict=True):
        kept = [token for token in sample.input_ids[: sample.context_length] if token != IDS["MASK"]]
        assert len(text.ids) == len(kept) + sum(len([t for t in piece if t != IDS["pad"]]) for piece in text.pieces)


def test_a_text_without_blanks_stays_as_it_is() -> None:
    [sample] = make_samples(1, seed=0)
    plain = Seq2SeqSample(sample.input_ids, sample.position_ids, SOURCE, sample.context_length, None, None, (), "0")
    [text] = written([plain], random_model(), batch_size=1, blanks=True)
    assert text.ids == sample.input_ids[: sample.context_length].tolist() and text.pieces == []


def test_search_equals_a_search_without_cache() -> None:
    """Greedy search token by token, the whole row run anew each time."""
    samples, model = make_samples(6, seed=3), ending_model(seed=3)
    found = written(samples, model, batch_size=4, settings=DecodingSettings(max_length=TARGET))
    for sample, hypotheses in zip(samples, found, strict=True):
        length, mask = sample.context_length, int(sample.position_ids[0, SOURCE])
        ids, tokens, total = [*sample.input_ids[:length].tolist(), IDS["sop"]], [], 0.0
        while len(tokens) < TARGET:
            steps = len(ids) - length
            positions = [[*range(length), *[mask] * steps], [*[0] * length, *range(1, steps + 1)]]
            with torch.no_grad():
                logits = model(torch.tensor([ids]), torch.tensor([positions]), torch.tensor([length]))[0, -1]
            scores = logits[: TOKENIZER.num_tokens].log_softmax(-1)
            token = int(scores.argmax())
            total += float(scores[token])
            if token == IDS["eop"]:
                break
            tokens.append(token)
            ids.append(token)
        assert list(hypotheses[0].tokens) == tokens
        assert hypotheses[0].score == pytest.approx(total, abs=1e-4)


def test_training_rows_without_padding_have_the_loss_of_rows_whose_padding_is_hidden() -> None:
    samples, model = make_samples(5, seed=4, training=True), random_model(seed=4)
    objective = BlankInfilling(label_smoothing=0.1)
    batch = collate(samples, pad_id=IDS["pad"], multiple_of=8)
    assert batch.input_ids.shape[1] % 8 == 0 and batch.input_ids.shape[1] < SOURCE + TARGET + 8
    found = objective.loss(model, batch, device=torch.device("cpu"))
    full = collate(samples, pad_id=IDS["pad"], visible_padding=True)
    assert full.input_ids.tolist() == [sample.input_ids.tolist() for sample in samples]
    assert full.attention_mask.tolist() == [SOURCE] * len(samples)
    width = full.input_ids.shape[1]
    rows, columns = np.arange(width)[:, None], np.arange(width)
    hidden = np.stack([
        (columns < s.context_length) | ((columns >= SOURCE) & (rows >= SOURCE) & (columns <= rows)) for s in samples
    ])  # fmt: skip
    with torch.no_grad():
        logits = model(
            torch.from_numpy(full.input_ids),
            torch.from_numpy(full.position_ids),
            torch.from_numpy(hidden[:, None]),
        )
    scores = logits.log_softmax(-1)
    own = scores.gather(-1, torch.from_numpy(full.target_ids)[..., None])[..., 0]
    expected = -(0.9 * own + 0.1 * scores.mean(-1))[torch.from_numpy(full.loss_mask) == 1].sum()
    assert float(found.loss_sum.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert objective.weight(batch) == objective.weight(full) == float(found.weight_sum)
    with torch.no_grad():
        visible = objective.loss(model, full, device=torch.device("cpu"))
    assert float(visible.loss_sum) != pytest.approx(float(expected), rel=1e-3), "targets see the padding there"


def _ranks(model_parallel_size: int) -> tuple[list, list, list[int]]:
    topology = initialize_model_parallel(model_parallel_size)
    whole = random_model(seed=5)
    model = GLMModel(whole.config, topology=topology, generator=torch.Generator().manual_seed(5)).eval()
    seen: list[int] = []
    samples = make_samples(11, seed=5)
    found = written(samples, model, batch_size=2, topology=topology, seen=seen)
    filled = written(
        make_samples(5, seed=6, num_masks=2), model, batch_size=2, topology=topology, blanks=True,
        settings=DecodingSettings(max_length=TARGET),
    )  # fmt: skip
    return found, filled, seen


@pytest.mark.parametrize("model_parallel_size", [1, 2], ids=["data ranks", "tensor-parallel ranks"])
def test_two_ranks_write_what_one_writes(model_parallel_size: int) -> None:
    model = random_model(seed=5)
    expected = written(make_samples(11, seed=5), model, batch_size=16)
    blanks = written(
        make_samples(5, seed=6, num_masks=2), model, batch_size=16, blanks=True,
        settings=DecodingSettings(max_length=TARGET),
    )  # fmt: skip
    results = run(_ranks, 2, model_parallel_size)
    for found, filled, _ in results:
        assert_equal(found, expected)
        assert filled == blanks
    decoded = [number for _, _, seen in results for number in seen]
    assert sorted(decoded) == sorted([*range(11)] * model_parallel_size), "no data rank repeats an example"


def test_more_ranks_than_texts() -> None:
    assert [rows[0] for rows in run(_one_text, 2)] == [["first"]] * 2


def _one_text() -> list[list[str]]:
    topology = initialize_model_parallel(1)
    return [decode_shared([3], lambda numbers: ["first"] * len(numbers), batch_size=4, topology=topology)]


def _smoothed(model_parallel_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    topology = initialize_model_parallel(model_parallel_size)
    generator = torch.Generator().manual_seed(1)
    logits, targets = torch.randn(3, 4, 16, generator=generator), torch.randint(16, (3, 4), generator=generator)
    width = 16 // topology.model_parallel_size
    shard = logits[..., topology.model_parallel_rank * width :][..., :width].clone().requires_grad_()
    losses = vocab_parallel_cross_entropy(shard, targets, topology=topology, label_smoothing=0.3)
    (losses * torch.arange(12.0).view(3, 4)).sum().backward()
    return losses.detach(), shard.grad


def test_label_smoothing_under_tensor_parallelism() -> None:
    [(losses, gradient)] = run(_smoothed, 1, 1)
    shards = run(_smoothed, 2, 2)
    for found, _ in shards:
        torch.testing.assert_close(found, losses)
    torch.testing.assert_close(torch.cat([part for _, part in shards], dim=-1), gradient)
