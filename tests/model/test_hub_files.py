"""Weights in files of the Hugging Face layout: read, loaded at any size, cut, and refused in one line when damaged."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from change_mp import change_model_parallel_size
from model.checkpoints.format import split_tensor
from model.checkpoints.reading import load_model_weights, resolve_checkpoint, shard_name
from model.checkpoints.safe_loading import UnreadableCheckpointError, read_checkpoint_file
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology

safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is an extra")

HEAD = {"dense.weight": torch.ones(8, 8), "dense.bias": torch.ones(8), "out_proj.weight": torch.ones(3, 8)}


def make_model(seed: int = 0, topology: ParallelTopology | None = None, dtype: torch.dtype | None = None) -> GLMModel:
    config = GLMConfig(2, 8, 4, 32, max_position_embeddings=10)
    return GLMModel(config, topology=topology, generator=torch.Generator().manual_seed(seed)).to(dtype=dtype)


def weights_of(model: GLMModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def write(folder: Path, weights: dict[str, Tensor], layout: str, *, prefix: str = "") -> Path:
    """Write a model as the hub has it: in one file or in two with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {prefix + name: tensor for name, tensor in weights.items()}
    suffix = "safetensors" if "safetensors" in layout else "bin"
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    store = safetensors.save_file if suffix == "safetensors" else torch.save
    if "parts" not in layout:
        store(named, folder / f"{stem}.{suffix}")
        return folder
    half = len(named) // 2
    places = {}
    for number, names in enumerate((list(named)[:half], list(named)[half:]), start=1):
        part = f"{stem}-0000{number}-of-00002.{suffix}"
        store({name: named[name] for name in names}, folder / part)
        places |= dict.fromkeys(names, part)
    content = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def shard_topology(size: int, rank: int) -> ParallelTopology:
    return ParallelTopology(
        rank=rank, world_size=size, model_parallel_size=size, model_parallel_rank=rank,
        data_parallel_size=1, data_parallel_rank=0,
    )  # fmt: skip


LAYOUTS = ["safetensors", "safetensors in parts", "bin", "bin in parts"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", ["", "glm."])
def test_weights_load_at_any_size(layout: str, prefix: str, tmp_path: Path) -> None:
    whole = weights_of(make_model())
    folder = write(tmp_path / "hub", whole, layout, prefix=prefix)
    for size in (1, 2, 4):
        for rank in range(size):
            topology = shard_topology(size, rank)
            model = make_model(5, topology)
            report = load_model_weights(model, folder, topology=topology)
            assert not report.missing and not report.unexpected and report.iteration == 0
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, split_tensor(name, whole[name], size)[rank]), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_change_mp_writes_a_checkpoint_of_glm(layout: str, size: int, tmp_path: Path, capsys) -> None:
    whole = weights_of(make_model(dtype=torch.bfloat16))
    folder = write(tmp_path / "hub", {f"glm.{name}": tensor for name, tensor in whole.items()} | HEAD, layout)
    made = change_model_parallel_size(folder, size)
    assert made == tmp_path / f"hub_MP{size}"
    left_out = re.search(r"^not converted: (.*)$", capsys.readouterr().out, re.MULTILINE)[1]
    assert set(left_out.split(", ")) == set(HEAD)
    for rank in range(size):
        found = read_checkpoint_file(made / shard_name(rank))["module"]
        assert set(found) == set(whole)
        for name, tensor in whole.items():
            assert found[name].dtype == torch.bfloat16
            assert torch.equal(found[name], split_tensor(name, tensor, size)[rank]), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", f"hub_MP{size}"]


def test_a_file_may_be_named_and_have_any_name(tmp_path: Path) -> None:
    whole = weights_of(make_model())
    folder = write(tmp_path / "hub", whole, "safetensors")
    file = (folder / "model.safetensors").rename(folder / "glm.safetensors")
    assert resolve_checkpoint(folder).shard_files() == resolve_checkpoint(file).shard_files() == [file]
    made = change_model_parallel_size(file, 2)
    assert made == tmp_path / "hub_MP2"
    model = make_model(3)
    load_model_weights(model, made)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in model.state_dict().items())


def test_a_folder_with_both_layouts_is_one_of_glm(tmp_path: Path) -> None:
    """The original's converter writes pytorch_model.bin beside its source."""
    folder = write(tmp_path, weights_of(make_model(1)), "bin")
    expected = make_model(2)
    torch.save({"module": expected.state_dict()}, folder / shard_name(0))
    model = make_model(3)
    load_model_weights(model, folder)
    assert torch.equal(model.word_embeddings.weight, expected.word_embeddings.weight)


def refused(path: Path, words: str, kind: type[ValueError] = UnreadableCheckpointError) -> None:
    with pytest.raises(kind, match=re.escape(words)) as caught:
        load_model_weights(make_model(), path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cut_off_files_give_one_line(layout: str, tmp_path: Path) -> None:
    folder = write(tmp_path, weights_of(make_model()), layout)
    victim = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))[-1]
    whole = victim.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        victim.write_bytes(whole[:length])
        refused(folder, f"{victim} cannot be read")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "an object is needed"),
        ('{"weight_map": []}', "weight_map is []; an object is needed"),
        ('{"weight_map": {}}', "names no weight files"),
        ('{"weight_map": {"word_embeddings.weight": 3}}', "names no weight files"),
        ('{"weight_map": {"word_embeddings.weight": "../x.safetensors"}}', "names no weight files"),
        ('{"weight_map": {"word_embeddings.weight": "x.safetensors"}}', "does not exist; copy all files"),
        ('{"weight_map": {"other.weight": "model.safetensors"}}', "which model.safetensors does not hold"),
    ],
)
def test_bad_indices(content: str, words: str, tmp_path: Path) -> None:
    folder = write(tmp_path, weights_of(make_model()), "safetensors")
    (folder / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    refused(folder, words)


def test_parts_without_an_index(tmp_path: Path) -> None:
    folder = write(tmp_path, weights_of(make_model()), "safetensors in parts")
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, "2 safetensors files and no model.safetensors.index.json", ValueError)


def test_a_parameter_under_two_names(tmp_path: Path) -> None:
    weights = weights_of(make_model())
    doubled: dict[str, Any] = {**weights, "glm.word_embeddings.weight": weights["word_embeddings.weight"].clone()}
    refused(write(tmp_path, doubled, "safetensors"), "under two names", ValueError)
