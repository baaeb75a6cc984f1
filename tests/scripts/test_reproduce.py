"""scripts/reproduce.py: its rows are those of docs/reproduction.md, and one runs to the end with a small model."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.helpers.launching import run

PROGRAM = "scripts/reproduce.py"


def test_the_page_has_the_tables_of_the_program(repository: Path):
    page = (repository / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert run(PROGRAM, "--table", cwd=repository).strip() in page


def test_the_figures_are_those_of_the_multilingual_page(repository: Path):
    page = (repository / "docs" / "multilingual.md").read_text(encoding="utf-8")
    tables = run(PROGRAM, "--table", cwd=repository)
    for model in ("mGLM", "mT5-Large"):
        (row,) = re.findall(rf"^\| {model} \| (.*) \|$", page, re.MULTILINE)
        assert [
            figures for figures in row.removesuffix(" (their run)").split(" | ") if f" {figures} |" not in tables
        ] == []


@pytest.mark.slow
def test_a_row_is_evaluated_with_a_small_model(
    repository: Path, vocab_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(os.environ, "GLM_VOCAB_DIR", str(vocab_dir))
    monkeypatch.setitem(os.environ, "LIMIT", "3")
    data = tmp_path / "the data" / "lm" / "lambada_test.jsonl"
    data.parent.mkdir(parents=True)
    data.write_text("".join(json.dumps({"text": f"{n} men went to mow a meadow , " * 12}) + "\n" for n in range(40)))
    words = ["lambada", "--tiny", str(tmp_path / "small"), "--data-root", str(tmp_path / "the data")]
    lines = run(PROGRAM, *words, "--output", str(tmp_path), cwd=repository).splitlines()
    name, metric, measured, published, tolerance, verdict = re.split(r"\s{2,}", lines[-1])
    assert (name, metric, published, tolerance) == ("lambada", "accuracy", "72.35", "0.2")
    assert verdict == "not to be compared: a small model, LIMIT=3"
    results = json.loads((tmp_path / "runs" / "reproduce-lambada" / "test_results.json").read_text())
    assert float(measured) == pytest.approx(results["accuracy"], abs=0.01)
    assert results["limit"] == 3


def test_what_cannot_be_evaluated_is_one_line(repository: Path, tmp_path: Path):
    said = run(PROGRAM, "copa", "--checkpoint", "nowhere", "--data-root", str(tmp_path), cwd=repository, code=2)
    assert said == f"error: no data for copa: {tmp_path}/superglue/COPA; see --data-root and --data\n"
    assert "no row 'cola'; known are copa" in run(PROGRAM, "cola", "--checkpoint", "x", cwd=repository, code=2)
    (tmp_path / "superglue" / "COPA").mkdir(parents=True)
    words = ["copa", "--checkpoint", "x", "--model", "no.sh", "--data-root", str(tmp_path), "--output", str(tmp_path)]
    line = run(PROGRAM, *words, cwd=repository, code=1).splitlines()[-1]
    assert re.match(r"copa +accuracy +- +98\.0 +2\.8 +failed: scripts/finetune_superglue\.sh ended with 2: ", line)
