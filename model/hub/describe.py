"""What model and what tokenizer a folder holds: the one answer, for generation, conversions and programs.

Weights do not say all of it; the rest of a description is, in this order,

    config.json beside them     of the Hugging Face layout (with tokenizer_config.json), or of the run that saved them:
                                its command line, with the vocabulary's files beside it
    runs/NAME/config.json       the same, of runs of earlier versions
    the folder's name           of a released model

or what the user names: a released model, a file of config_tasks/, a run's config.json, flags. A description is plain
data; ``data_utils.tokenizers.tokenizer.build_tokenizer`` makes the tokenizer of it. Imports no torch.

h hidden, v vocabulary
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from files.checksums import warn_when_edited
from files.reading import REQUIRED, described, read_json, read_text, value_of
from model.checkpoints.format import BLOCK_POSITION_TABLE, POSITION_TABLES, PROMPT_PREFIX, TRACKERS, WORD_TABLE
from model.config import GLMConfig
from model.released import RELEASED_MODELS, ReleasedModel

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
DESCRIPTION_FILES = (  # and *.model
    CONFIG_FILE, GENERATION_FILE, "vocab.txt", "vocab.json", "merges.txt", "tokenizer.json", TOKENIZER_CONFIG,
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
# transformers' own "glm" is another family (GLM-4), which it would take a folder of that type for without its code;
# published folders and those of earlier versions have it.
MODEL_TYPE, PUBLISHED_MODEL_TYPE = "glm-blank-infilling", "glm"
# The field of the Hugging Face layout's config.json for each field of GLMConfig.
FIELD_NAMES = {
    "num_layers": "num_layers",
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "embedding_dropout": "embedding_dropout_prob",
    "attention_dropout": "attention_dropout_prob",
    "output_dropout": "output_dropout_prob",
    "max_position_embeddings": "max_sequence_length",
    "checkpoint_activations": "checkpoint_activations",
    "checkpoint_num_layers": "checkpoint_num_layers",
    "relative_encoding": "relative_encoding",
    "block_position_encoding": "block_position_encoding",
    "prompt_length": "spell_length",
    "prompt_function": "spell_func",
    "attention_scale": "attention_scale",
    "initializer_std": "initializer_range",
}
SIZES = ("num_layers", "vocab_size", "hidden_size", "num_attention_heads")
# The largest number of each that is believed of a file: more cannot be built, or only within hours.
LARGEST = {
    "num_layers": 1000, "vocab_size": 1 << 26, "hidden_size": 1 << 17, "num_attention_heads": 1 << 17,
    "max_position_embeddings": 1 << 24, "checkpoint_num_layers": 1000, "prompt_length": 1 << 20,
}  # fmt: skip
# What each of them is; all others are whole numbers.
KINDS: dict[str, type] = {
    **dict.fromkeys(FIELD_NAMES, int),
    **dict.fromkeys(("embedding_dropout", "attention_dropout", "output_dropout"), float),
    **dict.fromkeys(("attention_scale", "initializer_std"), float),
    **dict.fromkeys(("checkpoint_activations", "relative_encoding", "block_position_encoding"), bool),
    "prompt_function": str,
}
CLASSIFIER_CLASS = "GLMForSequenceClassification"
LAYER_NAME = re.compile(r"transformer\.layers\.(\d+)\.")
# The released models by the names of the original's conversion, which are those of the table in lower case but for one.
RELEASED_NAMES = {
    "glm-roberta-large" if name == "GLM-RoBERTa" else name.lower(): model for name, model in RELEASED_MODELS.items()
}
# What a run's config.json has to have; older ones lack newer flags.
RUN_KEYS = ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "tokenizer_type")
# What a run says of its samples and objectives, and an export under PRETRAINING_KEY: what a pre-training goes on with.
PRETRAINING_OPTIONS: dict[str, type] = {
    **dict.fromkeys(
        ("bert_prob", "gap_sentence_prob", "gap_sentence_ratio", "gpt_infill_prob", "gpt_min_ratio", "short_seq_prob",
         "single_span_prob", "block_mask_prob", "context_mask_ratio", "non_sentence_start", "hidden_dropout",
         "attention_dropout", "bert_ratio", "one_token_prob"), float,
    ),
    **dict.fromkeys(("avg_block_length", "seq_length"), int),
    **dict.fromkeys(("no_shuffle_block", "random_position", "sample_one_document", "pack_samples"), bool),
}  # fmt: skip
PRETRAINING_KEY = "pretraining"
UNSET_TOKENIZER_PATH = "tokenizer.model"  # what a command line without --tokenizer-path records
TOKENIZER_KEY = "tokenizer"  # of a checkpoint's config.json: its fingerprint, and where its files were
# Prints the list of flags that a file of config_tasks/ defines.
READ_MODEL_FILE = 'set -eu; source "$1"; printf "%s\\0" "${MODEL_ARGS[@]}"'
# What a converted model's model.sh holds. MODEL_ARGS is a list of words, as in config_tasks/.
MODEL_FILE = """\
# A model converted from the Hugging Face layout. To be sourced, as the files of config_tasks/.
MODEL_FOLDER="$(CDPATH='' cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")" && pwd)"
MODEL_TYPE={name}
MODEL_ARGS=({flags}
    {places})
