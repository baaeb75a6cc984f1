"""Adapters: they start as nothing, train alone, merge into weights, and are the same over tensor-parallel ranks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from model.checkpoints.format import split_tensor
from model.checkpoints.reading import load_model_weights, shard_name
from model.config import LORA_TARGETS, LoraSettings
from model.heads import SequenceClassification
from model.hub.adapters import load_adapter, merge_into_checkpoint, read_adapter, save_adapter
from model.lora import adapted_layers
from model.modeling_glm import GLMModel
from mpu.gradients import gradient_norm
from mpu.initialize import ParallelTopology, initialize_model_parallel
from tests.helpers.distributed import run
from tests.helpers.lora_models import ALL, SETTINGS, adapt, batch, build


@pytest.mark.parametrize("targets", [("query_key_value",), ("dense",), ("dense_h_to_4h", "dense_4h_to_h"), ALL])
def test_a_model_starts_as_it_was_and_only_adapters_train(targets: tuple[str, ...]) -> None:
    plain = build()
    expected = plain(*batch())
    model = adapt(build(), LoraSettings(rank=4, alpha=8.0, targets=targets))
    logits = model(*batch())
    assert torch.equal(logits, expected)
    logits.square().sum().backward()
    with_gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    places = [f"transformer.layers.{layer}.{LORA_TARGETS[target]}" for layer in range(2) for target in targets]
    assert with_gradients == {f"{place}.lora_{factor}.weight" for place in places for factor in "AB"}
    assert with_gradients == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    # B is zero, so it alone is pushed at first.
    assert all(layer.lora_B.weight.grad.abs().sum() > 0 for layer in adapted_layers(model))
    assert {n: t for n, t in model.state_dict().items() if "lora" not in n}.keys() == plain.state_dict().keys()


def test_an_adapted_layer_adds_the_scaled_product() -> None:
    model = adapt(build(), filled=True)
    expected = build()
    for (name, plain), layer in zip(
        [(n, m) for n, m in expected.named_modules() if n.endswith(tuple(LORA_TARGETS.values()))], adapted_layers(model)
    ):
        assert layer.settings.scale == 2.0, name
        plain.weight.data += 2.0 * layer.lora_B.weight.data @ layer.lora_A.weight.data
    torch.testing.assert_close(model(*batch()), expected(*batch()), atol=1e-5, rtol=1e-5)


def test_dropout_acts_in_training_on_the_adapters_alone() -> None:
    model = adapt(build(), LoraSettings(rank=4, alpha=8.0, dropout=0.5, targets=ALL), filled=True)
    evaluated = model(*batch())
    assert torch.equal(model(*batch()), evaluated)
    model.train()
    torch.manual_seed(0)
    first, second = model(*batch()), model(*batch())
    assert not torch.equal(first, second)
    # B is zero: nothing to drop.
    model = adapt(build(), LoraSettings(rank=4, alpha=8.0, dropout=0.5, targets=ALL)).train()
    assert torch.equal(model(*batch()), build()(*batch()))


def test_gradients_reach_adapters_through_checkpointed_activations() -> None:
    gradients = []
    for checkpointed in (False, True):
        settings = LoraSettings(rank=4, alpha=8.0, dropout=0.25, targets=ALL)
        model = adapt(build(checkpoint_activations=checkpointed), settings, filled=True).train()
        torch.manual_seed(0)
        model(*batch()).square().sum().backward()
        gradients.append([layer.lora_A.weight.grad for layer in adapted_layers(model)])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def _losses_and_adapter(size: int, folder: Path, steps: int) -> tuple[list[float], list[float], float]:
    """Train adapters for some steps; save them. Return losses, gradient norms and the dropout difference of ranks."""
    topology = initialize_model_parallel(size)
    network = SequenceClassification(adapt(build(topology=topology)), 3, dropout_probability=0.0)
    for index, parameter in enumerate([*network.pool_layer.parameters(), *network.multichoice_head.parameters()]):
        parameter.data.normal_(0.0, 0.2, generator=Generator().manual_seed(index))
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses, norms = [], []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(network(*batch()), torch.tensor([0, 2, 1]))
        loss.backward()
        losses.append(loss.item())
        norms.append(gradient_norm(trained, topology=topology).item())
        optimizer.step()
        optimizer.zero_grad()
    save_adapter(folder, network, topology=topology, base_model="base")
    dist.barrier()  # the first rank has written
    again = SequenceClassification(build(topology=topology), 3, dropout_probability=0.0)
    report = load_adapter(again, again.model, read_adapter(folder), topology=topology)
    assert not any("lora" in name or name.startswith(("pool", "multi")) for name in report.missing), report
    difference = (again(*batch()) - network(*batch())).abs().max().item()
    return losses, norms, difference


def test_two_ranks_train_what_one_trains(tmp_path: Path) -> None:
    losses, norms, difference = run(_losses_and_adapter, 1, 1, tmp_path / "one", 4)[0]
    assert losses[-1] < losses[0] and difference == 0.0
    for two_losses, two_norms, two_difference in run(_losses_and_adapter, 2, 2, tmp_path / "two", 4):
        assert two_losses == pytest.approx(losses, abs=1e-5)
        assert two_norms == pytest.approx(norms, rel=1e-4)
        assert two_difference == 0.0
    one, two = (read_adapter(tmp_path / name) for name in ("one", "two"))
    assert one.settings == two.settings == SETTINGS
    assert one.weights.keys() == two.weights.keys()
    assert {name.split(".")[0] for name in one.weights} == {"transformer", "pool_layer", "multichoice_head"}
    for name, tensor in one.weights.items():
        torch.testing.assert_close(two.weights[name], tensor, atol=2e-4, rtol=1e-3, msg=name)
    # Read into another number of ranks than wrote it.
    crossed = run(_logits, 2, 2, tmp_path / "one")
    torch.testing.assert_close(crossed[0], _logits(1, tmp_path / "one"), atol=1e-5, rtol=1e-5)
    assert torch.equal(crossed[0], crossed[1])


@torch.no_grad()
def _logits(size: int, folder: Path) -> Tensor:
    topology = initialize_model_parallel(size) if size > 1 else ParallelTopology.single()
    network = SequenceClassification(build(topology=topology), 3)
    load_adapter(network, network.model, read_adapter(folder), topology=topology)
    return network.eval()(*batch())


def _dropout_of_ranks() -> tuple[Tensor, Tensor]:
    """Return what a rank's row-parallel layer drops of ones, and what it drops where every rank has the same input."""
    topology = initialize_model_parallel(2)
    model = adapt(build(topology=topology), LoraSettings(rank=4, alpha=8.0, dropout=0.5, targets=ALL)).train()
    torch.manual_seed(0)
    seen: dict[str, Tensor] = {}
    layer = model.transformer.layers[0]
    for name, place in (("row", layer.mlp.dense_4h_to_h), ("column", layer.mlp.dense_h_to_4h)):
        place.lora_dropout.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out != 0))
    model(*batch())
    return seen["row"], seen["column"]


