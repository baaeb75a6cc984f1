"""The command line: a parser made from the declarations of ``training/settings.py``, and settings from what it parses.

``parse_settings`` is what programs call. Imports neither torch nor numpy.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from files.reading import described, read_json, value_of
from model.hub.describe import describe_beside
from model.released import demo_model, demo_notice
from training.settings import (
    CHOICES_WITHOUT_EFFECT,
    LARGEST,
    UNREMARKED,
    WITHOUT_EFFECT,
    BatchSettings,
    Group,
    ModelSettings,
    OptimizerSettings,
    PrecisionSettings,
    Settings,
    TokenizerSettings,
    check_run_name,
    spelling,
)

S = TypeVar("S", bound=Settings)
V = TypeVar("V")


def groups_of(settings: type[Settings]) -> dict[str, type[Group]]:
    """Return the groups of a program's settings by the field that holds them."""
    hints = get_type_hints(settings)
    kinds = {one.name: hints[one.name] for one in fields(settings)}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Group)}


def options_of(group: type[Group]) -> Iterator[tuple[Field[Any], str]]:
    """Yield the fields of a group that are options, with the flag of each."""
    for one in fields(group):  # type: ignore[arg-type]  # every group is a dataclass
        if one.metadata:
            yield one, one.metadata["flag"] or spelling(one.name)


def names_of(group: type[Group]) -> list[str]:
    """Return the names of the options of a group."""
    return [one.name for one, _ in options_of(group)]


def value_type(hint: Any) -> type:
    """Return the type of one value of an option, given the annotation of its field (str for a path)."""
    if isinstance(hint, UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not NoneType)
    if get_origin(hint) is tuple:
        hint = get_args(hint)[0]
    return str if hint is Path else hint


class FlagParser(argparse.ArgumentParser):
    """A parser whose mistakes are one-line ``ValueError``s and whose prefixes mean the original's flags first.

    The original accepts every unambiguous prefix of a flag. A flag that we add must not make one ambiguous.
    """

    original: frozenset[str] = frozenset()

    def error(self, message: str) -> NoReturn:
        """Raise ``message`` for the entry point to print, with the flag that was perhaps meant."""
        hint = "--help lists the flags"
        if message.startswith("unrecognized arguments: "):
            import difflib

            typed = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
            similar = difflib.get_close_matches(typed, self._option_string_actions, n=1)
            hint = f"did you mean {similar[0]}? {hint}" if similar else hint
        raise ValueError(f"{message} ({hint})")

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        matches = super()._get_option_tuples(option_string)
        return [match for match in matches if match[1] in self.original] or matches


