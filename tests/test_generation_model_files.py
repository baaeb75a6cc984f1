"""The model files of config_tasks/ against the released ones (configs.json) and the table of released models."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from model.config import RELEASED_MODELS
from tests.golden_index import GoldenFolder
from training.arguments import get_parser

PREFIX = "config_tasks/model_blocklm_"


def source(file: Path, **environment: str) -> dict[str, str]:
    """Return the variables that sourcing ``file`` defines."""
    script = 'set -eu; source "$1"; printf "%s\\0%s" "$MODEL_TYPE" "$MODEL_ARGS"'
    run = subprocess.run(
        ["bash", "-c", script, "-", str(file)],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    model_type, model_args = run.stdout.split("\0")
    return {"MODEL_TYPE": model_type, "MODEL_ARGS": model_args}


def test_released_model_files(golden: GoldenFolder, repository: Path):
    content = json.loads(golden.path("pretraining/configs.json").read_text(encoding="utf-8"))
    files = {name: entry for name, entry in content["glm"].items() if name.startswith(PREFIX)}
    assert files
    for name, entry in files.items():
        found = source(repository / name, CHECKPOINT_PATH="/weights")
        expected = entry["variables"]
        assert set(expected) == set(found), name
        assert found["MODEL_TYPE"] == expected["MODEL_TYPE"]
        # One file names the storage of the original cluster; ours are all below CHECKPOINT_PATH.
        words = [re.sub(r"^\$\{(CHECKPOINT_PATH|SITE\}/checkpoints)\}?", "/weights", w) for w in expected["MODEL_ARGS"]]
        assert shlex.split(found["MODEL_ARGS"]) == words, name


@pytest.mark.parametrize("released", RELEASED_MODELS.values(), ids=RELEASED_MODELS)
def test_the_table_of_released_models(released, repository: Path):
    found = source(repository / "config_tasks" / released.config_task, CHECKPOINT_PATH="/weights")
    values = get_parser().parse_args(shlex.split(found["MODEL_ARGS"]))
    config = released.config
    assert (values.num_layers, values.hidden_size) == (config.num_layers, config.hidden_size)
    assert values.num_attention_heads == config.num_attention_heads
    assert values.max_position_embeddings == config.max_position_embeddings
    assert values.tokenizer_type == released.tokenizer_type
    assert values.task_mask == released.task_mask
    assert values.fix_command_token == released.fix_command_token
    assert values.load_pretrained == f"/weights/{released.checkpoint_folder}"


def test_paths_have_a_default(repository: Path):
    for file in sorted((repository / "config_tasks").glob("model_blocklm_*.sh")):
        values = get_parser().parse_args(shlex.split(source(file)["MODEL_ARGS"]))
        assert values.load_pretrained.startswith("checkpoints/"), file.name


def test_the_tiny_file(repository: Path):
    file = repository / "config_tasks" / "model_blocklm_tiny.sh"
    values = get_parser().parse_args(shlex.split(source(file)["MODEL_ARGS"]))
    assert values.tokenizer_type == "BertWordPieceTokenizer"
    assert values.load_pretrained == "checkpoints/blocklm-tiny-en"
    chinese = get_parser().parse_args(shlex.split(source(file, TINY_LANGUAGE="zh")["MODEL_ARGS"]))
    assert (chinese.tokenizer_type, chinese.fix_command_token) == ("ChineseSPTokenizer", True)
    own = source(
        file,
        CHECKPOINT_PATH="/w",
        TINY_MODEL="mine",
        TINY_LAYERS="2",
        TINY_POSITIONS="128",
        TOKENIZER_ARGS="--tokenizer-type SentencePieceTokenizer --tokenizer-path /t.model",
    )
    values = get_parser().parse_args(shlex.split(own["MODEL_ARGS"]))
    assert (values.num_layers, values.max_position_embeddings) == (2, 128)
    assert (values.load_pretrained, values.tokenizer_path) == ("/w/mine", "/t.model")
