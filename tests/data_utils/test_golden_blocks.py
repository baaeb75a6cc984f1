"""The collator gives the recorded batches, bit for bit: blocks.json, blocks512.npz, block_units.json."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from data_utils.objective import Objective
from data_utils.objective.block_infilling import Batch, BlankInfillingCollator, pad_batch
from data_utils.objective.packing import Sample
from data_utils.objective.spans import block_length_weights, place_spans, spans_in_documents
from data_utils.rows import Row
from tests.helpers.stand_ins import RECORDED_FIELDS, StandInVocabulary, settings_of

OBJECTIVES = {"bert": Objective.TOKEN, "gap_sentence": Objective.SENTENCE, "generation": Objective.DOCUMENT}


def collate(case: dict, call: dict, vocabulary: StandInVocabulary) -> tuple[Batch, random.Random]:
    collator = BlankInfillingCollator(
        vocabulary,
        settings_of(case["init"]),
        max_seq_length=case["max_seq_length"],
        rank=case["dp_rank"],
        world_size=case["dp_world_size"],
    )
    generator = random.Random(call["rng_seed"])
    samples = [Sample(np.array(s["text"]), np.array(s["loss_mask"])) for s in call["samples"]]
    tokens = random.Random(call["global_random_seed"])
    return collator.collate(samples, generator=generator, token_generator=tokens), generator


def check_defect(case: dict, call: dict, batch: Batch) -> None:
    """Check what the specification wants where the original raises."""
    init = case["init"]
    lengths = [len(sample["text"]) for sample in call["samples"]]
    if init["masked_lm"]:  # unequal lengths: padded
        assert batch.position_ids.shape == batch.input_ids.shape
        for row, prefix_length in enumerate(batch.attention_mask.tolist()):
            assert batch.position_ids[row, :prefix_length].tolist() == list(range(prefix_length))
            assert not batch.input_ids[row, prefix_length:].any()
    elif batch.num_dropped == len(lengths):  # no sample had room for its spans: one is kept, without blanks
        assert batch.input_ids.tolist() == [call["samples"][0]["text"]]
        assert not batch.loss_mask.any()
    elif batch.objective == "gpt" and not init["block_position_encoding"]:  # prefix form: zeros, then ones
        for row, prefix_length in zip(batch.position_ids[:, 1], batch.attention_mask, strict=True):
            assert not row[:prefix_length].any()
            assert set(row[prefix_length:].tolist()) <= {0, 1}
            assert row[prefix_length] == 1
    elif batch.objective == "gpt" and int(init["gpt_min_ratio"] * min(lengths)) > max(lengths) - 2:  # no range: clamped
        generated = (batch.position_ids[:, 1] > 0).sum(axis=1)
        assert generated.max() <= max(lengths) - 1
    elif batch.objective == "bert" and init["context_mask_ratio"] > 0.0:  # fewer tokens near blanks than asked for: all
        part_a = np.arange(batch.input_ids.shape[1]) < batch.attention_mask[:, None]
        assert (batch.input_ids != batch.target_ids)[part_a].any()
    else:
        pytest.fail(f"{case['name']}: the original raises here, and nothing says what is right")


def test_batches(golden):
    recorded = golden.json("pretraining/blocks.json")
    vocabulary = StandInVocabulary(recorded["tokenizer"])
    for case in recorded["cases"]:
        for call in case["calls"]:
            expected = call["expect"]
            if case["init"]["encoder_decoder"]:
                assert "error" in expected  # refused by the command line, see tests/training/test_arguments.py
                continue
            assert call["rng_seed"] == (
                (call["count"] * call["num_workers"] + call["worker_id"]) * case["dp_world_size"] + case["dp_rank"]
            )
            batch, generator = collate(case, call, vocabulary)
            if "error" in expected:
                check_defect(case, call, batch)
                continue
            assert set(expected) == {*RECORDED_FIELDS.values(), "mode", "rng_probe"}
            for ours, theirs in RECORDED_FIELDS.items():
                assert getattr(batch, ours).dtype == np.int64
                assert getattr(batch, ours).tolist() == expected[theirs], (case["name"], call["count"], ours)
            assert batch.objective == expected["mode"]
            assert generator.random() == pytest.approx(expected["rng_probe"], abs=1e-15)


def test_batches_of_512_tokens(golden):
    with np.load(golden.path("pretraining/blocks512.npz")) as arrays:
        meta = json.loads(bytes(arrays["meta_json"]).decode())
        vocabulary = StandInVocabulary(meta["tokenizer"])
        for call in meta["calls"]:
            key = call["key"]
            texts = [row[row >= 0] for row in arrays[f"{key}_in_text"]]
            masks = [row[row >= 0] for row in arrays[f"{key}_in_loss"]]
            samples = [{"text": t, "loss_mask": m} for t, m in zip(texts, masks, strict=True)]
            batch, generator = collate(call, {**call, "samples": samples}, vocabulary)
            for ours, theirs in RECORDED_FIELDS.items():
                np.testing.assert_array_equal(getattr(batch, ours), arrays[f"{key}_{theirs}"], err_msg=f"{key} {ours}")
            assert (batch.objective, len(batch.input_ids)) == (call["mode"], call["rows"])
            assert generator.random() == pytest.approx(call["rng_probe"], abs=1e-15)


def test_units(golden):
    recorded = golden.json("pretraining/block_units.json")
    vocabulary = StandInVocabulary(recorded.pop("tokenizer"))
    checks = {
        "block_length_weights": check_weights,
        "sample_spans": check_placement,
        "sample_span_in_document": check_documents,
        "make_block_data": check_filling,
        "split_samples": check_splitting,
    }
    padding = recorded.pop("pad_batch")
    for name, cases in recorded.items():
        if isinstance(cases, list):
            for case in cases:
                checks[name](case, vocabulary)
        else:
            assert isinstance(cases, int | str), f"unknown part {name}"
    check_padding(padding)


def check_weights(case: dict, vocabulary: StandInVocabulary) -> None:
    weights = block_length_weights(case["average"], case["max_block_length"])
    assert weights == pytest.approx(case["weights"], rel=1e-12)


def check_placement(case: dict, vocabulary: StandInVocabulary) -> None:
    generator = random.Random(case["seed"])
    spans = place_spans(generator, case["span_lengths"], total_length=case["total_length"], offset=case["offset"])
    assert [list(span) for span in spans] == case["spans"]
    assert generator.random() == pytest.approx(case["rng_probe"], abs=1e-15)


def check_documents(case: dict, vocabulary: StandInVocabulary) -> None:
    generator = random.Random(case["seed"])
    eos, enc = vocabulary.command_id("eos"), vocabulary.command_id("ENC")
    tokens = np.array(case["tokens"])
    spans = spans_in_documents(generator, case["masked_lengths"], tokens, eos=eos, enc=enc, ratio=case["bert_ratio"])
    if len(case["spans"]) < len(case["masked_lengths"]):
        assert spans is None  # the sample is dropped
    else:
        assert [list(span) for span in spans] == case["spans"]
    assert generator.random() == pytest.approx(case["rng_probe"], abs=1e-15)


def check_filling(case: dict, vocabulary: StandInVocabulary) -> None:
    collator = BlankInfillingCollator(vocabulary, settings_of(case["init"]), max_seq_length=case["max_seq_length"])
    generator, token_generator = random.Random(case["seed"]), random.Random(case["global_random_seed"])
    spans = [tuple(span) for span in case["spans"]]
    objective = OBJECTIVES[case["task"]]
    blanks = collator.draw_order(np.array(case["tokens"]), spans, objective, generator)
    (filled,) = collator.corrupt([blanks], objective, token_generator)
    expected = case["expect"]
    assert set(expected) == {"tokens", "targets", "loss_mask", "position_ids", "sep"}
    assert filled.input_ids.tolist() == expected["tokens"]
    assert filled.target_ids.tolist() == expected["targets"]
    assert filled.loss_mask.tolist() == expected["loss_mask"]
    assert filled.position_ids.tolist() == expected["position_ids"]
    assert filled.prefix_length == expected["sep"]


def check_splitting(case: dict, vocabulary: StandInVocabulary) -> None:
    settings = settings_of({"encoder_decoder": False, "short_seq_prob": 1.0})
    collator = BlankInfillingCollator(vocabulary, settings, max_seq_length=case["max_seq_length"])
    generator = random.Random(case["seed"])
    samples = [Sample(np.array(s["text"]), np.array(s["loss_mask"])) for s in case["samples"]]
    pieces = collator.split_samples(samples, generator)
    expected = next(
        value for key, value in case.items() if key not in {"seed", "max_seq_length", "samples", "rng_probe"}
    )
    assert [piece.tokens.tolist() for piece in pieces] == [piece["text"] for piece in expected]
    assert [piece.loss_mask.tolist() for piece in pieces] == [piece["loss_mask"] for piece in expected]
    if "rng_probe" in case:
        assert generator.random() == pytest.approx(case["rng_probe"], abs=1e-15)


def check_padding(case: dict) -> None:
    names = ("tokens", "targets", "loss_mask", "position_ids")
    rows = [
        Row(np.array([tokens, targets, loss_mask, *positions]), prefix_length=0)
        for tokens, targets, loss_mask, positions in zip(*(case["in"][name] for name in names), strict=True)
    ]
    batch = pad_batch(rows, Objective.TOKEN)
    for name, ours in zip(names, (batch.input_ids, batch.target_ids, batch.loss_mask, batch.position_ids), strict=True):
        assert ours.tolist() == case["out"][name]
