"""Recorded checkpoint folders (ckpt/): reading, resuming, growing, resharding."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from change_mp import change_model_parallel_size
from model.checkpoints.format import merge_tensors
from model.checkpoints.reading import load_model_weights, resolve_checkpoint, shard_name
from model.checkpoints.safe_loading import read_checkpoint_file
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from tests.helpers.golden_index import GoldenFolder
from tests.helpers.golden_models import load_vectors
from training.checkpointing import load_checkpoint
from training.optimizer import build_optimizer
from training.schedule import AnnealingLR
from training.settings import OptimizerSettings

RANDOM_KEYS = {"random_rng_state", "np_rng_state", "torch_rng_state", "cuda_rng_state", "rng_tracker_states"}
KNOWN_KEYS = RANDOM_KEYS | {
    "iteration", "module", "optimizer", "lr_scheduler", "client_lr_scheduler", "csr_tensor_module_names",
    "skipped_steps", "global_steps", "global_samples", "dp_world_size", "mp_world_size",
}  # fmt: skip


def folders(golden: GoldenFolder) -> list[Path]:
    found = sorted(path for path in golden.path("model/ckpt").iterdir() if path.is_dir())
    assert found
    return found


def plain_name(folder: Path) -> str:
    return re.sub(r"_MP\d+$", "", folder.name)


def whole_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of all shards put together."""
    shards = [read_checkpoint_file(file)["module"] for file in resolve_checkpoint(folder).shard_files()]
    return {name: merge_tensors(name, [shard[name] for shard in shards]) for name in shards[0]}


def make_model(golden: GoldenFolder, weights: dict[str, torch.Tensor], **changes: Any) -> GLMModel:
    """Build a model that fits recorded weights, in the recorded sizes."""
    sizes = load_vectors(golden, "weights.pt")["config"]
    options: dict[str, Any] = {"relative_encoding": any("r_w_bias" in name for name in weights)}
    options["block_position_encoding"] = not options["relative_encoding"]
    if "prompt_spell.spell_embeddings.weight" in weights:
        options["prompt_length"] = len(weights["prompt_spell.spell_embeddings.weight"])
        options["prompt_function"] = (
            "lstm" if any("lstm_head" in n for n in weights) else "mlp" if any("mlp" in n for n in weights) else "none"
        )
    return GLMModel(
        GLMConfig(
            sizes["num_layers"],
            sizes["hidden_size"],
            sizes["num_attention_heads"],
            sizes["vocab_size"],
            **{"max_position_embeddings": sizes["max_sequence_length"], **options, **changes},
        ),
        generator=torch.Generator().manual_seed(3),
    )


def test_every_file_is_readable_and_known(golden: GoldenFolder) -> None:
    for folder in folders(golden):
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        location = resolve_checkpoint(folder)
        shards = {f"{location.tag}/{shard.name}" for shard in location.shard_files()}
        assert files - shards <= {"latest", "latest_checkpointed_iteration.txt"}, folder.name
        for shard in location.shard_files():
            content = read_checkpoint_file(shard)
            assert set(content) <= KNOWN_KEYS, folder.name
            assert content["iteration"] == location.iteration


def test_weights_arrive_in_the_model(golden: GoldenFolder) -> None:
    for folder in folders(golden):
        weights = whole_weights(folder)
        model = make_model(golden, weights)
        report = load_model_weights(model, folder)
        assert set(report.loaded) == set(weights) and not report.unexpected and not report.grown, folder.name
        assert report.iteration == resolve_checkpoint(folder).iteration
        state = model.state_dict()
        assert all(torch.equal(state[name], tensor.to(state[name].dtype)) for name, tensor in weights.items())
        assert set(report.missing) == set(state) - set(weights)


def test_weights_of_ckpt_tiny_are_those_of_the_training_curve(golden: GoldenFolder) -> None:
    expected = load_vectors(golden, "train_curve.pt")["final_params"]
    actual = whole_weights(golden.path("model/ckpt/tiny"))
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_bare_folder_best_tag_and_missing_folder(golden: GoldenFolder, tmp_path: Path) -> None:
    source = resolve_checkpoint(golden.path("model/ckpt/tiny"))
    shard = source.shard_files()[0]
    weights = read_checkpoint_file(shard)["module"]
    bare, best = tmp_path / "bare", tmp_path / "run"
    (best / "best").mkdir(parents=True)
    (best / "latest_checkpointed_iteration.txt").write_text("best", encoding="utf-8")
    bare.mkdir()
    for target in (bare, best / "best"):
        shutil.copy(shard, target / shard_name(0))
    for folder in (bare, best):
        model = make_model(golden, weights)
        state = load_checkpoint(folder, model=model, load_optimizer=False, load_random=False)
        assert state.iteration == source.iteration
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())
    with pytest.raises(ValueError, match="does not exist"):
        load_checkpoint(tmp_path / "nothing", model=make_model(golden, weights))


