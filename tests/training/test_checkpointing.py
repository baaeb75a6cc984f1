"""Saving and restoring a run: atomic, exact, rotating, falling back, over several ranks."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from change_mp import change_model_parallel_size
from files.checksums import CHECKSUMS_FILE
from model.checkpoints.reading import REPLACED_PREFIX, resolve_checkpoint, shard_name
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology, initialize_model_parallel
from tests.helpers import distributed
from training.checkpointing import TEMPORARY_PREFIX, BackgroundWriter, load_checkpoint, save_checkpoint
from training.optimizer import build_optimizer, clip_gradients
from training.schedule import AnnealingLR
from training.settings import OptimizerSettings


class Run:
    """A small model in training, on random tokens drawn from the global generators on purpose."""

    def __init__(self, seed: int = 1, topology: ParallelTopology | None = None, **changes: Any) -> None:
        self.topology = topology or ParallelTopology.single()
        config = GLMConfig(1, 8, 2, 16, **{"max_position_embeddings": 8, **changes})
        self.model = GLMModel(config, topology=self.topology, generator=torch.Generator().manual_seed(seed))
        self.optimizer = build_optimizer(self.model, OptimizerSettings("adam", 0.01, 0.1, 0.9, 0.99, 1e-8))
        self.scheduler = AnnealingLR(
            self.optimizer, start_lr=0.01, warmup_iters=2.0, num_iters=20, decay_style="cosine"
        )

    def parts(self) -> dict[str, Any]:
        return {
            "model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "topology": self.topology
        }  # fmt: skip

    def step(self) -> tuple[float, float, float]:
        """Make one update whose tokens come from NumPy's and Python's global states."""
        tokens = torch.from_numpy(np.random.randint(0, 16, (2, 8)))
        positions = torch.stack([torch.arange(8), torch.full((8,), random.randrange(3))]).expand(2, 2, 8)
        loss = self.model(tokens, positions, torch.tensor([4, 5]), labels=tokens.roll(-1, 1)).mean
        self.optimizer.zero_grad()
        loss.backward()
        if self.topology.data_parallel_group is not None:
            for parameter in self.model.parameters():
                torch.distributed.all_reduce(parameter.grad, group=self.topology.data_parallel_group)
        norm = clip_gradients(self.model.parameters(), 1.0, topology=self.topology)
        self.optimizer.step()
        self.scheduler.step()
        return loss.item(), norm.item(), self.optimizer.param_groups[0]["lr"]


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.fixture(autouse=True)
def global_states():
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])


def save(root: Path, run: Run, iteration: int, **options: Any) -> Path:
    tag = options.pop("tag", str(iteration))
    return save_checkpoint(root, tag=tag, iteration=iteration, **run.parts(), **options)


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


TRACKERS = {"latest", "latest_checkpointed_iteration.txt"}


def test_a_resumed_run_is_the_unbroken_run(tmp_path: Path):
    seed_all(3)
    run = Run()
    for _ in range(4):
        run.step()
    state = {"samples": 12, "nested": {"list": [1.5, None, (2, "x")], "tensor": torch.ones(2)}}
    folder = save(tmp_path, run, 4, data_state=state)
    expected = [run.step() for _ in range(4)]
    seed_all(77)
    resumed = Run(seed=8)
    found = load_checkpoint(tmp_path, **resumed.parts())
    assert found.iteration == 4 and found.report.file == folder and not found.report.notes
    assert torch.equal(found.data_state["nested"].pop("tensor"), state["nested"].pop("tensor"))
    assert found.data_state == state
    assert [resumed.step() for _ in range(4)] == expected
    for left, right in zip(run.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(left, right)


def parts_of(folder: Path) -> dict[str, bytes]:
    """Return what the archive of the first rank holds, with the same id of the save in all of them."""
    file = folder / shard_name(0)
    save_id = torch.load(file, weights_only=False)["save_id"].encode()
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if not name.endswith("serialization_id")]  # a sum of the others
        return {name: archive.read(name).replace(save_id, b"-" * 16) for name in names}


def test_what_is_written_beside_training_is_the_same_bit_for_bit(tmp_path: Path):
    seed_all(3)
    run, writer = Run(), BackgroundWriter(ParallelTopology.single())
    shared = torch.arange(6.0)
    for number in range(1, 4):
        run.step()
        state = {"samples": number, "tensors": [shared, shared[2:4], shared], "empty": torch.empty(0)}
        save(tmp_path / "straight", run, number, data_state=state, keep=2)
        assert writer.done(wait=True)
        save(tmp_path / "beside", run, number, data_state=state, keep=2, writer=writer)
        with torch.no_grad():
            for parameter in run.model.parameters():  # training goes on at once
                parameter.add_(1.0)
                run.optimizer.state[parameter]["exp_avg"].zero_()
        shared += 1
    assert writer.done(wait=True)
    assert names(tmp_path / "beside") == names(tmp_path / "straight") == {"2", "3", *TRACKERS}
    for tag in ("2", "3"):
        assert parts_of(tmp_path / "beside" / tag) == parts_of(tmp_path / "straight" / tag)


def _save_beside(root: Path) -> list[Any]:
    topology = initialize_model_parallel()
    run, writer = Run(topology=topology), BackgroundWriter(topology)
    seen = []
    for iteration in (1, 2):
        run.step()
        save(root, run, iteration, writer=writer)
        run.step()  # collectives of training come between those of the save
        seen.append(writer.done(wait=True))
    save(root / "file", run, 3, writer=writer)
    with pytest.raises(OSError, match=r"cannot save a checkpoint .*: (another rank failed|.*file).*are untouched"):
        writer.done(wait=True)
    return [*seen, writer.done()]


def test_ranks_write_together_beside_training(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_text("no folder")
    assert distributed.run(_save_beside, 2, tmp_path / "run") == [[True, True, True]] * 2
    assert names(tmp_path / "run") == {"1", "2", "file", *TRACKERS}
    assert load_checkpoint(tmp_path / "run", **Run().parts()).iteration == 2


def test_files_and_keys(tmp_path: Path):
    seed_all(3)
    run = Run()
    run.step()
    folder = save(tmp_path, run, 1)
    assert names(tmp_path) == TRACKERS | {"1"} and names(folder) == {shard_name(0), CHECKSUMS_FILE}
    for tracker in TRACKERS:
        assert (tmp_path / tracker).read_text(encoding="utf-8") == "1"
    allowed = [np.ndarray, np.dtype, type(np.dtype(np.uint32)), np.zeros(1).__reduce__()[0]]
    with torch.serialization.safe_globals(allowed):
        content = torch.load(folder / shard_name(0), weights_only=True)
    assert list(content["module"]) == list(run.model.state_dict())
    assert set(content) == {
        "module", "iteration", "optimizer", "lr_scheduler", "data_state", "mp_world_size", "dp_world_size",
        "random_rng_state", "np_rng_state", "torch_rng_state", "rng_tracker_states", "save_id", "file_name",
    } | ({"cuda_rng_state"} if torch.cuda.is_available() else set())  # fmt: skip


def test_weights_alone(tmp_path: Path):
    run = Run()
    save_checkpoint(tmp_path, tag="3", iteration=3, model=run.model, random_state=False)
    other = Run(seed=2)
    with pytest.raises(ValueError, match="--no-load-optim"):
        load_checkpoint(tmp_path, **other.parts())
    found = load_checkpoint(tmp_path, **other.parts(), load_optimizer=False)
    assert found.iteration == 3
    assert "start afresh" in found.report.summary() and "stay as seeded" in found.report.summary()
    fresh = load_checkpoint(tmp_path, **Run(seed=5).parts(), finetune=True)
    assert (fresh.iteration, fresh.data_state) == (0, {})
    save_checkpoint(tmp_path, tag="4", iteration=4, model=run.model, optimizer=run.optimizer)
    with pytest.raises(ValueError, match="--no-load-lr-scheduler"):
        load_checkpoint(tmp_path, **other.parts())
    parts = {**other.parts(), "scheduler": None}
    assert load_checkpoint(tmp_path, **parts).iteration == 4


def test_released_models_start_a_run(tmp_path: Path):
    save(tmp_path, Run(), 9, tag="release")
    assert load_checkpoint(tmp_path, **Run(seed=2).parts()).iteration == 0


def test_more_positions_do_not_continue_a_run(tmp_path: Path):
    save(tmp_path, Run(), 9)
    with pytest.raises(ValueError, match="--max-position-embeddings 8"):
        load_checkpoint(tmp_path, **Run(max_position_embeddings=12).parts())


def test_old_checkpoints_are_rotated(tmp_path: Path):
    run = Run()
    save(tmp_path, run, 1, tag="best")
    for iteration in (10, 20, 30, 40):
        save(tmp_path, run, iteration, keep=2)
    assert names(tmp_path) == TRACKERS | {"best", "30", "40"}
    save(tmp_path, run, 35, keep=1)  # the run was continued from an earlier iteration
    assert names(tmp_path) == TRACKERS | {"best", "35", "40"}
    assert resolve_checkpoint(tmp_path).tag == "35"
    with pytest.raises(ValueError, match="at least 1"):
        save(tmp_path, run, 50, keep=0)


@pytest.mark.parametrize("tag", ["", ".", "a/b", "../x", ".old-3"])
def test_bad_tags(tmp_path: Path, tag: str):
    with pytest.raises(ValueError, match="tag"):
        save(tmp_path, Run(), 1, tag=tag)


def test_a_damaged_newest_checkpoint_falls_back_loudly(tmp_path: Path):
    for iteration in (5, 10, 15):
        save(tmp_path, Run(seed=iteration), iteration)
    file = tmp_path / "15" / shard_name(0)
    file.write_bytes(file.read_bytes()[:-100])
    run = Run(seed=99)
    found = load_checkpoint(tmp_path, **run.parts())
    assert found.iteration == 10
    assert torch.equal(run.model.word_embeddings.weight, Run(seed=10).model.word_embeddings.weight)
    assert "WARNING" in found.report.summary() and "OLDER" in found.report.summary()
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path / "15", **run.parts())  # named directly, there is none before it
    (tmp_path / "10" / shard_name(0)).unlink()
    assert load_checkpoint(tmp_path, **run.parts()).iteration == 5
    shutil.rmtree(tmp_path / "5")
    with pytest.raises(ValueError, match=f"{15}/{shard_name(0)} cannot be read"):
        load_checkpoint(tmp_path, **run.parts())


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, Run(), 1)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="earlier checkpoints are untouched"):
            save(tmp_path, Run(seed=2), 2)
    assert names(tmp_path) == TRACKERS | {"1"}
    assert load_checkpoint(tmp_path, **Run(seed=3).parts()).iteration == 1


def _save_and_die(root: str, iteration: int, tag: str, die_at: int) -> None:
    """Save, and end the process without a word at the ``die_at``-th change of the file system."""
    torch.set_num_threads(1)
    run = Run(seed=iteration)
    count = itertools.count(1)
    events = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")

    def watch(event: str, arguments: tuple) -> None:
        inside = event in events and str(arguments[0]).startswith(root)
        if inside and next(count) == die_at:
            os._exit(9)

    sys.addaudithook(watch)
    save(Path(root), run, iteration, tag=tag)
    os._exit(0)


@pytest.mark.parametrize("tag", ["2", "best"])
def test_a_process_that_dies_while_it_saves_leaves_a_valid_checkpoint(tmp_path: Path, tag: str):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(distributed.PRELOADED)
    seen, died = set(), 0
    for die_at in range(1, 100):
        root = tmp_path / str(die_at)
        save(root, Run(seed=1), 1, tag="1" if tag == "2" else tag)
        process = context.Process(target=_save_and_die, args=(str(root), 2, tag, die_at))
        process.start()
        process.join(timeout=60)
        assert process.exitcode in (0, 9)
        run = Run(seed=50)
        found = load_checkpoint(root, **run.parts())
        assert torch.equal(run.model.word_embeddings.weight, Run(seed=found.iteration).model.word_embeddings.weight)
        seen.add(found.iteration)
        save(root, Run(seed=3), 3)
        assert not [name for name in names(root) if name.startswith((TEMPORARY_PREFIX, REPLACED_PREFIX))]
        assert load_checkpoint(root, **run.parts()).iteration == 3
        if process.exitcode == 0:
            break
        died += 1
    assert seen == {1, 2} and died > 5


def _train(root: str, model_parallel_size: int, break_after: int | None) -> tuple[list, list]:
    """Train six updates with different data on each rank, over a restart if wanted."""
    topology = initialize_model_parallel(model_parallel_size)
    dropout = {"attention_dropout": 0.3, "output_dropout": 0.3, "embedding_dropout": 0.3}
    run = Run(topology=topology, **dropout)
    seed_all(10 + topology.data_parallel_rank)
    run.model.random_state.seed(4)
    losses = []
    for step in range(6):
        if step == break_after:
            save(Path(root), run, step, data_state={"samples": step})
            seed_all(500)
            run = Run(seed=9, topology=topology, **dropout)
            found = load_checkpoint(Path(root), **run.parts())
            assert found.iteration == step and found.data_state == {"samples": step}
        losses.append(run.step())
    return losses, [parameter.detach().clone() for parameter in run.model.parameters()]


@pytest.mark.parametrize("model_parallel_size", [1, 2])
def test_ranks_resume_exactly(tmp_path: Path, model_parallel_size: int):
    straight = distributed.run(_train, 2, str(tmp_path), model_parallel_size, None)
    broken = distributed.run(_train, 2, str(tmp_path), model_parallel_size, 3)
    for (losses, parameters), (other_losses, other_parameters) in zip(straight, broken, strict=True):
        assert losses == other_losses
        assert all(torch.equal(a, b) for a, b in zip(parameters, other_parameters, strict=True))
    assert names(tmp_path / "3") == {CHECKSUMS_FILE, *map(shard_name, range(model_parallel_size))}
    single = Run(seed=2)
    found = load_checkpoint(tmp_path, **single.parts())
    assert ("another number of data ranks" in found.report.summary()) == (model_parallel_size == 1)
    assert load_checkpoint(tmp_path, **single.parts(), load_optimizer=False, load_random=False).iteration == 3


def _random_states(root: str, size: int) -> tuple[tuple[str, ...], bool, torch.Tensor, torch.Tensor]:
    """Continue at another size; return the notes, whether torch's state is the saved one, torch's and the tracker's."""
    topology = initialize_model_parallel(size)
    run = Run(seed=9, topology=topology)
    seed_all(10 + topology.data_parallel_rank)
    run.model.random_state.seed(4 + topology.data_parallel_rank * size)
    found = load_checkpoint(Path(root), **run.parts())
    saved = torch.load(Path(root) / "1" / shard_name(0), weights_only=False)["torch_rng_state"]
    (tracker,) = run.model.random_state.state_dict().values()
    return found.report.notes, torch.equal(saved, torch.get_rng_state()), torch.get_rng_state(), tracker


