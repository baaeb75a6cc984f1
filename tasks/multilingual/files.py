"""The files of a multilingual task, one per language, in sorted order: their names say the language.

Folders are those of XTREME's download; what is missing is said with the places that were looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tasks.readers import MissingFileError

# Languages that files spell out; everything else is named by its code (XTREME, XNLI, MLQA ...).
LANGUAGE_CODES = {
    "arabic": "ar", "bengali": "bn", "chinese": "zh", "chinese_simplified": "zh", "chinese_traditional": "zh_hant",
    "czech": "cs", "dutch": "nl", "english": "en", "finnish": "fi", "french": "fr", "german": "de", "hindi": "hi",
    "indonesian": "id", "italian": "it", "japanese": "ja", "korean": "ko", "portuguese": "pt", "russian": "ru",
    "spanish": "es", "swahili": "sw", "telugu": "te", "thai": "th", "turkish": "tr", "vietnamese": "vi",
}  # fmt: skip
# The parts of a file's name that may be a language: test-de.txt, xquad.de.json, test-context-zh-question-en.json ...
_PARTS = re.compile(r"[-.]")


def language_code(name: str) -> str:
    """Return the code of a language that is spelled out; every other name as it is, in lower case."""
    return LANGUAGE_CODES.get(name.lower(), name.lower())


def language_of(path: Path) -> str:
    """Return the language that a file's name, or else that of its folder (``x-final/de/test_2k.tsv``), ends in.

    MLQA's names say two: that of the context where both are the same, else both (``zh-en``: context, question).
    """
    match = re.fullmatch(r".*-context-([a-z]+)-question-([a-z]+)", path.stem)
    if match:
        context, question = match.groups()
        return context if context == question else f"{context}-{question}"
    parts = [part for part in _PARTS.split(path.stem) if part not in ("train", "dev", "test")]
    name = parts[-1] if len(parts) > 1 or len(_PARTS.split(path.stem)) > 1 else path.parent.name
    return language_code(name)


def find_folder(data_dir: Path, names: Sequence[str]) -> Path | None:
    """Return the first of the folders, named from ``data_dir`` on, that exists."""
    return next((data_dir / name for name in names if (data_dir / name).is_dir()), None)


def language_files(
    data_dir: Path, patterns: Sequence[str], *, languages: Sequence[str] = (), only: str | None = None
) -> list[tuple[Path, str]]:
    """Return the files that the first pattern with any matches, sorted, each with its language.

    Args:
        data_dir: the folder that patterns start at.
        patterns: globs, the preferred one first.
        languages: those that are wanted; every one of them needs a file. None wants what there is.
        only: the one language that is wanted.

    Raises:
        MissingFileError: no file at all.
        ValueError: none for a language that was asked for.
    """
    wanted = [language_code(name) for name in ([only] if only else languages)]
    for pattern in patterns:
        found = [(path, language_of(path)) for path in sorted(data_dir.glob(pattern)) if path.is_file()]
        if not found:
            continue
        known = {code for _, language in found for code in language.split("-")}
        if missing := [code for code in wanted if code not in known]:
            raise ValueError(
                f"{data_dir / pattern}: no file of the language {missing[0]}; there are files of "
                f"{', '.join(sorted({language for _, language in found}))} (--languages)"
            )
        return [(path, one) for path, one in found if not wanted or set(one.split("-")) <= {*wanted}]
    looked = " or ".join(str(data_dir / pattern) for pattern in patterns)
    raise MissingFileError(f"{looked}: no such file; --data-dir names the folder that holds it")
