"""The model files of config_tasks/ and the table of released models.

The values of the released files are compared by ``tests/training/test_golden_configs.py``.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from model.released import RELEASED_MODELS
from tests.helpers.launching import source
from training.arguments import get_parser

VARIABLES = ("MODEL_TYPE", "MODEL_ARGS")


@pytest.mark.parametrize("released", RELEASED_MODELS.values(), ids=RELEASED_MODELS)
def test_the_table_of_released_models(released, repository: Path):
    found = source(repository / "config_tasks" / released.config_task, VARIABLES, CHECKPOINT_PATH="/weights")
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
        values = get_parser().parse_args(shlex.split(source(file, VARIABLES)["MODEL_ARGS"]))
        assert values.load_pretrained.startswith("checkpoints/"), file.name


def test_the_tiny_file(repository: Path):
    file = repository / "config_tasks" / "model_blocklm_tiny.sh"
    values = get_parser().parse_args(shlex.split(source(file, VARIABLES)["MODEL_ARGS"]))
    assert values.tokenizer_path == "data/tiny-en/tokenizer.model"
    assert values.load_pretrained == "checkpoints/blocklm-tiny-en"
    chinese = get_parser().parse_args(shlex.split(source(file, VARIABLES, TINY_LANGUAGE="zh")["MODEL_ARGS"]))
    assert chinese.tokenizer_path == "data/tiny-zh/tokenizer.model"
    own = source(
        file,
        VARIABLES,
        CHECKPOINT_PATH="/w",
        TINY_MODEL="mine",
        TINY_LAYERS="2",
        TINY_POSITIONS="128",
        TOKENIZER_ARGS="--tokenizer-type SentencePieceTokenizer --tokenizer-path /t.model",
    )
    values = get_parser().parse_args(shlex.split(own["MODEL_ARGS"]))
    assert (values.num_layers, values.max_position_embeddings) == (2, 128)
    assert (values.load_pretrained, values.tokenizer_path) == ("/w/mine", "/t.model")
