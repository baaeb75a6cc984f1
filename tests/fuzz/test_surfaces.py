"""Every surface with damage that Hypothesis draws: the intact result, or one line that names the file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.damage import damaged
from tests.fuzz.judging import Judge
from tests.fuzz.surfaces import SURFACES

SLOW = {"deepspeed-json", "checkpoint", "checkpoint-content", "safetensors", "config", "tasks"}
QUIET = [HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large]


@pytest.mark.parametrize("surface", SURFACES)
def test_damage_ends_in_the_intact_result_or_in_one_line(surface: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="safetensors is an extra")
    cases = list(SURFACES[surface]())
    judges: dict[str, Judge] = {}

    @settings(
        max_examples=12 if surface in SLOW else 40, deadline=None, derandomize=True, database=None,
        suppress_health_check=QUIET, phases=[Phase.generate],
    )  # fmt: skip
    @given(number=st.integers(0, len(cases) - 1), generator=st.randoms(use_true_random=False))
    def check(number: int, generator: random.Random) -> None:
        case = cases[number]
        judge = judges.setdefault(case.name, Judge(case, tmp_path / "input"))
        files, what = judge.damage(generator)
        verdict = judge.verdict(files, what)
        assert verdict.kind != "finding", f"{case.name}: {what}: {verdict.detail}"

    check()


def test_the_same_seed_gives_the_same_damage() -> None:
    files = {"a.json": b'{"a": [1, {"b": null}], "c": "x"}', "b.txt": b"one\ntwo\n", "c": bytes(range(256))}
    found = [[damaged(files, random.Random(seed)) for seed in range(300)] for _ in range(2)]
    assert found[0] == found[1]
    assert sum(made != files for made, _ in found[0]) > 240, "damage that changes nothing is rare"
    assert any(set(made) != set(files) for made, _ in found[0]) and files["b.txt"] == b"one\ntwo\n"
