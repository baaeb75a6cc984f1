"""What a run goes on from is looked through before it is used, and what is saved is worth it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from files.checksums import CHECKSUMS_FILE
from model.checkpoints.reading import ALL_RANKS_KEY, shard_name
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology, initialize_model_parallel
from tests.helpers import distributed
from training.checkpointing import load_checkpoint, save_checkpoint
from training.optimizer import build_optimizer
from training.schedule import AnnealingLR
from training.settings import OptimizerSettings


def parts(topology: ParallelTopology | None = None, *, update: bool = True) -> dict[str, Any]:
    topology = topology or ParallelTopology.single()
    config = GLMConfig(1, 8, 2, 16, max_position_embeddings=8)
    model = GLMModel(config, topology=topology, generator=torch.Generator().manual_seed(1))
    optimizer = build_optimizer(model, OptimizerSettings("adam", 0.01, 0.1, 0.9, 0.99, 1e-8))
    scheduler = AnnealingLR(optimizer, start_lr=0.01, warmup_iters=2.0, num_iters=20, decay_style="cosine")
    if update:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler, "topology": topology}


def numpy_state(words: int = 624, place: Any = 3) -> tuple:
    return ("MT19937", np.ones(words, dtype=np.uint32), place, 0, 0.0)


def bytes_of(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.uint8)


def moments(content: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return content["optimizer"]["state"]


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "negative iteration": (lambda c: c.update(iteration=-1), "iteration is -1"),
    "iteration as a text": (lambda c: c.update(iteration="7"), "iteration is '7'"),
    "no data state": (lambda c: c.update(data_state=None), "data_state"),
    "samples as a text": (lambda c: c["data_state"].update(samples="many"), "samples is 'many'"),
    "interval": (lambda c: c["data_state"].update(interval={"num_steps": None}), "num_steps"),
    "loss scaler": (lambda c: c["data_state"].update(loss_scaler={"scale": "x"}), "scale is 'x'"),
    "torch's state is short": (
        lambda c: c.update(torch_rng_state=bytes_of(3)),
        "torch_rng_state",
    ),
    "torch's state is of floats": (lambda c: c.update(torch_rng_state=torch.zeros(5056)), "torch_rng_state"),
    "torch's state is a text": (lambda c: c.update(torch_rng_state="x"), "torch_rng_state"),
    "python's state": (lambda c: c.update(random_rng_state=(3, (1, 2), None)), "random_rng_state"),
    "NumPy's state is short": (lambda c: c.update(np_rng_state=numpy_state(3)), "np_rng_state"),
    "NumPy's place is outside": (lambda c: c.update(np_rng_state=numpy_state(place=10**6)), "np_rng_state"),
    "trackers are a text": (lambda c: c.update(rng_tracker_states="x"), "rng_tracker_states"),
    "a tracker is a text": (lambda c: c["rng_tracker_states"].update(x="y"), "rng_tracker_states"),
    "states of ranks": (lambda c: c.update({ALL_RANKS_KEY: [3]}), ALL_RANKS_KEY),
    "schedule": (lambda c: c["lr_scheduler"].update(num_iters=float("inf")), "lr_scheduler: num_iters is inf"),
    "line of the schedule": (lambda c: c["lr_scheduler"].update(switched={"start_lr": "x"}), "start_lr is 'x'"),
    "a moment is missing": (lambda c: moments(c).pop(3), "lacks the moments of 1 of"),
    "half of a moment": (lambda c: moments(c)[2].pop("exp_avg_sq"), "of parameter 2 has no two moments"),
    "moments of two shapes": (lambda c: moments(c)[2].update(exp_avg_sq=torch.ones(3)), "of parameter 2"),
    "no step": (lambda c: moments(c)[2].pop("step"), "of parameter 2 has no count"),
    "step is a text": (lambda c: moments(c)[2].update(step="x"), "of parameter 2"),
    "a moment is not finite": (lambda c: moments(c)[2]["exp_avg"].fill_(torch.nan), "exp_avg of parameter 2 holds NaN"),
    "sparse moment": (lambda c: moments(c)[2].update(exp_avg=torch.ones(3).to_sparse()), "parameter 2"),
    "groups": (lambda c: c["optimizer"].update(param_groups=[3]), "no groups"),
    "numbers of parameters": (lambda c: c["optimizer"]["param_groups"][0].update(params=None), "params"),
    "weights": (lambda c: next(iter(c["module"].values())).fill_(torch.inf), "holds NaN or infinity"),
    "sparse weights": (lambda c: c["module"].update(x=torch.ones(3).to_sparse()), "x is a tensor of another kind"),
    "meta weights": (lambda c: c["module"].update(x=torch.ones(3).to("meta")), "x is a tensor of another kind"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    for iteration in (1, 2):
        state = {"samples": 4 * iteration}
        save_checkpoint(root, tag=str(iteration), iteration=iteration, data_state=state, **parts())
    return root


@pytest.mark.parametrize("name", CHANGES)
def test_values_of_another_kind_are_named_or_the_older_checkpoint_is_used(name: str, run: Path, tmp_path: Path) -> None:
    change, words = CHANGES[name]
    content = torch.load(run / "2" / shard_name(0), weights_only=False)
    change(content)
    for folder in (tmp_path / "run" / "2", tmp_path / "alone"):
        folder.mkdir(parents=True)
        torch.save(content, folder / shard_name(0))
    (tmp_path / "run" / "latest").write_text("2", encoding="utf-8")
    (tmp_path / "run" / "1").symlink_to(run / "1")
    found = load_checkpoint(tmp_path / "run", **parts())
    assert found.iteration == 1 and found.data_state == {"samples": 4}
    assert "OLDER" in found.report.summary()
    with pytest.raises(ValueError, match=words) as caught:
        load_checkpoint(tmp_path / "alone", **parts())
    assert str(tmp_path / "alone" / shard_name(0)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_used_is_not_looked_at(run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "2" / shard_name(0), weights_only=False)
    content |= {"torch_rng_state": "x", "optimizer": {"state": {0: 3}, "param_groups": []}}
    torch.save(content, tmp_path / shard_name(0))
    assert load_checkpoint(tmp_path, **parts(), load_optimizer=False, load_random=False).iteration == 2
    assert load_checkpoint(tmp_path, **parts(), finetune=True).iteration == 0


def test_moments_that_are_gone_are_said(run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "2" / shard_name(0), weights_only=False)
    content["lr_scheduler"]["num_iters"] = 2
    content["optimizer"]["state"] = {}
    torch.save(content, tmp_path / shard_name(0))
    assert "no moments after updates" in load_checkpoint(tmp_path, **parts(update=False)).report.summary()


def test_a_checkpoint_without_sums_continues_with_a_note(run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "2" / shard_name(0), weights_only=False)
    for key in ("save_id", "file_name"):
        content.pop(key)
    torch.save(content, tmp_path / shard_name(0))
    found = load_checkpoint(tmp_path, **parts())
    assert found.iteration == 2
    assert found.report.notes == (f"no {CHECKSUMS_FILE} lists its files: damaged bytes may go unnoticed",)


@pytest.mark.parametrize("kind", ["weight", "moment"])
def test_a_run_that_blew_up_is_not_saved(kind: str, tmp_path: Path) -> None:
    run = parts()
    save_checkpoint(tmp_path, tag="1", iteration=1, keep=1, **run)
    parameter = run["model"].word_embeddings.weight
    with torch.no_grad():
        (parameter if kind == "weight" else run["optimizer"].state[parameter]["exp_avg"])[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"word_embeddings.weight holds NaN or infinity; earlier.*untouched") as caught:
        save_checkpoint(tmp_path, tag="2", iteration=2, keep=1, **run)
    assert ("exp_avg of" in str(caught.value)) == (kind == "moment")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["1"]
    assert load_checkpoint(tmp_path, **parts()).iteration == 1


def _blow_up_on_one_rank(root: str, model_parallel_size: int) -> tuple[str, int]:
    topology = initialize_model_parallel(model_parallel_size)
    run = parts(topology)
    save_checkpoint(root, tag="1", iteration=1, **run)
    if topology.rank == 1:
        with torch.no_grad():
            run["model"].word_embeddings.weight[0] = torch.nan
    try:
        save_checkpoint(root, tag="2", iteration=2, **run)
    except ValueError as error:
        return str(error), load_checkpoint(root, **parts(topology)).iteration
    return "", 0


@pytest.mark.parametrize("size", [1, 2])
def test_ranks_refuse_to_save_together(size: int, tmp_path: Path) -> None:
    (first, one), (second, other) = distributed.run(_blow_up_on_one_rank, 2, str(tmp_path), size)
    assert "a tensor of another rank" in first and "word_embeddings.weight" in second
    assert one == other == 1
