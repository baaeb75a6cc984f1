"""The command line: parse flags, read the DeepSpeed file, warn about flags without effect.

``get_parser`` is shared by all programs. ``parse_arguments`` turns a command line into a namespace with the derived
values of the original and the lines to print once. Only entry points see the namespace; the
settings they pass on are built by ``training/configurations.py``. Imports neither torch nor numpy.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from training.flags import (
    GROUPS,
    HIDDEN_ALIASES,
    HIDDEN_SWITCHES,
    ORIGINAL_NAMES,
    WITHOUT_EFFECT,
    Flag,
)


class FlagParser(argparse.ArgumentParser):
    """A parser whose mistakes are one-line ``ValueError``s and whose prefixes mean the original's flags first.

    The original accepts every unambiguous prefix of a flag. A flag that we add must not make one ambiguous.
    """

    def error(self, message: str) -> NoReturn:
        """Raise ``message`` for the entry point to print."""
        raise ValueError(f"{message} (--help lists the flags)")

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        matches = super()._get_option_tuples(option_string)
        original = [match for match in matches if match[1] in ORIGINAL_NAMES]
        return original or matches


class _SwitchInstead(argparse._StoreTrueAction):
    """Turn a switch on and another one off: scripts give ``--fp16``, and a ``--bf16`` that is typed after it counts."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, instead_of: str, help: str) -> None:
        super().__init__(option_strings, dest, help=help)
        self.instead_of = instead_of

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        """Set both."""
        setattr(namespace, self.dest, True)
        setattr(namespace, self.instead_of, False)


def _add_flag(group: argparse._ArgumentGroup, flag: Flag) -> None:
    if flag.instead_of is not None:
        group.add_argument(flag.name, dest=flag.dest, action=_SwitchInstead, instead_of=flag.instead_of, help=flag.help)
        return
    if flag.type is None:
        group.add_argument(flag.name, dest=flag.dest, action="store_true", help=flag.help)
        return
    group.add_argument(
        flag.name,
        dest=flag.dest,
        type=flag.type,
        default=flag.default,
        choices=flag.choices,
        nargs=flag.nargs,
        help=flag.help,
    )


def get_parser(description: str | None = None, *, program: str | None = None) -> argparse.ArgumentParser:
    """Build the parser of all flags, to which a program may add its own groups."""
    parser = FlagParser(prog=program, description=description)
    for title, flags in GROUPS:
        group = parser.add_argument_group(title)
        for flag in flags:
            _add_flag(group, flag)
    for name in HIDDEN_SWITCHES:
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    for name, dest in HIDDEN_ALIASES.items():
        parser.add_argument(name, dest=dest, type=int, help=argparse.SUPPRESS, default=argparse.SUPPRESS)
    return parser


@dataclass(frozen=True)
class DeepSpeedFile:
    """What a DeepSpeed JSON file says about a run, for any engine."""

    path: str
    content: Mapping[str, Any]
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def report(self) -> str:
        """Return one line that names every flag the file overrides."""
        listed = ", ".join(f"{name} = {value}" for name, value in self.overrides.items()) or "nothing"
        return f"{self.path} sets {listed}"


def _given(value: Any) -> bool:
    """Tell whether a DeepSpeed value is a real one ("auto" leaves the choice to us)."""
    return value is not None and value != "auto"


