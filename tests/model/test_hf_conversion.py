"""Checkpoints of GLM become folders of the Hugging Face layout and come back: bit for bit, any size, in one piece."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoints.format import FOREIGN_NAMES, hub_name, split_tensor
from model.checkpoints.reading import load_model_weights, read_whole_weights, shard_name
from model.config import GLMConfig
from model.heads import SequenceClassification
from model.hub.describe import HUB_TOKENIZERS, config_fields, config_from_fields, sizes_from_shapes
from model.hub.export import ExportOptions, TokenizerFiles, export_bin, export_folder, parse_size, plan_files
from model.hub.importing import import_folder, open_hub_model
from model.modeling_glm import GLMModel

safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is an extra")

CONFIG = GLMConfig(2, 16, 4, 64, max_position_embeddings=20, initializer_std=0.3)


def make_model(seed: int = 0, config: GLMConfig = CONFIG) -> GLMModel:
    return GLMModel(config, generator=torch.Generator().manual_seed(seed)).eval()


def weights_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def store(folder: Path, weights: dict[str, Tensor], *, size: int = 1) -> Path:
    """Write a checkpoint folder of ``size`` ranks."""
    folder.mkdir(parents=True)
    for rank in range(size):
        part = {name: split_tensor(name, tensor, size)[rank].clone() for name, tensor in weights.items()}
        torch.save({"module": part, "iteration": 7}, folder / shard_name(rank))
    return folder


def export(checkpoint: Path, folder: Path, config: GLMConfig = CONFIG, **options: object) -> Path:
    export_folder(
        read_whole_weights(checkpoint), folder, config=config, tokenizer=None, name="tiny",
        options=ExportOptions(**options),
    )  # fmt: skip
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def read_safetensors(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        weights |= safetensors.load_file(file)
    return weights


def relative_config() -> GLMConfig:
    return GLMConfig(2, 16, 4, 64, max_position_embeddings=20, block_position_encoding=False, relative_encoding=True)


@pytest.mark.parametrize("max_shard_size", [10**9, 5000, 1])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_export_import_export_is_bit_identical(max_shard_size: int, size: int, dtype: torch.dtype, tmp_path: Path):
    weights = {name: tensor.to(dtype) for name, tensor in weights_of(make_model()).items()}
    first = export(store(tmp_path / "one", weights), tmp_path / "first", max_shard_size=max_shard_size)
    import_folder(open_hub_model(first), tmp_path / "native", size=size)
    for rank in range(size):
        module = torch.load(tmp_path / "native" / shard_name(rank), weights_only=True)["module"]
        assert list(module) == list(weights)
        assert all(torch.equal(module[name], split_tensor(name, t, size)[rank]) for name, t in weights.items())
        assert {tensor.dtype for tensor in module.values()} == {dtype}
    second = export(tmp_path / "native", tmp_path / "second", max_shard_size=max_shard_size)
    assert contents(first) == contents(second)
    exported = read_safetensors(first)
    assert set(exported) == {f"glm.{name}" for name in weights}
    assert all(torch.equal(exported[f"glm.{name}"], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("size", [2, 4])
def test_shards_of_a_parallel_model_are_put_together(size: int, tmp_path: Path):
    weights = weights_of(make_model())
    one = export(store(tmp_path / "one", weights), tmp_path / "from_one")
    many = export(store(tmp_path / "many", weights, size=size), tmp_path / "from_many")
    assert contents(one) == contents(many)


def test_a_folder_says_whose_code_and_weights_it_holds(tmp_path: Path, repository: Path):
    folder = export(store(tmp_path / "one", weights_of(make_model())), tmp_path / "hub")
    for name in ("LICENSE", "NOTICE"):
        assert (folder / name).read_bytes() == (repository / name).read_bytes()
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "(`*_glm.py`) is under the MIT License" in card and "`NOTICE`" in card
    listed = (folder / "SHA256SUMS").read_text(encoding="utf-8").split()
    assert {"LICENSE", "NOTICE"} <= set(listed)


def test_files_are_planned_by_size():
    sizes = {"a": 4, "b": 4, "c": 9, "d": 1, "e": 3}
    assert plan_files(sizes, limit=8) == [["a", "b"], ["c"], ["d", "e"]]
    assert plan_files(sizes, limit=100) == [list(sizes)]
    assert plan_files(sizes, limit=1) == [[name] for name in sizes]


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5mb", 1_500_000), ("200 K", 200_000), ("17", 17)])
def test_sizes_are_read(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "5TB", "five"])
def test_other_sizes_are_refused(text: str):
    with pytest.raises(ValueError, match=r"--max-shard-size .* give a size such as 5GB"):
        parse_size(text)


def test_several_files_have_an_index(tmp_path: Path):
    weights = weights_of(make_model())
    folder = export(store(tmp_path / "one", weights), tmp_path / "hub", max_shard_size=5000)
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights.values())
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    for number, file in enumerate(files, start=1):
        assert file.name == f"model-{number:05d}-of-{len(files):05d}.safetensors"
        held = safetensors.load_file(file)
        assert all(index["weight_map"][name] == file.name for name in held)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= 5000
    assert len(index["weight_map"]) == len(weights)


def test_configurations_come_back(tmp_path: Path):
    for config in (CONFIG, GLMConfig(1, 8, 2, 32, block_position_encoding=False, attention_scale=2.0)):
        assert config_from_fields(config_fields(config), file=tmp_path) == config


@pytest.mark.parametrize("config", [CONFIG, relative_config(), GLMConfig(3, 8, 2, 32, block_position_encoding=False)])
def test_sizes_follow_from_shapes(config: GLMConfig, tmp_path: Path):
    shapes = {name: tuple(tensor.shape) for name, tensor in GLMModel(config, device="meta").state_dict().items()}
    for name, value in sizes_from_shapes(shapes, file=tmp_path).items():
        assert value == getattr(config, name), name


def test_the_classifier_gets_the_names_of_its_class_and_comes_back(tmp_path: Path):
    classifier = SequenceClassification(make_model(), 3)
    weights = weights_of(classifier)
    folder = export(store(tmp_path / "native", weights), tmp_path / "hub")
    exported = read_safetensors(folder)
    assert torch.equal(exported["dense.weight"], weights["pool_layer.weight"])
    assert torch.equal(exported["out_proj.bias"], weights["multichoice_head.bias"])
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert fields["architectures"] == ["GLMForSequenceClassification"]
    assert len(fields["id2label"]) == 3
    assert "classifier_dropout" in fields
    import_folder(open_hub_model(folder), tmp_path / "back", size=2)
    assert contents(export(tmp_path / "back", tmp_path / "again")) == contents(folder)
    for source in (folder, tmp_path / "back"):
        other = SequenceClassification(make_model(9), 3)
        report = load_model_weights(other, source)
        assert not report.missing
        assert not report.unexpected
        assert all(torch.equal(tensor, weights[name]) for name, tensor in other.state_dict().items())


def test_unused_layers_of_published_files_are_dropped(tmp_path: Path):
    """The hub's glm-2b carries a classifier's layers without being one."""
    weights = weights_of(make_model())
    folder = export(store(tmp_path / "one", weights), tmp_path / "hub")
    head = {"dense.weight": torch.ones(16, 16), "out_proj.bias": torch.ones(2)}
    safetensors.save_file(
        {f"glm.{name}": tensor for name, tensor in weights.items()} | head, folder / "model.safetensors"
    )
    (folder / "SHA256SUMS").unlink()
    model = open_hub_model(folder)
    assert set(model.weights.left_out) == set(head)
    import_folder(model, tmp_path / "native")
    assert set(read_whole_weights(tmp_path / "native").pieces) == set(weights)


@pytest.mark.parametrize("prefix", ["", "glm.", "module.", "module.model."])
def test_published_names_are_accepted(prefix: str, tmp_path: Path):
    weights = weights_of(make_model())
    folder = export(store(tmp_path / "one", weights), tmp_path / "hub")
    (folder / "model.safetensors").unlink()
    torch.save({prefix + name: tensor for name, tensor in weights.items()}, folder / "pytorch_model.bin")
    import_folder(open_hub_model(folder), tmp_path / "native")
    found = torch.load(tmp_path / "native" / shard_name(0), weights_only=True)["module"]
    assert list(found) == list(weights)
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_the_names_of_the_other_toolkit_are_accepted(tmp_path: Path):
    weights = weights_of(make_model())
    foreign = {ours: theirs for theirs, ours in FOREIGN_NAMES.items()}
    folder = store(tmp_path / "sat", {})
    torch.save({"module": {foreign.get(name, name): t for name, t in weights.items()}}, folder / shard_name(0))
    exported = read_safetensors(export(folder, tmp_path / "hub"))
    assert all(torch.equal(exported[f"glm.{name}"], tensor) for name, tensor in weights.items())


def prompt_weights() -> dict[str, Tensor]:
    config = GLMConfig(2, 16, 4, 64, max_position_embeddings=20, prompt_length=3)
    return weights_of(make_model(config=config))


def test_prompts_are_left_out_and_said_so(tmp_path: Path):
    weights = read_whole_weights(store(tmp_path / "one", prompt_weights()))
    assert weights.left_out
    assert all(name.startswith("prompt_spell.") for name in weights.left_out)
    export_folder(weights, tmp_path / "hub", config=CONFIG, tokenizer=None, name="tiny")
    assert not any("prompt" in name for name in read_safetensors(tmp_path / "hub"))


def test_a_partial_checkpoint_goes_over_the_model_it_is_of(tmp_path: Path):
    base, tuned = weights_of(make_model(0)), prompt_weights()
    part = {name: tensor + 1 for name, tensor in tuned.items() if "prompt" in name or "layers.0." in name}
    store(tmp_path / "part", part)
    store(tmp_path / "base", base, size=2)
    weights = read_whole_weights(tmp_path / "part", base=tmp_path / "base")
    export_folder(weights, tmp_path / "hub", config=CONFIG, tokenizer=None, name="tiny")
    exported = read_safetensors(tmp_path / "hub")
    assert set(exported) == {f"glm.{name}" for name in base}
    for name, tensor in base.items():
        assert torch.equal(exported[f"glm.{name}"], part.get(name, tensor)), name


def test_weights_are_stored_in_the_type_asked_for(tmp_path: Path):
    weights = read_whole_weights(store(tmp_path / "one", weights_of(make_model())))
    target, options = tmp_path / "hub", ExportOptions(dtype=torch.bfloat16)
    export_folder(weights, target, config=CONFIG, tokenizer=None, options=options, name="x")
    exported = read_safetensors(target)
    assert all(torch.equal(exported[f"glm.{name}"], weights.read(name).bfloat16()) for name in weights.pieces)
    assert json.loads((target / "config.json").read_text(encoding="utf-8"))["torch_dtype"] == "bfloat16"


def test_a_row_may_become_a_copy_of_another(tmp_path: Path):
    weights = weights_of(make_model())
    checkpoint = store(tmp_path / "one", weights, size=2)
    folder = export(checkpoint, tmp_path / "hub", shared_row=(60, 7))
    table = read_safetensors(folder)["glm.word_embeddings.weight"]
    expected = weights["word_embeddings.weight"].clone()
    expected[60] = expected[7]
    assert torch.equal(table, expected)
    assert json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["suppress_tokens"] == [60]
    written = torch.load(export_bin(read_whole_weights(checkpoint), shared_row=(60, 7)), weights_only=True)
    assert torch.equal(written["word_embeddings.weight"], expected)


def test_pytorch_model_bin_has_the_weights_as_they_are(tmp_path: Path):
    for number, size in enumerate((1, 2)):
        weights = {name: tensor.half() for name, tensor in weights_of(make_model()).items()}
        folder = store(tmp_path / str(number), weights, size=size)
        path = export_bin(read_whole_weights(folder / shard_name(0)))
        assert path == folder / "pytorch_model.bin"
        found = torch.load(path, weights_only=True)
        assert list(found) == list(weights)
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
        shards = {shard_name(rank) for rank in range(size)}
        assert {file.name for file in folder.iterdir()} == {path.name, "SHA256SUMS", *shards}


def refused(words: str, action: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        action()
    assert "\n" not in str(caught.value)


def test_what_is_no_whole_model_is_refused(tmp_path: Path):
    whole = weights_of(make_model())
    prompt = {name: tensor for name, tensor in prompt_weights().items() if "prompt" in name}
    shapes = {name: tuple(tensor.shape) for name, tensor in prompt.items()}
    refused("no whole GLM but a continuous prompt alone", lambda: sizes_from_shapes(shapes, file=tmp_path))
    cases = {
        "a part of a model: 29 of 29": prompt,
        "a part of a model: 1 of": {name: t for name, t in whole.items() if "final_layernorm.bias" not in name},
        "no parameter 'bert.pooler.weight'": {**whole, "bert.pooler.weight": torch.ones(2)},
        "has shape": {**whole, "transformer.final_layernorm.bias": torch.ones(3)},
    }
    for number, (words, weights) in enumerate(cases.items()):
        folder = tmp_path / f"native{number}"
        folder.mkdir()
        torch.save({"module": weights}, folder / shard_name(0))
        refused(words, lambda folder=folder: export(folder, tmp_path / "hub"))
    assert not (tmp_path / "hub").exists()


def test_what_the_classes_cannot_do_is_refused(tmp_path: Path):
    head = store(tmp_path / "head", weights_of(SequenceClassification(make_model(), 3)))
    plain = store(tmp_path / "plain", weights_of(make_model()))
    relative = store(tmp_path / "relative", weights_of(make_model(config=relative_config())))
    target = tmp_path / "hub"
    refused("--pool-token pad cannot be exported", lambda: export(head, target, pool_token="pad"))
    refused("has a classification head", lambda: export(head, target, purpose="generation"))
    refused("lacks the classification head", lambda: export(plain, target, purpose="classification"))
    refused("relative positions", lambda: export(relative, target, relative_config()))
    tokenizer = TokenizerFiles(HUB_TOKENIZERS[0], [], num_tokens=65)
    weights = read_whole_weights(plain)
    refused("the tokenizer has 65 ids",
            lambda: export_folder(weights, target, config=CONFIG, tokenizer=tokenizer, name="x"))  # fmt: skip
    assert not target.exists()


def test_existing_files_are_not_replaced(tmp_path: Path):
    checkpoint = store(tmp_path / "one", weights_of(make_model()))
    refused("exists and is not empty", lambda: export(checkpoint, checkpoint))
    hub = export(checkpoint, tmp_path / "hub")
    before = contents(hub)
    refused("exists and is not empty", lambda: export(checkpoint, hub))
    refused("exists and is not empty", lambda: import_folder(open_hub_model(hub), checkpoint))
    assert contents(hub) == before
    (tmp_path / "empty").mkdir()
    assert contents(export(checkpoint, tmp_path / "empty")) == before


def test_nothing_half_written_stays(tmp_path: Path):
    checkpoint = store(tmp_path / "one", weights_of(make_model()))

    # The vocabulary is copied when the weights are written already.
    tokenizer = TokenizerFiles(HUB_TOKENIZERS[0], [tmp_path / "vocab.txt"], num_tokens=60)
    with pytest.raises(FileNotFoundError, match=r"vocab\.txt"):
        export_folder(
            read_whole_weights(checkpoint), tmp_path / "new" / "hub", config=CONFIG, tokenizer=tokenizer, name="x"
        )
    assert not any((tmp_path / "new").glob("*"))
    hub = export(checkpoint, tmp_path / "hub")
    refused("cannot be cut into", lambda: import_folder(open_hub_model(hub), tmp_path / "back", size=3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "new", "one"]


MEASURE = """
import sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from model.config import GLMConfig
from model.hub.export import ExportOptions, export_folder
from model.hub.importing import import_folder, open_hub_model
from model.checkpoints.reading import read_whole_weights
import safetensors.torch, torch