"""
# GLM-10B-Chinese was trained with [gMASK] at the id of the end of a piece; the hub's tokenizer has it at 50009, whose
# row becomes that one's. Its score is then the same, so generation must not choose it.
SHARED_ROW = (50009, 50007)


class HubTokenizer(NamedTuple):
    """A class of hf/tokenization_glm.py, and the flags of the same tokenizer here."""

    class_name: str
    vocabulary: str  # a key of ``data_utils.tokenizers.vocabularies.VOCABULARIES``, or ``sentencepiece``
    files: tuple[str, ...]
    tokenizer_type: str
    model_type: str | None = None
    task_masks: bool = True  # [gMASK] and [sMASK] beside [MASK]


HUB_TOKENIZERS = (
    HubTokenizer("GLMBertTokenizer", "bert", ("vocab.txt",), "BertWordPieceTokenizer", task_masks=False),
    HubTokenizer(
        "GLMRobertaTokenizer", "roberta", ("vocab.json", "merges.txt"), "GPT2BPETokenizer", "roberta", task_masks=False
    ),
    HubTokenizer("GLMGPT2Tokenizer", "gpt2", ("vocab.json", "merges.txt"), "GPT2BPETokenizer"),
    HubTokenizer("GLMChineseTokenizer", "chinese", ("cog-pretrain.model",), "ChineseSPTokenizer"),
    HubTokenizer("GLMSentencePieceTokenizer", "sentencepiece", ("tokenizer.model",), "SentencePieceTokenizer"),
)


@dataclass(frozen=True)
class TokenizerDescription:
    """The arguments of ``build_tokenizer``, and what the padded size of the vocabulary is a multiple of."""

    tokenizer_type: str
    model_type: str | None = None
    path: str | None = None
    block_symbols: bool = True
    task_mask: bool = False
    decoder_mask: bool = False
    num_sentinels: int = 0
    fix_command_token: bool = False
    vocab_dir: str | Path | None = None
    cache_dir: str | None = None
    vocab_divisor: int = 128

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``build_tokenizer``."""
        return {name: value for name, value in asdict(self).items() if name != "vocab_divisor"}

    @property
    def is_multilingual(self) -> bool:
        """Tell whether it is the SentencePiece file of a multilingual model, which ``model_type`` names."""
        return self.tokenizer_type == "ChineseSPTokenizer" and self.model_type not in (None, "glm-large", "glm-10b")

    @property
    def file_names(self) -> tuple[str, ...]:
        """Return how its vocabulary's files are called beside a checkpoint, in the order of ``Tokenizer.files``."""
        if self.is_multilingual:
            return (Path(self.model_type or "").name,)
        return self.hub_class().files

    def beside(self, folders: Sequence[Path]) -> TokenizerDescription:
        """Return it with its vocabulary from the first of ``folders`` that holds it; as it is where none does."""
        names = self.file_names
        if self.is_multilingual:  # the released archives have it in a folder of its own
            names = (*names, str(self.model_type))
        for folder in folders:
            found = [folder / name for name in names if (folder / name).is_file()]
            if found and (len(found) == len(names) or self.is_multilingual):
                return replace(self, path=str(found[0] if len(self.file_names) == 1 else folder))
        return self

    def hub_class(self) -> HubTokenizer:
        """Return its class of the Hugging Face layout; raise ValueError when the layout has none."""
        for kind in () if self.is_multilingual else HUB_TOKENIZERS:
            if kind.tokenizer_type == self.tokenizer_type and (self.model_type or "").startswith(kind.model_type or ""):
                return kind
        known = ", ".join(dict.fromkeys(kind.tokenizer_type for kind in HUB_TOKENIZERS))
        raise ValueError(
            f"--tokenizer-type {self.tokenizer_type} {self.model_type if self.is_multilingual else ''} has no class in "
            f"the Hugging Face layout (it has {known}); "
            "--no-tokenizer leaves it out"
        )