def read_deepspeed_file(path: str) -> DeepSpeedFile:
    """Read a DeepSpeed JSON file and list the values that win over flags.

    Raises:
        ValueError: the file is missing or is no JSON object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"--deepspeed_config {path}: no such file") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"--deepspeed_config {path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"--deepspeed_config {path}: a JSON object is needed, got {type(content).__name__}")
    parameters = content.get("optimizer", {}).get("params", {})
    half = content.get("fp16", {})
    candidates = {
        "batch_size": content.get("train_micro_batch_size_per_gpu"),
        "lr": parameters.get("lr"),
        "weight_decay": parameters.get("weight_decay"),
        "adam_eps": parameters.get("eps"),
        "clip_grad": content.get("gradient_clipping"),
    }
    if _given(parameters.get("betas")):
        candidates["adam_beta1"], candidates["adam_beta2"] = parameters["betas"]
    if half.get("enabled"):
        candidates["fp16"] = True
        candidates["loss_scale"] = half.get("loss_scale") or None  # 0 means dynamic
        candidates["loss_scale_window"] = half.get("loss_scale_window")
        candidates["hysteresis"] = half.get("hysteresis")
        candidates["min_scale"] = half.get("min_loss_scale")
    elif "fp16" in content:
        candidates["fp16"] = False
    if "bf16" in content:
        candidates["bf16"] = bool(content["bf16"].get("enabled"))
    overrides = {name: value for name, value in candidates.items() if _given(value)}
    # The original resets the accumulation to 1 when the file is silent about it.
    steps = content.get("gradient_accumulation_steps")
    overrides["gradient_accumulation_steps"] = steps if _given(steps) else 1
    return DeepSpeedFile(path=path, content=content, overrides=overrides)


@dataclass(frozen=True)
class ParsedArguments:
    """A parsed command line.

    Attributes:
        values: the namespace, with derived values.
        deepspeed_file: the DeepSpeed file, when ``--deepspeed`` names one.
        notices: lines to print once, on the first rank.
    """

    values: argparse.Namespace
    deepspeed_file: DeepSpeedFile | None
    notices: tuple[str, ...]


def _read_world(values: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Set ``rank`` and ``world_size`` from the launcher's environment (torchrun, deepspeed, MPI, SLURM + MPI)."""
    rank, world_size = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
    local_rank = environment.get("LOCAL_RANK")
    if "OMPI_COMM_WORLD_LOCAL_RANK" in environment:
        local_rank, local_size = (environment[f"OMPI_COMM_WORLD_LOCAL_{name}"] for name in ("RANK", "SIZE"))
        rank = int(environment.get("SLURM_NODEID", 0)) * int(local_size) + int(local_rank)
        world_size = int(environment.get("SLURM_JOB_NUM_NODES", 1)) * int(local_size)
    if values.dry_run:  # scripts/launch.py plans for a world that it does not start
        world_size = int(environment.get("GLM_PLAN_WORLD_SIZE", world_size))
    if values.local_rank is None and local_rank is not None:
        values.local_rank = int(local_rank)
    values.rank, values.world_size = rank, world_size
    values.model_parallel_size = min(values.model_parallel_size, world_size)


def notice_without_effect(
    parser: argparse.ArgumentParser, values: argparse.Namespace, *, without_effect: Mapping[str, str]
) -> tuple[str, ...]:
    """Return one line that names the given flags which change nothing, or no line."""
    changed = [dest for dest in without_effect if getattr(values, dest) != parser.get_default(dest)]
    if not changed:
        return ()
    names = {action.dest: action.option_strings[0] for action in reversed(parser._actions) if action.option_strings}
    listed = "; ".join(f"{names[dest]} ({without_effect[dest]})" for dest in changed)
    return (f"warning: without effect: {listed}",)


def parse_arguments(
    argv: Sequence[str] | None = None,
    *,
    parser: argparse.ArgumentParser | None = None,
    environment: Mapping[str, str] | None = None,
    without_effect: Mapping[str, str] = WITHOUT_EFFECT,
) -> ParsedArguments:
    """Parse a command line and derive what the original derives.

    Args:
        argv: the words after the program name; None takes ``sys.argv``.
        parser: a parser made by ``get_parser``, with the program's own flags added.
        environment: where the launcher says rank and world size; None takes the process environment.
        without_effect: flags to warn about, with the reason.

    Raises:
        ValueError: an unknown flag, a bad value, an unreadable DeepSpeed file, or one that wants another half precision
            than the flags.
    """
    parser = parser or get_parser()
    values = parser.parse_args(argv)
    notices = notice_without_effect(parser, values, without_effect=without_effect)
    _read_world(values, os.environ if environment is None else environment)
    deepspeed_file = None
    if values.deepspeed and values.deepspeed_config:
        deepspeed_file = read_deepspeed_file(values.deepspeed_config)
        for name, value in deepspeed_file.overrides.items():
            setattr(values, name, value)
        notices += (deepspeed_file.report(),)
    if values.fp16 and values.bf16:
        raise ValueError(
            "--fp16 and --bf16 exclude each other: the DeepSpeed file sets one, the command line the other; keep one"
        )
    values.dynamic_loss_scale = values.loss_scale is None
    if not values.fp16:
        values.fp32_embedding = values.fp32_layernorm = values.fp32_tokentypes = False
    return ParsedArguments(values=values, deepspeed_file=deepspeed_file, notices=notices)
