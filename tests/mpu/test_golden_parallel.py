"""Recorded results of the parallel layers and of whole sharded models, on real gloo process groups."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.modeling_glm import GLMModel
from mpu.cross_entropy import vocab_parallel_cross_entropy
from mpu.gradients import gradient_norm
from mpu.initialize import ParallelTopology, initialize_model_parallel
from mpu.layers import ColumnParallelLinear, LayerContext, RowParallelLinear, VocabParallelEmbedding, shard_of
from mpu.mappings import (
    broadcast_tensors,
    chunk_of_last_dim,
    copy_to_model_parallel,
    gather_from_model_parallel,
    reduce_from_model_parallel,
    scatter_to_model_parallel,
)
from mpu.random import ModelParallelRandomState
from tests.helpers.distributed import run
from tests.helpers.golden_index import GoldenFolder
from tests.helpers.golden_models import assert_close, config_for, load_vectors

MAPPINGS = {
    "map_copy_to": copy_to_model_parallel,
    "map_reduce_from": reduce_from_model_parallel,
    "map_scatter_to": scatter_to_model_parallel,
    "map_gather_from": gather_from_model_parallel,
}
LAYERS = {
    # name: (input, gradient of the output, dimension that is cut, stride of the cut)
    "column_gather": ("x8", "grad_out16", 0, 1),
    "column_no_gather": ("x8", "grad_out16", 0, 1),
    "column_stride3": ("x8", "grad_out24", 0, 3),
    "row": ("x16", "grad_out8", 1, 1),
    "row_input_parallel": ("x16", "grad_out8", 1, 1),
    "vocab_embedding": ("ids", "grad_out_embedding", 0, 1),
    "parallel_embedding": ("ids", "grad_out_embedding", 1, 1),
}
MODELS = {"model": ("block", "tiny"), "model_relative": ("relative", "tiny_relative")}
OTHERS = {"inputs", "cross_entropy", "broadcast", "clip_grad_norm"}


def _sizes(vectors: dict[str, Any]) -> list[int]:
    return [int(re.fullmatch(r"mp(\d+)", name)[1]) for name in vectors]


@pytest.fixture(scope="module")
def vectors(golden: GoldenFolder) -> dict[str, Any]:
    """Return parallel.pt, all of whose entries are known."""
    content = load_vectors(golden, "parallel.pt")
    for size in _sizes(content):
        ranks = content[f"mp{size}"]
        assert len(ranks) == size
        for recorded in ranks:
            assert set(recorded) == {*MAPPINGS, *LAYERS, *MODELS, *OTHERS}
    return content


def _layer_results(name: str, recorded: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """Run one layer with the recorded weights of this rank, forward and backward."""
    topology = initialize_model_parallel(recorded["size"])
    context = LayerContext(topology, ModelParallelRandomState(topology))
    input_name, gradient_name, _, stride = LAYERS[name]
    x, gradient = inputs[input_name], inputs[gradient_name]
    if name.startswith("column"):
        rows = recorded["weight"].size(0) * topology.model_parallel_size
        gathered = name == "column_gather"
        layer = ColumnParallelLinear(x.size(-1), rows, context, gather_output=gathered, stride=stride)
    elif name.startswith("row"):
        layer = RowParallelLinear(
            x.size(-1), gradient.size(-1), context, input_is_parallel=name == "row_input_parallel"
        )
        if name == "row_input_parallel":
            x = chunk_of_last_dim(x, topology)
    elif name == "vocab_embedding":
        rows = recorded["weight"].size(0) * topology.model_parallel_size
        layer = VocabParallelEmbedding(rows, gradient.size(-1), context)
    else:  # cut along the embedding dimension: a plain look-up and a gather make it
        table = nn.Embedding.from_pretrained(recorded["weight"], freeze=False)
        outputs = gather_from_model_parallel(table(x), topology)
        outputs.backward(gradient)
        return {"output": outputs.detach(), "weight_grad": table.weight.grad, "input_grad": None, "bias_grad": None}
    state = {key: recorded[key] for key in ("weight", "bias") if recorded[key] is not None}
    layer.load_state_dict(state)
    x = x.clone().requires_grad_(x.is_floating_point())
    outputs = layer(x)
    if outputs.size(-1) != gradient.size(-1):
        gradient = chunk_of_last_dim(gradient, topology)
    outputs.backward(gradient)
    bias = getattr(layer, "bias", None)
    return {
        "output": outputs.detach(),
        "input_grad": x.grad,
        "weight_grad": layer.weight.grad,
        "bias_grad": None if bias is None else bias.grad,
    }


def _output_gradient(name: str, ranks: list[dict[str, Any]], rank: int) -> Tensor:
    """Return the gradient of a mapping's output on this rank.

    For the copy mapping the recorded tensor is the sum over the ranks, because the original reduced it in place. The
    ranks then get unequal shares of it.
    """
    gradients = [recorded[name]["grad_output"] for recorded in ranks]
    if name != "map_copy_to" or len(ranks) == 1:
        return gradients[rank]
    assert torch.equal(gradients[rank], ranks[rank][name]["grad_input"])
    return gradients[rank] * (rank + 1) / sum(range(1, len(ranks) + 1))


def _parts_worker(size: int, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute everything but the whole models on this rank."""
    topology = initialize_model_parallel(size)
    recorded = ranks[topology.model_parallel_rank]
    results: dict[str, Any] = {}
    for name in LAYERS:
        results[name] = _layer_results(name, {**recorded[name], "size": size}, recorded["inputs"])
    for name, mapping in MAPPINGS.items():
        x = recorded[name]["input"].clone().requires_grad_()
        outputs = mapping(x, topology)
        outputs.backward(_output_gradient(name, ranks, topology.model_parallel_rank))
        results[name] = {"output": outputs.detach(), "grad_input": x.grad}
    case = recorded["cross_entropy"]
    logits = shard_of(case["logits"], dim=-1, topology=topology).clone().requires_grad_()
    losses = vocab_parallel_cross_entropy(logits, case["target"], topology=topology)
    losses.backward(case["grad_output"])
    results["cross_entropy"] = {"loss": losses.detach(), "grad_input_shard": logits.grad}
    batch = recorded["broadcast"] if topology.model_parallel_rank == 0 else None
    results["broadcast"] = broadcast_tensors(batch, list(ranks[0]["broadcast"]), topology=topology)
    return results