def resident():
    words = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(words["VmHWM"].split()[0]) * 1024

source, target, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
safetensors.torch.save_file({"a": torch.ones(1)}, target.with_name("warm")); torch.save({}, target.with_name("warm"))
config = GLMConfig(12, 512, 8, 4096, max_position_embeddings=64)
before = resident()
if what == "export":
    options = ExportOptions(max_shard_size=20_000_000)
    weights = read_whole_weights(source)
    export_folder(weights, target, config=config, tokenizer=None, options=options, name="x")
else:
    import_folder(open_hub_model(source), target, size=8)
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_holds_about_one_file(tmp_path: Path, repository: Path):
    config = GLMConfig(12, 512, 8, 4096, max_position_embeddings=64)
    weights = make_model(config=config).state_dict()
    total = sum(tensor.nbytes for tensor in weights.values())
    store(tmp_path / "native", weights, size=2)

    def measure(source: str, target: str, what: str) -> int:
        paths = [str(tmp_path / source), str(tmp_path / target)]
        command = [sys.executable, "-c", MEASURE, *paths, what, str(repository)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        return int(run.stdout)

    assert total > 150_000_000
    assert measure("native", "hub", "export") < 75_000_000  # files of 20 MB, and what checks the archives
    assert measure("hub", "back", "import") < 80_000_000  # shards of total / 8, about 20 MB
    found = read_whole_weights(tmp_path / "back")
    assert all(torch.equal(found.read(name), tensor) for name, tensor in weights.items())


def test_names_of_the_layout():
    assert hub_name("word_embeddings.weight") == "glm.word_embeddings.weight"
    assert hub_name("pool_layer.bias") == "dense.bias"
