"""Reading checkpoints: safety, locations, other layouts and sizes, and one clear line for what does not fit."""

from __future__ import annotations

import functools
import io
import os
import pickle
import re
import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from change_mp import change_model_parallel_size
from model.checkpoints.format import canonical_name, merge_tensors, reshard_tensor, rule_for, split_tensor
from model.checkpoints.reading import load_model_weights, resolve_checkpoint, shard_name
from model.checkpoints.safe_loading import InertObject, UnreadableCheckpointError, _InertUnpickler, read_checkpoint_file
from model.config import GLMConfig
from model.heads import MultiTokenClozeFast, SequenceClassification
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology

SIZES: dict[str, Any] = {"vocab_size": 32, "max_position_embeddings": 10, "prompt_length": None}


def make_model(seed: int = 0, **changes: Any) -> GLMModel:
    options = {**SIZES, "num_layers": 2, "hidden_size": 8, "num_attention_heads": 4, **changes}
    return GLMModel(GLMConfig(**options), generator=torch.Generator().manual_seed(seed))


def save(folder: Path, content: Any, *, rank: int = 0, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / shard_name(rank), **options)
    return folder


def save_model(folder: Path, model: nn.Module, **content: Any) -> Path:
    return save(folder, {"module": model.state_dict(), "iteration": 5, **content})


