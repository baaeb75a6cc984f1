"""Runs of a tiny mT5 on real papers, in this process and in two."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mt5.data import epoch_batches
from mt5.settings import Settings, parse_settings
from tests.helpers import REPOSITORY
from tests.helpers.golden_index import GoldenFolder
from tests.helpers.mt5_models import tiny_mt5

pytest.importorskip("transformers")
pytest.importorskip("rouge_score")
SMALL = ["--epochs", "2", "--max-len", "64", "--summary-len", "24", "--max-length", "12", "--num-beams", "2",
         "--limit", "12", "--batch-size", "4", "--save-interval", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def model(golden: GoldenFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mt5(tmp_path_factory.mktemp("mt5") / "model", golden)


@pytest.fixture
def configure(model: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    monkeypatch.chdir(tmp_path)

    def settings(*more: str, task: tuple[str, str] = ("scisummnet", "simple")) -> Settings:
        return parse_settings([*task, "--model", str(model), "--data-dir", str(data_dir), *SMALL, *more])

    return settings


def losses(text: str) -> dict[tuple[str, str], float]:
    return {
        (epoch, update): float(loss)
        for epoch, update, loss in re.findall(r"^Epoch: (\d+), Iteration: (\d+), Loss:  (\S+)$", text, re.MULTILINE)
    }


def test_the_promised_lines_and_files(configure, capsys, tmp_path: Path):
    import torch
    from transformers import AutoModelForSeq2SeqLM

    from mt5.run import finetune

    settings = configure()
    assert finetune(settings) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^Epoch: 0, Iteration: 0, Loss:  \d", printed, re.MULTILINE)
    assert re.search(r"^Epoch: 1 used [\d.]+ seconds$", printed, re.MULTILINE)
    assert re.search(r"^epoch= 0\|r1 = \S+ r2 = \S+ rl = \S+$", printed, re.MULTILINE)
    assert re.search(r"^found best validation r-1 score \S+ at epoch 0$", printed, re.MULTILINE)
    [weights] = (tmp_path / "saved").iterdir()  # the state to go on from is gone
    assert re.fullmatch(r"scisummnet-simple-\d{4}-\d\d-\d\d\.pth", weights.name)
    AutoModelForSeq2SeqLM.from_pretrained(settings.model).load_state_dict(torch.load(weights, weights_only=True))
    lines = (tmp_path / "predictions.csv").read_text(encoding="utf-8").split("\n")
    assert lines[0] == "Generated Text,Actual Text"
    assert len(lines) >= 8


def test_a_killed_run_goes_on_as_if_nothing_had_been(configure, capsys, tmp_path: Path, monkeypatch):
    from mt5 import run
    from mt5.processes import Processes

    run.Run(configure(), Processes()).train()
    straight = capsys.readouterr().out

    class Killed(Exception):
        pass

    def killed(*_args: object) -> None:
        raise Killed

    shutil.rmtree(tmp_path / "saved")
    broken = run.Run(configure(), Processes())
    monkeypatch.setattr(broken, "_evaluate", killed)  # two of three updates of the first epoch are in the state
    with pytest.raises(Killed):
        broken.train()
    first = capsys.readouterr().out
    run.Run(configure(), Processes()).train()
    second = capsys.readouterr().out
    assert "continuing at epoch 0, iteration 2" in second
    figures = re.findall(r"epoch= .*", second)
    assert figures == re.findall(r"epoch= .*", straight) and len(figures) == 2
    assert losses(straight) == {**losses(first), **losses(second)}
    run.Run(configure("--epochs", "1"), Processes())._save_state()
    with pytest.raises(ValueError, match=r"state\.pt is of a run with lr 0\.0005, not 0\.001; --restart begins anew"):
        run.Run(configure("--lr", "0.001"), Processes())


def test_several_processes_share_what_one_would_have():
    one = [rows for _, rows in epoch_batches(21, batch_size=8, rank=0, size=1, seed=1, epoch=3)]
    shares = [list(epoch_batches(21, batch_size=4, rank=rank, size=2, seed=1, epoch=3)) for rank in range(2)]
    two = [[*a, *b] for (_, a), (_, b) in zip(*shares, strict=True)]
    assert one == two
    assert sorted(row for rows in one for row in rows) == list(range(21))
    resumed = list(epoch_batches(21, batch_size=8, rank=0, size=1, seed=1, epoch=3, first=2))
    assert resumed == [(2, one[2])]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scisummnet", "hard"], r"scisummnet has no subtask 'hard'; it has simple, ncls_mixed"),
        (["mnist", "simple"], r"task 'mnist' is unknown; the tasks are ncls \(multitask, "),
        (["scisummnet"], "subtask"),
        (["scisummnet", "simple", "--lr", "7"], "--lr is 7.0"),
        (["scisummnet", "simple", "--batch-size", "0"], "--batch-size is 0; at least 1"),
    ],
)
def test_mistakes_of_the_command_line(words: list[str], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        parse_settings(words)
    assert "\n" not in str(caught.value)


def test_mistakes_of_files(tmp_path: Path, model: Path, golden: GoldenFolder):
    from mt5.processes import Processes
    from mt5.run import Run

    def failing(*words: str) -> str:
        with pytest.raises(ValueError) as caught:
            Run(parse_settings([*words, "--data-dir", str(tmp_path), "--save-dir", str(tmp_path / "s")]), Processes())
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "scripts/prepare_scisummnet.py" in failing("scisummnet", "simple")
    (tmp_path / "scisummnet").mkdir()
    (tmp_path / "scisummnet" / "scisummnet.csv").write_text("text,summary\na,b\n", encoding="utf-8")
    assert "scisummnet.csv, line 2: no 'zh_sum'" in failing("scisummnet", "simple")
    folder = tmp_path / "mtg_sum"
    folder.mkdir()
    (folder / "train.doc.en").write_text("a\nb\n", encoding="utf-8")
    (folder / "train.sum.zh").write_text("a\n", encoding="utf-8")
    assert "train.doc.en has 2 lines" in failing("mtgcrosssum", "S-en-T-zh-V-all")
    (tmp_path / "scisummnet" / "scisummnet.csv").write_text("text,zh_sum\n" + "a,b\n" * 9, encoding="utf-8")
    assert "--model" in failing("scisummnet", "simple", "--model", str(tmp_path / "no" / "model"))
    small = shutil.copytree(model, tmp_path / "small")
    tiny_mt5(small, golden, rows=256)
    assert "the tokenizer has 920 pieces, the model rows for 256" in failing(
        "scisummnet", "simple", "--model", str(small)
    )


def program(*words: str, cwd: Path, launcher: tuple[str, ...] = (sys.executable,)) -> str:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    run = subprocess.run(
        [*launcher, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def test_help_names_the_tasks(tmp_path: Path):
    printed = program(str(REPOSITORY / "finetune_mt5.py"), "--help", cwd=tmp_path)
    assert "scisummnet ncls_mixed" in printed and "mtgcrosssum S-en-T-zh-V-all" in printed
    assert program("finetune_mt5.py", "--help", cwd=REPOSITORY / "mt5") == printed


@pytest.mark.slow
def test_two_processes_compute_what_one_does(model: Path, data_dir: Path, tmp_path: Path):
    pytest.importorskip("accelerate")
    words = [str(REPOSITORY / "finetune_mt5.py"), "scisummnet", "simple", "--model", str(model), *SMALL, "--data-dir",
             str(data_dir)]  # fmt: skip
    one = program(*words, "--save-dir", "one", cwd=tmp_path)
    launcher = (sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu",
                "--num_processes", "2")  # fmt: skip
    two = program(*words, "--save-dir", "two", "--batch-size", "2", cwd=tmp_path, launcher=launcher)
    assert two.count("epoch= 0|") == 1, "one process speaks"
    assert "processes: 2 on cpu, 2 rows each" in two
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert re.findall(r"epoch= .*", two) == re.findall(r"epoch= .*", one)


def test_the_table_of_papers(data_dir: Path, tmp_path: Path):
    from tasks.readers import read_comma_separated

    table = tmp_path / "scisummnet.csv"
    folder = data_dir / "multilingual" / "scisummnet"
    script = str(REPOSITORY / "scripts" / "prepare_scisummnet.py")
    assert ": 40 papers" in program(script, str(folder), "--output", str(table), cwd=tmp_path)
    rows = list(read_comma_separated(table, header=True))
    assert len(rows) == 40 and all(len(row.text("text")) > 1000 and row.text("zh_sum") for row in rows)