@dataclass(frozen=True)
class ModelDescription:
    """What a checkpoint does not say itself.

    Attributes:
        name: of the model.
        source: where this was found, for messages.
        sizes: the fields of ``GLMConfig`` that are known.
        tokenizer: None when none is described.
        block_positions: tokens of a piece count in the second row of positions.
        hub_fields: all fields of config.json of the Hugging Face layout; None for a description of another kind.
        fingerprint: of the tokenizer; None where it is not known.
        pretraining: those of ``PRETRAINING_OPTIONS`` that are known, by name.
    """

    name: str = "glm"
    source: str = "the command line"
    sizes: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: TokenizerDescription | None = None
    block_positions: bool = True
    hub_fields: Mapping[str, Any] | None = None
    fingerprint: str | None = None
    pretraining: Mapping[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """Return the options of the command line with which the programs build this model and its tokenizer, by name.

        Only those that the description knows; ``tokenizer_type`` is missing where it has no tokenizer.
        """
        names = ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "attention_scale")
        options = {name: self.sizes[name] for name in names if name in self.sizes}
        tokenizer, block_rows = self.tokenizer, self.sizes.get("block_position_encoding", True)
        block = block_rows if tokenizer is None or self.hub_fields is not None else tokenizer.block_symbols
        options |= {"block_lm": block, "masked_lm": not block_rows and (block or self.hub_fields is not None)}
        options |= {"transformer_xl": self.sizes.get("relative_encoding", False)}
        options |= {"no_block_position": not self.block_positions}
        if "vocab_size" in self.sizes:  # the rows of the table, whatever they were padded to
            options["make_vocab_size_divisible_by"] = self.sizes["vocab_size"]
        if tokenizer is not None:
            options.setdefault("make_vocab_size_divisible_by", tokenizer.vocab_divisor)
            options |= {
                "tokenizer_type": tokenizer.tokenizer_type,
                "tokenizer_model_type": tokenizer.model_type,
                "tokenizer_path": tokenizer.path or UNSET_TOKENIZER_PATH,
                "task_mask": tokenizer.task_mask,
                "sentinel_token": tokenizer.num_sentinels > 0,
                "fix_command_token": tokenizer.fix_command_token,
                "vocab_dir": tokenizer.vocab_dir,
                "cache_dir": tokenizer.cache_dir,
            }
        return options

    @property
    def shared_row(self) -> tuple[int, int] | None:
        """Return (row, row it becomes a copy of) where [gMASK] has the id of the end of a piece, else None."""
        kind = self.tokenizer
        if kind is None or kind.tokenizer_type != "ChineseSPTokenizer" or not kind.task_mask or kind.fix_command_token:
            return None
        if kind.is_multilingual or kind.model_type == "glm-large":
            return None
        return SHARED_ROW

    def config(self, vocab_size: int) -> GLMConfig:
        """Return the configuration; ``vocab_size`` is the tokenizer's padded size, where the description has none."""
        return GLMConfig(**{"vocab_size": vocab_size, **self.sizes})

    def config_of_weights(self, shapes: Mapping[str, tuple[int, ...]], *, file: Path) -> GLMConfig:
        """Return the configuration of a model whose whole parameters have these ``shapes``, by name.

        A config.json of the Hugging Face layout says all of it; else the sizes are those of the shapes. Raises
        ValueError, naming ``file``, when the described model has another hidden size, or nothing says the heads.
        """
        sizes = sizes_from_shapes(shapes, file=file)
        if self.hub_fields is not None:
            config = GLMConfig(**self.sizes)
            check_layers(config, shapes, file=file)
            return config
        if self.sizes.get("hidden_size", sizes["hidden_size"]) != sizes["hidden_size"]:
            raise ValueError(
                f"{file} has hidden size {sizes['hidden_size']}, {self.name} {self.sizes['hidden_size']}; "
                "name the model it is, or give --num-attention-heads"
            )
        # Shapes do not tell these two (the heads of relative models alone).
        sizes |= {name: self.sizes[name] for name in ("num_attention_heads", "attention_scale") if name in self.sizes}
        if "num_attention_heads" not in sizes:
            raise ValueError(f"{file} does not say its number of heads; give --num-attention-heads")
        return GLMConfig(**sizes)


