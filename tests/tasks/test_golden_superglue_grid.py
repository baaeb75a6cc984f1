"""The grid runner's settings, names and command lines as recorded (grid.json)."""

from __future__ import annotations

import sys

import pytest

from tests.helpers import REPOSITORY
from tests.helpers.golden_index import GoldenFolder

sys.path.insert(0, str(REPOSITORY / "scripts"))
import dispatcher

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
    assert (
        f"X {dispatcher.as_flags({'a': True, 'b': False, 'c': None, 'd': 3})} ".split()
        == content["bool_and_none"].split()
    )


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="blocklm-roberta-large"):
        dispatcher.find_experiment("no-model", "rte")
