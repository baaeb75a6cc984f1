"""Samples of tasks that share rows: losses, gradients and scores are those of rows of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from data_utils.batches import Batch, fitting_rows, shared_positions
from data_utils.rows import Row
from model.config import GLMConfig
from model.heads import POOL_TOKENS, SequenceClassification, SingleTokenCloze
from model.modeling_glm import GLMModel
from model.shared_rows import states_at
from mpu.initialize import initialize_model_parallel
from tasks.seq2seq.samples import Seq2SeqSample
from tasks.seq2seq.samples import collate as collate_texts
from tasks.superglue.batches import TaskBatch, collate
from tasks.superglue.objective import ABSENT_SCORE, TaskCriterion, choice_scores, on_device, score_rows
from tasks.superglue.samples import Kind
from tests.helpers.distributed import run
from tests.helpers.engines import scoring_engine
from tests.helpers.launching import metrics
from tests.helpers.launching import run as launch
from tests.helpers.small_corpus import SmallCorpus, make_corpus, task_flags, write_entailment_split
from tests.helpers.task_samples import PAD, VOCABULARY, make_model, make_samples
from training.engine import BlankInfilling

CPU = torch.device("cpu")
# The kind of samples, with choices or without, one row of positions, the pool token.
FORMS: tuple[tuple[Kind, bool, bool, str], ...] = (
    ("single_token", False, False, "cls"),
    ("single_token", False, True, "cls"),
    ("multi_token", True, False, "cls"),
    ("multi_token", True, True, "cls"),
    ("language_model", False, False, "cls"),
    *(("classification", choices, False, pool) for choices in (False, True) for pool in POOL_TOKENS),
)


def loss_and_gradients(head: nn.Module, batch: TaskBatch | Batch) -> tuple[float, list[torch.Tensor]]:
    objective = BlankInfilling(label_smoothing=0.1) if isinstance(batch, Batch) else TaskCriterion()
    loss = objective.loss(head, batch, device=CPU).mean
    head.zero_grad()
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in head.parameters() if parameter.grad is not None]


def assert_same(head: nn.Module, alone: TaskBatch | Batch, together: TaskBatch | Batch) -> None:
    (loss, gradients), (packed_loss, packed_gradients) = (loss_and_gradients(head, one) for one in (alone, together))
    assert packed_loss == pytest.approx(loss, rel=1e-6, abs=1e-7)
    for one, other in zip(gradients, packed_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "choices", "one_row", "pool_token"), FORMS)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 9), multiple_of=st.sampled_from((1, 8)))
@settings(max_examples=15, deadline=None)
def test_heads(kind: Kind, choices: bool, one_row: bool, pool_token: str, seed: int, count: int, multiple_of: int):
    samples = make_samples(kind, count, seed, choices=choices, one_row=one_row)
    head = make_model(kind, one_row=one_row, pool_token=pool_token)
    alone = collate(samples, pad_id=PAD)
    together = collate(samples, pad_id=PAD, multiple_of=multiple_of, share_rows=True)
    assert (alone.shared_rows, together.shared_rows.shape[1] % multiple_of) == (None, 0)
    assert_same(head, alone, together)
    if kind != "language_model":
        scores = [choice_scores(head, batch, on_device(batch, CPU)) for batch in (alone, together)]
        torch.testing.assert_close(scores[1], scores[0], rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 6), one_row=st.booleans())
@settings(max_examples=15, deadline=None)
def test_answers_to_one_context_run_it_once(seed: int, count: int, one_row: bool):
    """Among samples whose rows have contexts of their own."""
    generator = np.random.default_rng(seed)
    samples, positions = [], 0
    for sample in make_samples("multi_token", count, seed, choices=True, one_row=one_row):
        rows = sample.rows
        if sample.uid % 2 == 0:  # every row gets the context and the start token of the first, and an answer of its own
            start = rows[0].prefix_length + 1
            tails = [row.values[:, row.prefix_length + 1 :] for row in rows]
            rows = tuple(Row(np.hstack([rows[0].values[:, :start], tail]), start - 1) for tail in tails)
            for row in rows:
                row.values[1, start - 1 :] = generator.integers(0, VOCABULARY, len(row) - start + 1)
            positions += start + sum(tail.shape[1] for tail in tails)
        else:
            positions += sum(map(len, rows))
        samples.append(replace(sample, rows=rows))
    head = make_model("multi_token", one_row=one_row)
    alone, together = (collate(samples, pad_id=PAD, share_rows=share) for share in (False, True))
    assert (together.shared_rows >= 0).sum() == positions
    assert_same(head, alone, together)
    scores = [choice_scores(head, batch, on_device(batch, CPU)) for batch in (alone, together)]
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 9), visible_padding=st.booleans())
@settings(max_examples=20, deadline=None)
def test_texts_to_write(seed: int, count: int, visible_padding: bool):
    generator = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        source, target = int(generator.integers(1, 13)), int(generator.integers(1, 9))
        mask = np.zeros(20, dtype=np.int64)
        mask[12 : 12 + target] = 1
        positions = np.stack([np.minimum(np.arange(20), 12), np.maximum(np.arange(20) - 11, 0)])
        ids, targets = generator.integers(0, VOCABULARY, (2, 20))
        samples.append(Seq2SeqSample(ids, positions, 12, source, targets * mask, mask, (0,), str(number)))
    options = {"pad_id": PAD, "visible_padding": visible_padding}
    together = collate_texts(samples, **options, multiple_of=8, share_rows=True)
    assert together.input_ids.shape[1] % 8 == 0
    assert_same(make_model("language_model"), collate_texts(samples, **options), together)


def test_rows_are_shared_and_absent_choices_left_out():
    samples = make_samples("multi_token", 12, 5, choices=True, one_row=False)
    alone, together = (collate(samples, pad_id=PAD, share_rows=share) for share in (False, True))
    real = int(alone.choice_mask.sum())
    assert real < alone.choice_mask.size
    used = np.sort(together.shared_rows[together.shared_rows >= 0])
    assert (np.diff(used) > 0).all()
    width = alone.input_ids.shape[-1]
    assert len(np.unique(used // width)) == real
    assert len(together.shared_rows) < real / 1.5
    assert TaskCriterion().size(together).tokens == together.shared_rows.size < 0.6 * alone.input_ids.size


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), multiple_of=st.integers(1, 8))
@settings(deadline=None)
def test_positions_of_shared_rows(lengths: list[int], multiple_of: int):
    rows = fitting_rows(lengths)
    places = shared_positions(lengths, rows, stride=50, multiple_of=multiple_of)
    expected = [50 * number + i for number, length in enumerate(lengths) for i in range(length)]
    assert sorted(places[places >= 0].tolist()) == expected
    assert places.shape[1] % multiple_of == 0
    # Every sample stands in one piece, and no row of the width of the longest sample each would take less.
    following = places[:, 1:] - places[:, :-1]
    inside = (places[:, 1:] >= 0) & (places[:, :-1] // 50 == places[:, 1:] // 50)
    assert (following[inside] == 1).all()
    used = max(sum(lengths[number] for number in row) for row in rows)
    assert len(rows) * used <= len(lengths) * max(lengths)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), share_rows=st.booleans(), places=st.sets(st.integers(0, 49), max_size=12))
def test_states_at_some_positions_are_those_of_all_positions(seed: int, share_rows: bool, places: set[int]):
    model = make_model("language_model")
    samples = make_samples("single_token", 5, seed, choices=False, one_row=False)
    batch = on_device(collate(samples, pad_id=PAD, share_rows=share_rows), CPU)
    inputs = [batch[name] for name in ("input_ids", "position_ids", "prefix_lengths")]
    length = inputs[0].size(1)
    everything = model(*inputs, output="hidden")  # [5,s,h]

    lengths = inputs[2].long() + 1  # the rest is padding, which shared rows leave out
    numbers = torch.tensor(sorted(places), dtype=torch.long)
    rows = numbers.div(10, rounding_mode="floor")
    columns = numbers * 7 % lengths[rows]
    found = states_at(model, *inputs, rows=rows, columns=columns, shared_rows=batch.get("shared_rows"))
    torch.testing.assert_close(found, everything[rows, columns])

    one_each = lengths - 1
    found = states_at(model, *inputs, rows=None, columns=one_each, shared_rows=batch.get("shared_rows"))
    torch.testing.assert_close(found, everything[torch.arange(5), one_each])
    for outside in (-1, length):
        with pytest.raises(ValueError, match=f"of samples of {length}"):
            states_at(model, *inputs, rows=None, columns=torch.full((5,), outside))


def test_what_cannot_share_rows_is_refused():
    [sample] = make_samples("single_token", 1, 0, choices=False, one_row=False)
    tensors = on_device(collate([sample], pad_id=PAD, share_rows=True), CPU)
    names = ("input_ids", "position_ids", "prefix_lengths", "target_ids")
    inputs, shared = [tensors[name] for name in names], tensors["shared_rows"]
    head = SingleTokenCloze(make_model("language_model").float())
    with pytest.raises(ValueError, match="prompt_positions cannot share rows"):
        head(*inputs, prompt_positions=torch.zeros(1, 1, dtype=torch.long), shared_rows=shared)
    relative = GLMModel(GLMConfig(1, 16, 2, VOCABULARY, relative_encoding=True, block_position_encoding=False))
    with pytest.raises(ValueError, match="relative positions cannot share rows"):
        SingleTokenCloze(relative)(*inputs, shared_rows=shared)
    length = inputs[0].size(1)
    with pytest.raises(ValueError, match=r"need prefix_lengths \[1\]"):
        classifier = SequenceClassification(head.model, 2)
        classifier(*inputs[:2], torch.ones(1, 1, length, length), shared_rows=shared)


@pytest.mark.parametrize("kind", ["single_token", "multi_token", "classification"])
def test_scores_do_not_depend_on_the_batch(kind: Kind):
    """Evaluation puts samples of similar length together: the same scores as one by one, in the samples' order."""
    samples = make_samples(kind, 13, 3, choices=kind == "multi_token", one_row=False)
    engine = scoring_engine(make_model(kind))
    expected = [score_rows(engine, [sample], batch_size=1, pad_id=PAD)[0] for sample in samples]
    assert len({row.tobytes() for row in expected}) > 1
    for batch_size in (2, 5, 13):
        found = score_rows(engine, samples, batch_size=batch_size, pad_id=PAD)
        for row, other in zip(expected, found, strict=True):
            np.testing.assert_allclose(other[: len(row)], row, rtol=1e-5, atol=1e-5)
            assert (other[len(row) :] == ABSENT_SCORE).all()