@pytest.mark.parametrize(("size", "cut"), [(1, False), (2, False), (2, True)], ids=["data", "tensor", "cut"])
def test_other_ranks_do_not_share_dropout_masks(tmp_path: Path, size: int, cut: bool):
    root = tmp_path / "run"
    seed_all(3)
    run = Run()
    run.step()
    save(root, run, 1)
    if cut:
        root = change_model_parallel_size(root, 2)
    (notes, restored, state, tracker), (_, _, other_state, other_tracker) = distributed.run(
        _random_states, 2, str(root), size
    )
    assert len(notes) == 1 and "stay as seeded" in notes[0]
    assert not torch.equal(tracker, other_tracker)
    # Tensor-parallel ranks share torch's own state, which is that of the run.
    assert restored == torch.equal(state, other_state) == (size == 2)


def test_zero_files_name_the_flags_that_help(tmp_path: Path):
    run = Run()
    save_checkpoint(tmp_path, tag="3", iteration=3, model=run.model)
    (tmp_path / "3" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"of ZeRO")
    with pytest.raises(ValueError, match=r"--deepspeed.*--universal-checkpoint.*--no-load-optim") as caught:
        load_checkpoint(tmp_path, **Run(seed=2).parts())
    assert "\n" not in str(caught.value)
    assert load_checkpoint(tmp_path, **Run(seed=2).parts(), load_optimizer=False).iteration == 3