# Where a description comes from


def describe_checkpoint(folder: Path) -> ModelDescription | None:
    """Return what lies beside the weights in ``folder`` or is known of its name; None when there is nothing.

    ``folder`` may be a single file of weights: then its name, and what lies in the folder it is in.
    Raises ValueError when what is found is damaged.
    """
    folder, folders = folder.resolve(), places_beside(folder)
    if (described := describe_beside(folder)) is not None:
        return described
    for file in (file for place in folders for file in _run_files(place)):
        if file.is_file():
            return of_run(file)
    for model in RELEASED_MODELS.values():
        if any(place.name.startswith(model.checkpoint_folder) for place in folders):
            return with_files_beside(of_released(model), folders)
    return None


def places_beside(path: Path) -> list[Path]:
    """Return the folders in which what describes the weights at ``path`` may lie: a run's newest checkpoint first.

    A checkpoint without a number lies in the run's folder itself.
    """
    path = path.resolve()
    tracker = next((path / name for name in TRACKERS if (path / name).is_file()), None)
    newest = [] if tracker is None else [path / read_text(tracker).strip()]
    return [*newest, path, path.parent]


def describe_beside(path: Path) -> ModelDescription | None:
    """Return what lies beside the weights at ``path`` (a run, a checkpoint or a file) says; None without anything.

    Raises ValueError when it is damaged.
    """
    for place in (folders := places_beside(path)):
        fields = read_fields(place)
        if fields is not None and fields.get("model_type") is not None:
            return of_hub_folder(place, fields)
        if fields is not None:
            return with_files_beside(of_run(place / CONFIG_FILE), folders)
    return None


def with_files_beside(description: ModelDescription, folders: Sequence[Path]) -> ModelDescription:
    """Return the description with the vocabulary that lies beside its weights, where there is one."""
    tokenizer = description.tokenizer
    if tokenizer is None or tokenizer.tokenizer_type not in (kind.tokenizer_type for kind in HUB_TOKENIZERS):
        return description
    return replace(description, tokenizer=tokenizer.beside(folders))


