"""Runs that die: killed at any moment, without room on the disk, without a peer."""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from model.checkpoints.safe_loading import read_checkpoint_file
from tests.helpers import REPOSITORY
from tests.helpers.launching import command, environment, metrics, run, start, wait_for, workers
from tests.helpers.small_corpus import SmallCorpus, make_corpus

NUM_KILLS = 12
SAVE_INTERVAL = 5
STEPS = 600


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def words(corpus: SmallCorpus, *, steps: int = STEPS, save_interval: int = SAVE_INTERVAL) -> list[str]:
    given = corpus.words()
    given[given.index("--log-interval") + 1] = "1"
    given[given.index("--eval-interval") + 1] = "0"
    return [
        *given, "--train-iters", str(steps), "--save", "c", "--save-interval", str(save_interval), "--no-progress",
        "--experiment-name", "r", "--auto-resume", "--keep-checkpoints", "2",
    ]  # fmt: skip


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    root = folder / "c" / "r"
    tag = (root / "latest_checkpointed_iteration.txt").read_text(encoding="utf-8")
    return read_checkpoint_file(root / tag / "mp_rank_00_model_states.pt")["module"]


@pytest.mark.slow
@pytest.mark.parametrize(("more", "num_kills"), [((), NUM_KILLS), (("--async-save",), 4)], ids=["", "beside training"])
def test_kills_lose_nothing(more: tuple[str, ...], num_kills: int, corpus: SmallCorpus, tmp_path: Path) -> None:
    """Every restart goes on from the last save, and the weights at the end are those of a run that nobody killed."""
    straight, killed, steps = tmp_path / "straight", tmp_path / "killed", STEPS * num_kills // NUM_KILLS
    for folder in (straight, killed):
        folder.mkdir()
    given = words(corpus, steps=steps)
    run("pretrain_glm.py", *given, cwd=straight)
    moments = random.Random(5)
    reached, saved = 0, 0
    for _ in range(num_kills):
        process = start("pretrain_glm.py", *given, *more, cwd=killed)
        line = wait_for(process, r"continuing from iteration|a new run")
        found = re.search(r"iteration (\d+)", line)
        resumed = int(found[1]) if found else 0
        assert resumed >= saved, "the last complete checkpoint is the one to go on from"
        # Beside training a save may be under way until the next one is due.
        assert reached - resumed <= SAVE_INTERVAL * (2 if more else 1), "what came after the last save, no more"
        wait_for(process, r"^ iteration +\d+/")
        time.sleep(moments.uniform(0.0, 0.25))  # somewhere between two saves, or within one
        process.kill()
        rest = process.stdout.read() if process.stdout else ""
        process.wait()
        updates = [int(number) for number in re.findall(r"^ iteration +(\d+)/", rest, re.MULTILINE)]
        reached = max([resumed + 1, *updates])
        saved = max([saved, *map(int, re.findall(r"saved a checkpoint at iteration (\d+)", rest))])
        assert reached < steps, "the run has to be longer than the kills"
    run("pretrain_glm.py", *given, *more, cwd=killed)
    expected, found = last_weights(straight), last_weights(killed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not list((killed / "c" / "r").glob(".tmp-*"))
    assert metrics(killed, "r") == metrics(straight, "r")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_ends_in_one_line_and_keeps_the_last_checkpoint(
    ranks: int, corpus: SmallCorpus, tmp_path: Path
) -> None:
    run("pretrain_glm.py", *words(corpus, steps=5), cwd=tmp_path, ranks=ranks)
    before = last_weights(tmp_path)
    size = (tmp_path / "c" / "r" / "5" / "mp_rank_00_model_states.pt").stat().st_size

    def quota() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    process = start("pretrain_glm.py", *words(corpus, steps=10), cwd=tmp_path, ranks=ranks, preexec_fn=quota)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    errors = [line for line in output.splitlines() if re.match(r"error( on rank \d+)?: ", line)]
    assert len(errors) == ranks and "cannot save a checkpoint" in errors[0], output
    assert "earlier checkpoints are untouched" in errors[0]
    assert (tmp_path / "c" / "r" / "latest").read_text(encoding="utf-8") == "5"
    assert sorted(path.name for path in (tmp_path / "c" / "r").iterdir() if path.is_dir()) == ["5"]
    after = last_weights(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    output = run("pretrain_glm.py", *words(corpus, steps=10), cwd=tmp_path, ranks=ranks)
    assert "continuing from iteration 5" in output


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2], ids=["data ranks", "tensor-parallel ranks"])
def test_a_lost_rank_ends_the_other_with_a_message(size: int, corpus: SmallCorpus, tmp_path: Path) -> None:
    given = [*words(corpus, steps=100000), "--model-parallel-size", str(size)]
    process = start("pretrain_glm.py", *given, cwd=tmp_path, ranks=2)
    wait_for(process, r"^ iteration +6/")
    _, victim = workers(process.pid, "pretrain_glm.py")
    victim.kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert re.search(r"error on rank 0: another rank was lost.*continue from c/r", output), output
    assert int((tmp_path / "c" / "r" / "latest").read_text(encoding="utf-8")) >= 5


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_other_with_a_message(corpus: SmallCorpus, tmp_path: Path) -> None:
    """Gloo waits for it for half an hour; a launcher's signal has to be enough."""
    process = start("pretrain_glm.py", *words(corpus, steps=100000), cwd=tmp_path, ranks=2)
    wait_for(process, r"^ iteration +6/")
    first, second = workers(process.pid, "pretrain_glm.py")
    second.suspend()
    first.terminate()
    line = wait_for(process, "^error")
    second.kill()
    process.communicate(timeout=60)
    assert re.search(r"error on rank 0: another rank was lost or hangs.*continue from c/r", line)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_an_announced_end_saves_on_all_ranks(number: signal.Signals, corpus: SmallCorpus, tmp_path: Path) -> None:
    process = start("pretrain_glm.py", *words(corpus, steps=100000, save_interval=0), cwd=tmp_path, ranks=2)
    wait_for(process, r"^ iteration +3/")
    for worker in workers(process.pid, "pretrain_glm.py"):  # what a batch system does
        os.kill(worker.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0, output
    stopped = int(re.search(r"stopped at (\d+) of", output)[1])
    assert (tmp_path / "c" / "r" / "latest").read_text(encoding="utf-8") == str(stopped)


@pytest.mark.slow
def test_ctrl_c_under_torchrun_is_one_line(corpus: SmallCorpus, tmp_path: Path) -> None:
    """A terminal sends SIGINT to the launcher and to all ranks; the launcher hands its own on to them."""
    given = command("pretrain_glm.py", *words(corpus, steps=100000, save_interval=0), ranks=2)
    given[2] = "training.torchrun"
    process = subprocess.Popen(
        given, cwd=tmp_path, env={**environment(), "PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, encoding="utf-8", start_new_session=True,
    )  # fmt: skip
    wait_for(process, r"^ iteration +3/")
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, output
    last, stopped = output.splitlines()[-2:]
    assert last.startswith("saved a checkpoint at iteration"), output
    assert re.fullmatch(r"stopped at \d+ of 100000; (run the same command to go on|go on with --load c/r)", stopped)
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_end_before_the_first_update_is_one_line(
    number: signal.Signals, corpus: SmallCorpus, tmp_path: Path
) -> None:
    process = start("pretrain_glm.py", *words(corpus), "--eval-at-start", "--eval-iters", "100000", cwd=tmp_path)
    wait_for(process, "weights: random")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert output.splitlines()[-1] == f"error: stopped by {number.name} before the first update", output


@pytest.mark.slow
def test_a_reader_that_leaves_ends_the_run_with_a_checkpoint(corpus: SmallCorpus, tmp_path: Path) -> None:
    """``pretrain_glm.py ... | head``."""
    given = words(corpus, steps=100000, save_interval=0)
    process = start("pretrain_glm.py", *given, cwd=tmp_path)
    wait_for(process, r"^ iteration +3/")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    assert int((tmp_path / "c" / "r" / "latest").read_text(encoding="utf-8")) >= 3


@pytest.mark.slow
def test_updates_that_stay_infinite_end_the_run(corpus: SmallCorpus, tmp_path: Path) -> None:
    """A loss scale that overflows at every update."""
    given = [*words(corpus, steps=200, save_interval=0), "--lr", "1e30", "--clip-grad", "0"]
    output = run("pretrain_glm.py", *given, cwd=tmp_path, code=2)
    assert re.search(r"error: \d+ updates in a row had gradients that are not finite", output), output
