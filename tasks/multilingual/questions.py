"""XQuAD, MLQA and TyDiQA-GoldP: questions about texts in several languages, in SQuAD's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_utils.tokenizers.tokenizer import Tokenizer
from tasks.multilingual.files import find_folder, language_files
from tasks.readers import MissingFileError
from tasks.seq2seq.readers import Seq2SeqExample, Seq2SeqOptions, squad_windows

SQUAD_FOLDERS = ("squad", ".", "../squad", "mlqa/squad")


@dataclass(frozen=True)
class QuestionFiles:
    """Where the files of a task are.

    Attributes:
        training: SQuAD's training file; empty for a task with a training set of its own.
        folders: candidates for the folder of the other files, from ``--data-dir`` on, the download's layout first.
        patterns: of each split, below that folder.
        answered_only: training leaves out the windows without the answer.
    """

    folders: Sequence[str]
    patterns: Mapping[str, str]
    training: str = ""
    answered_only: bool = False


_XQUAD = {"folders": ("xquad", ".", "../xquad"), "patterns": {"dev": "xquad.*.json", "test": "xquad.*.json"}}
QUESTION_FILES: Mapping[str, QuestionFiles] = {
    "xquad": QuestionFiles(**_XQUAD, training="train-v1.1.json", answered_only=True),  # type: ignore[arg-type]
    "xquad_v2": QuestionFiles(**_XQUAD, training="train-v2.0.json"),  # type: ignore[arg-type]
    "mlqa": QuestionFiles(
        ("mlqa/MLQA_V1", "MLQA_V1", "../mlqa/MLQA_V1"),
        {"dev": "dev/dev-context-*.json", "test": "test/test-context-*.json"},
        training="train-v1.1.json",
        answered_only=True,
    ),
    "tydiqa": QuestionFiles(
        ("tydiqa", ".", "../tydiqa"),
        {
            "train": "tydiqa-goldp-v1.1-train/tydiqa.goldp.*.train.json",
            "dev": "tydiqa-goldp-v1.1-dev/tydiqa*dev*.json",
            "test": "tydiqa-goldp-v1.1-dev/tydiqa*dev*.json",
        },
    ),
}  # fmt: skip


def read_questions(
    task: str, data_dir: Path, split: str, *, tokenizer: Tokenizer, options: Seq2SeqOptions
) -> list[Seq2SeqExample]:
    """Return the windows of all questions of a split, in the order of file names.

    Training is in English. Every question is evaluated in all of its windows; ``legacy_qa_eval`` leaves out those
    without the answer. Raises MissingFileError that names the places where files were looked for.
    """
    entry = QUESTION_FILES[task]
    training = split == "train"
    if training and entry.training:
        files = [(_training_file(entry.training, data_dir, options), "en")]
    else:
        pattern = entry.patterns[split]
        folders = [name for name in entry.folders if any((data_dir / name).glob(pattern))]
        folder = find_folder(data_dir, folders) or data_dir / entry.folders[0]
        files = language_files(
            folder, [pattern], languages=() if training else options.languages, only="en" if training else None
        )
    needs_answer = entry.answered_only and (training or options.legacy_qa_eval)
    return squad_windows(files, split, needs_answer=needs_answer, tokenizer=tokenizer, options=options)


def _training_file(name: str, data_dir: Path, options: Seq2SeqOptions) -> Path:
    if options.squad_dir is not None:
        return Path(options.squad_dir) / name
    places = [data_dir / folder / name for folder in SQUAD_FOLDERS]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise MissingFileError(
            f"{places[0]}: no such file, nor {places[1]} nor {places[2]}; --squad-dir names the folder of {name}"
        )
    return found
