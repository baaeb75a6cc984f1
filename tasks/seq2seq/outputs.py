"""The files of an evaluation: hypotheses, references, SQuAD's answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_utils.whole_files import write_whole
from tasks.seq2seq.answers import is_no_answer
from tasks.seq2seq.examples import SQUAD_TASKS, Seq2SeqExample


def write_outputs(
    task: str, predictions: Sequence[str], examples: Sequence[Seq2SeqExample], *, folder: Path, split: str
) -> list[Path]:
    """Write the files of a split into ``folder``, named ``<split>.jsonl...``, and return their paths.

    ``predictions`` and ``examples`` are in the order of the data set.
    """
    paths = []
    for name, text in output_texts(task, predictions, examples, split=split).items():
        write_whole(folder / name, text)
        paths.append(folder / name)
    return paths


def output_texts(
    task: str, predictions: Sequence[str], examples: Sequence[Seq2SeqExample], *, split: str
) -> dict[str, str]:
    """Return the content of each file by name."""
    assert len(predictions) == len(examples), (len(predictions), len(examples))
    base = f"{split}.jsonl"
    if task in SQUAD_TASKS:
        lines = [
            json.dumps({"id": example.meta["idx"], "pred": prediction, "gold": list(example.meta["answers"])})
            for prediction, example in zip(predictions, examples)
        ]
        return {base: json.dumps(squad_answers(predictions, examples)), f"{base}.refs": _lines(lines)}
    texts = {
        f"{base}.hyps": _lines(map(one_line, predictions)),
        f"{base}.refs": _lines(one_line(example.reference) for example in examples),
    }
    if task == "squad_generation":
        sources = (f"{example.source} Answer: {example.meta['answer']}" for example in examples)
        texts[f"{base}.source"] = _lines(map(one_line, sources))
    return texts


def squad_answers(predictions: Sequence[str], examples: Sequence[Seq2SeqExample]) -> Mapping[str, str]:
    """Return the answer to each question: of its windows' predictions the first that is one, else an empty text."""
    answers: dict[str, str] = {}
    for prediction, example in zip(predictions, examples, strict=True):
        question = example.meta["idx"]
        answers[question] = answers.get(question) or ("" if is_no_answer(prediction) else prediction)
    return answers


def one_line(text: str) -> str:
    """Return ``text`` with a blank for every end of line, so that it stays one line of its file."""
    return text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