def copy_description(source: Path, target: Path) -> None:
    """Copy the files in a checkpoint's folder that say what model and what tokenizer it is into another folder."""
    for name in {*DESCRIPTION_FILES, *(file.name for file in source.glob("*.model"))}:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _run_files(root: Path) -> Iterator[Path]:
    """Yield where the run that saved into ``root`` may have left its settings: the working folder, and above."""
    for folder in (Path.cwd(), *root.parents):
        yield folder / "runs" / root.name / CONFIG_FILE


def describe_name(name: str) -> ModelDescription:
    """Return the description of a released model, or that in a file of config_tasks/ or a run's config.json.

    Raises ValueError for an unknown name or a file that cannot be read.
    """
    if name.endswith(".sh"):
        return of_model_file(Path(name))
    if name.endswith(".json"):
        return of_run(Path(name))
    model = RELEASED_NAMES.get(name.lower()) or RELEASED_MODELS.get(name)
    if model is None:
        raise ValueError(
            f"model {name!r} is unknown; name one of {', '.join(RELEASED_NAMES)}, or a file: "
            "config_tasks/model_*.sh, or runs/NAME/config.json of a training run"
        )
    return replace(of_released(model), name=name.lower())


def of_released(model: ReleasedModel) -> ModelDescription:
    """Return the description of a released model."""
    tokenizer = TokenizerDescription(
        model.tokenizer_type,
        model.tokenizer_model_type,
        task_mask=model.task_mask,
        fix_command_token=model.fix_command_token,
    )
    return ModelDescription(model.name.lower(), f"released model {model.name}", vars(model.config), tokenizer)