@pytest.mark.parametrize("size", [1, 2, 4])
def test_layers_mappings_and_loss(vectors: dict[str, Any], size: int) -> None:
    assert set(_sizes(vectors)) <= {1, 2, 4}
    if size not in _sizes(vectors):
        pytest.skip(f"no vectors of model-parallel size {size}")
    ranks = vectors[f"mp{size}"]
    for recorded, results in zip(ranks, run(_parts_worker, size, size, ranks)):
        for name, expected in recorded.items():
            if name == "inputs" or name in MODELS or name == "clip_grad_norm":
                continue
            inputs = {"weight", "bias", "input", "grad_output", "logits", "target"} if name != "broadcast" else set()
            assert set(results[name]) == set(expected) - inputs, name
            for key, actual in results[name].items():
                what = f"{name} {key}"
                if actual is None or expected[key] is None:
                    assert actual is None and expected[key] is None, what
                else:
                    assert_close(actual, expected[key], what)


def test_recorded_shards_are_cut_as_ours(vectors: dict[str, Any]) -> None:
    whole = vectors["mp1"][0]
    for size in _sizes(vectors):
        for rank, recorded in enumerate(vectors[f"mp{size}"]):
            topology = _topology(size, rank)
            for name, (_, _, dim, stride) in LAYERS.items():
                shard = shard_of(whole[name]["weight"], dim=dim, topology=topology, stride=stride)
                assert torch.equal(shard, recorded[name]["weight"]), (size, rank, name)


def _topology(size: int, rank: int) -> ParallelTopology:
    return replace(
        ParallelTopology.single(), rank=rank, world_size=size, model_parallel_size=size, model_parallel_rank=rank
    )


def _shard_file(golden: GoldenFolder, folder: str, size: int, rank: int) -> Path:
    root = golden.path(f"model/ckpt/{folder}{f'_MP{size}' if size > 1 else ''}")
    (path,) = root.glob(f"*/mp_rank_{rank:02d}_model_states.pt")
    return path


