"""The seq2seq evaluator on the tiny model: beams, filled blanks (seq2seq_decode.json), losses (multichoice.json)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from data_utils.batches import Batch
from data_utils.objective import Objective
from generation.sampling import DecodingSettings
from model.modeling_glm import GLMModel
from tasks.seq2seq.decoding import TargetDecoder
from tasks.seq2seq.samples import Seq2SeqSample
from tests.helpers.golden_models import tiny_model
from tests.helpers.small_models import WordTokenizer
from training.engine import BlankInfilling

# Settings of the recorded runs that are fields of ``DecodingSettings``.
BEAM_NAMES = {
    "num_beams": "num_beams",
    "length_penalty": "length_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "min_tgt_length": "min_length",
    "top_k": "top_k",
    "tgt_seq_length": "max_length",
}


def decoding_settings(recorded: dict[str, Any]) -> DecodingSettings:
    return DecodingSettings(**{name: recorded[key] for key, name in BEAM_NAMES.items() if key in recorded})


def beam_sample(item: dict[str, Any], *, mask_pad_token: bool, mask_id: int) -> Seq2SeqSample:
    """Return a recorded item; a dense mask is described by the number of its visible source columns."""
    assert set(item) == {"text", "attention_mask", "position_id"}
    input_ids, mask = np.array(item["text"]), item["attention_mask"]
    if mask_pad_token:
        assert set(mask) == {"context_length", "shape"} and mask["shape"] == [1, len(input_ids), len(input_ids)]
        prefix_length, context_length = len(input_ids) - 1, mask["context_length"]
    else:
        prefix_length = context_length = mask
    positions = np.array(item["position_id"])
    assert input_ids.tolist().index(mask_id) == positions[0, -1], "the piece belongs to the mask"
    return Seq2SeqSample(input_ids, positions, prefix_length, context_length, None, None, (int(positions[0, -1]),), "0")


def batches(samples: list[Any], size: int) -> list[list[Any]]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


@pytest.fixture(scope="module")
def recorded(golden) -> dict[str, Any]:
    content = golden.json("generation/seq2seq_decode.json")
    assert set(content) == {"model", "command_ids", "beam", "blank_filling"}
    return content


@pytest.fixture(scope="module")
def model_and_tokenizer(golden, recorded) -> tuple[GLMModel, WordTokenizer]:
    tiny = golden.json("generation/interactive_tiny.json")
    description = tiny["model"]
    assert description["weights"] == recorded["model"]
    assert recorded["command_ids"].items() <= tiny["command_ids"].items()
    return tiny_model(golden, description), WordTokenizer(tiny["command_ids"], num_tokens=description["vocab_size"])


@pytest.mark.parametrize("extra_size", [None, 16], ids=["recorded batches", "all together"])
def test_beam_search(recorded, model_and_tokenizer, extra_size: int | None):
    model, tokenizer = model_and_tokenizer
    known = {*BEAM_NAMES, "mask_pad_token", "no_block_position", "task_mask", "batch_sizes"}
    for run in recorded["beam"]:
        assert set(run) == {"settings", "inputs", "output_ids", "scores", "min_gap"}
        options = run["settings"]
        assert set(options) == known, set(options) ^ known
        mask_id = recorded["command_ids"]["sMASK" if options["task_mask"] else "MASK"]
        samples = [beam_sample(i, mask_pad_token=options["mask_pad_token"], mask_id=mask_id) for i in run["inputs"]]
        decoder = TargetDecoder(
            model,
            tokenizer,
            settings=decoding_settings(options),
            block_positions=not options["no_block_position"],
            visible_padding=not options["mask_pad_token"],
        )
        starts = iter(samples)
        sizes = [extra_size] if extra_size else options["batch_sizes"]
        given = [[sample for _, sample in zip(range(size), starts)] for size in sizes] + [list(starts)]
        with torch.inference_mode():
            found = [row[0] for batch in given if batch for row in decoder.search(batch)]
        assert [list(best.tokens) for best in found] == run["output_ids"], options
        np.testing.assert_allclose([best.score for best in found], run["scores"], atol=1e-3)


def test_blank_filling(recorded, model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    ids = recorded["command_ids"]
    for run in recorded["blank_filling"]:
        assert set(run) == {"settings", "inputs", "sep", "filled_text", "min_gap"}
        assert set(run["settings"]) == {"no_repeat_ngram_size", "min_tgt_length", "tgt_seq_length", "batch_sizes"}
        samples = []
        for row in run["inputs"]:
            blanks = tuple(index for index, token in enumerate(row) if token == ids["MASK"])
            positions = np.array([[*range(run["sep"]), blanks[0]], [*[0] * run["sep"], 1]])
            samples.append(Seq2SeqSample(np.array(row), positions, run["sep"], run["sep"], None, None, blanks, "0"))
        decoder = TargetDecoder(model, tokenizer, settings=decoding_settings(run["settings"]), visible_padding=True)
        for size in (*run["settings"]["batch_sizes"], len(samples)):
            with torch.inference_mode():
                filled = [text for batch in batches(samples, size) for text in decoder.fill_blanks(batch)]
            assert [tokenizer.decode(text.ids) for text in filled] == run["filled_text"], run["settings"]


def test_losses(golden, model_and_tokenizer):
    model, _ = model_and_tokenizer
    cases = golden.json("generation/multichoice.json")["seq2seq_loss"]
    assert cases
    for case in cases:
        assert set(case) == {"label_smoothing", "batch", "loss"}
        assert set(case["batch"]) == {"text", "target", "loss_mask", "attention_mask", "position_id"}
        arrays = {name: np.array(values) for name, values in case["batch"].items()}
        batch = Batch(
            arrays["text"], arrays["target"], arrays["loss_mask"], arrays["position_id"], arrays["attention_mask"],
            Objective.DOWNSTREAM,
        )  # fmt: skip
        objective = BlankInfilling(label_smoothing=case["label_smoothing"])
        loss = objective.loss(model, batch, device=torch.device("cpu"))
        assert float(loss.mean.detach()) == pytest.approx(case["loss"], rel=1e-4)
        assert float(loss.weight_sum) == objective.weight(batch) == arrays["loss_mask"].sum()