def of_run(file: Path) -> ModelDescription:
    """Return the description from a run's command line, as ``runs/NAME/config.json`` keeps it."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file; a training run leaves it in runs/NAME/{CONFIG_FILE}")
    values: dict[str, Any] = read_json(file)
    place = str(file)
    missing = [key for key in RUN_KEYS if key not in values]
    if missing:
        raise ValueError(f"{file} lacks {missing[0]!r}: it is not the config.json of a run")

    def flag(name: str, default: bool = False) -> bool:
        return value_of(values, name, bool, place=place, default=default)

    def text(name: str) -> str | None:
        return value_of(values, name, str, place=place, default=None)

    def number(name: str, default: float = 0.0) -> float:
        return value_of(values, name, float, place=place, default=default)

    kind, path = value_of(values, "tokenizer_type", str, place=place), text("tokenizer_path")
    if kind != "SentencePieceTokenizer" and path == UNSET_TOKENIZER_PATH:
        path = None
    block = flag("block_lm", True)
    sizes = {key: config_value(values, key, key, place=place) for key in RUN_KEYS if key != "tokenizer_type"}
    tokenizer = TokenizerDescription(
        kind,
        text("tokenizer_model_type"),
        path,
        block_symbols=block,
        task_mask=flag("task_mask"),
        decoder_mask=number("block_mask_prob") > 0 or number("context_mask_ratio") > 0,
        num_sentinels=sizes["max_position_embeddings"] if flag("sentinel_token") else 0,
        fix_command_token=flag("fix_command_token"),
        vocab_dir=text("vocab_dir"),
        cache_dir=text("cache_dir"),
        vocab_divisor=value_of(
            values, "make_vocab_size_divisible_by", int, place=place, default=128, at_least=1, at_most=1 << 20
        ),
    )
    sizes |= {
        "block_position_encoding": block and not flag("masked_lm"),
        "relative_encoding": flag("transformer_xl"),
        "attention_scale": number("attention_scale") or 1.0,
    }
    block_positions = not flag("no_block_position")
    folder = file.resolve().parent
    if (folder.parent / TRACKERS[0]).is_file():  # of one of a run's checkpoints, which are numbered
        folder = folder.parent
    identity = value_of(values, TOKENIZER_KEY, dict, place=place, default={})
    fingerprint = value_of(identity, "fingerprint", str, place=f"{place}, {TOKENIZER_KEY}", default=None)
    return ModelDescription(
        folder.name,
        place,
        sizes,
        tokenizer,
        block_positions,
        fingerprint=fingerprint,
        pretraining=pretraining_options(values, place=place) if not values.get("task") else {},
    )


def pretraining_options(values: Mapping[str, Any], *, place: str) -> dict[str, Any]:
    """Return those of ``PRETRAINING_OPTIONS`` that ``values`` hold; raise ValueError for one of another kind."""
    return {
        name: value_of(values, name, kind, place=place)
        for name, kind in PRETRAINING_OPTIONS.items()
        if values.get(name) is not None
    }


def of_hub_folder(folder: Path, fields: Mapping[str, Any]) -> ModelDescription:
    """Return the description of a folder of the Hugging Face layout, whose config.json has ``fields``."""
    config = config_from_fields(fields, file=folder / CONFIG_FILE)
    name = fields.get("_name_or_path") or folder.resolve().name
    sizes = vars(replace(config, prompt_length=None))  # a continuous prompt is no part of the language model
    place = f"{folder / CONFIG_FILE}, {PRETRAINING_KEY}"
    options = value_of(fields, PRETRAINING_KEY, dict, place=str(folder / CONFIG_FILE), default={})
    return ModelDescription(
        name,
        str(folder),
        sizes,
        tokenizer_of_folder(folder),
        hub_fields=fields,
        pretraining=pretraining_options(options, place=place),
    )


def tokenizer_of_folder(folder: Path) -> TokenizerDescription | None:
    """Return the tokenizer whose files are in a folder of the Hugging Face layout; None when there are none.

    Raises ValueError when it is not one of a GLM, or its vocabulary is missing.
    """
    file = folder / TOKENIZER_CONFIG
    if not file.is_file():
        return None
    content: dict[str, Any] = read_json(file)
    class_name = value_of(content, "tokenizer_class", str, place=str(file), default=None)
    kind = next((kind for kind in HUB_TOKENIZERS if kind.class_name in (class_name or "")), None)
    if kind is None:
        known = ", ".join(kind.class_name for kind in HUB_TOKENIZERS)
        raise ValueError(f"{file}: tokenizer_class {described(class_name)} is not one of a GLM ({known})")
    missing = [name for name in kind.files if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks the tokenizer's {missing[0]}; copy it into the folder")
    model_type = kind.model_type
    if kind.vocabulary == "bert":
        lower_case = value_of(content, "do_lower_case", bool, place=str(file), default=True)
        model_type = "bert-base-uncased" if lower_case else "bert-base-cased"
    return TokenizerDescription(
        kind.tokenizer_type,
        model_type,
        str(folder / kind.files[0] if kind.vocabulary == "sentencepiece" else folder),
        task_mask=kind.task_masks,
        fix_command_token=kind.vocabulary == "chinese",
    )


# Flags, and the files of config_tasks/ that hold them


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


def with_flags(description: ModelDescription, flags: argparse.Namespace) -> ModelDescription:
    """Return the description with what ``flags`` (of ``add_flags``) say in its place."""
    values = {
        "tokenizer_type": flags.tokenizer_type,
        "model_type": flags.tokenizer_model_type,
        "path": flags.tokenizer_path,
        "task_mask": flags.task_mask,
        "fix_command_token": flags.fix_command_token,
        "vocab_divisor": flags.make_vocab_size_divisible_by,
    }
    given = {key: value for key, value in values.items() if value is not None}
    tokenizer = description.tokenizer
    if flags.tokenizer_type is not None:
        tokenizer = TokenizerDescription(**given)
    elif given and tokenizer is not None:
        tokenizer = replace(tokenizer, **given)
    elif given:
        raise ValueError("--tokenizer-type is missing: the other flags of a tokenizer need it")
    sizes = dict(description.sizes)
    if flags.num_attention_heads is not None:  # of a model with sizes of its own
        sizes.pop("hidden_size", None)
        sizes["num_attention_heads"] = flags.num_attention_heads
    if flags.attention_scale is not None:
        sizes["attention_scale"] = flags.attention_scale
    return replace(description, sizes=sizes, tokenizer=tokenizer)


def of_model_file(file: Path) -> ModelDescription:
    """Return what the flags in a file of ``config_tasks/``, or in the model.sh of a converted model, say."""
    if not file.is_file():
        raise ValueError(f"{file}: no such model file; give one of config_tasks/model_*.sh")
    command = ["bash", "-c", READ_MODEL_FILE, "-", str(file.resolve())]
    run = subprocess.run(command, check=False, capture_output=True, text=True, encoding="utf-8")
    if run.returncode:
        reason = (run.stderr.strip() or "bash cannot read it").split("\n")[-1]
        raise ValueError(f"{file} defines no MODEL_ARGS: {reason}")
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    parser.add_argument("--hidden-size", type=int)
    words = run.stdout.split("\0")[:-1]
    if len(words) == 1:  # a file of the original: one text of words
        words = shlex.split(words[0])
    flags, _ = parser.parse_known_args(words)  # the file has flags of other programs as well
    if flags.tokenizer_type is None:
        flags.tokenizer_type = "BertWordPieceTokenizer"  # the default in training
    described = with_flags(ModelDescription(file.stem.removeprefix("model_"), str(file)), flags)
    hidden_size = {} if flags.hidden_size is None else {"hidden_size": flags.hidden_size}
    return replace(described, sizes={**described.sizes, **hidden_size})


def model_file(name: str, config: GLMConfig, tokenizer: TokenizerDescription | None) -> str:
    """Return the content of a model.sh: the flags with which the programs here build the model in its folder.

    The tokenizer's files are those of the Hugging Face layout, in the same folder.
    """
    words = ["--block-lm", "--cloze-eval"] if config.block_position_encoding else ["--cloze-eval", "--masked-lm"]
    words += ["--transformer-xl"] * config.relative_encoding
    for size in ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings"):
        words += [f"--{size.replace('_', '-')}", str(getattr(config, size))]
    if config.attention_scale != 1.0:
        words += ["--attention-scale", str(config.attention_scale)]
    lines, in_folder = [shlex.join(words)], ['--load-pretrained "$MODEL_FOLDER"']
    if tokenizer is not None:
        words = ["--tokenizer-type", tokenizer.tokenizer_type]
        words += ["--tokenizer-model-type", tokenizer.model_type] if tokenizer.model_type else []
        words += ["--task-mask"] * tokenizer.task_mask + ["--fix-command-token"] * tokenizer.fix_command_token
        files = tokenizer.hub_class().files
        lines.append(shlex.join(words))
        in_folder.insert(0, '--tokenizer-path "$MODEL_FOLDER' + (f'/{files[0]}"' if len(files) == 1 else '"'))
    flags, places = ("\n    ".join(part) for part in (lines, in_folder))
    return MODEL_FILE.format(name=shlex.quote(name), flags=flags, places=places)


# config.json of the Hugging Face layout


def read_fields(folder: Path) -> dict[str, Any] | None:
    """Return the fields of a folder's config.json, None when it has none; raise ValueError for a damaged one."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        return None
    warn_when_edited(file)
    fields: dict[str, Any] = read_json(file)
    for name, kind in (("model_type", str), ("_name_or_path", str), ("architectures", list), ("id2label", dict)):
        value_of(fields, name, kind, place=str(file), default=None)
    return fields


