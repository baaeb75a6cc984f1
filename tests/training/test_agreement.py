"""What has to be the same: the data of a run and of its checkpoint, the ranks of a run; and one run in a folder."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

import pretrain_glm
from files.locks import locked
from tests.helpers.launching import command, environment
from tests.helpers.logs import logged_lines
from tests.helpers.small_corpus import SmallCorpus, make_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def words(corpus: SmallCorpus, *more: str) -> list[str]:
    given = ["--train-iters", "4", "--save", "c", "--experiment-name", "r", "--auto-resume", "--no-progress"]
    return [*corpus.words(), *given, *more]


@pytest.fixture
def started(corpus: SmallCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in the working folder that made two of four updates."""
    monkeypatch.chdir(tmp_path)
    assert pretrain_glm.main(words(corpus, "--exit-after", "2")) == 0


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--seq-length", "40"], "--seq-length: 48 then, 40 now"),
        (["--shuffle"], "--shuffle: False then, True now"),
        (["--split", "1,1,1"], r"the training documents: '59 documents of .*' then, '30 documents of .*' now"),
        (["--bert-prob", "0.3"], "--bert-prob: 0.4 then, 0.3 now"),
    ],
)
@pytest.mark.usefixtures("started")
def test_other_data_need_a_flag(more: list[str], named: str, corpus: SmallCorpus) -> None:
    with pytest.raises(ValueError, match=rf"started with other data \({named}.*--accept-new-data"):
        pretrain_glm.main(words(corpus, *more))
    with logged_lines() as lines:
        assert pretrain_glm.main(words(corpus, *more, "--accept-new-data")) == 0
    assert any(re.search(f"goes on with other data: {named}", line) for line in lines)


@pytest.mark.usefixtures("started")
def test_another_order_of_the_same_documents_is_other_data(corpus: SmallCorpus, tmp_path: Path) -> None:
    lines = (corpus.folder / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "other.jsonl").write_text("".join(reversed(lines)), encoding="utf-8")
    shutil.copy(corpus.folder / "train.jsonl", tmp_path / "moved.jsonl")
    with pytest.raises(ValueError, match="the training documents"):
        pretrain_glm.main(words(corpus, "--train-data", "other.jsonl"))
    assert pretrain_glm.main(words(corpus, "--train-data", "moved.jsonl", "--batch-size", "2")) == 0


def test_a_folder_has_one_run(corpus: SmallCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("c/r", "runs/r"):
        message = rf"{folder} is in use by process {os.getpid()} on \S+: wait for its end, or give this run another"
        with locked(Path(folder) / ".lock"), pytest.raises(ValueError, match=message):
            pretrain_glm.main(words(corpus))
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../x", "a/../b", "/x", "a//b", "a\nb", "a\0b", "a/"])
def test_a_name_that_is_none_is_refused(name: str, corpus: SmallCorpus) -> None:
    with pytest.raises(ValueError, match="--experiment-name is "):
        pretrain_glm.main(words(corpus, "--experiment-name", name))


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_rank(rank: int, port: int, given: list[str], folder: Path) -> subprocess.Popen[str]:
    world = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return subprocess.Popen(
        command("pretrain_glm.py", *given), cwd=folder, text=True, encoding="utf-8", stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={**environment(), **{name: str(value) for name, value in world.items()}},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--lr", "0.02"], "--lr: 0.01 on rank 0, 0.02 on rank 1"),
        (["--model-parallel-size", "2"], "--model-parallel-size: 1 on rank 0, 2 on rank 1"),
        (["--train-data", "other.jsonl"], "the training documents: '59 documents .* '58 documents"),
        (["--save", "other"], "--save: 'c' on rank 0, 'other' on rank 1"),
    ],
)
def test_ranks_that_differ_are_named(more: list[str], named: str, corpus: SmallCorpus, tmp_path: Path) -> None:
    lines = (corpus.folder / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "other.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    port = free_port()
    ranks = [start_rank(rank, port, words(corpus, *(more if rank else [])), tmp_path) for rank in (0, 1)]
    for rank, process in enumerate(ranks):
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 2, output
        assert re.search(rf"^error on rank {rank}: the ranks do not belong together: {named}", output, re.MULTILINE), (
            output
        )


@pytest.mark.slow
def test_ranks_that_see_different_checkpoints_are_named(corpus: SmallCorpus, tmp_path: Path) -> None:
    folders = [tmp_path / str(rank) for rank in (0, 1)]
    for rank, folder in enumerate(folders):
        (folder / "c" / "r").mkdir(parents=True)
        if rank:
            (folder / "c" / "r" / "latest_checkpointed_iteration.txt").write_text("5", encoding="utf-8")
    port = free_port()
    ranks = [start_rank(rank, port, words(corpus), folder) for rank, folder in enumerate(folders)]
    for process in ranks:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 2
        assert ": 'no checkpoint' on rank 0, 'c/r (5)' on rank 1" in output, output


@pytest.mark.slow
@pytest.mark.parametrize("taken", [True, False], ids=["port taken", "rank missing"])
def test_ranks_that_cannot_meet_end_in_one_line(taken: bool, corpus: SmallCorpus, tmp_path: Path) -> None:
    with closing(socket.socket()) as other:
        if taken:
            other.bind(("127.0.0.1", 0))
            other.listen()
        port = other.getsockname()[1] if taken else free_port()
        given = words(corpus, "--distributed-timeout-minutes", "0.05")
        process = start_rank(0, port, given, tmp_path)
        output, _ = process.communicate(timeout=120)
    lines = [line for line in output.splitlines() if line.startswith("error")]
    reason = "another program has that port" if taken else "not all ranks came in time"
    assert process.returncode == 2 and len(lines) == 1 and "Traceback" not in output, output
    assert lines[0].startswith(f"error: rank 0 of 2 could not join the others at 127.0.0.1:{port}: {reason}"), output