def losses_of_rank(share_rows: bool) -> list[float]:
    """Return the loss of every form, and a norm of its gradients that all ranks have whole."""
    topology = initialize_model_parallel(torch.distributed.get_world_size())
    found = []
    for kind, choices, one_row, pool_token in FORMS:
        samples = make_samples(kind, 7, 4, choices=choices, one_row=one_row)
        head = make_model(kind, one_row=one_row, pool_token=pool_token, topology=topology)
        loss = TaskCriterion().loss(head, collate(samples, pad_id=PAD, share_rows=share_rows), device=CPU).mean
        loss.backward()
        model = getattr(head, "model", head)
        found += [loss.item(), model.transformer.final_layernorm.weight.grad.norm().item()]
    return found


def test_two_tensor_parallel_ranks():
    [alone] = run(losses_of_rank, 1, False)
    for found in run(losses_of_rank, 2, True):
        assert found == pytest.approx(alone, rel=1e-5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.slow
@pytest.mark.parametrize("form", [(), ("--block-lm-ratio", "1")], ids=["choices", "with texts"])
def test_finetuning_with_shared_rows(form: tuple[str, ...], corpus: SmallCorpus, tmp_path):
    """The same losses and the same predictions."""
    (tmp_path / "data").mkdir()
    for name, count in (("train", 18), ("val", 7), ("test", 5)):
        write_entailment_split(tmp_path / "data", name, count)
    found = {}
    for name, more in (("alone", []), ("together", ["--pack-samples"])):
        words = task_flags(corpus, "--epochs", "2", "--experiment-name", name, *form, *more)
        launch("finetune_glm.py", *words, cwd=tmp_path)
        rows = [row for row in metrics(tmp_path, name) if row["kind"] == "train"]
        predictions = (tmp_path / "runs" / name / "rte-test.jsonl").read_text(encoding="utf-8")
        found[name] = [row["loss"] for row in rows], predictions
    assert found["together"][0] == pytest.approx(found["alone"][0], rel=1e-4)
    assert found["together"][1] == found["alone"][1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--pad-to-max"], "--pack-samples does not go with --pad-to-max"),
        (["--fast-decode"], "--pack-samples does not go with --pad-to-max, --fast-decode"),
        (["--task", "wikitext"], "--pack-samples has nothing to do for wikitext"),
    ],
)
def test_refusals_end_in_one_line(more: list[str], message: str, corpus: SmallCorpus, tmp_path):
    said = launch(
        "finetune_glm.py", *task_flags(corpus, "--epochs", "1", "--pack-samples", *more), cwd=tmp_path, code=2
    )
    assert message in said and "Traceback" not in said