def is_classifier(fields: Mapping[str, Any] | None) -> bool:
    """Tell whether the fields of a config.json name the class with a classification head."""
    return CLASSIFIER_CLASS in ((fields or {}).get("architectures") or ())


def config_fields(config: GLMConfig, pool_token: str = "cls") -> dict[str, Any]:
    """Return the fields of config.json that describe ``config``: those of the published models."""
    fields = {field: getattr(config, name) for name, field in FIELD_NAMES.items()}
    # The published code needs the last two: whole logits instead of hidden states.
    return fields | {
        "pool_token": pool_token,
        "model_type": MODEL_TYPE,
        "parallel_output": True,
        "output_predict": True,
    }


def config_from_fields(fields: Mapping[str, Any], *, file: Path) -> GLMConfig:
    """Return the model that the fields of a config.json describe; ``file`` names it in messages.

    Raises ValueError when it is no GLM, or a field has no possible value.
    """
    kind = fields.get("model_type")
    missing = [name for name in SIZES if fields.get(FIELD_NAMES[name]) is None]
    known = kind in (MODEL_TYPE, PUBLISHED_MODEL_TYPE)
    if not known or missing:
        problem = f"lacks {missing[0]}" if known else f"has model_type {described(kind)}"
        raise ValueError(f"{file} describes another kind of model (it {problem}); give the folder of a GLM")
    values = {
        name: config_value(fields, field, name, place=str(file))
        for name, field in FIELD_NAMES.items()
        if fields.get(field) is not None
    }
    try:
        return GLMConfig(**values)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def config_value(fields: Mapping[str, Any], field: str, name: str, *, place: str, default: Any = REQUIRED) -> Any:
    """Return the value of the ``GLMConfig`` field ``name`` from ``field`` of a file that was read.

    Raises ValueError, which begins with ``place``, for a missing one, another kind, or a size beyond all models.
    """
    kind = KINDS[name]
    bounds = {"at_least": 1, "at_most": LARGEST[name]} if name in LARGEST else {}
    return value_of(fields, field, kind, place=place, default=default, **bounds)


