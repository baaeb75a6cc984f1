"""The benchmark of utilisation: its formula against numbers worked out by hand, and short runs of the real engine."""

from __future__ import annotations

import json
import re
from argparse import Namespace

import numpy as np
import pytest
import torch

from benchmarks import utilisation
from benchmarks.harness import MODELS
from model.config import GLMConfig
from model.modeling_glm import count_parameters
from model.released import RELEASED_MODELS
from tests.helpers.engines import LENGTH, VOCABULARY, make_batch, make_engine

RUN = ["--model", "tiny", "--steps", "2", "--warmup", "1", "--batch-size", "2", "--seq-length", "32",
       "--num-layers", "1", "--hidden-size", "16", "--num-attention-heads", "2", "--num-workers", "0",
       "--device", "cpu"]  # fmt: skip


def test_the_formula_by_hand():
    config = GLMConfig(2, 4, 2, 10, max_position_embeddings=50)
    # A layer: query, key, value 3 * 16, output 16, up 64, down 64 = 192; two of them and the output layer of 10 * 4.
    assert utilisation.matmul_parameters(config) == 2 * 192 + 40 == 424
    assert utilisation.flops_per_token(config, 5) == 6 * 424 + 12 * 2 * 4 * 5 == 3024
    found = utilisation.Utilisation(
        model="x", matmul_parameters=424, width=5.0, steps=2, tokens=1250, real_tokens=1000, flops=1000 * 3024.0,
        seconds=0.5, peak_flops=24_192_000.0, loss=1.0, memory_gb=0.0, operations=1500 * 3024.0,
    )  # fmt: skip
    assert found.real_tokens_per_second == 2000
    assert found.mfu == pytest.approx(0.25) and found.utilisation == pytest.approx(0.375)
    lines = utilisation.report(found)
    assert "2,000 real tokens/s (20.0% of the input is padding" in lines[1]
    assert "MFU 25.0 %" in lines[2] and "utilisation 37.5 %" in lines[3]


def test_the_matrices_are_those_of_the_model():
    """All but position tables, biases and norms."""
    for released in RELEASED_MODELS.values():
        config = released.config
        others = 2 * config.position_rows * config.hidden_size  # tables
        others += config.num_layers * (4 + 1 + 4 + 4) * config.hidden_size + 2 * config.hidden_size  # vectors
        assert utilisation.matmul_parameters(config) + others == count_parameters(config)


def test_goals_of_large_and_2b_are_about_their_shares_of_an_h200():
    """180k tokens/s of GLM-Large are some 40 % of 989 TFLOP/s, 35k of GLM-2B some 42 %."""
    for name, rate, share in (("large", 180e3, 0.40), ("2b", 35e3, 0.42)):
        assert rate * utilisation.flops_per_token(MODELS[name].config, 560) / 989e12 == pytest.approx(share, abs=0.015)


def test_tokens_and_arithmetic_of_every_measured_update_count():
    engine = make_engine()
    batches = iter([make_batch(seed, rows=rows) for seed, rows in enumerate((7, 4, 4, 3, 3))])
    some, found = utilisation.measure(
        engine,
        batches,
        Namespace(model="x", warmup=1, steps=2, peak_tflops=2.0),
        config=engine.model.config,
        accumulation_steps=1,
    )
    assert found.tokens == (4 + 4) * LENGTH and found.width == LENGTH and found.peak_flops == 2e12
    assert found.real_tokens == found.tokens and [len(batches) for batches in some] == [1, 1]
    parameters = 12 * 2 * 16**2 + VOCABULARY * 16
    assert found.flops == pytest.approx(8 * LENGTH * (6 * parameters + 12 * 2 * 16 * LENGTH))
    assert found.mfu == pytest.approx(found.flops / found.seconds / 2e12)
    assert len(list(batches)) == 2
    again = make_engine()  # the updates are those of the engine
    losses = [again.train_step([make_batch(seed, rows=rows)]).loss.item() for seed, rows in enumerate((7, 4, 4))]
    assert found.loss == losses[-1]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_operations_are_those_of_all_positions_and_of_the_last_layer_at_targets(dropout: float):
    """Worked out by hand for 2 layers, hidden 16: 6 flops forward and backward for each number of a matrix."""
    engine = make_engine(dropout=dropout)
    batch = make_batch(1, rows=4)
    some, found = utilisation.measure(
        engine,
        iter([batch] * 3),
        Namespace(model="x", warmup=1, steps=2, peak_tflops=None),
        config=engine.model.config,
        accumulation_steps=1,
    )
    counted = utilisation.count_operations(engine, some, found)
    assert counted.operations is not None and counted.utilisation is None
    positions, queries = 4 * LENGTH, int((batch.loss_mask != 0).sum(axis=1).max()) * 4
    targets = int((batch.loss_mask != 0).sum())
    products = 6 * 12 * 16**2 * positions + 6 * 3 * 16**2 * positions + 6 * 9 * 16**2 * queries
    output = 6 * VOCABULARY * 16 * targets
    pairs = (positions + queries) * LENGTH
    least, most = (products + output + scores * 16 * pairs for scores in (12, 14))  # fused ones compute scores twice
    assert least <= counted.operations / 2 <= most


