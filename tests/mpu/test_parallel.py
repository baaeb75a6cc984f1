"""Groups, shards and a whole training step on real gloo process groups: size 1, 2 and 4 agree."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology, initialize_model_parallel
from mpu.layers import ColumnParallelLinear, LayerContext, shard_of
from mpu.mappings import broadcast_tensors, concatenate_last_dim
from mpu.random import ModelParallelRandomState
from tests.helpers.distributed import RankFailedError, run

CONFIG = GLMConfig(2, 16, num_attention_heads=4, vocab_size=64, max_position_embeddings=20)


def _grid_worker() -> list[Any]:
    topology = initialize_model_parallel(2)
    members = torch.zeros(topology.world_size)
    members[topology.rank] = 1.0
    model_members, data_members = members.clone(), members.clone()
    dist.all_reduce(model_members, group=topology.get_model_parallel_group())
    dist.all_reduce(data_members, group=topology.get_data_parallel_group())
    return [
        model_members.nonzero().flatten().tolist(),
        data_members.nonzero().flatten().tolist(),
        topology.get_tensor_model_parallel_rank(),
        topology.get_model_parallel_world_size(),
        topology.get_model_parallel_src_rank(),
        topology.get_data_parallel_rank(),
        topology.get_data_parallel_world_size(),
    ]


def test_groups_are_consecutive_ranks_and_their_transposed() -> None:
    for rank, (model, data, *numbers) in enumerate(run(_grid_worker, 4)):
        first = rank // 2 * 2
        assert model == [first, first + 1]
        assert data == [rank % 2, rank % 2 + 2]
        assert numbers == [rank % 2, 2, first, rank // 2, 2]


def _refusal_worker() -> str:
    with pytest.raises(ValueError, match="3 processes cannot be cut into model-parallel groups of 2"):
        initialize_model_parallel(2)
    return str(initialize_model_parallel(8).model_parallel_size)


def test_sizes_that_do_not_fit() -> None:
    assert run(_refusal_worker, 3) == ["3", "3", "3"]
    with pytest.raises(ValueError, match="at least 1"):
        initialize_model_parallel(0)
    four = replace(ParallelTopology.single(), model_parallel_size=4)
    with pytest.raises(ValueError, match="the vocabulary size is 62"):
        GLMModel(replace(CONFIG, vocab_size=62), topology=four)


def _failing_worker() -> None:
    if dist.get_rank() == 1:
        raise RuntimeError("told to fail")
    dist.barrier()


def test_a_failing_rank_is_reported() -> None:
    with pytest.raises(RankFailedError, match="told to fail"):
        run(_failing_worker, 2)


def _merge(tensors: list[Tensor], whole: Tensor, stride: int) -> Tensor:
    """Undo the cut of ``whole``'s shape into one shard per rank."""
    if tensors[0].shape == whole.shape:
        return tensors[0]
    dim = 0 if tensors[0].size(0) != whole.size(0) else 1
    chunks = [tensor.chunk(stride if dim == 0 else 1, dim=dim) for tensor in tensors]
    return torch.cat([part for block in zip(*chunks) for part in block], dim=dim)


