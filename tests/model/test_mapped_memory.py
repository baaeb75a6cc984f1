"""Pages of mapped files are given back, and nothing else loses a value."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from model.checkpoints.safe_loading import release_pages


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the call is Linux's")
def test_mapped_pages_are_given_back_and_read_again(tmp_path: Path) -> None:
    expected = torch.arange(4_000_000, dtype=torch.int64)
    torch.save({"big": expected, "small": torch.ones(3)}, tmp_path / "x.pt")
    content = torch.load(tmp_path / "x.pt", mmap=True, weights_only=True)
    assert content["big"].sum() == expected.sum()
    before = resident_bytes()
    release_pages(content.values())
    assert resident_bytes() < before - expected.nbytes // 2
    assert torch.equal(content["big"], expected)


def test_other_memory_keeps_its_values() -> None:
    tensor = torch.arange(1_000_000)
    release_pages([tensor, tensor[3:7], torch.empty(0)])
    assert torch.equal(tensor, torch.arange(1_000_000))
