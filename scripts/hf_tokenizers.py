"""The tokenizer files of an exported folder, made from a released vocabulary or from those of another folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_description import TokenizerChoice

from data_utils.tokenizers.tokenizer import build_tokenizer
from data_utils.tokenizers.vocabularies import VOCABULARIES, find_vocabulary
from model.hub.export import TokenizerFiles

TOKENIZER_CONFIG = "tokenizer_config.json"
SENTENCEPIECE_FILE = "tokenizer.model"


@dataclass(frozen=True)
class Family:
    """A tokenizer family: our names, and its class in tokenization_glm.py."""

    vocabulary: str  # a key of VOCABULARIES, or ``sentencepiece``
    tokenizer_type: str
    model_type: str | None
    class_name: str

    @property
    def files(self) -> tuple[str, ...]:
        """Return the names of the vocabulary's files in an exported folder."""
        return (SENTENCEPIECE_FILE,) if self.vocabulary == "sentencepiece" else VOCABULARIES[self.vocabulary].files


FAMILIES = (
    Family("bert", "BertWordPieceTokenizer", None, "GLMBertTokenizer"),
    Family("roberta", "GPT2BPETokenizer", "roberta", "GLMRobertaTokenizer"),
    Family("gpt2", "GPT2BPETokenizer", None, "GLMGPT2Tokenizer"),
    Family("chinese", "ChineseSPTokenizer", None, "GLMChineseTokenizer"),
    Family("sentencepiece", "SentencePieceTokenizer", None, "GLMSentencePieceTokenizer"),
)

WITHOUT_TASK_MASKS = ("bert", "roberta")


def family_of(choice: TokenizerChoice) -> Family:
    """Return the family of a tokenizer; raise ValueError for one that the layout has no class for."""
    for family in FAMILIES:
        if family.tokenizer_type == choice.tokenizer_type and (choice.model_type or "").startswith(
            family.model_type or ""
        ):
            return family
    known = ", ".join(dict.fromkeys(family.tokenizer_type for family in FAMILIES))
    raise ValueError(
        f"--tokenizer-type {choice.tokenizer_type} has no class in the Hugging Face layout (it has {known}); "
        "--no-tokenizer leaves it out"
    )


def choice_of_folder(folder: Path) -> TokenizerChoice | None:
    """Return the tokenizer whose files are in ``folder``; None when there are none.

    Raises ValueError with one line when the vocabulary of the named class is missing.
    """
    file = folder / TOKENIZER_CONFIG
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    family = next((f for f in FAMILIES if f.class_name in str(content.get("tokenizer_class"))), None)
    if family is None:
        raise ValueError(
            f"{file} names tokenizer_class {content.get('tokenizer_class')!r}, which is none of a GLM "
            f"({', '.join(f.class_name for f in FAMILIES)})"
        )
    lacking = [name for name in family.files if not (folder / name).is_file()]
    if lacking:
        raise ValueError(f"{folder} lacks the tokenizer's {lacking[0]}; copy it into the folder")
    model_type = family.model_type
    if family.vocabulary == "bert":
        model_type = "bert-base-uncased" if content.get("do_lower_case", True) else "bert-base-cased"
    path = folder / SENTENCEPIECE_FILE if family.vocabulary == "sentencepiece" else folder
    return TokenizerChoice(
        family.tokenizer_type, model_type, str(path), task_mask=family.vocabulary not in WITHOUT_TASK_MASKS,
        fix_command_token=family.vocabulary == "chinese",
    )  # fmt: skip


def vocabulary_argument(choice: TokenizerChoice | None) -> str | None:
    """Return what --tokenizer-path names inside a folder that holds the files of ``choice``: a file, or the folder."""
    if choice is None:
        return None
    files = family_of(choice).files
    return files[0] if len(files) == 1 else "."


def tokenizer_files(choice: TokenizerChoice, *, vocab_size: int, checkpoint: Path) -> TokenizerFiles:
    """Return the files of a tokenizer for the model of ``checkpoint``, whose vocabulary has ``vocab_size`` rows.

    Raises ValueError with one line when vocabulary files are missing or of another model.
    """
    family = family_of(choice)
    name = choice.model_type or ""
    cased = family.vocabulary == "bert" and ("-cased" in name or "chinese" in name)
    own = build_tokenizer(
        choice.tokenizer_type, model_type=choice.model_type, path=choice.path, task_mask=choice.task_mask,
        fix_command_token=choice.fix_command_token,
    )  # fmt: skip
    if family.vocabulary == "sentencepiece":
        files = [Path(choice.path or "")]
    else:
        variant = name if cased and choice.path is None else None
        files = find_vocabulary(family.vocabulary, path=choice.path, variant=variant)
    padded = own.padded_size(choice.vocab_divisor)
    if padded != vocab_size:
        raise ValueError(
            f"{checkpoint} has a vocabulary of {vocab_size}, the tokenizer {family.class_name} one of {padded}; "
            "choose the tokenizer it was trained with (--tokenizer-type, --tokenizer-model-type, "
            "--make-vocab-size-divisible-by)"
        )

    def write(folder: Path) -> None:
        _write(folder, files, family=family, lower_case=not cased)

    note = ""
    if choice.task_mask and family.vocabulary in WITHOUT_TASK_MASKS:
        note = f"{family.class_name} has [MASK] alone: texts with [gMASK] or [sMASK] are for the programs here"
    return TokenizerFiles(
        family.class_name,
        write,
        num_tokens=own.num_tokens,
        token_ids={"eos_token_id": own.command_id("eop"), "pad_token_id": own.command_id("pad")},
        note=note,
    )


def _write(folder: Path, files: Sequence[Path], *, family: Family, lower_case: bool) -> None:
    """Copy the vocabulary into ``folder`` and let the layout's own class write the rest."""
    try:
        from model.hf import tokenization_glm
    except ImportError as error:
        raise ValueError(
            "the tokenizer's files need the package transformers: pip install 'transformers>=4.40'; --no-tokenizer "
            "leaves them out"
        ) from error
    for file, name in zip(files, family.files, strict=True):
        shutil.copyfile(file, folder / name)
    settings: dict[str, Any] = {
        "tokenizer_class": family.class_name,
        "auto_map": {"AutoTokenizer": [f"tokenization_glm.{family.class_name}", None]},
    }
    if family.vocabulary == "bert":
        settings["do_lower_case"] = lower_case
    config = folder / TOKENIZER_CONFIG
    config.write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = getattr(tokenization_glm, family.class_name).from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    written = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(written | settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