def _training_worker(size: int, config: GLMConfig, mode: str) -> dict[str, Any]:
    """Initialise from one seed and compute one loss with gradients."""
    topology = initialize_model_parallel(size)
    model = GLMModel(config, topology=topology, generator=torch.Generator().manual_seed(3))
    model.random_state.seed(5)
    torch.manual_seed(7)
    ids = torch.arange(24).view(2, 12) * 37 % config.vocab_size
    positions = torch.stack([torch.arange(12) % 9, torch.arange(12) // 4]).expand(2, 2, 12)
    inputs = ids, positions, torch.tensor([5, 8])
    loss_mask = torch.ones(2, 12) if mode != "empty" else torch.zeros(2, 12)
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "bf16"):
        loss = model(*inputs, labels=ids, loss_mask=loss_mask)
    loss.mean.backward()
    cache = model.new_cache(2, 12)
    with torch.no_grad():
        model.eval()
        full = model(*inputs)
        model(ids[:, :8], positions[..., :8], inputs[2], cache=cache)
        step = model(ids[:, 8:], positions[..., 8:], torch.tensor(0), cache=cache)
    return {
        "weights": {name: tensor.detach() for name, tensor in model.named_parameters()},
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "loss": loss.mean.detach(),
        "logits": full,
        "cached": step,
    }


@pytest.mark.parametrize(
    ("mode", "size"),
    [("plain", 2), ("plain", 4), ("relative", 2), ("prompt", 2), ("checkpointed", 2), ("bf16", 2), ("empty", 2)],
)
def test_sharded_model_equals_the_whole(mode: str, size: int) -> None:
    config = replace(
        CONFIG,
        embedding_dropout=0.1,
        attention_dropout=0.0,  # the ranks draw it differently on purpose
        output_dropout=0.1,
        relative_encoding=mode == "relative",
        prompt_length=2 if mode == "prompt" else None,
        checkpoint_activations=mode == "checkpointed",
    )
    (whole,) = run(_training_worker, 1, 1, config, mode)
    ranks = run(_training_worker, size, size, config, mode)
    loose = {"atol": 0.03, "rtol": 0.05} if mode == "bf16" else {"atol": 2e-5, "rtol": 1e-4}
    for name, expected in whole["weights"].items():
        stride = 3 if "query_key_value" in name else 1
        merged = _merge([rank["weights"][name] for rank in ranks], expected, stride)
        assert torch.equal(merged, expected), f"initialisation of {name} depends on the size"
        if whole["gradients"][name] is None:
            continue
        gradient = _merge([rank["gradients"][name] for rank in ranks], expected, stride)
        torch.testing.assert_close(gradient, whole["gradients"][name], **loose, msg=lambda text, n=name: f"{n}: {text}")
    for rank in ranks:
        for key in ("loss", "logits", "cached"):
            torch.testing.assert_close(rank[key], whole[key], **loose)
        torch.testing.assert_close(rank["cached"], rank["logits"][:, 8:], atol=2e-5, rtol=1e-4)


def _attention_dropout_worker() -> tuple[Tensor, Tensor]:
    """Return the attention mask drawn by this rank, and the default state after a training step."""
    topology = initialize_model_parallel(2)
    model = GLMModel(CONFIG, topology=topology, generator=torch.Generator().manual_seed(3)).train()
    torch.manual_seed(7)
    ids = torch.zeros(1, 6, dtype=torch.long)
    loss = model(ids, torch.zeros(1, 2, 6, dtype=torch.long), torch.tensor(3), labels=ids)
    loss.mean.backward()
    with model.random_state.fork(torch.device("cpu")):
        drawn = torch.rand(8)
    return drawn, torch.rand(8)


def test_only_attention_dropout_differs_between_ranks() -> None:
    (first, first_default), (second, second_default) = run(_attention_dropout_worker, 2)
    assert not torch.equal(first, second)
    assert torch.equal(first_default, second_default)


def _broadcast_worker() -> dict[str, Tensor]:
    topology = initialize_model_parallel(2)
    batch = None
    if topology.model_parallel_rank == 0:
        empty = torch.zeros(3, 0, 2, dtype=torch.long)
        deep = torch.arange(2**5).view(1, 2, 2, 2, 2, 2)
        batch = {"empty": empty, "scalar": torch.tensor(7 + topology.rank), "deep": deep}
    return broadcast_tensors(batch, ["empty", "scalar", "deep"], topology=topology)


def test_broadcast_of_any_shape() -> None:
    for rank, batch in enumerate(run(_broadcast_worker, 4)):
        assert batch["empty"].shape == (3, 0, 2)
        assert batch["scalar"].item() == 7 + rank // 2 * 2
        assert torch.equal(batch["deep"], torch.arange(2**5).view(1, 2, 2, 2, 2, 2))


def _gather_worker() -> tuple[Tensor, Tensor]:
    topology = initialize_model_parallel(2)
    context = LayerContext(topology, ModelParallelRandomState(topology), torch.Generator().manual_seed(1))
    layer = ColumnParallelLinear(4, 6, context, stride=3)
    return layer.weight.detach(), concatenate_last_dim(layer.weight.detach().T, topology)


def test_strided_shards() -> None:
    full = torch.empty(6, 4).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(1))
    for rank, (shard, gathered) in enumerate(run(_gather_worker, 2)):
        assert torch.equal(shard, full[[rank, rank + 2, rank + 4]])
        assert torch.equal(gathered.T, full[[0, 2, 4, 1, 3, 5]])
    two = replace(ParallelTopology.single(), model_parallel_size=2)
    with pytest.raises(ValueError, match="cannot be cut into 6 equal blocks"):
        shard_of(torch.zeros(8, 4), dim=0, topology=two, stride=3)


def _data_parallel_worker(config: GLMConfig, targets: Tensor) -> list[Tensor]:
    """Return the gradients of one data-parallel step: the global loss sum over the global weight."""
    topology = initialize_model_parallel(1)
    model = GLMModel(config, topology=topology, generator=torch.Generator().manual_seed(3))
    replica = DistributedDataParallel(model, process_group=topology.data_parallel_group)
    ids = torch.arange(24).view(2, 12) * 37 % config.vocab_size
    positions = torch.stack([torch.arange(12), torch.zeros(12, dtype=torch.long)]).expand(2, 2, 12)
    own = slice(topology.data_parallel_rank, 2, topology.data_parallel_size)
    loss = replica(ids[own], positions[own], torch.tensor(4), labels=ids[own], loss_mask=targets[own])
    weight = loss.weight_sum.clone()
    dist.all_reduce(weight)
    (loss.loss_sum * topology.data_parallel_size / weight).backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_data_parallel_ranks_with_unequal_and_no_targets(checkpointed: bool) -> None:
    config = replace(
        CONFIG,
        embedding_dropout=0.0,
        attention_dropout=0.0,
        output_dropout=0.0,
        checkpoint_activations=checkpointed,
    )
    targets = torch.zeros(2, 12)
    targets[0, 3:7] = 1.0  # the second rank has nothing to predict
    (expected,) = run(_data_parallel_worker, 1, config, targets)
    for gradients in run(_data_parallel_worker, 2, config, targets):
        for actual, query_positions in zip(gradients, expected):
            torch.testing.assert_close(actual, query_positions, atol=1e-6, rtol=1e-4)
