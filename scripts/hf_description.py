"""What a checkpoint does not say of its model: the number of heads and the tokenizer, from a name, a file or flags."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# The names of the original's command, and those of the other released models.
RELEASED_NAMES = {
    "glm-large": "GLM-Large",
    "glm-roberta-large": "GLM-RoBERTa",
    "glm-large-chinese": "GLM-Large-Chinese",
    "glm-515m": "GLM-515M",
    "glm-2b": "GLM-2B",
    "glm-10b": "GLM-10B",
    "glm-10b-chinese": "GLM-10B-Chinese",
    "glm-base": "GLM-Base",
    "glm-410m": "GLM-410M",
    "glm-doc": "GLM-Doc",
}
# What a command line without --tokenizer-path records.
UNSET_TOKENIZER_PATH = "tokenizer.model"
# Prints the list of flags that a file of config_tasks/ defines.
READ_MODEL_FILE = 'set -eu; source "$1"; printf "%s" "$MODEL_ARGS"'


@dataclass(frozen=True)
class TokenizerChoice:
    """The flags of a tokenizer, with the meaning they have in training."""

    tokenizer_type: str
    model_type: str | None = None
    path: str | None = None
    task_mask: bool = False
    fix_command_token: bool = False
    vocab_divisor: int = 128

    @property
    def shares_rows(self) -> bool:
        """Tell whether [gMASK] has the id of the end of a piece."""
        return self.tokenizer_type == "ChineseSPTokenizer" and self.task_mask and not self.fix_command_token


@dataclass(frozen=True)
class Description:
    """A model's name, and what is known of it: None where nothing is."""

    name: str
    hidden_size: int | None = None
    num_attention_heads: int | None = None
    attention_scale: float = 1.0
    tokenizer: TokenizerChoice | None = None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that describe a model; they go before what its name says."""
    group = parser.add_argument_group("the model, where its name does not say it")
    group.add_argument("--num-attention-heads", type=int)
    group.add_argument("--attention-scale", type=float)
    group.add_argument("--tokenizer-type")
    group.add_argument("--tokenizer-model-type")
    group.add_argument("--tokenizer-path")
    group.add_argument("--task-mask", action="store_true", default=None)
    group.add_argument("--fix-command-token", action="store_true", default=None)
    group.add_argument("--make-vocab-size-divisible-by", type=int)


def describe(name: str | None, flags: argparse.Namespace) -> Description | None:
    """Return the description of the model ``name`` (None: only the flags), the flags applied; None when there is none.

    Raises ValueError with one line for an unknown name or a file that cannot be read.
    """
    description = Description("glm")
    if name is not None:
        readers = {".sh": _from_file, ".json": from_run}
        reader = readers.get(Path(name).suffix)
        description = _from_table(name) if reader is None else reader(Path(name))
    described = with_flags(description, flags)
    return None if name is None and described == description else described


def with_flags(description: Description, flags: argparse.Namespace) -> Description:
    """Return the description with what ``flags`` (of ``add_flags``) say in its place."""
    own = {
        "tokenizer_type": flags.tokenizer_type,
        "model_type": flags.tokenizer_model_type,
        "path": flags.tokenizer_path,
        "task_mask": flags.task_mask,
        "fix_command_token": flags.fix_command_token,
        "vocab_divisor": flags.make_vocab_size_divisible_by,
    }
    given = {key: value for key, value in own.items() if value is not None}
    tokenizer = description.tokenizer
    if flags.tokenizer_type is not None:
        tokenizer = TokenizerChoice(**given)
    elif given and tokenizer is not None:
        tokenizer = replace(tokenizer, **given)
    elif given:
        raise ValueError("--tokenizer-type is missing: the other flags of a tokenizer need it")
    changes: dict[str, Any] = {"tokenizer": tokenizer}
    if flags.num_attention_heads is not None:  # of a model with sizes of its own
        changes |= {"num_attention_heads": flags.num_attention_heads, "hidden_size": None}
    if flags.attention_scale is not None:
        changes["attention_scale"] = flags.attention_scale
    return replace(description, **changes)


def _from_table(name: str) -> Description:
    from model.released import RELEASED_MODELS

    released = RELEASED_MODELS.get(RELEASED_NAMES.get(name.lower(), name))
    if released is None:
        raise ValueError(
            f"model {name!r} is unknown; name one of {', '.join(RELEASED_NAMES)}, or a file: "
            "config_tasks/model_*.sh, or runs/NAME/config.json of a training run"
        )
    tokenizer = TokenizerChoice(
        released.tokenizer_type,
        released.tokenizer_model_type,
        task_mask=released.task_mask,
        fix_command_token=released.fix_command_token,
    )
    config = released.config
    return Description(name.lower(), config.hidden_size, config.num_attention_heads, tokenizer=tokenizer)


def _from_file(file: Path) -> Description:
    """Read a file of ``config_tasks/``, or the model.sh of a converted model."""
    if not file.is_file():
        raise ValueError(f"{file}: no such model file; give one of config_tasks/model_*.sh")
    command = ["bash", "-c", READ_MODEL_FILE, "-", str(file.resolve())]
    run = subprocess.run(command, check=False, capture_output=True, text=True, encoding="utf-8")
    if run.returncode:
        raise ValueError(f"{file} defines no MODEL_ARGS: {run.stderr.strip().splitlines()[-1]}")
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    parser.add_argument("--hidden-size", type=int)
    flags, _ = parser.parse_known_args(shlex.split(run.stdout))  # the file has flags of other programs as well
    if flags.tokenizer_type is None:
        flags.tokenizer_type = "BertWordPieceTokenizer"  # the default in training
    return replace(with_flags(Description(file.stem.removeprefix("model_")), flags), hidden_size=flags.hidden_size)


def from_run(file: Path) -> Description:
    """Return what ``runs/NAME/config.json`` says, which a training run leaves: its command line."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file; a training run leaves it in runs/NAME/config.json")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        path = values["tokenizer_path"]
        generic = values["tokenizer_type"] == "SentencePieceTokenizer"
        tokenizer = TokenizerChoice(
            values["tokenizer_type"],
            values["tokenizer_model_type"],
            None if path == UNSET_TOKENIZER_PATH and not generic else path,
            task_mask=values["task_mask"],
            fix_command_token=values["fix_command_token"],
            vocab_divisor=values["make_vocab_size_divisible_by"],
        )
        name = file.resolve().parent.name
        sizes = values["hidden_size"], values["num_attention_heads"], values["attention_scale"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is not the config.json of a training run ({error}); give runs/NAME/config.json"
        ) from error
    return Description(name, *sizes, tokenizer=tokenizer)