class _SwitchInstead(argparse._StoreTrueAction):
    """Turn a switch on and others off: scripts give ``--fp16``, and a ``--bf16`` that is typed after it counts."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, instead_of: Sequence[str], help: str) -> None:
        super().__init__(option_strings, dest, help=help)
        self.instead_of = instead_of

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        """Set all of them."""
        for name in self.instead_of:
            setattr(namespace, name, name == self.dest)


class _SwitchOrWord(argparse._StoreTrueAction):
    """A switch of the original that takes a word, too: on (what it means alone), off or auto."""

    WORDS: ClassVar[dict[str, bool | str]] = {"on": True, "off": False, "auto": "auto"}

    def __init__(self, option_strings: Sequence[str], dest: str, *, help: str) -> None:
        super().__init__(option_strings, dest, help=help)
        self.nargs, self.const, self.metavar = "?", "on", f"{{{','.join(self.WORDS)}}}"

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        """Set what the word means."""
        if values not in self.WORDS:
            parser.error(f"{self.option_strings[0]} is {described(values)}; choose one of {', '.join(self.WORDS)}")
        setattr(namespace, self.dest, self.WORDS[values])


class _RowsOfPositions(argparse.Action):
    """Take the rows of the position tables, which the multilingual release counts: one more than the positions."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        """Set the positions."""
        if values < 2:
            parser.error(f"--max-sequence-length is {values}; at least 2 rows of positions are needed")
        setattr(namespace, self.dest, values - 1)


def get_parser(settings: type[Settings] = Settings, *, description: str | None = None) -> FlagParser:
    """Build the parser of a program: all flags of its groups, those used most first, and last what has no effect."""
    parser = FlagParser(
        usage="%(prog)s [flags, below]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    original, idle = set(), {flag for flag, _ in flags_without_effect(settings).values()}
    groups = groups_of(settings)
    ordered = [groups[name] for name in dict.fromkeys((*settings.used_most, *groups))]
    sections = {kind: parser.add_argument_group((kind.__doc__ or "").splitlines()[0]) for kind in ordered}
    last = parser.add_argument_group(
        f"Without effect in {settings.program or 'any program'}, accepted for shared files"
    )
    for kind in ordered:
        hints = get_type_hints(kind)
        for one, flag in options_of(kind):
            section = last if flag in idle else sections[kind]
            declared, value = one.metadata, value_type(hints[one.name])
            shown = "" if one.default in (None, False, "") else f" (default: {one.default})"
            common = {"dest": one.name, "help": (declared["help"] + shown).replace("%", "%%")}
            if declared["instead_of"]:
                section.add_argument(flag, action=_SwitchInstead, instead_of=declared["instead_of"], **common)
            elif value is bool and declared["nargs"] == "?":
                section.add_argument(flag, action=_SwitchOrWord, **common)
            elif value is bool:
                section.add_argument(flag, action="store_true", **common)
            else:
                common |= {"default": one.default, "choices": declared["choices"], "nargs": declared["nargs"]}
                section.add_argument(flag, type=value, **common)
            original |= {flag} if declared["original"] else set()
    parser.add_argument(
        "--max-sequence-length",
        type=int,
        action=_RowsOfPositions,
        dest="max_position_embeddings",
        default=argparse.SUPPRESS,
        metavar="ROWS",
        help="--max-position-embeddings as the multilingual release counts it: the rows of the tables, one more",
    )
    hidden: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    for name, number in (("top_k", int), ("top_p", float)):  # spellings of the multilingual release
        parser.add_argument(f"--{name}", dest=name, type=number, **hidden)
    for flag, kind_of_value, default, reason in WITHOUT_EFFECT:
        if kind_of_value is None:
            last.add_argument(flag, action="store_true", help=reason)
        else:
            choices = CHOICES_WITHOUT_EFFECT.get(flag)
            last.add_argument(flag, type=kind_of_value, default=default, choices=choices, help=reason)
    # How newer launchers spell --local_rank.
    parser.add_argument("--local-rank", dest="local_rank", type=int, help=argparse.SUPPRESS, default=argparse.SUPPRESS)
    parser.original = frozenset(
        original
        | {flag for flag, *_ in WITHOUT_EFFECT} - {"--lazy-loader", "--old-checkpoint", "--mode", "--sandwich-ln"}
    )
    return parser


def flags_without_effect(settings: type[Settings]) -> dict[str, tuple[str, str]]:
    """Return the flags that change nothing in a program, by their name in the namespace: flag and reason."""
    reasons = {flag.lstrip("-").replace("-", "_"): (flag, reason) for flag, _, _, reason in WITHOUT_EFFECT}
    for kind in groups_of(settings).values():
        for one, flag in options_of(kind):
            only = one.metadata["only"] or kind.only
            if settings.program and settings.program not in only:
                reasons[one.name] = (flag, f"concerns {' and '.join(only)}")
    return reasons


def ineffective(settings: type[Settings], values: argparse.Namespace, parser: FlagParser) -> list[str]:
    """Return the flags that were given although they change nothing, with the reason: those worth a line."""
    return [
        f"{flag} ({reason})"
        for name, (flag, reason) in flags_without_effect(settings).items()
        if getattr(values, name) != parser.get_default(name) and flag not in UNREMARKED
    ]


class _Block:
    """An object of the DeepSpeed file. What is missing, null or "auto" is left to us: None."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self._values = {name: value for name, value in values.items() if value != "auto"}
        self._place = place

    def block(self, name: str) -> _Block:
        """Return the object under ``name``, empty where there is none."""
        return _Block(value_of(self._values, name, dict, place=self._place, default={}), f"{self._place}, {name}")

    def value(self, name: str, kind: type[V], **bounds: float) -> V | None:
        return value_of(self._values, name, kind, place=self._place, default=None, **bounds)

    def option(self, name: str, group: type[Group], option: str) -> Any:
        """Return the value of an option of ours, within its bounds."""
        [declared] = (one for one in fields(group) if one.name == option)  # type: ignore[arg-type]  # see options_of
        kind = value_type(get_type_hints(group)[option])
        return self.value(name, kind, **(LARGEST if kind is int else {}) | declared.metadata["bounds"])

    def pair(self, name: str, group: type[Group], options: tuple[str, str]) -> tuple[Any, Any]:
        """Return the list of two numbers under ``name`` as the values of two options."""
        values = self.value(name, list)
        if values is None:
            return None, None
        if len(values) != 2:
            raise ValueError(f"{self._place}: {name} is {described(values)}; two numbers are needed")
        numbers = _Block({f"{name}[{index}]": value for index, value in enumerate(values)}, self._place)
        first, second = (numbers.option(f"{name}[{index}]", group, option) for index, option in enumerate(options))
        return first, second


