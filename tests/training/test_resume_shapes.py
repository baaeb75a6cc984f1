"""The torch engine goes on with other numbers of data and tensor-parallel ranks: weights, moments, schedule, data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from change_mp import change_model_parallel_size
from model.checkpoints.safe_loading import read_checkpoint_file
from tests.helpers import deepspeed_engines as engines
from tests.helpers.distributed import run

TOLERANCE = 1e-5  # relative, fp32: another order of summation
STEPS = 6
SAVED = 3


@pytest.fixture(scope="module")
def straight() -> list[tuple[float, float]]:
    """Losses and gradient norms of one process."""
    return engines.train_and_save(1, None, "fp32", None, (0, 0, STEPS))


def resume(root: Path, ranks: int, size: int):
    iteration, data_state, measured = run(engines.load_and_train, ranks, size, None, "fp32", root, STEPS, {})[0]
    assert iteration == SAVED
    assert data_state == {"samples": 16 * SAVED}
    return measured


def assert_goes_on(measured, straight) -> None:
    expected = torch.tensor(straight[SAVED:])
    torch.testing.assert_close(torch.tensor(measured), expected, rtol=TOLERANCE, atol=0.0)


@pytest.mark.parametrize(
    ("first", "second"),
    [((2, 1), (2, 2)), ((4, 2), (1, 1)), ((1, 1), (4, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 2))],
    ids=["tp1xdp2-tp2xdp1", "tp2xdp2-1", "1-dp4", "tp2-1", "1-tp2"],
)
def test_another_size_goes_on(first, second, straight, tmp_path: Path) -> None:
    """Each is (processes, tensor-parallel size)."""
    root = tmp_path / "run"
    run(engines.train_and_save, *first, None, "fp32", root, (0, SAVED, SAVED))
    assert_goes_on(resume(root, *second), straight)


def test_change_mp_cuts_the_optimizer_along(straight, tmp_path: Path) -> None:
    root = tmp_path / "run"
    run(engines.train_and_save, 1, 1, None, "fp32", root, (0, SAVED, SAVED))
    change_model_parallel_size(root, 2)
    assert_goes_on(resume(tmp_path / "run_MP2", 2, 2), straight)
    change_model_parallel_size(tmp_path / "run_MP2", 1)
    name = Path(str(SAVED)) / "mp_rank_00_model_states.pt"
    before, after = (read_checkpoint_file(folder / name) for folder in (root, tmp_path / "run_MP2_MP1"))
    assert before["optimizer"]["param_groups"] == after["optimizer"]["param_groups"]
    for index, moments in before["optimizer"]["state"].items():
        for key, value in moments.items():
            assert torch.equal(value, after["optimizer"]["state"][index][key]), (index, key)
    assert all(torch.equal(value, after["module"][name]) for name, value in before["module"].items())