def test_a_run_prints_rates_and_no_share_on_a_cpu(capsys, tmp_path):
    table = tmp_path / "profile.txt"
    assert utilisation.mfu([*RUN, "--profile", str(table)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^[\d,]+ real tokens/s \([\d.]+% of the input is padding", printed, re.MULTILINE)
    assert re.search(
        r"^MFU unknown, .*: [\d.,]+ TFLOP/s by the formula\nutilisation unknown: [\d.,]+ TFLOP/s really", printed, re.M
    )
    assert "Self CPU" in table.read_text(encoding="utf-8") and "aten::" in table.read_text(encoding="utf-8")


def test_a_run_with_a_peak_prints_one_json_object(capsys):
    assert utilisation.mfu([*RUN, "--peak-tflops", "0.5", "--json", "--gradient-accumulation-steps", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 2 and found["tokens"] > found["real_tokens"] >= 2 * 2 * 2 * 16
    assert found["utilisation"] == pytest.approx(found["operations"] / found["seconds"] / 0.5e12)
    assert found["mfu"] == pytest.approx(found["flops"] / found["seconds"] / 0.5e12)
    assert found["matmul_parameters"] == 12 * 16**2 + 30592 * 16


def test_a_corpus_is_read_by_the_real_loader(capsys, tmp_path, vocab_dir):
    corpus = tmp_path / "text.txt"
    corpus.write_text("\n".join(f"Line {n} says that there are {n} of them." for n in range(60)), encoding="utf-8")
    assert utilisation.mfu([*RUN, "--data", str(corpus), "--vocab-dir", str(vocab_dir)]) == 0
    printed = capsys.readouterr().out
    assert "documents" in printed and "real tokens/s" in printed


@pytest.mark.parametrize("wrong", [["--steps", "0"], ["--warmup", "-1"]])
def test_numbers_of_steps_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="--steps"):
        utilisation.mfu([*RUN, *wrong])


def test_a_peak_is_known_of_gpus_alone():
    assert utilisation.peak_flops(torch.device("cpu"), given_tflops=None, num_devices=4) is None
    assert utilisation.peak_flops(torch.device("cpu"), given_tflops=989, num_devices=2) == 2 * 989e12


QUESTIONS = ["--model", "tiny", "--steps", "2", "--warmup", "0", "--questions", "3", "--candidates", "4", "--shortest",
             "20", "--longest", "40", "--num-layers", "1", "--hidden-size", "16", "--num-attention-heads", "2",
             "--device", "cpu", "--precision", "fp32", "--hidden-dropout", "0", "--attention-dropout", "0",
             "--json"]  # fmt: skip


def test_questions_with_candidates(capsys):
    """The same loss in rows of their own and in shared ones, which hold every question once and less padding."""
    results = []
    for more in ([], ["--pack-samples"]):
        assert utilisation.record([*QUESTIONS, *more]) == 0
        results.append(json.loads(capsys.readouterr().out))
    alone, shared = results
    assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    for found in results:
        assert found["samples_per_second"] == pytest.approx(3 * 2 / found["seconds"])
        assert found["tokens"] > found["real_tokens"] >= 2 * 3 * 20 and found["operations"] > 0
    assert shared["real_tokens"] < alone["real_tokens"] / 2 and shared["operations"] < alone["operations"]
    assert shared["tokens"] < alone["tokens"] / 2 and alone["tokens"] == 2 * 3 * 4 * alone["width"]


def test_candidates_are_predicted_behind_the_question():
    sample = utilisation.make_sample(np.random.default_rng(1), 0, candidates=5, length=30)
    assert len(sample.rows) == 5
    for row in sample.rows:
        (places,) = row.loss_mask.nonzero()
        assert places[0] == row.prefix_length == 30 and 1 <= len(places) <= utilisation.LONGEST_CANDIDATE
        assert np.array_equal(row.input_ids[places[1:]], row.target_ids[places[:-1]])
        assert np.array_equal(row.position_ids[1, places], np.arange(1, len(places) + 1))


def test_questions_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="--shortest"):
        utilisation.record([*QUESTIONS, "--shortest", "50"])
