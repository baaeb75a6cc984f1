"""docs/formats.md says of names and ids what the code says."""

from __future__ import annotations

import re

import pytest

from data_utils.tokenizers.command_tokens import COMMAND_TABLES, CommandOptions
from model.checkpoints.format import rule_for
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from tests.helpers import REPOSITORY

PAGE = (REPOSITORY / "docs" / "formats.md").read_text(encoding="utf-8")
CUTS = {"no": None, "rows": 0, "rows, of query, key and value each": 0, "columns": 1}
# Column of the table -> family, size of the vocabulary, the pieces that are commands.
FAMILIES = {
    "BERT": ("bert", 30522, {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}),
    "GPT-2": ("gpt2", 50257, {"<|endoftext|>": 50256}),
    "RoBERTa": ("roberta", 50265, {"<s>": 0, "</s>": 2, "<unk>": 3, "<mask>": 50264}),
    "Chinese": ("chinese", 50000, {}),
    "Chinese, `--fix-command-token`": ("chinese", 50000, {}),
}


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, its header first."""
    table = re.search(rf"^##+ {heading}\n.*?\n(\|.*?)\n\n", PAGE, flags=re.MULTILINE | re.DOTALL)[1]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.split("\n")]
    return [cells[0], *cells[2:]]


def documented_parameters() -> dict[str, tuple[str, str]]:
    """Return shape and cut of every documented name."""
    found = {}
    for names, shape, cut in rows("Parameters")[1:]:
        last = ""
        for name in re.findall(r"`([^`]+)`", names):
            last = last.rsplit(".", 1)[0] + name if name.startswith(".") else name
            found[last] = (shape, cut)
    return found


def test_parameters_are_those_of_a_model():
    config = GLMConfig(1, 8, 2, 16, max_position_embeddings=4)
    sizes = {"v": 16, "h": 8, "3h": 24, "4h": 32, "positions + 1": 5}
    documented = documented_parameters()
    for name, parameter in GLMModel(config).named_parameters():
        shape, _ = documented[name.replace("layers.0", "layers.L")]
        assert [sizes[size] for size in shape.strip("[]").split(",")] == list(parameter.shape), name


def test_cuts_are_those_of_the_table():
    for name, (_, cut) in documented_parameters().items():
        rule = rule_for(name.replace("layers.L", "layers.0"))
        assert rule.dim == CUTS[cut], name
        assert (rule.blocks == 3) == ("query" in cut), name


@pytest.mark.parametrize("column", FAMILIES)
def test_command_ids(column: str):
    family, size, pieces = FAMILIES[column]
    options = CommandOptions(task_mask=True, fix_command_token="fix" in column)
    table = COMMAND_TABLES[family](size, options, pieces.__getitem__)
    header, *lines = rows("Command tokens")
    documented = {name: int(line[header.index(column)]) for line in lines for name in re.findall(r"`(\w+)`", line[0])}
    assert documented == {token.name: token.id for token in table.tokens}
    assert int(lines[-1][header.index(column)]) == table.num_tokens