def shell_file(description: Description, sizes: dict[str, Any], *, vocabulary: str | None) -> str:
    """Return the content of a model.sh: the flags with which the programs here build the model beside it.

    ``sizes`` are the fields of its ``GLMConfig``, ``vocabulary`` the tokenizer's file in the folder (``.``: all of it).
    """
    words = ["--block-lm", "--cloze-eval"] if sizes["block_position_encoding"] else ["--cloze-eval", "--masked-lm"]
    words += ["--transformer-xl"] * sizes["relative_encoding"]
    for flag, name in (
        ("--num-layers", "num_layers"),
        ("--hidden-size", "hidden_size"),
        ("--num-attention-heads", "num_attention_heads"),
        ("--max-position-embeddings", "max_position_embeddings"),
    ):
        words += [flag, str(sizes[name])]
    if sizes["attention_scale"] != 1.0:
        words += ["--attention-scale", str(sizes["attention_scale"])]
    tokenizer = description.tokenizer
    lines = [" ".join(words)]
    if tokenizer is not None:
        words = ["--tokenizer-type", tokenizer.tokenizer_type]
        words += ["--tokenizer-model-type", tokenizer.model_type] if tokenizer.model_type else []
        words += ["--task-mask"] * tokenizer.task_mask + ["--fix-command-token"] * tokenizer.fix_command_token
        words += [] if vocabulary is None else ["--tokenizer-path", f"$MODEL_FOLDER/{vocabulary}".rstrip("/.")]
        lines.append(" ".join(words))
    lines.append("--load-pretrained $MODEL_FOLDER")
    content = "\n    ".join(lines)
    return (
        "# A model converted from the Hugging Face layout. To be sourced, as the files of config_tasks/.\n"
        'MODEL_FOLDER="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"\n'
        f'MODEL_TYPE="{description.name}"\nMODEL_ARGS="{content}"\n'
    )
