"""Runs cut for another tensor-parallel size: the optimizer's moments, random states, and what cannot be cut."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from change_mp import change_model_parallel_size
from model.checkpoints.format import reshard_tensor, split_tensor
from model.checkpoints.reading import shard_name
from model.checkpoints.resharding import parameter_groups, reshard_content, reshard_optimizer
from model.checkpoints.safe_loading import read_checkpoint_file
from model.config import GLMConfig
from model.heads import MultiTokenCloze, MultiTokenClozeFast, SequenceClassification, SingleTokenCloze
from model.modeling_glm import GLMModel
from tests.helpers.engines import make_batch, make_engine
from training.checkpointing import save_checkpoint, trained_weights
from training.engine import TorchEngine
from training.optimizer import build_parameter_groups


def model_of(**changes: Any) -> GLMModel:
    return GLMModel(GLMConfig(2, 8, 4, 32, max_position_embeddings=10, **changes))


def frozen(model: GLMModel) -> GLMModel:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("prompt_spell", "transformer.layers.0")))
    return model


MODELS = {
    "plain": lambda: model_of(),
    "one position table": lambda: model_of(block_position_encoding=False),
    "relative": lambda: model_of(relative_encoding=True, block_position_encoding=False),
    "lstm prompts": lambda: model_of(prompt_length=3),
    "mlp prompts": lambda: model_of(prompt_length=3, prompt_function="mlp"),
    "classifier": lambda: SequenceClassification(model_of(prompt_length=3), 3),
    "cloze": lambda: MultiTokenCloze(model_of()),
    "fast cloze": lambda: MultiTokenClozeFast(model_of()),
    "single token": lambda: SingleTokenCloze(model_of()),
    "frozen": lambda: frozen(model_of(prompt_length=3)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_names_tell_which_parameter_a_number_means(kind: str) -> None:
    """The order of the names in a file and that of the optimizer are one, for every kind of model."""
    model: nn.Module = MODELS[kind]()
    weights = trained_weights(model)
    named = parameter_groups(list(weights))
    groups = build_parameter_groups(model)
    assert [len(names) for names in named] == [len(group["params"]) for group in groups]
    for names, group in zip(named, groups, strict=True):
        assert all(weights[name] is parameter for name, parameter in zip(names, group["params"], strict=True))


def trained(root: Path, *, name: str = "adam", **changes: Any) -> TorchEngine:
    """Train two updates and save a checkpoint of them to ``root``."""
    engine = make_engine(name=name, **changes)
    for step in range(2):
        engine.train_step([make_batch(step)])
    parts = {"model": engine.model, "optimizer": engine.optimizer, "scheduler": engine.scheduler}
    save_checkpoint(root, tag="2", iteration=2, data_state={"samples": 8}, **parts)
    return engine


def contents(root: Path, size: int) -> list[dict[str, Any]]:
    return [read_checkpoint_file(root / "2" / shard_name(rank)) for rank in range(size)]


@pytest.mark.parametrize("relative", [False, True])
def test_every_moment_is_cut_as_its_parameter(relative: bool, tmp_path: Path) -> None:
    engine = trained(tmp_path / "run", relative_encoding=relative, block_position_encoding=not relative)
    owner = {id(parameter): name for name, parameter in engine.model.named_parameters()}
    numbered = [owner[id(p)] for group in engine.optimizer.param_groups for p in group["params"]]
    made = change_model_parallel_size(tmp_path / "run", 2)
    for rank, content in enumerate(contents(made, 2)):
        state = content["optimizer"]["state"]
        assert set(state) == set(range(len(numbered)))
        for index, name in enumerate(numbered):
            whole = engine.optimizer.state[engine.model.get_parameter(name)]
            assert set(state[index]) == set(whole) == {"step", "exp_avg", "exp_avg_sq"}
            for key in ("exp_avg", "exp_avg_sq"):
                assert whole[key].abs().sum() > 0
                assert torch.equal(state[index][key], split_tensor(name, whole[key], 2)[rank]), (name, key)
                assert state[index][key].shape == content["module"][name].shape
            assert state[index]["step"] == whole["step"] == 2
        assert content["data_state"] == {"samples": 8} and content["mp_world_size"] == 2
        assert content["lr_scheduler"]["num_iters"] == 2
        assert content["rng_tracker_states"] == {}, "both ranks would drop the same of the attention"


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool((left == right).all()) if hasattr(left, "shape") else left == right


def test_there_and_back_is_the_same_file(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    twice = change_model_parallel_size(change_model_parallel_size(tmp_path / "run", 2), 1)
    before, after = contents(tmp_path / "run", 1)[0], contents(twice, 1)[0]
    assert list(before) == list(after)
    assert before.pop("rng_tracker_states") and after.pop("rng_tracker_states") == {}
    assert before.pop("save_id") != after.pop("save_id"), "it is another save"
    for key in before:
        assert same(before[key], after[key]), key


def test_adafactor_is_left_out_with_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "run", name="adafactor")
    made = change_model_parallel_size(tmp_path / "run", 2)
    assert "not converted: optimizer; continue with --no-load-optim" in capsys.readouterr().out
    assert all(content["optimizer"] is None for content in contents(made, 2))


def test_states_that_cannot_be_cut_name_the_way_out(tmp_path: Path) -> None:
    trained(tmp_path / "run", name="adafactor")
    content = contents(tmp_path / "run", 1)[0]
    state, weights = content["optimizer"], content["module"]
    fewer = dict(list(weights.items())[:-1])
    for bad, names, words in (
        (state, weights, "Adafactor"),
        (state, fewer, "its weights make groups of"),
        ({"loss": 1}, weights, "unknown layout"),
    ):
        with pytest.raises(ValueError, match=rf"{words}.*--no-load-optim") as caught:
            reshard_optimizer([bad], [names], size=2, rank=0, file=tmp_path)
        assert "\n" not in str(caught.value)


def test_the_fp32_masters_of_the_original_are_cut_along(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    content = contents(tmp_path / "run", 1)[0]
    groups = parameter_groups(list(content["module"]))
    masters = [[content["module"][name] + 0.25 for name in names] for names in groups]
    wrapped = {"optimizer_state_dict": content["optimizer"], "fp32_from_fp16": masters, "overflow": False}
    weights = dict(content["module"])
    cut = [reshard_optimizer([wrapped], [weights], size=2, rank=rank, file=tmp_path) for rank in range(2)]
    parts = [{n: reshard_tensor(n, [w], size=2, rank=rank) for n, w in weights.items()} for rank in range(2)]
    for rank, own in enumerate(cut):
        assert own["overflow"] is False
        for names, group in zip(groups, own["fp32_from_fp16"], strict=True):
            for name, master in zip(names, group, strict=True):
                assert torch.equal(master, parts[rank][name] + 0.25)
    assert same(reshard_optimizer(cut, parts, size=1, rank=0, file=tmp_path), wrapped)


def test_unchanged_keys_of_a_foreign_file_stay(tmp_path: Path) -> None:
    """Files of the original keep their model-parallel random states."""
    content = {
        "module": dict(model_of().state_dict()), "rng_tracker_states": {"model-parallel-rng": torch.ones(3)},
        "optimizer": {"state": {}, "param_groups": []}, "mp_world_size": 1,
    }  # fmt: skip
    made = reshard_content([content], size=2, rank=1, file=tmp_path)
    assert same(made["rng_tracker_states"], content["rng_tracker_states"])
    assert made["optimizer"] is None and made["mp_world_size"] == 2


def test_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    change_model_parallel_size(Path("."), 2)
    monkeypatch.chdir(tmp_path / "run" / "2")
    change_model_parallel_size(Path("."), 2)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "run_MP2"}
    assert {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()} == {"2", "2_MP2"}


CHANGE = """
import resource, sys
from pathlib import Path
import torch  # some of what it imports wants a temporary file
from files.errors import run_main
import change_mp
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
run_main(lambda: change_mp.change_model_parallel_size(Path(sys.argv[1]), 2) and 0)
"""


@pytest.mark.parametrize("limit", [0, 50_000, 500_000])
def test_a_full_disk_leaves_nothing_behind(limit: int, tmp_path: Path, repository: Path) -> None:
    model = GLMModel(GLMConfig(1, 64, 4, 4096, max_position_embeddings=10))  # a table of 1 MB
    save_checkpoint(tmp_path / "run", tag="2", iteration=2, model=model)
    command = [sys.executable, "-c", CHANGE, str(tmp_path / "run"), str(limit)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and "File too large" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def file_pages() -> int:
    """Return the resident bytes of this process that are mapped from files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the call is Linux's")
def test_a_new_shard_does_not_keep_the_present_one_in_memory(tmp_path: Path) -> None:
    model = GLMModel(GLMConfig(1, 128, 4, 65536, max_position_embeddings=10))  # 33 MB, nearly all in one table
    optimizer = torch.optim.AdamW(build_parameter_groups(model), lr=0.1, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    save_checkpoint(tmp_path, tag="2", iteration=2, model=model, optimizer=optimizer)
    present = contents(tmp_path, 1)
    before = file_pages()
    made = reshard_content(present, size=2, rank=0, file=tmp_path)
    table = made["module"]["word_embeddings.weight"]
    assert made["optimizer"]["state"][0]["exp_avg"].shape == table.shape == (32768, 128)
    assert file_pages() - before < table.nbytes // 4
