"""The probe of the context: which blanks, what each surroundings hide, and the same figures however a run is cut."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_utils.objective import Objective
from data_utils.objective.block_infilling import BlankInfillingCollator, Blanks
from data_utils.objective.context_probe import CELL, NEAR, ContextProbe
from data_utils.objective.packing import BlockDataset
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology, initialize_model_parallel
from tests.helpers import distributed, launching
from tests.helpers.small_corpus import SmallCorpus, make_corpus
from tests.helpers.training_data import SINGLE, build, configure
from training.build import build_engine
from training.data import PretrainingDocuments, batch_loader, build_run_tokenizer
from training.engine import Engine
from training.metrics import ProbeResult


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def probe(corpus: SmallCorpus) -> ContextProbe:
    probe = build(corpus, "--probe-context").probe
    assert probe is not None
    return probe


def engine_of(corpus: SmallCorpus, topology: ParallelTopology = SINGLE) -> Engine:
    configuration = configure(corpus)
    torch.manual_seed(5)
    vocab_size = build_run_tokenizer(configuration).padded_size(128)
    engine = build_engine(configuration, vocab_size=vocab_size, topology=topology, device=torch.device("cpu"))
    for parameter in engine.model.parameters():  # a model that makes something of its context
        if parameter.dim() == 2:
            parameter.data.mul_(10.0)
    return engine


def test_surroundings_differ_beside_the_blanks_alone(probe: ContextProbe):
    blanks = 0
    for true, swapped, far in zip(*(probe.batches[name] for name in ("true", "swapped", "far")), strict=True):
        assert np.array_equal(true.target_ids, far.target_ids) and np.array_equal(true.input_ids, far.input_ids)
        assert np.array_equal(true.attention_mask, swapped.attention_mask)
        for row, loss_mask in enumerate(true.loss_mask):
            starts = loss_mask.nonzero()[0]  # the start tokens
            places = true.position_ids[row, 0, starts]
            blanks += len(starts)
            assert len(starts) <= -(-true.input_ids.shape[1] // CELL) + 1
            beside = {place + side for place in places.tolist() for side in (-1, 1)}
            changed = set((true.input_ids[row] != swapped.input_ids[row]).nonzero()[0].tolist())
            assert changed <= beside
            near = {p + side * k for p in places.tolist() for side in (-1, 1) for k in range(1, NEAR + 1)} - {0}
            for start in starts:
                seen = set(true.attention_mask[row, 0, start].nonzero()[0].tolist())
                assert seen == {*range(min(starts)), start}
                assert set(far.attention_mask[row, 0, start].nonzero()[0].tolist()) == seen - near
    assert blanks > 300


def test_loss_is_that_of_a_blank_which_is_generated_first(corpus: SmallCorpus, probe: ContextProbe):
    configuration, engine = configure(corpus), engine_of(corpus)
    tokenizer = build_run_tokenizer(configuration)
    batch = probe.batches["true"][0]
    documents = PretrainingDocuments(configuration, tokenizer=tokenizer, topology=SINGLE)
    loader = batch_loader(
        documents.read([str(corpus.folder / "valid.jsonl")]), configuration=configuration, tokenizer=tokenizer,
        topology=SINGLE, seq_length=48, batch_size=4, num_batches=4, num_workers=0,
    )  # fmt: skip
    assert isinstance(loader.dataset, BlockDataset) and isinstance(loader.collator, BlankInfillingCollator)
    tokens = loader.dataset[0].tokens
    start = int(batch.position_ids[0, 0, batch.loss_mask[0].nonzero()[0][0]])  # of the first blank, in the text too
    length = len(tokens) - batch.loss_mask[0].nonzero()[0][0] + 1  # where it is the only one
    assert batch.loss_mask[0].sum() == 1
    (row,) = loader.collator.corrupt([Blanks(tokens, [(start, start + length)])], Objective.TOKEN, random.Random(0))
    model = engine.model
    assert isinstance(model, GLMModel)
    with torch.inference_mode():
        model.eval()
        logits = model(
            torch.from_numpy(row.input_ids)[None], torch.from_numpy(row.position_ids)[None],
            torch.tensor([row.prefix_length]),
        )[0, row.prefix_length]  # fmt: skip
    target = int(row.target_ids[row.prefix_length])
    arrays = ("input_ids", "target_ids", "loss_mask", "position_ids", "attention_mask")
    first_row = replace(batch, **{name: getattr(batch, name)[:1] for name in arrays})
    result = engine.probe(ContextProbe({"true": [first_row]}, 1.0))
    assert result.num_blanks == 1
    assert result.losses["true"] == pytest.approx(float(-logits.float().log_softmax(-1)[target]), rel=1e-5)
    assert result.top1["true"] == float(logits.argmax() == target)


def _probe(folder: Path, model_parallel_size: int) -> ProbeResult:
    corpus, topology = SmallCorpus(folder), initialize_model_parallel(model_parallel_size)
    probe = build(corpus, "--probe-context", topology=topology).probe
    assert probe is not None
    return engine_of(corpus, topology).probe(probe)


@pytest.mark.parametrize("model_parallel_size", [1, 2])
def test_figures_are_those_of_one_process(corpus: SmallCorpus, probe: ContextProbe, model_parallel_size: int):
    alone = engine_of(corpus).probe(probe)
    assert alone.losses["true"] != pytest.approx(alone.losses["swapped"], rel=1e-4)
    for result in distributed.run(_probe, 2, corpus.folder, model_parallel_size):
        assert result.losses == pytest.approx(alone.losses, rel=1e-5)
        assert result.top1 == pytest.approx(alone.top1) and result.most_frequent == alone.most_frequent
        assert result.num_blanks == alone.num_blanks


def test_packed_rows_have_the_same_probe(corpus: SmallCorpus, probe: ContextProbe):
    packed = build(corpus, "--probe-context", "--pack-samples").probe
    assert packed is not None
    for name, batches in probe.batches.items():
        for ours, theirs in zip(batches, packed.batches[name], strict=True):
            assert np.array_equal(ours.input_ids, theirs.input_ids)
            assert np.array_equal(ours.attention_mask, theirs.attention_mask)


def test_evaluations_print_and_write_it(corpus: SmallCorpus, tmp_path: Path):
    words = [*corpus.words(), "--train-iters", "6", "--eval-interval", "3", "--summary-dir", ".", "--probe-context"]
    output = launching.run("pretrain_glm.py", *words, cwd=tmp_path)
    lines = [line for line in output.splitlines() if line.startswith(" context probe at ")]
    assert [line.split(" | ")[0] for line in lines] == [
        " context probe at iteration 3", " context probe at the end of training for val data",
    ]  # fmt: skip
    assert "true neighbours: loss " in lines[0] and "most frequent: " in lines[0]
    (summary,) = (tmp_path / "runs").glob("glm-*-*")
    rows = [row for row in launching.metrics(tmp_path, summary.name) if row["kind"] == "evaluation"]
    assert [row["iteration"] for row in rows] == [3, 6, 6]
    assert all(0 <= row["probe_far_top1"] <= 1 and row["probe_swapped_loss"] > 0 for row in rows)


def test_a_probe_without_text_is_refused(corpus: SmallCorpus, tmp_path: Path):
    with pytest.raises(ValueError, match="--probe-context is part of evaluations, and --eval-iters 0"):
        configure(corpus, "--probe-context", "--eval-iters", "0")
    short = tmp_path / "short.jsonl"
    short.write_text('{"text": "time"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="the validation text has no 9 tokens in a row"):
        build(corpus, "--probe-context", "--valid-data", str(short), "--sample-one-document")