def test_ranks_drop_different_features_of_cut_inputs_and_the_same_of_whole_ones() -> None:
    (row_0, column_0), (row_1, column_1) = run(_dropout_of_ranks, 2)
    assert torch.equal(column_0, column_1)
    assert not torch.equal(row_0, row_1)


def save_base(folder: Path, size: int = 1) -> dict[str, Tensor]:
    """Write the small model as a checkpoint of ``size`` shards; return its weights."""
    weights = build().state_dict()
    folder.mkdir()
    for rank in range(size):
        own = {name: split_tensor(name, tensor, size)[rank].clone() for name, tensor in weights.items()}
        torch.save({"module": own, "iteration": 9}, folder / shard_name(rank))
    return weights


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 2])
def test_merging_into_a_checkpoint_equals_the_adapted_model(tmp_path: Path, size: int) -> None:
    save_base(tmp_path / "base", size)
    model = adapt(build(), filled=True)
    save_adapter(tmp_path / "adapter", model, topology=model.topology)
    adapter = read_adapter(tmp_path / "adapter")
    merge_into_checkpoint(tmp_path / "base", adapter, tmp_path / "merged")
    assert len(list((tmp_path / "merged").glob("*.pt"))) == size
    plain = GLMModel(model.config, generator=Generator().manual_seed(99)).eval()
    report = load_model_weights(plain, tmp_path / "merged")
    assert report.iteration == 9 and not report.missing and not report.unexpected
    torch.testing.assert_close(plain(*batch()), model(*batch()), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="merged exists"):
        merge_into_checkpoint(tmp_path / "base", adapter, tmp_path / "merged")