def read_deepspeed_file(path: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Read a DeepSpeed JSON file; return its content, and its values that win over flags.

    Raises:
        ValueError: the file is missing or is no JSON object, or a value of ours in it has another type or is out of
            bounds.
    """
    try:
        content: dict[str, Any] = read_json(path)
    except ValueError as error:
        raise ValueError(f"--deepspeed_config {error}") from None
    root = _Block(content, f"--deepspeed_config {path}")
    optimizer, half, brain, zero = (root.block(name) for name in ("optimizer", "fp16", "bf16", "zero_optimization"))
    optimizer.value("type", str)
    parameters = optimizer.block("params")
    zero.value("stage", int, at_least=0, at_most=3)
    for name in ("cpu_offload", "overlap_comm"):
        zero.value(name, bool)
    for name in ("reduce_bucket_size", "stage3_max_live_parameters"):
        zero.value(name, float, at_least=1)
    for part in ("offload_optimizer", "offload_param"):
        zero.block(part).value("device", str)
    root.block("checkpoint")
    beta1, beta2 = parameters.pair("betas", OptimizerSettings, ("adam_beta1", "adam_beta2"))
    # The original resets the accumulation to 1 when the file is silent about it.
    steps = root.option("gradient_accumulation_steps", BatchSettings, "gradient_accumulation_steps")
    overrides = {
        "batch_size": root.option("train_micro_batch_size_per_gpu", BatchSettings, "batch_size"),
        "lr": parameters.option("lr", OptimizerSettings, "lr"),
        "weight_decay": parameters.option("weight_decay", OptimizerSettings, "weight_decay"),
        "adam_eps": parameters.option("eps", OptimizerSettings, "adam_eps"),
        "adam_beta1": beta1,
        "adam_beta2": beta2,
        "clip_grad": root.option("gradient_clipping", OptimizerSettings, "clip_grad"),
        "gradient_accumulation_steps": steps or 1,
    }
    scaling = {
        "loss_scale": half.value("loss_scale", float, at_least=0) or None,  # 0 means dynamic
        "loss_scale_window": half.option("loss_scale_window", PrecisionSettings, "loss_scale_window"),
        "hysteresis": half.option("hysteresis", PrecisionSettings, "hysteresis"),
        "min_scale": half.option("min_loss_scale", PrecisionSettings, "min_scale"),
    }
    if half.value("enabled", bool):
        overrides |= {"fp16": True, **scaling}
    elif "fp16" in content:
        overrides["fp16"] = False
    if "bf16" in content:
        overrides["bf16"] = bool(brain.value("enabled", bool))
    return content, {name: value for name, value in overrides.items() if value is not None}


def _whole_number(environment: Mapping[str, str], name: str, default: int | None = None, *, at_least: int = 0) -> Any:
    """Return a number that a launcher sets. Raises ValueError where it is none."""
    text = environment.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"-?[0-9]{1,9}", text.strip()) or int(text) < at_least:
        raise ValueError(
            f"the environment variable {name} is {described(text)}; a whole number of at least {at_least} is needed "
            "(launchers such as torchrun set it)"
        )
    return int(text)


def _read_world(values: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Set ``rank`` and ``world_size`` from the launcher's environment (torchrun, deepspeed, MPI, SLURM + MPI)."""
    number = partial(_whole_number, environment)
    rank, world_size = number("RANK", 0), number("WORLD_SIZE", 1, at_least=1)
    local_rank = number("LOCAL_RANK", at_least=-1)
    if "OMPI_COMM_WORLD_LOCAL_RANK" in environment:
        local_rank, local_size = (
            number("OMPI_COMM_WORLD_LOCAL_RANK"),
            number("OMPI_COMM_WORLD_LOCAL_SIZE", 1, at_least=1),
        )
        rank = number("SLURM_NODEID", 0) * local_size + local_rank
        world_size = number("SLURM_JOB_NUM_NODES", 1, at_least=1) * local_size
    if values.dry_run:  # scripts/launch.py plans for a world that it does not start
        world_size = number("GLM_PLAN_WORLD_SIZE", world_size, at_least=1)
    elif rank >= world_size:
        raise ValueError(f"rank {rank} of {world_size} processes (RANK, WORLD_SIZE): ranks count from 0")
    if values.local_rank is None:
        values.local_rank = local_rank
    values.rank, values.world_size = rank, world_size
    values.model_parallel_size = min(values.model_parallel_size, world_size)


def from_values(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Make a dataclass from the values of its fields' names; a field that is a group is made from all values."""
    made = {}
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and issubclass(hint, Group):
            made[name] = from_values(hint, values)
        elif name in values and name in kind.__dataclass_fields__:
            value = values[name]
            if isinstance(value, list):
                value = tuple(value)
            made[name] = (Path(value) if value else None) if hint == Path | None else value
    return kind(**made)


# Options that build another model than the checkpoint's where they differ; others it can be trained on with.
FIXED_BY_CHECKPOINT = ("num_layers", "hidden_size", "num_attention_heads", "tokenizer_type")
TOKENIZER_OPTIONS = ("tokenizer_type", "tokenizer_model_type", "tokenizer_path")
VOCABULARY_FOLDERS = ("vocab_dir", "cache_dir")


def read_description(values: argparse.Namespace, typed: frozenset[str]) -> tuple[str | None, list[str]]:
    """Set the options that are not among the ``typed`` ones to what lies beside the checkpoint to load says.

    Returns the fingerprint of its tokenizer, where it is known, and a line that says what was set. A tokenizer that was
    typed stays as typed. Raises ValueError for a typed option that contradicts.
    """
    path = values.load_pretrained or values.load
    description = describe_beside(Path(path)) if path else None
    if description is None:
        return None, []
    options = description.options()
    for name in FIXED_BY_CHECKPOINT:
        value = getattr(values, name)
        if name in typed and name in options and value != options[name]:
            raise ValueError(
                f"{spelling(name)} {value} contradicts {description.source}, which has {options[name]}: leave the flag "
                "out, or load another checkpoint"
            )
    own_tokenizer = not typed.isdisjoint(TOKENIZER_OPTIONS)
    kept = {*typed, *((*TOKENIZER_OPTIONS, *VOCABULARY_FOLDERS) if own_tokenizer else ())}
    made = {name: value for name, value in options.items() if name not in kept and hasattr(values, name)}
    positions = made.get("max_position_embeddings", values.max_position_embeddings)
    if "seq_length" not in typed and values.seq_length > positions:
        made["seq_length"] = positions
    changed = {name: value for name, value in made.items() if value != getattr(values, name)}
    vars(values).update(made)
    listed = ", ".join(f"{name} = {value}" for name, value in changed.items())
    return description.fingerprint, [f"{description.source} sets {listed}"] if listed else []


def parse_settings(
    settings: type[S],
    argv: Sequence[str] | None = None,
    *,
    description: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> S:
    """Turn a command line into the settings of a program.

    Args:
        settings: the program's class.
        argv: the words after the program name; None takes ``sys.argv``.
        description: for ``--help``.
        environment: where the launcher says rank and world size, and the date in the name of a new run (GLM_DATE); None
            takes the process environment.

    Raises:
        ValueError: an unknown flag, a bad value, an unreadable DeepSpeed file, or values that contradict each other.
    """
    environment = os.environ if environment is None else environment
    parser = get_parser(settings, description=description)
    defaults, not_given = vars(parser.parse_args([])), object()
    values = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults, not_given)))
    given = frozenset(name for name, value in vars(values).items() if value is not not_given)
    vars(values).update({name: value for name, value in defaults.items() if name not in given})
    notices: list[str] = []
    content: Mapping[str, Any] | None = None
    if without := ineffective(settings, values, parser):
        notices.append(f"warning: without effect: {'; '.join(without)}")
    if settings.takes_demo and given.isdisjoint(
        ("load", "load_pretrained", *names_of(ModelSettings), *names_of(TokenizerSettings))
    ):
        values.load_pretrained = str(demo_model())
        notices.append(demo_notice())
    fingerprint, said = read_description(values, given)
    notices += said
    _read_world(values, environment)
    if values.deepspeed:
        content = {}
        if values.deepspeed_config:
            content, overrides = read_deepspeed_file(values.deepspeed_config)
            if values.fp32:
                overrides = {name: value for name, value in overrides.items() if name not in ("fp16", "bf16")}
            vars(values).update(overrides)
            listed = ", ".join(f"{name} = {value}" for name, value in overrides.items()) or "nothing"
            notices.append(f"{values.deepspeed_config} sets {listed}")
    line = dict(vars(values))
    check_run_name(line["experiment_name"])
    name = settings.run_name(line, date=environment.get("GLM_DATE") or time.strftime("%m-%d-%H-%M"))
    run = {"experiment_name": name, "save": Path(values.save) / name if values.save else None}
    changed = {name: value for name, value in line.items() if name in defaults and value != defaults[name]}
    more = {"values": line, "changed": changed, "given": given, "deepspeed_content": content}
    return from_values(settings, line | run | more | {"notices": tuple(notices), "tokenizer_fingerprint": fingerprint})
