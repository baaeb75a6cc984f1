"""The multilingual release's model as recorded: mglm_model.pt (names, longer inputs, prefix prompts)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from change_mp import change_model_parallel_size
from model.checkpoints.describe import described
from model.checkpoints.reading import load_model_weights
from model.config import GLMConfig
from model.heads import SingleTokenCloze
from model.modeling_glm import GLMModel
from mpu.initialize import initialize_model_parallel
from tests.helpers.distributed import run
from tests.helpers.golden_index import GoldenFolder

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def recorded(golden: GoldenFolder) -> dict[str, Any]:
    return torch.load(golden.path("multilingual/mglm_model.pt"), weights_only=True)


def config_of(recorded: dict[str, Any], **options: Any) -> GLMConfig:
    sizes = dict(recorded["config"])
    rows = sizes.pop("max_sequence_length")
    return GLMConfig(**sizes, max_position_embeddings=rows - 1, **options)


def loaded(config: GLMConfig, content: dict[str, Any], folder) -> GLMModel:
    """Return the model of a single file, which nothing but the names in it tells the layout of."""
    torch.save(content, folder / "pretrained.pt")
    model = GLMModel(config)
    report = load_model_weights(model, folder / "pretrained.pt", grow_positions=False)
    assert not report.missing and not report.unexpected
    assert report.file == folder / "pretrained.pt"
    return model.eval()


def inputs_of(recorded: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    plain = recorded["plain"]
    return plain["input_ids"], plain["position_ids"], plain["sep"]


@torch.no_grad()
def test_both_layouts_are_told_apart_by_their_names(recorded: dict[str, Any], tmp_path):
    weights = recorded["plain"]["module"]
    ours = loaded(config_of(recorded), {"module": weights, "iteration": 3}, tmp_path)
    torch.testing.assert_close(ours(*inputs_of(recorded)), recorded["plain"]["logits"], **CLOSE)
    state = ours.state_dict()
    assert "word_embeddings.weight" in state and "transformer.word_embeddings.weight" not in state
    again = loaded(config_of(recorded), state, tmp_path)  # GLM's names, and a bare state dict
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


@torch.no_grad()
def test_single_token_cloze(recorded: dict[str, Any], tmp_path):
    case = recorded["single_token_cloze"]
    model = loaded(config_of(recorded), recorded["plain"]["module"], tmp_path)
    scores, logits = SingleTokenCloze(model)(*inputs_of(recorded), case["target_ids"])
    torch.testing.assert_close(scores, case["logits"], **CLOSE)
    torch.testing.assert_close(logits, case["lm_logits"], **CLOSE)


@torch.no_grad()
def test_additional_rows_of_positions(recorded: dict[str, Any], tmp_path):
    case = recorded["extended"]
    config = config_of(recorded)
    config = replace(
        config, max_position_embeddings=config.max_position_embeddings + case["additional_sequence_length"]
    )
    model = loaded(config, {"module": recorded["plain"]["module"] | case["new_parameters"]}, tmp_path)
    logits = model(recorded["plain"]["input_ids"], case["position_ids"], recorded["plain"]["sep"])
    torch.testing.assert_close(logits, case["logits"], **CLOSE)


@pytest.mark.parametrize("function", ["none", "mlp", "lstm"])
def test_prefix_prompts(recorded: dict[str, Any], function: str, tmp_path):
    case = recorded[f"prefix_{function}"]
    config = config_of(recorded, prefix_prompt_length=case["prefix_prompt"], prompt_function=function)
    model = loaded(config, {"module": recorded["plain"]["module"] | case["parameters"]}, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs_of(recorded)), case["logits"], **CLOSE)
    model.freeze_transformer()
    trainable = sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    assert trainable == sorted(case["trainable"])
    model.train()  # dropout is off where a prefix is, but for the embeddings and the MLP
    model(*inputs_of(recorded)).sum().backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if name in trainable)


@torch.no_grad()
def test_a_cache_does_not_hold_the_prefix(recorded: dict[str, Any], tmp_path):
    case, (ids, positions, sep) = recorded["prefix_none"], inputs_of(recorded)
    config = config_of(recorded, prefix_prompt_length=case["prefix_prompt"], prompt_function="none")
    model = loaded(config, {"module": recorded["plain"]["module"] | case["parameters"]}, tmp_path)
    cache, last = model.new_cache(1, 11), []
    for first, end in ((0, 9), (9, 10), (10, 11)):
        prefix = sep[:1] if first == 0 else torch.zeros(1)  # later tokens see all that is cached
        piece = ids[:1, first:end], positions[:1, :, first:end]
        last.append(model(*piece, prefix, cache=cache, output="last_logits")[0])
    assert cache.length == 11
    torch.testing.assert_close(torch.stack(last), case["cached_last_logits"], **CLOSE)


def test_a_file_says_what_is_in_it(recorded: dict[str, Any], tmp_path):
    file = tmp_path / "summarizer_zh.pt"
    weights = {name: tensor.half() for name, tensor in recorded["plain"]["module"].items()}
    torch.save({"module": weights, "iteration": 7}, file)
    lines = described(file)
    assert "names of the multilingual release" in lines[1]
    assert any("30,144 of type float16" in line for line in lines)
    assert any("2 layers, hidden 32, vocabulary 64, 40 positions (41 rows)" in line for line in lines)
    assert "iteration: 7" in lines and "optimizer state: none" in lines
    torch.save(weights | recorded["prefix_lstm"]["parameters"], file)
    assert any("a prefix prompt of length 6" in line for line in described(file))
    with pytest.raises(ValueError, match="does not exist; give the folder"):
        described(tmp_path / "nothing.pt")


def test_a_checkpoint_in_the_names_of_the_release(recorded: dict[str, Any], tmp_path):
    torch.save({"module": GLMModel(config_of(recorded)).state_dict(), "iteration": 2}, tmp_path / "ours.pt")
    root = change_model_parallel_size(tmp_path / "ours.pt", 1, multilingual_names=True)
    assert root == tmp_path / "ours_MP1"
    theirs = torch.load(root / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert set(theirs) == set(recorded["plain"]["module"])
    assert {name: tensor.shape for name, tensor in theirs.items()} == {
        name: tensor.shape for name, tensor in recorded["plain"]["module"].items()
    }
    torch.save({"module": recorded["plain"]["module"] | recorded["extended"]["new_parameters"]}, tmp_path / "long.pt")
    halves = change_model_parallel_size(tmp_path / "long.pt", 2)
    assert any("46 rows" in line for line in described(halves))


def on_a_rank(prefix: dict[str, Any], inputs: tuple[torch.Tensor, ...], folder: str):
    topology = initialize_model_parallel(2)
    config = GLMConfig(**prefix["config"], prefix_prompt_length=prefix["length"], prompt_function="mlp")
    model = GLMModel(config, topology=topology)
    load_model_weights(model, f"{folder}/whole.pt", topology=topology)
    logits = model.eval()(*inputs)
    logits.square().sum().backward()
    assert model.prefix_encoder is not None
    return logits.detach(), model.prefix_encoder.embedding.weight.grad


def test_a_prefix_is_the_same_on_two_ranks(recorded: dict[str, Any], tmp_path):
    case = recorded["prefix_mlp"]
    content = {"module": recorded["plain"]["module"] | case["parameters"]}
    sizes = dict(recorded["config"])
    sizes["max_position_embeddings"] = sizes.pop("max_sequence_length") - 1
    model = loaded(GLMConfig(**sizes, prefix_prompt_length=6, prompt_function="mlp"), content, tmp_path)
    logits = model(*inputs_of(recorded))
    logits.square().sum().backward()
    torch.save(content, tmp_path / "whole.pt")
    for other, gradient in run(on_a_rank, 2, {"config": sizes, "length": 6}, inputs_of(recorded), str(tmp_path)):
        torch.testing.assert_close(other, logits.detach(), **CLOSE)
        torch.testing.assert_close(gradient, model.prefix_encoder.embedding.weight.grad, atol=1e-4, rtol=1e-4)
