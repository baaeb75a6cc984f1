"""Damaged bytes, files of other saves, odd pickles and weights that are not finite are named before they are used."""

from __future__ import annotations

import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from change_mp import change_model_parallel_size
from files.checksums import CHECKSUMS_FILE, HashingFile, read_checksums
from model.checkpoints.pickles import check_pickle
from model.checkpoints.reading import (
    REPLACED_PREFIX,
    load_model_weights,
    read_shards,
    read_whole_weights,
    resolve_checkpoint,
    shard_name,
)
from model.checkpoints.safe_loading import UnreadableCheckpointError, read_checkpoint_file
from model.checkpoints.verify import main
from model.checkpoints.writing import new_folder
from model.config import GLMConfig
from model.hub.describe import config_fields, config_from_fields, sizes_from_shapes
from model.hub.export import export_folder
from model.hub.weight_files import write_safetensors
from model.modeling_glm import GLMModel
from mpu.initialize import initialize_model_parallel
from tests.helpers import distributed
from tests.helpers.logs import logged_lines

CONFIG = GLMConfig(2, 16, 2, 32, max_position_embeddings=8)


def make_model(seed: int = 1) -> GLMModel:
    return GLMModel(CONFIG, generator=torch.Generator().manual_seed(seed))


def store(folder: Path, *, seed: int = 1, iteration: int = 3) -> Path:
    with new_folder(folder) as new:
        new.write_shard(0, {"module": make_model(seed).state_dict(), "iteration": iteration, "mp_world_size": 1})
    return folder


def divide(folder: Path, **options: Any) -> Path:
    root = change_model_parallel_size(store(folder, **options), 2)
    assert root is not None
    return root


def flip(file: Path, *, place: int | None = None) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 4
    file.write_bytes(data)


def refused(action: Callable[[], object], words: str) -> None:
    with pytest.raises(UnreadableCheckpointError, match=words) as caught:
        action()
    assert "\n" not in str(caught.value)
    assert "tokenizer" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------- bytes


def test_the_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    checkpoint = store(tmp_path / "one")
    export_folder(read_whole_weights(checkpoint), tmp_path / "hub", config=CONFIG, tokenizer=None, name="x")
    for folder in (checkpoint, divide(tmp_path / "two"), tmp_path / "hub"):
        listed = {file.name for file in folder.iterdir()} - {CHECKSUMS_FILE}
        assert set(read_checksums(folder / CHECKSUMS_FILE)) == listed
        subprocess.run(["sha256sum", "--check", "--strict", CHECKSUMS_FILE], cwd=folder, check=True)


@pytest.mark.parametrize("listed", [True, False])
def test_a_flipped_bit_is_noticed(tmp_path: Path, listed: bool) -> None:
    folder = store(tmp_path / "one")
    if not listed:
        (folder / CHECKSUMS_FILE).unlink()
        assert f"no {CHECKSUMS_FILE}" in load_model_weights(make_model(), folder).summary()
    flip(folder / shard_name(0))
    words = "SHA-256" if listed else "CRC-32"
    for action in (
        lambda: load_model_weights(make_model(), folder),
        lambda: read_whole_weights(folder),
        lambda: change_model_parallel_size(folder, 2),
    ):
        refused(action, f"{shard_name(0)} cannot be read: .*{words}")


def test_a_flipped_bit_of_an_exported_model_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    export_folder(read_whole_weights(store(tmp_path / "one")), folder, config=CONFIG, tokenizer=None, name="x")
    flip(folder / "model.safetensors")
    refused(lambda: load_model_weights(make_model(), folder), "SHA-256")
    (folder / CHECKSUMS_FILE).write_text("no list\n", encoding="utf-8")
    refused(lambda: load_model_weights(make_model(), folder), "line 1: .*sha256sum")


def test_files_of_settings_may_be_edited_but_that_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    export_folder(read_whole_weights(store(tmp_path / "one")), folder, config=CONFIG, tokenizer=None, name="x")
    with (folder / "config.json").open("a", encoding="utf-8") as file:
        file.write("\n")
    with logged_lines() as lines:
        load_model_weights(make_model(), folder)
    assert "config.json is not what" in lines[0]


def test_the_verifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = store(tmp_path / "run" / "3")
    store(tmp_path / "run" / "20")
    for options in ([], ["--full"]):
        assert main([str(tmp_path / "run"), *options]) == 0
        assert capsys.readouterr().out.count("as written") == 2
    weights = make_model().state_dict()
    weights["word_embeddings.weight"][0, 0] = torch.nan
    with new_folder(folder) as new:
        new.write_shard(0, {"module": weights})
    assert main([str(folder)]) == 0
    assert main([str(folder), "--full"]) == 2
    assert "word_embeddings.weight holds NaN" in capsys.readouterr().err
    flip(folder / shard_name(0))
    assert main([str(folder)]) == main([str(folder.parent), "--full"]) == 2
    assert all(line.startswith("error: ") for line in capsys.readouterr().err.splitlines())
    (folder / shard_name(0)).unlink()
    assert main([str(folder)]) == 2
    with pytest.raises(ValueError, match="nothing: no such folder"):
        main([str(tmp_path / "nothing")])


