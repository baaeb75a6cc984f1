"""The texts that predicted ids stand for, and the files of an evaluation: hypotheses, references, SQuAD's answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_utils.tokenizers.tokenizer import Tokenizer
from files.writing import write_whole
from tasks.seq2seq.detokenizers import clean_answer
from tasks.seq2seq.readers import NO_ANSWER, Seq2SeqExample
from tasks.seq2seq.samples import find_ids
from tasks.settings import SQUAD_TASKS


def is_no_answer(text: str) -> bool:
    """Tell whether a prediction says that there is no answer; case and blanks do not matter."""
    return "".join(text.split()).lower() == NO_ANSWER.lower()


def recover_answer(ids: Sequence[int], meta: Mapping[str, Any], *, tokenizer: Tokenizer) -> str:
    """Return the answer that predicted ``ids`` (without eop and padding) stand for.

    The words of the context as they are written there when the ids stand in it; else the decoded text, cleaned up.
    ``meta`` is the example's: ``context``, ``context_ids`` and ``context_offsets``. Only BERT's vocabulary loses the
    writing; with others the decoded text is the answer.
    """
    decoded = tokenizer.decode(ids)
    if tokenizer.family != "bert" or is_no_answer(decoded):
        return decoded
    answer, context, offsets = tuple(ids), tuple(meta["context_ids"]), meta["context_offsets"]
    place = find_ids(answer, context) if offsets is not None and answer else None
    if place is None:
        return clean_answer(decoded)
    return meta["context"][offsets[place][0] : offsets[place + len(answer) - 1][1]]


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
            json.dumps(
                {"id": example.meta["idx"], "pred": prediction, "gold": list(example.meta["answers"])}
                | ({"language": example.language} if example.language else {})
            )
            for prediction, example in zip(predictions, examples)
        ]
        return {**_answer_files(predictions, examples, split=split), f"{base}.refs": _lines(lines)}
    texts = {
        f"{base}.hyps": _lines(map(one_line, predictions)),
        f"{base}.refs": _lines(one_line(example.reference) for example in examples),
    }
    if task == "squad_generation":
        sources = (f"{example.source} Answer: {example.meta['answer']}" for example in examples)
        texts[f"{base}.source"] = _lines(map(one_line, sources))
    return texts


def _answer_files(predictions: Sequence[str], examples: Sequence[Seq2SeqExample], *, split: str) -> dict[str, str]:
    """Return the object of answers, or one per language, whose questions may have the same ids, by file name."""
    files: dict[str, str] = {}
    for language in dict.fromkeys(example.language for example in examples):
        chosen = [pair for pair in zip(predictions, examples, strict=True) if pair[1].language == language]
        name = f"{split}.{language}.jsonl" if language else f"{split}.jsonl"
        files[name] = json.dumps(squad_answers(*zip(*chosen)))
    return files


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