def _model_worker(size: int, variant: str, sizes: dict[str, int], files: list[Path], inputs: dict) -> dict[str, Any]:
    """Run a sharded model on the inputs of loss_grad.pt, forward and backward."""
    topology = initialize_model_parallel(size)
    model = GLMModel(config_for(variant, sizes), topology=topology)
    state = torch.load(files[topology.model_parallel_rank], weights_only=True)["module"]
    model.load_state_dict(state)
    model.eval()
    arguments = inputs["input_ids"], inputs["position_ids"], inputs["attention_mask"]
    loss = model(*arguments, labels=inputs["labels"], loss_mask=inputs["loss_mask"]).mean
    loss.backward()
    norm = gradient_norm(model.parameters(), topology=topology)
    with torch.no_grad():
        logits = model(*arguments)
        sharded = model(*arguments, output="sharded_logits")
    assert torch.equal(sharded, shard_of(logits, dim=-1, topology=topology))
    return {
        "loss": loss.detach(),
        "grad_norm": float(norm),
        "shapes": {name: list(tensor.shape) for name, tensor in model.state_dict().items()},
        "model_parallel_flags": {
            name: getattr(parameter, "model_parallel", False) for name, parameter in model.named_parameters()
        },
        "logits_gathered": logits,
    }


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", list(MODELS))
def test_whole_models(golden: GoldenFolder, vectors: dict[str, Any], name: str, size: int) -> None:
    if size not in _sizes(vectors):
        pytest.skip(f"no vectors of model-parallel size {size}")
    variant, folder = MODELS[name]
    sizes, inputs = load_vectors(golden, "weights.pt")["config"], load_vectors(golden, "loss_grad.pt")
    files = [_shard_file(golden, folder, size, rank) for rank in range(size)]
    logits = vectors["mp1"][0][name]["logits_gathered"]
    for rank, actual in enumerate(run(_model_worker, size, size, variant, sizes, files, inputs)):
        expected = vectors[f"mp{size}"][rank][name]
        assert set(expected) <= set(actual)
        assert_close(actual["logits_gathered"], logits, "logits")
        assert_close(actual["loss"], expected["loss"], "loss")
        assert actual["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        assert actual["shapes"] == {key: list(shape) for key, shape in expected["shapes"].items()}
        assert actual["model_parallel_flags"] == expected["model_parallel_flags"]


def _clip_worker(size: int, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Clip this rank's recorded gradients."""
    from training.optimizer import clip_gradients

    topology = initialize_model_parallel(size)
    case = ranks[topology.model_parallel_rank]["clip_grad_norm"]

    def parameters() -> list[nn.Parameter]:
        made = []
        for gradient, model_parallel in zip(case["grads_before"], case["model_parallel"]):
            parameter = nn.Parameter(torch.zeros_like(gradient))
            parameter.grad, parameter.model_parallel = gradient.clone(), model_parallel
            made.append(parameter)
        return made

    clipped = parameters()
    norm = clip_gradients(clipped, case["max_norm"], topology=topology)
    inf_norm = gradient_norm(parameters(), topology=topology, norm_type=math.inf)
    return {
        "norm": float(norm),
        "inf_norm": float(inf_norm),
        "grads_after": [parameter.grad for parameter in clipped],
    }


@pytest.mark.parametrize("size", [1, 2, 4])
def test_clip_grad_norm(vectors: dict[str, Any], size: int) -> None:
    if size not in _sizes(vectors):
        pytest.skip(f"no vectors of model-parallel size {size}")
    ranks = vectors[f"mp{size}"]
    known = {"grads_before", "model_parallel", "max_norm", "norm", "grads_after", "inf_norm"}
    for recorded, actual in zip(ranks, run(_clip_worker, size, size, ranks)):
        expected = recorded["clip_grad_norm"]
        assert set(expected) == known
        assert actual["norm"] == pytest.approx(expected["norm"], rel=1e-5)
        assert actual["inf_norm"] == pytest.approx(expected["inf_norm"], rel=1e-5)
        for after, query_positions in zip(actual["grads_after"], expected["grads_after"]):
            assert_close(after, query_positions)


def test_loss_equals_torch(vectors: dict[str, Any]) -> None:
    case = vectors["mp1"][0]["cross_entropy"]
    expected = F.cross_entropy(case["logits"].flatten(0, 1), case["target"].flatten(), reduction="none")
    assert_close(expected.view(case["loss"].shape), case["loss"])
