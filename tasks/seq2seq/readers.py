"""Read the files of the sequence-to-sequence tasks. ``read_examples`` is the one way.

Lines are stripped. What is wrong with a file is said in one line with its name and line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.readers import read_text, standardize
from tasks.seq2seq import detokenizers
from tasks.seq2seq.blanks import BLANK, find_answers
from tasks.seq2seq.examples import SEQ2SEQ_TASKS, SPLITS, SQUAD_TASKS, Seq2SeqExample, Seq2SeqOptions
from tasks.seq2seq.readers_squad import read_questions, read_squad

if TYPE_CHECKING:
    from data_utils.tokenizers.tokenizer import Tokenizer

__all__ = ["SEQ2SEQ_TASKS", "SPLITS", "Seq2SeqExample", "read_examples"]

XSUM_SPLITS_FILE = "XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json"


def read_examples(
    task: str, data_dir: str | Path, split: str, *, tokenizer: Tokenizer, options: Seq2SeqOptions
) -> list[Seq2SeqExample]:
    """Return the examples of a split, in file order.

    Args:
        task: one of ``SEQ2SEQ_TASKS``.
        data_dir: the folder that holds the task's files.
        split: ``train``, ``dev`` or ``test``.
        tokenizer: references are what it makes of a text; it also cuts SQuAD's contexts into windows.
        options: of the run.

    Raises:
        ValueError: an unknown task or split; files that are missing, empty, malformed or do not fit together.
    """
    if task not in SEQ2SEQ_TASKS:
        raise ValueError(f"task {task!r} is no sequence-to-sequence task; choose one of {', '.join(SEQ2SEQ_TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"split {split!r}; choose one of {', '.join(SPLITS)}")
    folder = Path(data_dir)
    if task in SQUAD_TASKS:
        return read_squad(task, folder, split, tokenizer=tokenizer, options=options)
    if task in ("squad_generation", "cmrc"):
        return read_questions(task, folder, split, tokenizer=tokenizer, options=options)
    if task == "blank":
        return _read_blank(folder, split, options=options)
    if task == "extraction":
        return _read_extraction(folder, split)
    if task == "customization":
        return _read_customization(folder, split, options=options)
    pairs = _read_xsum(folder, split) if task == "xsum" else _read_summaries(task, folder, split)
    encoded = tokenizer.encode_batch([target for _, target in pairs])
    return [
        Seq2SeqExample(f"{split}-{index}", source, target, tokenizer.decode(ids))
        for index, ((source, target), ids) in enumerate(zip(pairs, encoded, strict=True))
    ]


def read_lines(path: Path) -> list[str]:
    """Return the stripped lines of a file. Raise ValueError when it is missing, empty or not UTF-8."""
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise ValueError(f"{path}: the file is empty; one text a line is needed")
    return [line.strip() for line in text.removesuffix("\n").split("\n")]


def read_line_pairs(source: Path, target: Path, *, shorter_decides: bool = False) -> list[tuple[str, str]]:
    """Return the lines of two files, paired. Raise ValueError when one has more lines than the other."""
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets) and not shorter_decides:
        first = min(len(sources), len(targets)) + 1
        raise ValueError(
            f"{source} has {len(sources)} lines, {target} has {len(targets)}: line {first} has no partner; the n-th "
            "line of one belongs to the n-th line of the other"
        )
    return list(zip(sources, targets, strict=False))


def _read_summaries(task: str, folder: Path, split: str) -> list[tuple[str, str]]:
    name = "val" if split == "dev" else split
    pairs = [
        (standardize(source), standardize(target))
        for source, target in read_line_pairs(folder / f"{name}.source", folder / f"{name}.target")
    ]
    if task == "gigaword":
        return [(detokenizers.gigaword(source), detokenizers.gigaword(target)) for source, target in pairs]
    if task == "cnn_dm":
        return [
            (detokenizers.cnn_dm(source, is_target=False), detokenizers.cnn_dm(target, is_target=True))
            for source, target in pairs
        ]
    return pairs


def _read_xsum(folder: Path, split: str) -> list[tuple[str, str]]:
    path = folder / XSUM_SPLITS_FILE
    try:
        splits: Any = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno})") from None
    name = {"dev": "validation"}.get(split, split)
    names = splits.get(name) if isinstance(splits, dict) else None
    if not isinstance(names, list) or not names:
        raise ValueError(f"{path}: no list of ids {name!r}; it needs train, validation and test")
    return [_read_summary_file(folder / f"{identity}.summary") for identity in names]


def _read_summary_file(path: Path) -> tuple[str, str]:
    """Return the body and the first sentence of an XSum file of sections opened by ``[SN]NAME[SN]``."""
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in read_lines(path):
        if len(line) > 8 and line.startswith("[SN]") and line.endswith("[SN]"):
            current = sections.setdefault(line[4:-4], [])
        elif line:
            current.append(line)
    missing = {"RESTBODY", "FIRST-SENTENCE"} - set(sections)
    if missing:
        raise ValueError(f"{path}: no section [SN]{min(missing)}[SN]; a summary file needs RESTBODY and FIRST-SENTENCE")
    return " ".join(sections["RESTBODY"]), " ".join(sections["FIRST-SENTENCE"])


def _read_blank(folder: Path, split: str, *, options: Seq2SeqOptions) -> list[Seq2SeqExample]:
    path = folder / f"{'valid' if split == 'dev' else split}.txt"
    if split != "test":
        texts = [detokenizers.blank_text(line) for line in read_lines(path)]
        for line, text in enumerate(texts, start=1):
            if BLANK in text:
                raise ValueError(f"{path}, line {line}: a blank in the text; blanks are drawn while training")
        return [Seq2SeqExample(f"{split}-{index}", text, text, text) for index, text in enumerate(texts)]
    blanks = folder / "blank" / f"test.maskratio{options.blank_mask_ratio:.1f}.blank"
    examples = []
    for index, pair in enumerate(read_line_pairs(blanks, path)):
        source, target = map(detokenizers.blank_text, pair)
        _require_blank(source, path=blanks, line=index + 1, written="<blank>")
        meta = {"blanks": find_answers(source, target)}
        examples.append(Seq2SeqExample(f"{split}-{index}", source, target, target, meta))
    return examples


def _read_extraction(folder: Path, split: str) -> list[Seq2SeqExample]:
    name = "valid" if split == "dev" else split
    path, targets = folder / f"{name}.source", folder / f"{name}.target"
    examples = []
    for index, (source, target) in enumerate(read_line_pairs(path, targets)):
        _require_blank(source, path=path, line=index + 1, written=BLANK)
        answers: Sequence[str] | None = tuple(target.split("|"))
        if len(answers) != source.count(BLANK):
            if split != "test":
                raise ValueError(
                    f"{targets}, line {index + 1}: {len(answers)} answers (separated by |) for {source.count(BLANK)} "
                    f"blanks in {path}"
                )
            answers = None
        examples.append(Seq2SeqExample(f"{split}-{index}", source, target, target, {"blanks": answers}))
    return examples


def _require_blank(source: str, *, path: Path, line: int, written: str) -> None:
    if BLANK not in source:
        raise ValueError(f"{path}, line {line}: no {written} to fill in {source[:60]!r}")


def _read_customization(folder: Path, split: str, *, options: Seq2SeqOptions) -> list[Seq2SeqExample]:
    name = "val" if split == "dev" else split
    pairs = read_line_pairs(folder / f"{name}.source", folder / f"{name}.target", shorter_decides=options.compatible)
    return [Seq2SeqExample(f"{split}-{index}", source, target, target) for index, (source, target) in enumerate(pairs)]