def test_safetensors_are_written_as_by_their_library(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    types = (torch.bfloat16, torch.float32, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool)
    tensors = {f"x.{i}": torch.rand(i % 3, 2, generator=generator).to(types[i % 7]) for i in range(20)}
    tensors |= {"一": torch.tensor(3.0), "turned": torch.rand(3, 2).T}
    with (tmp_path / "x").open("wb") as file:
        write_safetensors(HashingFile(file), tensors)
    assert (tmp_path / "x").read_bytes() == save(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={"format": "pt"}
    )


# ------------------------------------------------------------------------------------------------- files of saves


def test_files_of_two_saves_are_not_mixed(tmp_path: Path) -> None:
    folder, other, later = (
        divide(tmp_path / name, seed=seed, iteration=iteration)
        for name, seed, iteration in (("a", 1, 3), ("b", 2, 3), ("c", 1, 4))
    )
    for source, words in ((other, "different saves.*id of the save"), (later, "different saves.*iteration 3.* 4")):
        shutil.copy(source / shard_name(1), folder)
        if source is other:
            refused(lambda: read_whole_weights(folder), "SHA-256")
            (folder / CHECKSUMS_FILE).unlink()
        refused(lambda: load_model_weights(make_model(), folder), words)
        refused(lambda: change_model_parallel_size(folder, 1), words)


def test_swapped_and_missing_files_are_named(tmp_path: Path) -> None:
    folder = divide(tmp_path / "a")
    first, second = (folder / shard_name(rank) for rank in range(2))
    second.rename(folder / "x")
    refused(lambda: load_model_weights(make_model(), folder), f"lacks {second.name}")
    (folder / CHECKSUMS_FILE).unlink()
    refused(lambda: load_model_weights(make_model(), folder), "model-parallel size 2, the folder holds 1 of")
    first.rename(second)
    (folder / "x").rename(first)
    refused(lambda: read_whole_weights(folder), f"{first.name} was written as {second.name}")


def _read_own_file(folder: str) -> str:
    topology = initialize_model_parallel(2)
    try:
        read_shards(resolve_checkpoint(folder), topology=topology)
    except UnreadableCheckpointError as error:
        return str(error)
    return ""


def test_ranks_compare_what_each_has_read(tmp_path: Path) -> None:
    folder, other = divide(tmp_path / "a"), divide(tmp_path / "b", seed=2)
    assert distributed.run(_read_own_file, 2, str(folder)) == ["", ""]
    shutil.copy(other / shard_name(1), folder)
    first, second = distributed.run(_read_own_file, 2, str(folder))
    assert "SHA-256" in second and second in first
    (folder / CHECKSUMS_FILE).unlink()
    answers = distributed.run(_read_own_file, 2, str(folder))
    assert all("different saves" in answer for answer in answers)


def test_a_process_that_died_while_it_replaced_a_folder_is_recovered_from(tmp_path: Path) -> None:
    folder = store(tmp_path / "a")
    made = change_model_parallel_size(folder, 2)
    assert made is not None
    expected = {name: read_whole_weights(made).read(name) for name in read_whole_weights(made).pieces}
    replaced = made.with_name(f"{REPLACED_PREFIX}{made.name}")
    shutil.copytree(made, made.with_name(f".tmp-{made.name}"))
    made.rename(replaced)  # killed between the two renames
    weights = read_whole_weights(made)
    assert all(torch.equal(weights.read(name), tensor) for name, tensor in expected.items())
    assert change_model_parallel_size(folder, 2) == made and not replaced.exists()
    shutil.copytree(made, replaced)  # killed while the old one was deleted
    (replaced / shard_name(0)).unlink()
    assert change_model_parallel_size(folder, 2) == made and not replaced.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a_MP2"}


# ------------------------------------------------------------------------------------------------ what is in them


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    weights = make_model().state_dict()
    weights["transformer.final_layernorm.bias"][1] = value
    with new_folder(tmp_path / "one") as new:
        new.write_shard(0, {"module": weights})
    words = "final_layernorm.bias holds NaN or infinity"
    refused(lambda: load_model_weights(make_model(), tmp_path / "one"), words)
    refused(lambda: read_whole_weights(tmp_path / "one"), words)
    refused(lambda: change_model_parallel_size(tmp_path / "one", 2), words)
    assert not (tmp_path / "one_MP2").exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.to_sparse(),
        lambda t: t.to("meta"),
        lambda t: t.to(torch.int32),
        lambda t: t.to(torch.complex64),
        lambda t: t[:1, :1].clone().expand(t.shape),
    ],
    ids=["sparse", "meta", "whole numbers", "complex", "expanded"],
)
def test_odd_tensors_are_named(tmp_path: Path, make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = make_model().state_dict()
    weights["word_embeddings.weight"] = make(weights["word_embeddings.weight"])
    torch.save({"module": weights}, tmp_path / shard_name(0))
    refused(lambda: load_model_weights(make_model(), tmp_path), "word_embeddings.weight")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02]r\xff\xff\xff\x0f.",
        b"\x80\x02]p99999999\n.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
        b"\x80\x04\x96" + struct.pack("<Q", 1 << 33) + b".",
        b"\x80\x02\x8b" + struct.pack("<I", 5000) + b"\x01" * 5000 + b".",
        b"\x80\x02]",
        b"\x80\x02cbuiltins\nprint",
        b"\x80\x02\xff.",
    ],
)
def test_pickles_that_ask_for_more_than_they_hold(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError):
        check_pickle(data)
    file = tmp_path / "x.pt"
    file.write_bytes(data)
    refused(lambda: read_checkpoint_file(file), "cannot be read")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    refused(lambda: read_checkpoint_file(file), "cannot be read")