def same(left: nn.Module, right: nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


# --- safety -----------------------------------------------------------------------------------------------------------


class Attack:
    """Would create a file when it is unpickled the usual way."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


class SubDict(dict):
    pass


class SubList(list):
    pass


@pytest.fixture
def foreign_class():
    """Make a class of a package that does not exist when the file is read."""
    module = types.ModuleType("fp16.loss_scaler")

    class DynamicLossScaler:
        def __init__(self) -> None:
            self.cur_scale, self.history = 65536.0, torch.ones(3)

    DynamicLossScaler.__module__, DynamicLossScaler.__qualname__ = "fp16.loss_scaler", "DynamicLossScaler"
    module.DynamicLossScaler = DynamicLossScaler
    sys.modules["fp16"], sys.modules["fp16.loss_scaler"] = types.ModuleType("fp16"), module
    yield DynamicLossScaler
    del sys.modules["fp16"], sys.modules["fp16.loss_scaler"]


@pytest.mark.parametrize("zip_format", [True, False])
def test_unknown_classes_do_not_hide_the_weights(tmp_path: Path, foreign_class: type, zip_format: bool):
    model = make_model()
    optimizer = {
        "loss_scaler": foreign_class(), "partial": functools.partial(print, "x"), "dict": SubDict(a=1),
        "list": SubList([1, 2]), "overflow": False, "masters": [[torch.arange(3.0)]],
        "reading": Attack(getattr, "x", "upper"),
    }  # fmt: skip
    content = {
        "module": OrderedDict(model.state_dict()), "optimizer": optimizer, "iteration": 7,
        "np_rng_state": np.random.RandomState(3).get_state(), "size": torch.Size([2]), "kind": torch.bfloat16,
        "bytes": b"a\xff", "set": {1, 2},
    }  # fmt: skip
    save(tmp_path, content, _use_new_zipfile_serialization=zip_format)
    del sys.modules["fp16.loss_scaler"]
    read = read_checkpoint_file(tmp_path / shard_name(0))
    sys.modules["fp16.loss_scaler"] = types.ModuleType("fp16.loss_scaler")
    assert all(torch.equal(read["module"][name], tensor) for name, tensor in model.state_dict().items())
    assert isinstance(read["optimizer"]["loss_scaler"], InertObject)
    assert "fp16.loss_scaler.DynamicLossScaler" in repr(read["optimizer"]["loss_scaler"])
    assert torch.equal(read["optimizer"]["masters"][0][0], torch.arange(3.0))
    assert np.array_equal(read["np_rng_state"][1], content["np_rng_state"][1])
    for key in ("iteration", "size", "kind", "bytes", "set"):
        assert read[key] == content[key]
    other = make_model(1)
    assert load_model_weights(other, tmp_path).iteration == 7
    assert same(model, other)


@pytest.mark.parametrize("zip_format", [True, False])
def test_nothing_in_a_file_is_executed(tmp_path: Path, zip_format: bool):
    target = tmp_path / "made"
    code = f"open({str(target)!r}, 'w').close()"
    attacks = [
        Attack(os.system, f"touch {target}"),
        Attack(exec, code),
        Attack(eval, f"open({str(target)!r}, 'w')"),
        Attack(open, str(target), "w"),
        Attack(os.mkdir, str(target)),
        Attack(torch.load, str(tmp_path / "inner.pt"), None, None),
        Attack(functools.partial, os.system, f"touch {target}"),
        Attack(torch.storage._load_from_bytes, b"xx"),
    ]
    for attack in attacks:
        save(tmp_path, {"module": {"w": torch.ones(2)}, "optimizer": attack}, _use_new_zipfile_serialization=zip_format)
        read = read_checkpoint_file(tmp_path / shard_name(0))
        assert isinstance(read["optimizer"], InertObject)
        assert torch.equal(read["module"]["w"], torch.ones(2))
    assert not target.exists()


def test_attributes_of_trusted_functions_cannot_be_set():
    # Push the function, then BUILD it with (None, {"_function": None}), which sets attributes.
    stream = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\t\x00\x00\x00_functionNs\x86b."
    with pytest.raises(pickle.UnpicklingError, match="sets attribute"):
        _InertUnpickler(io.BytesIO(stream)).load()


@pytest.mark.parametrize("zip_format", [True, False])
def test_damaged_files_give_one_line(tmp_path: Path, zip_format: bool):
    save_model(tmp_path, make_model())
    save(tmp_path, {"module": make_model().state_dict()}, _use_new_zipfile_serialization=zip_format)
    file = tmp_path / shard_name(0)
    whole = file.read_bytes()
    for length in {0, 1, 10, 1000, len(whole) // 2, len(whole) - 1}:
        file.write_bytes(whole[:length])
        with pytest.raises(UnreadableCheckpointError, match="cannot be read") as caught:
            load_model_weights(make_model(), tmp_path)
        assert "\n" not in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(2), "text"])
def test_files_of_another_kind(tmp_path: Path, content: Any):
    save(tmp_path, content)
    with pytest.raises(ValueError, match="where a checkpoint has a dictionary"):
        load_model_weights(make_model(), tmp_path)


# --- where a checkpoint is --------------------------------------------------------------------------------------------


def test_locations(tmp_path: Path):
    run = tmp_path / "run"
    save_model(run / "40", make_model())
    for name in ("latest_checkpointed_iteration.txt", "latest"):
        (run / name).write_text("40\n", encoding="utf-8")
        found = resolve_checkpoint(run)
        assert (found.folder, found.tag, found.iteration, found.root) == (run / "40", "40", 40, run)
        (run / name).unlink()
    bare = resolve_checkpoint(run / "40")
    assert (bare.folder, bare.tag, bare.iteration, bare.root) == (run / "40", "40", 40, None)
    assert resolve_checkpoint(run / "40" / shard_name(0)) == bare
    (run / "40").rename(run / ".old-40")  # the process died while it replaced this checkpoint
    (run / "latest").write_text("40", encoding="utf-8")
    assert resolve_checkpoint(run).folder == run / ".old-40"


def test_released_weights_count_no_iterations(tmp_path: Path):
    save_model(tmp_path / "release", make_model())
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("release", encoding="utf-8")
    assert load_model_weights(make_model(1), tmp_path).iteration == 0


def test_old_iteration_key(tmp_path: Path):
    save(tmp_path, {"module": make_model().state_dict(), "total_iters": 9})
    assert load_model_weights(make_model(1), tmp_path).iteration == 9


@pytest.mark.parametrize("text", ["", "../elsewhere", "a b", "..", "77"])
def test_bad_trackers(tmp_path: Path, text: str):
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"latest_checkpointed_iteration\.txt"):
        resolve_checkpoint(tmp_path)


def test_no_checkpoint(tmp_path: Path):
    with pytest.raises(ValueError, match="does not exist"):
        resolve_checkpoint(tmp_path / "none")
    with pytest.raises(ValueError, match="no checkpoint in"):
        resolve_checkpoint(tmp_path)


def test_a_missing_shard(tmp_path: Path):
    save(tmp_path, {"module": make_model().state_dict()}, rank=1)
    with pytest.raises(ValueError, match="lacks mp_rank_00"):
        load_model_weights(make_model(), tmp_path)


# --- into a model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 64}, "vocabulary of 32, the model one of 64"),
        ({"hidden_size": 16}, "--hidden-size 8"),
        ({"num_layers": 3}, "lacks transformer.layers.2"),
        ({"num_layers": 1}, "has transformer.layers.1"),
        ({"max_position_embeddings": 5}, "--max-position-embeddings 10"),
        ({"block_position_encoding": False}, "--block-lm"),
        ({"relative_encoding": True, "block_position_encoding": False}, "--transformer-xl"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(tmp_path: Path, changes: dict, words: str):
    save_model(tmp_path, make_model())
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        load_model_weights(make_model(**changes), tmp_path)
    assert "\n" not in str(caught.value)


def test_files_without_a_common_parameter(tmp_path: Path):
    save(tmp_path, {"module": nn.Linear(2, 2).state_dict()})
    with pytest.raises(ValueError, match="no parameter of the model"):
        load_model_weights(make_model(), tmp_path)
    save(tmp_path, {"model": "x", "step": 1})
    with pytest.raises(ValueError, match="unknown layout"):
        load_model_weights(make_model(), tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "model.", "glm.", "module.model."])
def test_prefixes_and_bare_state_dicts(tmp_path: Path, prefix: str):
    model, other = make_model(), make_model(1)
    save(tmp_path, {prefix + name: tensor for name, tensor in model.state_dict().items()})
    load_model_weights(other, tmp_path)
    assert same(model, other)


def test_the_swiss_army_layout(tmp_path: Path):
    model, other = make_model(), make_model(1)
    names = {
        "word_embeddings.weight": "transformer.word_embeddings.weight",
        "transformer.block_position_embeddings.weight": (
            "mixins.block_position_embedding.block_position_embeddings.weight"
        ),
    }
    save(tmp_path, {"module": {names.get(name, name): tensor for name, tensor in model.state_dict().items()}})
    assert not load_model_weights(other, tmp_path).unexpected
    assert same(model, other)


def test_heads_take_language_models_and_back(tmp_path: Path):
    model = make_model()
    save_model(tmp_path / "lm", model)
    for head in (SequenceClassification(make_model(1), 3), MultiTokenClozeFast(make_model(1))):
        report = load_model_weights(head, tmp_path / "lm")
        assert same(model, head.model)
        assert set(report.missing) <= {f"{layer}.{kind}" for layer in ("pool_layer", "multichoice_head")
                                       for kind in ("weight", "bias")}  # fmt: skip
        save_model(tmp_path / "head", head)
        back = make_model(2)
        assert set(load_model_weights(back, tmp_path / "head").unexpected) == set(report.missing)
        assert same(model, back)


def test_half_precision_files_and_models(tmp_path: Path):
    model = make_model()
    save(tmp_path, {"module": {name: tensor.half() for name, tensor in model.state_dict().items()}})
    other = make_model(1)
    load_model_weights(other, tmp_path)
    assert all(torch.equal(a.half().float(), b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_on_the_meta_device_are_filled(tmp_path: Path, dtype: torch.dtype):
    model = make_model(relative_encoding=True, block_position_encoding=False)
    save_model(tmp_path, model)
    empty = GLMModel(model.config, device="meta", dtype=dtype)
    flags = {name: getattr(p, "model_parallel", False) for name, p in empty.named_parameters()}
    load_model_weights(empty, tmp_path)
    for name, parameter in empty.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name].to(dtype)) and parameter.requires_grad
        assert getattr(parameter, "model_parallel", False) == flags[name]
    assert any(flags.values())


def test_the_summary_is_one_line_with_counts(tmp_path: Path):
    save_model(tmp_path, make_model())
    summary = load_model_weights(make_model(prompt_length=2), tmp_path).summary()
    assert re.search(r"loaded 29 parameters of iteration 5 .* 21 missing \(prompt_spell\.\S+,.* and 18 more\)", summary)
    assert "\n" not in summary


# --- other model-parallel sizes ---------------------------------------------------------------------------------------


def shard_topology(size: int, rank: int) -> ParallelTopology:
    """Describe one of ``size`` model-parallel ranks; nothing is communicated while weights are loaded."""
    return ParallelTopology(
        rank=rank, world_size=size, model_parallel_size=size, model_parallel_rank=rank,
        data_parallel_size=1, data_parallel_rank=0,
    )  # fmt: skip


@pytest.mark.parametrize("relative", [False, True])
def test_every_size_loads_into_every_size(tmp_path: Path, relative: bool):
    model = make_model(relative_encoding=relative, block_position_encoding=not relative, prompt_length=2)
    whole = model.state_dict()
    folder = save_model(tmp_path / "whole", model)
    assert change_model_parallel_size(folder, 1) is None
    folders = {1: folder, **{size: change_model_parallel_size(folder, size) for size in (2, 4)}}
    for path in folders.values():
        for size in (1, 2, 4):
            for rank in range(size):
                topology = shard_topology(size, rank)
                part = GLMModel(model.config, topology=topology, generator=torch.Generator().manual_seed(9))
                report = load_model_weights(part, path, topology=topology)
                assert not report.missing and not report.unexpected
                for name, tensor in part.state_dict().items():
                    assert torch.equal(tensor, split_tensor(name, whole[name], size)[rank]), name


def test_the_split_is_that_of_the_parallel_layers():
    """A model initialised as shards equals the shards of the whole model of the same seed."""
    whole = make_model(4).state_dict()
    for rank in range(2):
        part = GLMModel(
            make_model().config, topology=shard_topology(2, rank), generator=torch.Generator().manual_seed(4)
        )
        for name, tensor in part.state_dict().items():
            assert torch.equal(tensor, split_tensor(name, whole[name], 2)[rank]), name


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["word_embeddings.weight", "transformer.layers.3.attention.query_key_value.weight",
                     "transformer.layers.0.attention.query_key_value.bias", "transformer.r_w_bias",
                     "model.transformer.layers.1.attention.dense.weight", "transformer.final_layernorm.bias"]),
    st.sampled_from([1, 2, 3, 4, 6]),
    st.sampled_from([1, 2, 3, 4, 6]),
)  # fmt: skip
def test_resharding_equals_merging_and_splitting(name: str, present: int, wanted: int):
    shape = (36,) if name.endswith("bias") and "r_w" not in name else (36, 12)
    whole = torch.arange(36.0 * (12 if len(shape) == 2 else 1)).view(shape)
    shards = split_tensor(name, whole, present)
    assert torch.equal(merge_tensors(name, shards), whole)
    for rank in range(wanted):
        expected = split_tensor(name, whole, wanted)[rank]
        assert torch.equal(reshard_tensor(name, shards, size=wanted, rank=rank), expected)


def test_uneven_and_unknown_parameters_are_refused():
    with pytest.raises(ValueError, match="cannot be cut"):
        split_tensor("word_embeddings.weight", torch.zeros(10, 4), 3)
    with pytest.raises(ValueError, match="not one of a GLM"):
        rule_for("encoder.layers.0.weight")
    with pytest.raises(ValueError, match="differ in shape"):
        merge_tensors("word_embeddings.weight", [torch.zeros(2, 4), torch.zeros(3, 4)])
    assert canonical_name("module.model.pool_layer.weight") == "pool_layer.weight"


def test_resharding_leaves_nothing_behind_when_it_fails(tmp_path: Path):
    run = tmp_path / "run"
    save_model(run / "best", make_model())
    (run / "latest_checkpointed_iteration.txt").write_text("best", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be cut"):
        change_model_parallel_size(run, 3)
    with pytest.raises(ValueError, match="at least 1"):
        change_model_parallel_size(run, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    made = change_model_parallel_size(run, 2)
    assert (made / "latest").read_text(encoding="utf-8") == "best\n" and resolve_checkpoint(made).tag == "best"


def test_resharded_heads_keep_their_own_layers(tmp_path: Path):
    head = SequenceClassification(make_model(prompt_length=3), 3)
    made = change_model_parallel_size(save_model(tmp_path / "head", head), 2)
    whole = head.state_dict()
    for rank in range(2):
        shard = read_checkpoint_file(made / shard_name(rank))["module"]
        assert list(shard) == list(whole)
        for name in whole:
            if "prompt_spell" in name or "pool_layer" in name or "multichoice_head" in name:
                assert torch.equal(shard[name], whole[name])
        assert torch.equal(shard["model.word_embeddings.weight"], whole["model.word_embeddings.weight"].chunk(2)[rank])


def test_the_command_line_of_change_mp(tmp_path: Path, repository: Path):
    folder = save_model(tmp_path / "model", make_model())
    command = [sys.executable, str(repository / "change_mp.py")]
    done = subprocess.run([*command, f"{folder}/", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "model_MP2" in done.stdout
    again = subprocess.run([*command, f"{folder}_MP2", "2"], capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    wrong = subprocess.run([*command, str(tmp_path / "none"), "2"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1