def test_adapters_are_whole_or_refused(tmp_path: Path) -> None:
    model, folder = adapt(build(), filled=True), tmp_path / "a"
    save_adapter(folder, model, topology=model.topology)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    expected = read_adapter(folder).weights
    folder.rename(tmp_path / ".old-a")  # a process that died while it replaced the folder
    assert all(torch.equal(weight, expected[name]) for name, weight in read_adapter(folder).weights.items())
    save_adapter(folder, model, topology=model.topology)
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
    data = bytearray((folder / "adapter_model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="SHA-256"):
        read_adapter(folder)
    with torch.no_grad():
        model.get_submodule("transformer.layers.0.attention.dense").lora_B.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layers\.0\.attention\.dense\.lora_B\.weight holds NaN"):
        save_adapter(tmp_path / "b", model, topology=model.topology)
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def _edit(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "use_dora = True, which is not supported"),
        ({"bias": "all"}, "trains biases"),
        ({"peft_type": "IA3"}, "kind 'IA3'"),
        ({"init_lora_weights": "pissa"}, "'pissa'"),
        ({"rank_pattern": {"dense": 2}}, "rank_pattern"),
        ({"r": 3}, "not of rank 3"),
        ({"lora_alpha": None}, "lora_alpha is null"),
        ({"lora_alpha": -1}, "above 0"),
        ({"lora_dropout": [1]}, "lora_dropout is"),
        ({"r": "4"}, "r is '4'"),
        ({"peft_type": 3}, "peft_type is 3"),
    ],
)
def test_adapters_of_other_kinds_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    model = adapt(build(), filled=True)
    save_adapter(tmp_path / "a", model, topology=model.topology)
    _edit(tmp_path / "a", **changes)
    with pytest.raises(ValueError, match=words) as error:
        read_adapter(tmp_path / "a")
    assert "\n" not in str(error.value)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model, folder = adapt(build(), filled=True), tmp_path / "a"
    save_adapter(folder, model, topology=model.topology)
    adapter = read_adapter(folder)
    for changes in ({"num_layers": 3}, {"num_layers": 1}, {"hidden_size": 64}):
        other = build(**changes)
        with pytest.raises(ValueError) as error:
            load_adapter(other, other, adapter, topology=other.topology)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"no adapter_config\.json"):
        read_adapter(tmp_path)
    (folder / "SHA256SUMS").unlink()
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {**weights, "base_model.model.glm.transformer.extra.weight": torch.ones(2)},
        folder / "adapter_model.safetensors",
    )
    with pytest.raises(ValueError, match="not an adapter of a GLM"):
        read_adapter(folder)
    weights.pop("base_model.model.glm.transformer.layers.0.attention.dense.lora_A.weight")
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="not of rank 4"):
        read_adapter(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        read_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks adapter_model"):
        read_adapter(folder)


@pytest.mark.parametrize("values", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ("qkv",)}])
def test_settings_that_cannot_be_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="--lora"):
        LoraSettings(**{"rank": 2, "alpha": 2.0, **values})