def sizes_from_shapes(shapes: Mapping[str, tuple[int, ...]], *, file: Path) -> dict[str, Any]:
    """Return what the shapes of whole parameters tell of a ``GLMConfig``: all sizes but the number of heads.

    That is known of relative models alone. Raises ValueError when the parameters are no language model's.
    """
    layers = {int(match[1]) for name in shapes if (match := LAYER_NAME.match(name))}
    if WORD_TABLE not in shapes or not layers:
        prompt = all(name.startswith(PROMPT_PREFIX) for name in shapes)
        names = "a continuous prompt" if prompt else ", ".join(list(shapes)[:3])
        raise ValueError(
            f"{file} holds no whole GLM but {names} alone; name the model that belongs to it with --load-pretrained"
        )
    if len(shapes[WORD_TABLE]) != 2 or len(layers) != max(layers) + 1:
        raise ValueError(f"{file} holds no whole GLM: layers are missing or {WORD_TABLE} is no table; use another")
    vocab_size, hidden_size = shapes[WORD_TABLE]  # [v,h]
    sizes: dict[str, Any] = {
        "num_layers": max(layers) + 1,
        "hidden_size": hidden_size,
        "vocab_size": vocab_size,
        "block_position_encoding": BLOCK_POSITION_TABLE in shapes,
        "relative_encoding": "transformer.r_w_bias" in shapes,
    }
    if POSITION_TABLES[0] in shapes:
        sizes["max_position_embeddings"] = shapes[POSITION_TABLES[0]][0] - (BLOCK_POSITION_TABLE in shapes)
    if sizes["relative_encoding"]:
        sizes["num_attention_heads"] = shapes["transformer.r_w_bias"][0]
    return sizes


def check_layers(config: GLMConfig, shapes: Iterable[str], *, file: Path) -> None:
    """Raise ValueError when ``config`` has another number of layers than the parameters named in ``shapes``.

    To be asked before a model is built of it, which would take long.
    """
    layers = {int(match[1]) for name in shapes if (match := LAYER_NAME.match(name))}
    if layers and len(layers) != config.num_layers:
        raise ValueError(
            f"{file} is of another architecture than the model: it has {len(layers)} layers, the configuration "
            f"{config.num_layers}; check --num-layers (num_layers)"
        )
