"""The files of GLUE, topic, stance and reading tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tasks.examples import InputExample
from tasks.processors import NO_FILES, DataProcessor, TableProcessor, same_named_files, split_files
from tasks.readers import Row, read_comma_separated, read_json_lines, read_tab_separated, read_text, standardize


class MnliProcessor(TableProcessor):
    """sentence1, sentence2, gold_label."""

    labels = ("contradiction", "entailment", "neutral")
    files = split_files(
        train="train.tsv",
        dev=("dev_matched.tsv", "dev_matched"),
        test=("test_matched.tsv", "test_matched"),
        unlabeled=("train.tsv", "train"),
    )
    text_a, text_b, label = "sentence1", "sentence2", "gold_label"
    clean = staticmethod(standardize)


class MnliMismatchedProcessor(MnliProcessor):
    """MNLI evaluated on other genres than those of the training set."""

    files = split_files(
        train="train.tsv",
        dev=("dev_mismatched.tsv", "dev_mismatched"),
        test=("test_mismatched.tsv", "test_mismatched"),
        unlabeled=("train.tsv", "train"),
    )


class Sst2Processor(TableProcessor):
    """sentence, label."""

    labels = ("0", "1")
    files = same_named_files(".tsv")
    text_a = "sentence"
    clean = staticmethod(standardize)


class MrpcProcessor(TableProcessor):
    """#1 String, #2 String, Quality."""

    labels = ("0", "1")
    files = same_named_files(".tsv")
    text_a, text_b, label = "#1 String", "#2 String", "Quality"
    clean = staticmethod(standardize)


class QqpProcessor(TableProcessor):
    """question1, question2, is_duplicate."""

    labels = ("0", "1")
    files = same_named_files(".tsv")
    text_a, text_b, label = "question1", "question2", "is_duplicate"
    clean = staticmethod(standardize)


class QnliProcessor(TableProcessor):
    """question, sentence, label."""

    labels = ("entailment", "not_entailment")
    files = same_named_files(".tsv")
    text_a, text_b = "question", "sentence"
    clean = staticmethod(standardize)


class ColaProcessor(DataProcessor):
    """Columns without names (1 label, 3 sentence); the test file has a header with ``sentence``."""

    labels = ("0", "1")
    files = same_named_files(".tsv")
    few_files = NO_FILES

    def rows(self, path: Path) -> Iterable[Row]:
        return read_tab_separated(path, header=path.name == "test.tsv")

    def convert(self, row: Row, set_type: str) -> Iterable[InputExample]:
        label, sentence = (None, row.text("sentence")) if set_type == "test" else (row[1], row[3])
        yield InputExample(f"{set_type}-{row.number}", standardize(sentence), label=label)


def plain_text(text: str) -> str:
    r"""Return ``text`` with blanks for line breaks written as \n and for backslashes."""
    return standardize(text.replace("\\n", " ").replace("\\", " "))


class TopicProcessor(DataProcessor):
    """Comma-separated values without header: the label and up to three texts. The test file serves as dev."""

    files = split_files(train="train.csv", dev="test.csv", unlabeled=("train.csv", "train"))
    few_files = NO_FILES

    def rows(self, path: Path) -> Iterable[Row]:
        return read_comma_separated(path)

    def convert(self, row: Row, set_type: str) -> Iterable[InputExample]:
        text_a, text_b = self.texts(row)
        yield InputExample(f"{set_type}-{row.number}", text_a, text_b, row[0])

    def texts(self, row: Row) -> tuple[str, str | None]:
        """Return the texts of a row."""
        return plain_text(row[1]), None


class AgnewsProcessor(TopicProcessor):
    """label, headline, body."""

    labels = ("1", "2", "3", "4")

    def texts(self, row: Row) -> tuple[str, str | None]:
        headline, body = (standardize(row[column].replace("\\", " ")) for column in (1, 2))
        return headline, body


class YahooProcessor(TopicProcessor):
    """label, title, body of the question, answer."""

    labels = tuple(str(number) for number in range(1, 11))

    def texts(self, row: Row) -> tuple[str, str | None]:
        return plain_text(f"{row[1]} {row[2]}"), plain_text(row[3])


class YelpPolarityProcessor(TopicProcessor):
    """label, review."""

    labels = ("1", "2")


class YelpFullProcessor(TopicProcessor):
    """label, review."""

    labels = ("1", "2", "3", "4", "5")


class XstanceProcessor(DataProcessor):
    """id, question, comment, language, label. The test file serves as dev."""

    labels = ("FAVOR", "AGAINST")
    files = split_files(train="train.jsonl", dev="test.jsonl", unlabeled=("train.jsonl", "train"))
    few_files = NO_FILES
    language: str | None = None

    def convert(self, row: Row, set_type: str) -> Iterable[InputExample]:
        if self.language is None or row["language"] == self.language:
            question, comment = standardize(row.text("question")), standardize(row.text("comment"))
            yield InputExample(row["id"], question, comment, row["label"])


class XstanceGermanProcessor(XstanceProcessor):
    """Comments in German only."""

    language = "de"


class XstanceFrenchProcessor(XstanceProcessor):
    """Comments in French only."""

    language = "fr"


class RaceProcessor(DataProcessor):
    """Folders of a split with ``middle`` and ``high``, whose files hold articles with questions and options."""

    labels = ("A", "B", "C", "D")
    files = same_named_files("")
    few_files = NO_FILES

    def rows(self, path: Path) -> Iterator[Row]:
        found = [file for level in ("middle", "high") for file in sorted((path / level).glob("*.txt"))]
        if not found:
            raise ValueError(f"{path}: no files middle/*.txt or high/*.txt; --data-dir names the folder of RACE")
        for file in found:
            yield from read_json_lines(file)

    def convert(self, row: Row, set_type: str) -> Iterable[InputExample]:
        text = clean_article(row.text("article"))
        questions, options, answers = row["questions"], row["options"], row["answers"]
        if not len(questions) == len(options) == len(answers):
            raise row.error(f"{len(questions)} questions, {len(options)} options and {len(answers)} answers")
        for number, (question, choices, answer) in enumerate(zip(questions, options, answers)):
            yield InputExample(
                guid=f"{set_type}-p{row['id']}-q{number}",
                text_a=text,
                text_b=question,
                label=answer,
                meta={"choices": choices},
                idx=[set_type, row["id"], number],
            )


def clean_article(text: str) -> str:
    """Return an article in one line, without blanks in front of full stops."""
    text = re.sub(r"\s+", " ", text)
    for _ in range(3):
        text = text.replace(" . ", ". ")
    return text


class SquadProcessor(DataProcessor):
    """SQuAD 2.0; one label, for the task is to find a text."""

    labels = ("0",)
    files = split_files(train="train-v2.0.json", dev="dev-v2.0.json", test=None, unlabeled=None)
    few_files = NO_FILES

    def rows(self, path: Path) -> Iterator[Row]:
        try:
            articles = json.loads(read_text(path))["data"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a file of SQuAD ({type(error).__name__}: {error})") from None
        paragraphs = (paragraph for article in articles for paragraph in article["paragraphs"])
        for number, paragraph in enumerate(paragraphs):
            yield Row(path, 1, number, paragraph)

    def convert(self, row: Row, set_type: str) -> Iterable[InputExample]:
        for question in row["qas"]:
            answers = question["answers"]
            answer = answers[0] if answers else {"text": "N/A"}
            meta = {"answer": answer, "answers": answers}
            yield InputExample(question["id"], row.text("context"), question["question"], "0", meta)