def _save_and_lose_a_rank(root: str, victim: int, die_at: int) -> None:
    """Save over two ranks, one of which ends without a word at its ``die_at``-th change of the file system."""
    topology = initialize_model_parallel(2)
    run = Run(seed=2, topology=topology)
    count = itertools.count(1)

    def watch(event: str, arguments: tuple) -> None:
        inside = event in ("open", "os.rename", "os.mkdir", "os.remove") and str(arguments[0]).startswith(root)
        if inside and topology.rank == victim and next(count) == die_at:
            os._exit(9)

    sys.addaudithook(watch)
    save(Path(root), run, 2)


def _save_first(root: str) -> None:
    save(Path(root), Run(seed=1, topology=initialize_model_parallel(2)), 1)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_while_it_saves_leaves_a_valid_checkpoint(tmp_path: Path, victim: int):
    seen, died = set(), 0
    for die_at in range(1, 30):
        root = tmp_path / str(die_at)
        distributed.run(_save_first, 2, str(root))
        try:
            distributed.run(_save_and_lose_a_rank, 2, str(root), victim, die_at)
            survived = True
        except distributed.RankFailedError:
            survived, died = False, died + 1
        run = Run(seed=50)
        found = load_checkpoint(root, **run.parts(), load_random=False)
        assert not found.report.notes, "the trackers name a complete checkpoint"
        assert torch.equal(run.model.word_embeddings.weight, Run(seed=found.iteration).model.word_embeddings.weight)
        assert (root / "latest").read_text(encoding="utf-8") in ("1", "2")
        seen.add(found.iteration)
        if survived:
            break
    assert survived and seen == {1, 2} and died >= (1 if victim else 4)


def _fall_back(root: str) -> tuple[int, list[str]]:
    topology = initialize_model_parallel(2)
    for iteration in (1, 2):
        save(Path(root), Run(seed=iteration, topology=topology), iteration)
    if topology.rank == 1:
        (Path(root) / "2" / shard_name(1)).write_bytes(b"PK\x03\x04 cut off")
    torch.distributed.barrier()
    found = load_checkpoint(Path(root), **Run(seed=3, topology=topology).parts())
    failure = []
    if topology.rank == 1:
        shutil.rmtree(root)
        Path(root).write_text("a file where the folder was", encoding="utf-8")
    torch.distributed.barrier()
    try:
        save(Path(root), Run(topology=topology), 3)
    except OSError as error:
        failure = [str(error)]
    return found.iteration, failure


def test_ranks_agree_when_one_fails(tmp_path: Path):
    for iteration, failure in distributed.run(_fall_back, 2, str(tmp_path / "run")):
        assert iteration == 1
        assert "cannot save a checkpoint" in failure[0]