def test_archives_and_calls_that_make_much_of_little(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": "x" * 1_000_000}, protocol=2))
    refused(lambda: read_checkpoint_file(file), "cannot be read")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}U\x01acbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85Rs.")
        archive.writestr("archive/version", "3\n")
    refused(lambda: read_checkpoint_file(file), "cannot be read")
    torch.save({"a": bytearray(b"xyz")}, file)
    assert read_checkpoint_file(file) == {"a": bytearray(b"xyz")}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_honest_pickles_pass(protocol: int) -> None:
    shared = ["x" * 300, 10**40, -3, 1.5, None, True, b"\x00\xff", (1,), {1, 2}, {"k": []}]
    data = pickle.dumps([shared, shared, *(str(number) for number in range(70_000))], protocol=protocol)
    assert check_pickle(data + b"rest") == len(data)


# ------------------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_layers", 2**70), ("num_layers", 10**9), ("num_layers", 1.5), ("num_layers", True), ("num_layers", "2"),
        ("vocab_size", 2**70), ("hidden_size", 10**9), ("hidden_size", [16]), ("max_sequence_length", 1.5),
        ("relative_encoding", []), ("relative_encoding", 1), ("spell_length", 1.5), ("spell_func", 3),
        ("attention_scale", "x"), ("initializer_range", float("nan")), ("output_dropout_prob", 2),
        ("num_attention_heads", 0), ("checkpoint_num_layers", {}),
    ],
)  # fmt: skip
def test_fields_of_a_configuration_are_checked(field: str, value: Any, tmp_path: Path) -> None:
    from model.hf.configuration_glm import GLMConfig as HubConfig

    fields = {**config_fields(CONFIG), field: value}
    with pytest.raises(ValueError, match=f"config.json.*{field.split('_prob', maxsplit=1)[0]}") as caught:
        config_from_fields(fields, file=tmp_path / "config.json")
    assert "\n" not in str(caught.value)
    if field != "spell_func":  # of no use there
        with pytest.raises(ValueError, match=field):
            HubConfig(**fields)


def test_layers_are_counted_before_a_model_is_built(tmp_path: Path) -> None:
    from generation.api import load_weights

    folder = store(tmp_path / "one")
    with pytest.raises(ValueError, match="has 2 layers, the configuration 1000"):
        load_weights(GLMConfig(1000, 16, 2, 32), folder)
    weights = read_whole_weights(folder)
    with pytest.raises(ValueError, match="has 2 layers, the configuration 999"):
        export_folder(weights, tmp_path / "x", config=GLMConfig(999, 16, 2, 32), tokenizer=None, name="x")
    with pytest.raises(ValueError, match="layers are missing"):
        sizes_from_shapes({"word_embeddings.weight": (3, 4), "transformer.layers.99.x": (1,)}, file=folder)


@pytest.mark.parametrize("tag", ["../../x", "/tmp/x", "..", ".", "", "a/b", "a" * 300, "a\x00b"])
def test_tags_that_lead_elsewhere_are_refused(tag: str, tmp_path: Path) -> None:
    (tmp_path / "latest").write_text(tag, encoding="utf-8")
    with pytest.raises(ValueError, match="where the name of a checkpoint belongs"):
        resolve_checkpoint(tmp_path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_a_full_disk_ends_an_export_in_one_line(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from model.checkpoints.reading import read_whole_weights; from model.hub.export import export_folder\n"
        "from model.config import GLMConfig\n"
        "config = GLMConfig(2, 16, 2, 32, max_position_embeddings=8)\n"
        "weights = read_whole_weights(sys.argv[1])\ntry:\n"
        "    export_folder(weights, Path(sys.argv[2]), config=config, tokenizer=None, name='x')\n"
        "except OSError as error: print(error)\n"
    )
    words = [sys.executable, "-c", code, str(store(tmp_path / "one")), str(tmp_path / "hub")]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    assert f"{tmp_path / 'hub'} cannot be written: File too large" in run.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"one"}
