"""flags.json: every flag of the original parses, with its name, type, default, choices and number of values."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from tests.helpers.golden_index import GoldenFolder
from training.arguments import get_parser

COMPARED = ("flag", "dest", "kind", "type", "default", "choices", "nargs")
NOT_COMPARED = {"aliases", "group", "help", "read_by", "required"}
# The multilingual release is a later issue: its flags are compared as soon as the parser knows them, and are counted
# here until then.
SECTIONS = {"format", "note", "glm", "multilingual", "multilingual_differences"}
TYPE_NAMES = {int: "int", float: "float", str: "str"}


def describe(parser: argparse.ArgumentParser, flag: str) -> dict[str, Any]:
    """Return what the parser knows of ``flag`` in the words of the golden file."""
    action = parser._option_string_actions[flag]
    switch = isinstance(action, argparse._StoreTrueAction)
    return {
        "flag": flag,
        "dest": action.dest,
        "kind": "switch" if switch else "value",
        "type": "bool" if switch else TYPE_NAMES[action.type],
        "default": action.default,
        "choices": list(action.choices) if action.choices else None,
        "nargs": None if switch else action.nargs,
    }


@pytest.fixture(scope="module")
def flags(golden: GoldenFolder) -> dict[str, Any]:
    content = golden.json("pretraining/flags.json")
    assert set(content) <= SECTIONS, f"unknown sections: {set(content) - SECTIONS}"
    return content


def test_every_flag_of_the_original_is_the_same(flags: dict[str, Any]):
    parser = get_parser()
    wrong = []
    for expected in flags["glm"]:
        assert set(expected) <= {*COMPARED, *NOT_COMPARED}
        if expected["flag"] not in parser._option_string_actions:
            wrong.append(f"{expected['flag']} is missing")
            continue
        actual = describe(parser, expected["flag"])
        wrong += [
            f"{expected['flag']}: {key} is {actual[key]!r}, expected {expected[key]!r}"
            for key in COMPARED
            if key in expected and actual[key] != expected[key]
        ]
        assert not expected.get("required"), f"{expected['flag']} is required in the original"
    assert not wrong, "\n".join(wrong)


def test_every_prefix_that_the_original_accepts_means_the_same_flag(flags: dict[str, Any]):
    parser = get_parser()
    names = [flag["flag"] for flag in flags["glm"]]
    for flag in flags["glm"]:
        for length in range(3, len(flag["flag"])):
            prefix = flag["flag"][:length]
            if prefix in names or sum(name.startswith(prefix) for name in names) > 1:
                continue
            matches = parser._get_option_tuples(prefix)
            exact = parser._option_string_actions.get(prefix)  # a newer flag of ours that happens to be spelled so
            assert exact is not None or [match[0].dest for match in matches] == [flag["dest"]], prefix


def test_multilingual_flags_that_are_known_do_not_clash_with_the_original(flags: dict[str, Any]):
    shared = {flag["flag"]: flag for flag in flags.get("multilingual", [])}
    differing = {
        *flags.get("multilingual_differences", {}).get("different_default", {}),
        *flags.get("multilingual_differences", {}).get("different_type_or_choices", []),
    }
    parser = get_parser()
    for flag in flags["glm"]:
        if flag["flag"] in shared and flag["flag"] not in differing:
            actual = describe(parser, flag["flag"])
            assert all(actual[key] == shared[flag["flag"]][key] for key in COMPARED), flag["flag"]