def test_position_tables_grow_and_do_not_shrink(golden: GoldenFolder) -> None:
    folder = golden.path("model/ckpt/tiny")
    weights = whole_weights(folder)
    rows = len(weights["transformer.position_embeddings.weight"])
    model = make_model(golden, weights, max_position_embeddings=rows + 6)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_model_weights(model, folder)
    tables = {name for name in weights if "position_embeddings" in name}
    assert set(report.grown) == tables
    for name in tables:
        table = model.state_dict()[name]
        assert torch.equal(table[:rows], weights[name]) and torch.equal(table[rows:], fresh[name][rows:])
    with pytest.raises(ValueError, match="max-position-embeddings"):
        load_model_weights(model, folder, grow_positions=False)
    with pytest.raises(ValueError, match=f"--max-position-embeddings {rows - 1}"):
        load_model_weights(make_model(golden, weights, max_position_embeddings=rows - 5), folder)


def test_the_full_state_is_restored(golden: GoldenFolder) -> None:
    folder = golden.path("model/ckpt/tiny_full")
    content = read_checkpoint_file(resolve_checkpoint(folder).shard_files()[0])
    assert set(content) >= RANDOM_KEYS | {"optimizer", "lr_scheduler"}
    model = make_model(golden, content["module"])
    recorded = content["optimizer"]["param_groups"]
    optimizer = build_optimizer(model, OptimizerSettings("adam", 0.5, 0.25, *recorded[0]["betas"], 1e-6))
    schedule = AnnealingLR(optimizer, start_lr=0.5, warmup_iters=1.0, num_iters=50)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        state = load_checkpoint(folder, model=model, optimizer=optimizer, scheduler=schedule)
        assert state.iteration == content["iteration"] and state.data_state == {}
        assert random.getstate() == content["random_rng_state"]
        ours, theirs = np.random.get_state(), content["np_rng_state"]
        assert np.array_equal(ours[1], theirs[1]) and (ours[0], *ours[2:]) == (theirs[0], *theirs[2:])
        assert torch.equal(torch.get_rng_state(), content["torch_rng_state"])
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
    for group, saved in zip(optimizer.param_groups, recorded, strict=True):
        for parameter, index in zip(group["params"], saved["params"], strict=True):
            moments = content["optimizer"]["state"][index]
            assert set(optimizer.state[parameter]) == set(moments)
            assert all(torch.equal(optimizer.state[parameter][key], moments[key]) for key in moments)
    assert optimizer.param_groups[0]["weight_decay"] == 0.25  # of this run, not of the file
    for key in ("warmup_iter", "num_iters"):
        assert schedule.state_dict()[key] == content["lr_scheduler"][key]
    assert optimizer.param_groups[0]["lr"] == schedule.rate(content["lr_scheduler"]["num_iters"])


def test_resharding_is_exact_in_every_direction(golden: GoldenFolder, tmp_path: Path) -> None:
    groups: dict[str, list[Path]] = {}
    for folder in folders(golden):
        groups.setdefault(plain_name(folder), []).append(folder)
    compared = 0
    for group in groups.values():
        counts = {folder: len(resolve_checkpoint(folder).shard_files()) for folder in group}
        for source in group:
            work = tmp_path / f"from_{source.name}" / plain_name(source)
            shutil.copytree(source, work)
            for target in group:
                if target == source:
                    assert change_model_parallel_size(work, counts[source]) is None
                    continue
                made = change_model_parallel_size(work, counts[target])
                assert made == work.with_name(f"{work.name}_MP{counts[target]}")
                _same_weights(resolve_checkpoint(made).shard_files(), resolve_checkpoint(target).shard_files())
                for tracker in ("latest", "latest_checkpointed_iteration.txt"):
                    assert (made / tracker).read_text(encoding="utf-8") == f"{resolve_checkpoint(target).tag}\n"
                compared += 1
    assert compared


def _same_weights(actual: list[Path], expected: list[Path]) -> None:
    assert [path.name for path in actual] == [path.name for path in expected]
    for ours, theirs in zip(actual, expected, strict=True):
        left, right = (torch.load(path, weights_only=True)["module"] for path in (ours, theirs))
        assert list(left) == list(right)
        for name, tensor in right.items():
            assert left[name].dtype == tensor.dtype and torch.equal(left[name], tensor), name


def test_other_keys_of_resharded_files(golden: GoldenFolder, tmp_path: Path) -> None:
    recorded = golden.json("model/ckpt/reshard_other_keys.json")
    for case, expected in recorded.items():
        if case == "module_dtype_kept":
            continue
        source, size = re.fullmatch(r"(\w+)_to_MP(\d+)", case).groups()
        work = tmp_path / source
        shutil.copytree(golden.path(f"model/ckpt/{source}"), work)
        made = change_model_parallel_size(work, int(size))
        before = read_checkpoint_file(resolve_checkpoint(work).shard_files()[0])
        for file in resolve_checkpoint(made).shard_files():
            after = read_checkpoint_file(file)
            assert set(after) - {"save_id", "file_name"} == set(expected), case
            for key, what in expected.items():
                if what == "module":
                    kept = {tensor.dtype for tensor in after[key].values()}
                    assert kept == {tensor.dtype for tensor in before[key].values()}
                    if source == "tiny_deepspeed":
                        assert {str(dtype) for dtype in kept} == {recorded["module_dtype_kept"]}
                elif what == "preserved":
                    assert _plain(after[key]) == _plain(before[key]), key
                else:
                    assert after[key] == what, key


def _plain(value: Any) -> Any:
    """Turn arrays and tensors into lists, to compare nested states."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
