"""Freed memory that stays with the process."""

from __future__ import annotations

import resource

import torch

from mpu.kernels.host_memory import keep_freed_memory, send
from tests.helpers.distributed import run

NUM_BYTES = 64 * 2**20


def _page_faults_of_taking_and_freeing() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(NUM_BYTES, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _count_page_faults() -> tuple[int, int, bool]:
    plain = _page_faults_of_taking_and_freeing()
    possible = keep_freed_memory()
    for _ in range(4):
        _page_faults_of_taking_and_freeing()  # the first blocks come from the system
    return plain, _page_faults_of_taking_and_freeing(), possible


def test_blocks_are_used_again() -> None:
    ((plain, kept, possible),) = run(_count_page_faults, 1)  # in a process of its own: it cannot be undone
    if possible:
        assert kept < plain / 2


def test_tensors_that_are_there_are_not_copied():
    here = torch.ones(3)
    assert send(here, torch.device("cpu")) is here
