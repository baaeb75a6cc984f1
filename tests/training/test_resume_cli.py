"""pretrain_glm.py goes on at another number of data and tensor-parallel ranks as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.launching import metrics, run
from tests.helpers.scaled_runs import TOLERANCE, curve, words
from tests.helpers.small_corpus import SmallCorpus, make_corpus

STEPS = 12
SAVED = 5  # within an epoch and between two evaluations


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def straight(corpus: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    run("pretrain_glm.py", *words(corpus, size=1, ranks=1, steps=STEPS), cwd=folder)
    return folder


def assert_equal_runs(found: Path, expected: Path) -> None:
    """The same losses, gradient norms and rates, and no update or evaluation missing or made twice."""
    torch.testing.assert_close(curve(found), curve(expected), rtol=TOLERANCE, atol=0.0)
    ours, theirs = (metrics(folder, "r") for folder in (found, expected))
    assert [(row["kind"], row["iteration"]) for row in ours] == [(row["kind"], row["iteration"]) for row in theirs]
    assert [row.get("learning_rate") for row in ours] == [row.get("learning_rate") for row in theirs]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [((2, 1), (2, 2)), ((4, 2), (1, 1)), ((1, 1), (4, 1)), ((2, 2), (1, 1))],
    ids=["tp1xdp2-tp2xdp1", "tp2xdp2-1", "1-dp4", "tp2-1"],
)
def test_another_size_goes_on(first, second, corpus: SmallCorpus, straight: Path, tmp_path: Path) -> None:
    """Each is (processes, tensor-parallel size)."""
    for (ranks, size), options in ((first, ["--exit-after", str(SAVED)]), (second, [])):
        given = [*words(corpus, size=size, ranks=ranks, steps=STEPS), *options]
        output = run("pretrain_glm.py", *given, cwd=tmp_path, ranks=ranks)
    assert f"continuing from iteration {SAVED}" in output
    assert_equal_runs(tmp_path, straight)


@pytest.mark.slow
def test_files_cut_by_change_mp_go_on(corpus: SmallCorpus, straight: Path, tmp_path: Path) -> None:
    given = [*words(corpus, size=1, ranks=1, steps=STEPS), "--exit-after", str(SAVED)]
    run("pretrain_glm.py", *given, cwd=tmp_path)
    output = run("change_mp.py", "c/r", "2", cwd=tmp_path)
    assert "not converted" not in output
    (tmp_path / "c" / "r").rename(tmp_path / "c" / "before")
    (tmp_path / "c" / "r_MP2").rename(tmp_path / "c" / "r")
    run("pretrain_glm.py", *words(corpus, size=2, ranks=2, steps=STEPS), cwd=tmp_path, ranks=2)
    assert_equal_runs(tmp_path, straight)
