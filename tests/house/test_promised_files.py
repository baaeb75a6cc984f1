"""What the releases promise to be there, the images of docker/ among it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

PROMISED = """
    config config_tasks scripts tasks data_utils model mpu docker requirements.txt README.md README.zh-CN.md
    pretrain_glm.py finetune_glm.py finetune_mt5.py generate_samples.py change_mp.py
    docker/cuda102.dockerfile docker/cuda112.dockerfile config/ds_block_large.sh
    tasks/superglue/README.md tasks/superglue/dataset.py tasks/superglue/pvp.py
    scripts/convert_glm_checkpoint_to_transformers.py
    scripts/cloze_benchmark/prepare_environment.sh scripts/cloze_benchmark/preparedata.sh scripts/cloze_benchmark/run.sh
"""


def test_the_promised_paths_are_there(repository: Path):
    assert not [path for path in PROMISED.split() if not (repository / path).exists()]


def test_the_promised_names_can_be_imported():
    from data_utils.corpora import NAMED_CORPORA
    from tasks.superglue.dataset import DataProcessor
    from tasks.superglue.pvp import PVP

    assert "wikipedia" in {name.lower() for name in NAMED_CORPORA}
    assert isinstance(DataProcessor, type)
    assert isinstance(PVP, type)


def test_the_images_of_the_release_are_the_current_one(repository: Path):
    for name in ("cuda102", "cuda112"):
        assert (repository / "docker" / f"{name}.dockerfile").resolve() == repository / "docker" / "cuda.dockerfile"


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_an_image_has_what_its_steps_need(kind: str, repository: Path, tmp_path: Path):
    """Bases are pinned; the files that are copied before the code are all that sets up the environment."""
    lines = (repository / "docker" / f"{kind}.dockerfile").read_text(encoding="utf-8").splitlines()
    stages = [line.split() for line in lines if line.startswith("FROM")]
    assert [name for _, base, _, name in stages] == ["base", "devel", "runtime"]
    assert re.fullmatch(r"[\w/]+:\S*\d{2,}\S*", stages[0][1])
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 1000:1000"
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[2:-1] if word != "."]
    for name in copied:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((repository / name).read_bytes())
    (step,) = {line.strip() for line in lines if "setup_environment'" in line}
    sourced = re.search(r"'(.*); setup_environment'", step)[1]
    said = subprocess.run(["bash", "-euo", "pipefail", "-c", f"{sourced}; declare -F setup_environment as_step"],
                          cwd=tmp_path, capture_output=True, text=True)  # fmt: skip
    assert (said.returncode, said.stdout.split()) == (0, ["setup_environment", "as_step"]), said.stderr
    torch = re.search(r"torch==(\S+)", (repository / "constraints.txt").read_text(encoding="utf-8"))[1]
    assert kind == "cpu" or f"CUDA 13.0 is that of torch {torch}" in "\n".join(lines)
