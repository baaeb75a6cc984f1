"""A wheel: everything lies below one folder, and its commands work without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from model.checkpoints.reading import shard_name
from model.config import GLMConfig
from model.modeling_glm import GLMModel

FOLDER = "glm_blank_infilling"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", "."]


@pytest.fixture(scope="module")
def installed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what a wheel of the repository installs."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=repository, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "installed")
    return folder / "installed"


def test_nothing_lies_beside_the_folder(installed: Path, repository: Path):
    (metadata,) = installed.glob("*.dist-info")
    assert {path.name for path in installed.iterdir()} == {FOLDER, metadata.name}
    there = {path.relative_to(installed / FOLDER) for path in (installed / FOLDER).rglob("*") if path.is_file()}
    for room in ("files", "mpu", "data_utils", "model", "training", "generation", "tasks", "mt5", "scripts", "config"):
        ours = [path.relative_to(repository) for path in (repository / room).rglob("*") if path.is_file()]
        assert not [path for path in ours if path.suffix != ".pyc" and path not in there]
    assert {Path("LICENSE"), Path("NOTICE"), Path("generation/web/page.html")} <= there


@pytest.mark.slow
def test_its_commands_need_no_repository(installed: Path, tmp_path: Path):
    """An export needs the code and the licences that are copied, its model is described from its own folder."""
    pytest.importorskip("transformers", reason="transformers is an extra")
    model = GLMModel(GLMConfig(2, 16, 4, 128, max_position_embeddings=40), generator=torch.Generator().manual_seed(0))
    (tmp_path / "checkpoint").mkdir()
    torch.save({"module": model.state_dict()}, tmp_path / "checkpoint" / shard_name(0))
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    tokenizer = ["--tokenizer-type", "BertWordPieceTokenizer", "--tokenizer-path", "vocab.txt"]

    def command(name: str, *words: str) -> str:
        code = f"import glm_blank_infilling as glm; glm.{name}()"
        environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
        run = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, env=environment, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        assert run.returncode == 0, run.stdout
        return run.stdout

    assert command("add_to_path(); import model; print(model.__file__); str").startswith(str(installed / FOLDER))
    command("export", "checkpoint", "--output", "exported", "--num-attention-heads", "4", *tokenizer)
    files = {path.name for path in (tmp_path / "exported").iterdir()}
    assert {"LICENSE", "NOTICE", "README.md", "modeling_glm.py", "tokenization_glm.py", "vocab.txt"} <= files
    assert "NOTICE" in (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    sizes = ["--block-lm", "--num-layers", "2", "--hidden-size", "16", "--num-attention-heads", "4",
             "--max-position-embeddings", "40", "--load-pretrained", "exported", *tokenizer]  # fmt: skip
    assert "Filled" in command("generate", *sizes, "--prompt", "the cat [MASK] .", "--top-k", "1", "--device", "cpu")
