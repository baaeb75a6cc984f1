"""The Hugging Face files give the recorded inputs, losses, logits, scores and continuations (golden model/hf)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is an extra")

import torch
from torch import Tensor
from transformers import BatchEncoding

from model.hf.modeling_glm import GLMForConditionalGeneration, GLMForMultipleChoice
from model.hf.tokenization_glm import (
    END_OF_PIECE,
    END_OF_TEXT,
    GENERATION_MASK,
    MASK,
    SENTENCE_MASK,
    START_OF_PIECE,
    GLMGPT2Tokenizer,
)
from tests.helpers.golden_index import GoldenFolder
from tests.helpers.golden_models import assert_close, load_vectors
from tests.helpers.hf_models import word_tokenizer, words

TEXTS = {
    "sop": START_OF_PIECE, "eop": END_OF_PIECE, "mask": MASK, "smask": SENTENCE_MASK, "gmask": GENERATION_MASK,
    "pad": END_OF_TEXT,
}  # fmt: skip
EXACT_TOLERANCE = 1e-5
INFORMATIVE = {"erf"}  # outputs of the published code, which has another GELU


@pytest.fixture(scope="module")
def vectors(golden: GoldenFolder) -> dict[str, Any]:
    recorded = load_vectors(golden, "hf/inputs_and_outputs.pt")
    assert set(recorded) == {"ids", "cases", "errors", "choice_labels", "model_outputs"}, set(recorded)
    assert set(recorded["ids"]) == set(TEXTS), recorded["ids"]
    assert set(recorded["model_outputs"]) == {"tanh"} | INFORMATIVE, set(recorded["model_outputs"])
    return recorded


@pytest.fixture(scope="module")
def tokenizer(vectors: dict[str, Any]) -> GLMGPT2Tokenizer:
    ids = vectors["ids"]
    return word_tokenizer({TEXTS[name]: index for name, index in ids.items()}, num_tokens=max(ids.values()) + 1)


@pytest.fixture(scope="module")
def folder(golden: GoldenFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of the two files of the original's conversion: config.json and pytorch_model.bin."""
    target = tmp_path_factory.mktemp("hf")
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copyfile(golden.path(f"model/hf/{name}"), target / name)
    return target


def built(case: dict[str, Any], tokenizer: GLMGPT2Tokenizer) -> BatchEncoding:
    """Return what the tokenizer builds for a case; targets and choices become texts first."""
    assert set(case) == {"input_ids", "attention_mask", "kwargs", "outputs"}, set(case)
    inputs = BatchEncoding({name: case[name] for name in ("input_ids", "attention_mask")})
    options = dict(case["kwargs"])
    if "choices" in options:
        choices = [[words(choice) for choice in row] for row in options.pop("choices")]
        assert not options, options
        return tokenizer.build_inputs_for_multiple_choice(inputs, choices)
    targets = options.pop("targets", None)
    if options.pop("single", False):
        targets = words(targets)
    elif targets is not None:
        targets = [words(target) for target in targets]
    assert set(options) <= {"max_gen_length", "padding"}, options
    return tokenizer.build_inputs_for_generation(inputs, targets=targets, **options)


def assert_identical(actual: Any, expected: Any, what: str) -> None:
    """Compare tensors and lists of them, types included."""
    assert type(actual) is type(expected), what
    if isinstance(expected, list):
        assert len(actual) == len(expected), what
        for index, (one, other) in enumerate(zip(actual, expected)):
            assert_identical(one, other, f"{what}[{index}]")
    else:
        assert isinstance(expected, Tensor), what
        assert actual.dtype == expected.dtype and torch.equal(actual, expected), what


def test_inputs_are_built_as_recorded(vectors: dict[str, Any], tokenizer: GLMGPT2Tokenizer):
    for name, case in vectors["cases"].items():
        inputs = built(case, tokenizer)
        assert set(inputs) == set(case["outputs"]), name
        for key, expected in case["outputs"].items():
            assert_identical(inputs[key], expected, f"{name} {key}")


def test_texts_without_a_blank_are_refused(vectors: dict[str, Any], tokenizer: GLMGPT2Tokenizer):
    plain = BatchEncoding({"input_ids": torch.zeros((2, 4), dtype=torch.long)})
    calls = {
        "no_mask_generation": lambda: tokenizer.build_inputs_for_generation(plain),
        "no_mask_choice": lambda: tokenizer.build_inputs_for_multiple_choice(plain, [["w1"], ["w2"]]),
    }
    assert set(vectors["errors"]) <= set(calls), vectors["errors"]
    for name, kind in vectors["errors"].items():
        with pytest.raises(Exception, match=r"no blank") as caught:
            calls[name]()
        assert type(caught.value).__name__ == kind, name


def test_losses_logits_and_scores(vectors: dict[str, Any], tokenizer: GLMGPT2Tokenizer, folder: Path):
    generation = GLMForConditionalGeneration.from_pretrained(folder).eval()
    choice = GLMForMultipleChoice.from_pretrained(folder).eval()
    for name, expected in vectors["model_outputs"]["tanh"].items():
        if name == "greedy":
            continue
        assert set(expected) == {"loss", "logits"}, name
        case = vectors["cases"][name]
        with torch.no_grad():
            if "choices" in case["kwargs"]:
                output = choice(**built(case, tokenizer), labels=vectors["choice_labels"])
            else:
                output = generation(**built(case, tokenizer))
        assert_close(output.logits, expected["logits"], name)
        assert (output.logits - expected["logits"]).abs().max() < EXACT_TOLERANCE, name
        assert_close(output.loss, expected["loss"], name)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_continuation(
    vectors: dict[str, Any], tokenizer: GLMGPT2Tokenizer, folder: Path, use_cache: bool
) -> None:
    expected = vectors["model_outputs"]["tanh"]["greedy"]
    assert set(expected) == {"sequences", "step_logits"}, set(expected)
    model = GLMForConditionalGeneration.from_pretrained(folder).eval()
    output = model.generate(
        **built(vectors["cases"]["generation_inference"], tokenizer),
        max_new_tokens=expected["step_logits"].size(1),
        pad_token_id=tokenizer.pad_token_id,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert torch.equal(output.sequences, expected["sequences"])
    assert_close(torch.stack(output.logits, dim=1), expected["step_logits"])


def test_the_recorded_configuration_is_understood(golden: GoldenFolder, folder: Path):
    model = GLMForConditionalGeneration.from_pretrained(folder)
    for name, value in load_vectors(golden, "hf/config.json").items():
        assert getattr(model.config, name) == value, name
