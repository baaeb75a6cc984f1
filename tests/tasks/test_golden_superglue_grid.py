"""The grid runner's settings, names and command lines as recorded (grid.json)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY
from tests.helpers.golden_index import GoldenFolder

sys.path.insert(0, str(REPOSITORY / "scripts"))
import dispatcher
import process_grid

SAMPLE_KEYS = {
    "model", "task", "n_gpu", "overwrite", "index", "config", "flags_after_script_name", "result_path", "log_path",
}  # fmt: skip


def test_the_grid(golden: GoldenFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    content = golden.json("superglue/grid.json")
    assert set(content) <= {"number_of_configs", "samples", "bool_and_none"}, set(content)
    for name in ("CHECKPOINT_PATH", "DATA_ROOT", "SAVE_PATH"):
        monkeypatch.setenv(name, "${" + name + "}")
    configs = dispatcher.configurations(dispatcher.GRID)
    assert len(configs) == content["number_of_configs"]
    for sample in content["samples"]:
        assert set(sample) <= SAMPLE_KEYS, set(sample) - SAMPLE_KEYS
        config = configs[sample["index"]]
        assert config == sample["config"]
        experiment = dispatcher.find_experiment(sample["model"], sample["task"])
        flags = experiment.flags(config, n_gpu=sample["n_gpu"], overwrite=sample["overwrite"])
        assert flags == sample["flags_after_script_name"]
        assert str(experiment.result_path(config)) == sample["result_path"]
        assert f"logs/{experiment.run_name(config).replace('/', '-')}.txt" == sample["log_path"]
    assert ["X", *dispatcher.as_flags({"a": True, "b": False, "c": None, "d": 3})] == content["bool_and_none"].split()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="blocklm-roberta-large"):
        dispatcher.find_experiment("no-model", "rte")


def test_files_of_config_tasks_keep_their_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_PATH", "a 'b' $(touch x)")
    monkeypatch.chdir(REPOSITORY)
    experiment = dispatcher.find_experiment("config_tasks/model_blocklm_tiny.sh", "config_tasks/task_cb.sh")
    words = experiment.flags({"lr": 1e-5}, n_gpu=1, overwrite=False)
    assert words[words.index("--data-dir") + 1] == "a 'b' $(touch x)"
    assert words[words.index("--seq-length") + 1] == "256"


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("[1]", "--grid: an object of lists is needed, found [1]"),
        ("{", "--grid: not valid JSON"),
        ("[" * 100_000, "--grid: JSON nested too deeply"),
        ('{"lr": 1}', "--grid: lr is 1; a list is needed"),
        ('{"lr": []}', "'lr' needs the name of a flag, and a list of one value at least"),
        ('{"lr": [[1]]}', "lr has [1]; a number, a word, true or false is needed"),
        ('{"lr": ["../../x"]}', "lr has '../../x'; a number, a word"),
        ('{"batch-size": ["16"]}', "batch-size is '16'; a whole number is needed"),
        ('{"batch-size": [1]}', "batch-size is 1; at least 2 is needed"),
    ],
)
def test_grids_that_are_none(grid: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        dispatcher.read_grid(grid, n_gpu=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"accuracy": "high"}', "results.json: accuracy is 'high'; a number is needed"),
        ('{"accuracy": NaN}', "results.json: accuracy is nan; a number is needed"),
        ("[1]", "results.json: an object is needed in JSON, found [1]"),
        ("\0", "results.json: not valid JSON"),
        ('{"f1": 1.0}', "has f1, the first run accuracy; summarize them apart"),
    ],
)
def test_damaged_results_are_named(content: str, message: str, tmp_path: Path) -> None:
    for name, text in (("a", '{"type": "x", "epoch": 1, "accuracy": 0.5}'), ("b", content)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        process_grid.table(process_grid.read_results(f"{tmp_path}/*"))
