"""The files of SuperGLUE; WSC and ReCoRD have their own modules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tasks.examples import InputExample
from tasks.processors import NO_FILES, DataProcessor, index_of, label_of, split_files
from tasks.readers import Row, standardize


class RteProcessor(DataProcessor):
    """premise, hypothesis, label, idx."""

    labels = ("entailment", "not_entailment")
    premise = "premise"
    hypothesis = "hypothesis"

    def convert(self, row: Row, set_type: str) -> Iterable[InputExample]:
        index = index_of(row)
        yield InputExample(
            guid=f"{set_type}-{index}",
            text_a=standardize(row.text(self.premise)),
            text_b=standardize(row.text(self.hypothesis)),
            label=label_of(row),
            idx=index,
        )


class CbProcessor(RteProcessor):
    """As RTE, with three labels."""

    labels = ("entailment", "contradiction", "neutral")


class AxGenderProcessor(RteProcessor):
    """Winogender diagnostics: one file, with labels."""

    files = split_files(train="AX-g.jsonl", test="AX-g.jsonl")
    few_files = NO_FILES


class AxBroadProcessor(RteProcessor):
    """Broad-coverage diagnostics: one file, with labels."""

    files = split_files(train="AX-b.jsonl", test="AX-b.jsonl")
    few_files = NO_FILES
    premise = "sentence1"
    hypothesis = "sentence2"


class BoolqProcessor(DataProcessor):
    """passage, question, label (true or false), idx."""

    labels = ("false", "true")

    def convert(self, row: Row, set_type: str) -> Iterable[InputExample]:
        label, index = label_of(row), row["idx"]
        yield InputExample(
            guid=f"{set_type}-{index}",
            text_a=standardize(row.text("passage")),
            text_b=standardize(row.text("question")),
            label=None if label is None else label.lower(),
            idx=index,
        )


class WicProcessor(DataProcessor):
    """sentence1, sentence2, word, label (true or false; missing means false), idx."""

    labels = ("false", "true")

    def convert(self, row: Row, set_type: str) -> Iterable[InputExample]:
        index = index_of(row)
        yield InputExample(
            guid=f"{set_type}-{index}",
            text_a=standardize(row.text("sentence1")),
            text_b=standardize(row.text("sentence2")),
            label="true" if row.get("label") else "false",
            meta={"word": row.text("word")},
            idx=index,
            labelled=row.get("label") is not None,
        )


class CopaProcessor(DataProcessor):
    """premise, choice1, choice2, question (cause or effect), label (0 or 1), idx.

    Training examples come once more with their choices exchanged.
    """

    labels = (0, 1)

    def convert(self, row: Row, set_type: str) -> Iterable[InputExample]:
        index = row["idx"]
        if row["question"] not in ("cause", "effect"):
            raise row.error(f"question is {row['question']!r}; it is cause or effect")
        yield InputExample(
            guid=f"{set_type}-{index}",
            text_a=row.text("premise"),
            label=row.get("label"),
            meta={"choice1": row.text("choice1"), "choice2": row.text("choice2"), "question": row["question"]},
            idx=index,
        )

    def completed(self, examples: list[InputExample], set_type: str) -> list[InputExample]:
        if set_type not in ("train", "unlabeled"):
            return examples
        mirrored = []
        for example in examples:
            meta = {**example.meta, "choice1": example.meta["choice2"], "choice2": example.meta["choice1"]}
            label = 1 if example.label == 0 else 0
            mirrored.append(replace(example, guid=f"{example.guid}m", label=label, meta=meta, idx=-1))
        return examples + mirrored


class MultircProcessor(DataProcessor):
    """passage with questions, each with answers that are right or wrong: one example per answer."""

    labels = (0, 1)

    def convert(self, row: Row, set_type: str) -> Iterable[InputExample]:
        passage_index, passage = row["idx"], row["passage"]
        text = standardize(passage["text"])
        for question in passage["questions"]:
            question_index, asked = question["idx"], standardize(question["question"])
            for answer in question["answers"]:
                index = [passage_index, question_index, answer["idx"]]
                yield InputExample(
                    guid=f"{set_type}-p{index[0]}-q{index[1]}-a{index[2]}",
                    text_a=text,
                    text_b=asked,
                    label=answer.get("label"),
                    meta={
                        "passage_idx": passage_index,
                        "question_idx": question_index,
                        "answer_idx": answer["idx"],
                        "answer": standardize(answer["text"]),
                    },
                    idx=index,
                )
