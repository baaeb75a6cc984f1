"""configs.json: every released file of config/ and config_tasks/, sourced by bash, parsed by our parser.

Values are equal; only the folders of the original cluster are places of the user's choice.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tasks.settings import FinetuningSettings
from tests.helpers import REPOSITORY
from tests.helpers.golden_index import GoldenFolder
from tests.helpers.launching import source
from training.arguments import get_parser, ineffective
from training.settings import WITHOUT_EFFECT, PretrainingSettings

SWITCHES_WITHOUT_EFFECT = {flag for flag, kind, *_ in WITHOUT_EFFECT if kind is None}
SECTIONS = {"format", "placeholders", "note", "glm", "multilingual"}
ENTRY_KEYS = {"variables", "effective", "unknown", "deepspeed"}
# What the variables of other files and of the launcher hold. MASK_RATIO is the value the file was recorded with.
ENVIRONMENT = {
    "MP_SIZE": "1",
    "CHECKPOINT_PATH": "/weights",
    "DATA_ROOT": "/texts",
    "MODEL_TYPE": "some-model",
    "MASK_RATIO": "0.5",
}
# The original cluster kept checkpoints and texts below one storage folder.
SITE_CHECKPOINTS = re.compile(r"\$\{SITE\}/(english_data/)?((model_)?checkpoints(?=/|$)|(?=blocklm-))/?")
SITE_TEXTS = re.compile(r"\$\{SITE\}/")


@pytest.fixture(scope="module")
def content(golden: GoldenFolder) -> dict[str, Any]:
    content = golden.json("pretraining/configs.json")
    assert set(content) <= SECTIONS, f"unknown sections: {set(content) - SECTIONS}"
    unknown = set(content["placeholders"]) - {*ENVIRONMENT, "SITE"}
    assert not unknown, f"placeholders without a value: {unknown}"
    assert content["glm"]
    return content


RECOMPUTED = ("--checkpoint-activations auto", "--checkpoint-activations")


def fill(value: Any) -> Any:
    """Return a recorded value with our values and our places in it."""
    if isinstance(value, list):
        return [fill(v) for v in value]
    if isinstance(value, dict):
        return {name: fill(v) for name, v in value.items()}
    if not isinstance(value, str):
        return value
    text = SITE_CHECKPOINTS.sub("/weights/", value).removesuffix("/") if "${SITE}" in value else value
    text = SITE_TEXTS.sub("/texts/", text)
    for name, own in ENVIRONMENT.items():
        text = text.replace(f"${{{name}}}", own)
    assert "${" not in text, f"unknown placeholder: {value}"
    return text


def effective(words: list[str], *, accepted: list[str]) -> dict[str, Any]:
    """Parse ``words`` and return the values that differ from the defaults, without those of ``accepted``."""
    parser = get_parser()
    defaults = vars(parser.parse_args([]))
    ignored = {parser._option_string_actions[word].dest for word in accepted}
    values = vars(parser.parse_args(words))
    return {name: value for name, value in values.items() if value != defaults[name] and name not in ignored}


def compare_shell_file(name: str, entry: dict[str, Any]) -> None:
    """Assert that sourcing ``name`` gives the recorded variables and that ours are parsed to the recorded values."""
    variables = fill(entry["variables"])
    found = source(REPOSITORY / name, variables, **ENVIRONMENT)
    # Ours: recomputed where a GPU is too small without, with the same results. The original always does.
    found = {variable: value.replace(*RECOMPUTED) for variable, value in found.items()}
    # The original names the JSON by its place below the repository.
    found = {variable: value.replace(f"{REPOSITORY}/", "") for variable, value in found.items()}
    for variable, expected in variables.items():
        actual = shlex.split(found[variable]) if isinstance(expected, list) else found[variable]
        assert actual == expected, f"{name}: {variable}"
    rejected = entry.get("unknown", {})
    assert set(rejected) <= set(entry["effective"])
    for variable, expected in entry["effective"].items():
        accepted = rejected.get(variable, [])
        assert set(accepted) <= SWITCHES_WITHOUT_EFFECT, f"{name}: accept {accepted} as switches without effect"
        assert effective(shlex.split(found[variable]), accepted=accepted) == fill(expected), f"{name}: {variable}"


def test_every_released_file_has_the_recorded_values(content: dict[str, Any]):
    for name, entry in content["glm"].items():
        assert set(entry) <= ENTRY_KEYS, f"{name}: {set(entry) - ENTRY_KEYS}"
        file = REPOSITORY / name
        assert file.is_file(), f"{name} is missing"
        if "deepspeed" in entry:
            assert json.loads(file.read_text(encoding="utf-8")) == entry["deepspeed"], name
        else:
            compare_shell_file(name, entry)


def test_nobody_is_warned_of_the_flags_of_a_released_file(content: dict[str, Any]):
    for name, entry in content["glm"].items():
        program = PretrainingSettings if name.startswith("config/") else FinetuningSettings
        for variable in entry.get("effective", ()):
            parser = get_parser(program)
            values = parser.parse_args(fill(entry["variables"][variable]))
            assert ineffective(program, values, parser) == [], f"{name}: {variable}"


PLACES = {"load_pretrained", "tokenizer_model_type"}
# The original counts rows of positions, and here the parser counts positions.
ROWS = ("max_sequence_length", "max_position_embeddings")


def test_the_model_files_of_the_multilingual_release(content: dict[str, Any]):
    names = ["220M", "large_sent", "multilingual_large", "roberta_large_prompt"]
    for name in names:
        file = f"config_tasks/model_blocklm_{name}.sh"
        entry = content["multilingual"][file]
        found = source(REPOSITORY / file, ["MODEL_ARGS", "MODEL_TYPE"], **ENVIRONMENT)
        assert found["MODEL_TYPE"] == entry["variables"]["MODEL_TYPE"]
        expected = dict(entry["effective"]["MODEL_ARGS"])
        expected[ROWS[1]] = expected.pop(ROWS[0]) - 1
        assert expected.pop("old_checkpoint", True)
        actual = effective(shlex.split(found["MODEL_ARGS"]), accepted=["--old-checkpoint"])
        actual.setdefault("max_position_embeddings", 512)
        assert (actual.pop("summary_prompt", "content") == "tldr") == (
            "multilingual" in name
        )  # by the task's name there
        assert {k: v for k, v in actual.items() if k not in PLACES} == {
            k: v for k, v in expected.items() if k not in PLACES
        }, name


# What our files say that the original's code has fixed.
ADDED = {"lr_decay_ratio": 0.0, "pattern_ensemble": []}
MULTILINGUAL_TASKS = (
    "task_xnli", "task_pawsx", "task_panx", "seq_ncls", "seq_ensum", "seq_xwikis", "seq_lcsts", "seq_xlsum",
    "seq_wikilingua", "seq_scitldr", "seq_mlqa", "seq_tydiqa", "seq_squad_v1",
)  # fmt: skip


def test_the_task_files_of_the_multilingual_release(content: dict[str, Any]):
    for name in MULTILINGUAL_TASKS:
        file = f"config_tasks/{name}.sh"
        recorded = content["multilingual"][file]["variables"]
        multilingual = {"MODEL_LANGUAGES": "many"} if name == "seq_squad_v1" else {}
        found = source(REPOSITORY / file, recorded, **ENVIRONMENT, **multilingual)
        own = {
            "DATA_PATH",
            "EXPERIMENT_NAME",
            "PATTERN_IDS",
            "PROMPT_IDS",
            *(("TASK_NAME", "EPOCH_SINGLE") if multilingual else ()),
        }
        for variable in set(recorded) - own:
            expected = recorded[variable]
            if isinstance(expected, str):
                assert found[variable] == expected, (name, variable)
            else:
                actual = effective(shlex.split(found[variable]), accepted=[])
                assert all(actual.pop(added, value) == value for added, value in ADDED.items())
                assert actual == effective(expected, accepted=[]), (name, variable)


def test_the_deepspeed_files_of_the_multilingual_release(content: dict[str, Any]):
    for name, entry in content["multilingual"].items():
        if name.startswith("config_tasks/config_blocklm"):
            assert json.loads((REPOSITORY / name).read_text(encoding="utf-8")) == entry["deepspeed"], name


def test_pretraining_over_languages(content: dict[str, Any]):
    """Of the multilingual release: the configuration over languages, and those of three other sizes."""
    for name in ("ds_multi_blockta_large", "ds_block_220M", "ds_block_2B", "ds_blockta_1.25"):
        entry = content["multilingual"][f"config/{name}.sh"]
        found = source(REPOSITORY / "config" / f"{name}.sh", ["config_json", "gpt_options"], **ENVIRONMENT)
        expected = dict(entry["effective"]["gpt_options"])
        expected["max_position_embeddings"] = expected.pop("max_sequence_length") - 1
        actual = effective(shlex.split(found["gpt_options"].replace(*RECOMPUTED)), accepted=[])
        for key in ("load", "save", "deepspeed_config", *(("tokenizer_model_type",) if "multi" in name else ())):
            expected.pop(key, None)
            actual.pop(key, None)
        defaults = vars(get_parser().parse_args([]))  # one of the multilingual release differs: 0 for the last rate
        assert actual == {key: value for key, value in expected.items() if value != defaults[key]}, name
        recorded = content["multilingual"][found["config_json"].replace(f"{REPOSITORY}/", "")]
        assert json.loads((REPOSITORY / found["config_json"]).read_text(encoding="utf-8")) == recorded["deepspeed"]


def test_every_pretraining_configuration_ends_in_its_deepspeed_file():
    for file in sorted((REPOSITORY / "config").glob("ds_*.sh")):
        found = source(file, ["config_json", "gpt_options"])
        assert (REPOSITORY / found["config_json"]).is_file(), file.name
        words = shlex.split(found["gpt_options"])
        assert words[-3:] == ["--deepspeed", "--deepspeed_config", found["config_json"]], file.name
        values = get_parser().parse_args(words)
        assert values.save.startswith("checkpoints"), file.name
        assert values.model_parallel_size == 1


@pytest.mark.parametrize("file", sorted((REPOSITORY / "config").glob("ds_*.sh")), ids=lambda p: p.stem)
def test_the_environment_sets_sizes_and_places(file: Path):
    found = source(file, ["gpt_options"], MP_SIZE="4", CHECKPOINT_PATH="/weights", SAVE_PATH="/own", LOAD_PATH="/from")
    values = get_parser().parse_args(shlex.split(found["gpt_options"]))
    assert values.model_parallel_size == 4
    assert values.save == "/own"
    assert values.load in (None, "/from")
    fresh = source(file, ["gpt_options"], LOAD_PATH="")
    assert get_parser().parse_args(shlex.split(fresh["gpt_options"])).load is None
