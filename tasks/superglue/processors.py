"""The files of every task: SuperGLUE, GLUE, topics and stance, reading, CLUE, and any file of choices."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tasks.readers import Record, read_comma_separated, read_json_lines, read_tab_separated, read_text, standardize
from tasks.superglue.readers import (
    NO_FILES,
    DataProcessor,
    InputExample,
    TableProcessor,
    index_of,
    label_of,
    same_named_files,
    split_files,
)

CANDIDATES_PER_EXAMPLE = 9  # of WSC, in training
WRONG_CANDIDATES = 9  # of ReCoRD, beside the right one, in training
SHUFFLE_SEED = 42


class RteProcessor(DataProcessor):
    """premise, hypothesis, label, idx."""

    labels: tuple[str, ...] = ("entailment", "not_entailment")
    premise = "premise"
    hypothesis = "hypothesis"

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        index = index_of(record)
        yield InputExample(
            guid=f"{set_type}-{index}",
            text_a=standardize(record.text(self.premise)),
            text_b=standardize(record.text(self.hypothesis)),
            label=label_of(record),
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

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        label, index = label_of(record), record["idx"]
        yield InputExample(
            guid=f"{set_type}-{index}",
            text_a=standardize(record.text("passage")),
            text_b=standardize(record.text("question")),
            label=None if label is None else label.lower(),
            idx=index,
        )


class WicProcessor(DataProcessor):
    """sentence1, sentence2, word, label (true or false; missing means false), idx."""

    labels = ("false", "true")

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        index = index_of(record)
        yield InputExample(
            guid=f"{set_type}-{index}",
            text_a=standardize(record.text("sentence1")),
            text_b=standardize(record.text("sentence2")),
            label="true" if record.get("label") else "false",
            meta={"word": record.text("word")},
            idx=index,
            labelled=record.get("label") is not None,
        )


class CopaProcessor(DataProcessor):
    """premise, choice1, choice2, question (cause or effect), label (0 or 1), idx.

    Training examples come once more with their choices exchanged.
    """

    labels = (0, 1)

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        index = record["idx"]
        if record["question"] not in ("cause", "effect"):
            raise record.error(f"question is {record['question']!r}; it is cause or effect")
        yield InputExample(
            guid=f"{set_type}-{index}",
            text_a=record.text("premise"),
            label=record.get("label"),
            meta={"choice1": record.text("choice1"), "choice2": record.text("choice2"), "question": record["question"]},
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

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        passage_index, passage = record["idx"], record["passage"]
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


def locate_span(words: list[str], index: int, span: str) -> int:
    """Return where ``span`` stands among ``words``: at ``index``, or next to it; ``index`` where it does not."""
    span_words = span.lower().split()

    def stands_at(start: int) -> bool:
        return start >= 0 and [word.lower() for word in words[start : start + len(span_words)]] == span_words

    return next((start for start in (index, index - 1, index + 1) if stands_at(start)), index)


def locate_pronoun(words: list[str], index: int, pronoun: str) -> tuple[list[str], int] | None:
    """Return the words and where ``pronoun`` is one of them; None when it is not found.

    It stands at ``index`` or next to it. Where punctuation is glued to it, the word is divided.
    """
    if not 0 <= index < len(words):
        return None
    if words[index] != pronoun:
        if index > 0 and words[index - 1] == pronoun:
            index -= 1
        elif words[index + 1 : index + 2] == [pronoun]:
            index += 1
    word = words[index]
    if word != pronoun and word.startswith(pronoun):
        words = [*words[:index], pronoun, word[len(pronoun) :], *words[index + 1 :]]
    return (words, index) if words[index] == pronoun else None


class WscProcessor(DataProcessor):
    """text, target (two spans with the indices of their words), label (true or false), idx, candidates.

    The language model learns from spans that are right only; more than 9 candidates make several training examples.
    """

    labels = ("False", "True")

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        example, candidates = self.read(record, set_type)
        for_training = set_type == "train" or self.options.for_training
        if for_training and self.options.cloze_eval and example.label != "True":
            return
        if candidates is None:
            yield example
        elif set_type == "train" and len(candidates) > CANDIDATES_PER_EXAMPLE:
            for start in range(0, len(candidates), CANDIDATES_PER_EXAMPLE):
                some = candidates[start : start + CANDIDATES_PER_EXAMPLE]
                some += candidates[: CANDIDATES_PER_EXAMPLE - len(some)]
                yield replace(example, meta={**example.meta, "candidates": some})
        else:
            yield replace(example, meta={**example.meta, "candidates": candidates})

    def read(self, record: Record, set_type: str) -> tuple[InputExample, list[str] | None]:
        """Return a record's example and its candidates, None where the row has no such field."""
        target: dict[str, Any] = record["target"]
        words = standardize(record.text("text")).split()
        span, pronoun = target["span1_text"], target["span2_text"]
        span_index = locate_span(words, target["span1_index"], span)
        place = locate_pronoun(words, target["span2_index"], pronoun)
        if place is None:
            raise record.error(
                f"the pronoun {pronoun!r} is not word {target['span2_index']} of the text, nor next to it"
            )
        words, pronoun_index = place
        meta = {
            "span1_text": span,
            "span2_text": pronoun,
            "span1_index": span_index,
            "span2_index": pronoun_index,
        }
        label = record.get("label")
        index = record["idx"]
        example = InputExample(
            guid=f"{set_type}-{index}",
            text_a=" ".join(words),
            label=None if label is None else str(label),
            meta=meta,
            idx=index,
        )
        candidates = record.get("candidates")
        if candidates is None:
            return example, None
        return example, list(dict.fromkeys(candidate["text"] for candidate in candidates))


class WscPairProcessor(WscProcessor):
    """WSC as pairs of text and span (``wsc1``); every candidate of a right training example makes a wrong one."""

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        example, candidates = self.read(record, set_type)
        yield replace(example, text_b=example.meta["span1_text"])
        if set_type == "train" and example.label == "True":
            for candidate in candidates or ():
                yield replace(example, text_b=candidate, label="False")


class RecordProcessor(DataProcessor):
    """passage with entities, qas with query and answers: one example per question, in training one per answer."""

    labels = ("0", "1")
    few_files = split_files(test="val.jsonl")  # dev stays val.jsonl

    def converter(self, set_type: str) -> Callable[[Record], Iterable[InputExample]]:
        shuffler = random.Random(SHUFFLE_SEED)  # one for all rows of a file, in their order
        return partial(self.questions, set_type=set_type, shuffler=shuffler)

    def questions(self, record: Record, *, set_type: str, shuffler: random.Random) -> Iterable[InputExample]:
        """Yield the examples of a passage."""
        passage_index, passage = record["idx"], record["passage"]
        raw_text = passage["text"]
        entities = sorted({standardize(raw_text[e["start"] : e["end"] + 1]) for e in passage["entities"]})
        text = standardize(raw_text).replace("@highlight\n", "- ")
        for question in record["qas"]:
            answers = list(dict.fromkeys(standardize(answer["text"]) for answer in question.get("answers", ())))
            index, query = question["idx"], standardize(question["query"])
            guid = f"{set_type}-p{passage_index}-q{index}"
            place = {"passage_idx": passage_index, "question_idx": index}
            if set_type != "train" and not self.options.for_training:
                meta = {**place, "candidates": entities, "answers": answers}
                yield InputExample(guid, text, query, "1", meta, index, num_choices=len(entities))
                continue
            for number, answer in enumerate(answers):
                wrong = [entity for entity in entities if entity not in answers]
                if len(wrong) > WRONG_CANDIDATES:
                    shuffler.shuffle(wrong)
                    wrong = wrong[:WRONG_CANDIDATES]
                meta = {**place, "candidates": [answer, *wrong], "answers": [answer]}
                answer_index = [passage_index, index, number]
                answer_guid = f"{guid}-a{number}"
                yield InputExample(answer_guid, text, query, "0", meta, answer_index, num_choices=len(wrong) + 1)


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


class GlueProcessor(TableProcessor):
    """A tab-separated file for each split; classes are 0 and 1 unless it says otherwise."""

    labels: Sequence[str] = ("0", "1")
    files = same_named_files(".tsv")
    clean = staticmethod(standardize)


class Sst2Processor(GlueProcessor):
    """sentence, label."""

    text_a = "sentence"


class MrpcProcessor(GlueProcessor):
    """#1 String, #2 String, Quality."""

    text_a, text_b, label = "#1 String", "#2 String", "Quality"


class QqpProcessor(GlueProcessor):
    """question1, question2, is_duplicate."""

    text_a, text_b, label = "question1", "question2", "is_duplicate"


class QnliProcessor(GlueProcessor):
    """question, sentence, label."""

    labels = ("entailment", "not_entailment")
    text_a, text_b = "question", "sentence"


class ColaProcessor(DataProcessor):
    """Columns without names (1 label, 3 sentence); the test file has a header with ``sentence``."""

    labels = ("0", "1")
    files = same_named_files(".tsv")
    few_files = NO_FILES

    def records(self, path: Path) -> Iterable[Record]:
        return read_tab_separated(path, header=path.name == "test.tsv")

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        label, sentence = (None, record.text("sentence")) if set_type == "test" else (record[1], record[3])
        yield InputExample(f"{set_type}-{record.number}", standardize(sentence), label=label)


def plain_text(text: str) -> str:
    r"""Return ``text`` with blanks for line breaks written as \n and for backslashes."""
    return standardize(text.replace("\\n", " ").replace("\\", " "))


class TopicProcessor(DataProcessor):
    """Comma-separated values without header: the label and up to three texts. The test file serves as dev."""

    files = split_files(train="train.csv", dev="test.csv", unlabeled=("train.csv", "train"))
    few_files = NO_FILES

    def records(self, path: Path) -> Iterable[Record]:
        return read_comma_separated(path)

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        text_a, text_b = self.texts(record)
        yield InputExample(f"{set_type}-{record.number}", text_a, text_b, record[0])

    def texts(self, record: Record) -> tuple[str, str | None]:
        """Return the texts of a record."""
        return plain_text(record[1]), None


class AgnewsProcessor(TopicProcessor):
    """label, headline, body."""

    labels = ("1", "2", "3", "4")

    def texts(self, record: Record) -> tuple[str, str | None]:
        headline, body = (standardize(record[column].replace("\\", " ")) for column in (1, 2))
        return headline, body


class YahooProcessor(TopicProcessor):
    """label, title, body of the question, answer."""

    labels = tuple(str(number) for number in range(1, 11))

    def texts(self, record: Record) -> tuple[str, str | None]:
        return plain_text(f"{record[1]} {record[2]}"), plain_text(record[3])


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

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        if self.language is None or record["language"] == self.language:
            question, comment = standardize(record.text("question")), standardize(record.text("comment"))
            yield InputExample(record["id"], question, comment, record["label"])


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

    def records(self, path: Path) -> Iterator[Record]:
        files = [file for level in ("middle", "high") for file in sorted((path / level).glob("*.txt"))]
        if not files:
            raise ValueError(f"{path}: no files middle/*.txt or high/*.txt; --data-dir names the folder of RACE")
        for file in files:
            yield from read_json_lines(file)

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        text = clean_article(record.text("article"))
        questions, options, answers = record["questions"], record["options"], record["answers"]
        if not len(questions) == len(options) == len(answers):
            raise record.error(f"{len(questions)} questions, {len(options)} options and {len(answers)} answers")
        for number, (question, choices, answer) in enumerate(zip(questions, options, answers)):
            yield InputExample(
                guid=f"{set_type}-p{record['id']}-q{number}",
                text_a=text,
                text_b=question,
                label=answer,
                meta={"choices": choices},
                idx=[set_type, record["id"], number],
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

    def records(self, path: Path) -> Iterator[Record]:
        try:
            articles = json.loads(read_text(path))["data"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a file of SQuAD ({type(error).__name__}: {error})") from None
        paragraphs = (paragraph for article in articles for paragraph in article["paragraphs"])
        for number, paragraph in enumerate(paragraphs):
            yield Record(path, 1, number, paragraph)

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        for question in record["qas"]:
            answers = question["answers"]
            answer = answers[0] if answers else {"text": "N/A"}
            meta = {"answer": answer, "answers": answers}
            yield InputExample(question["id"], record.text("context"), question["question"], "0", meta)


class ClueProcessor(TableProcessor):
    """A file of JSON lines for each split; the texts are used as they are."""

    files = same_named_files(".json")
    read = staticmethod(read_json_lines)
    indexed = True


class AfqmcProcessor(ClueProcessor):
    """sentence1, sentence2, label."""

    labels = ("0", "1")
    text_a, text_b = "sentence1", "sentence2"


class TnewsProcessor(ClueProcessor):
    """sentence, keywords, label."""

    labels = ("100", "101", "102", "103", "104", "106", "107", "108", "109", "110", "112", "113", "114", "115", "116")
    text_a, text_b = "sentence", "keywords"


class CluewscProcessor(DataProcessor):
    """text, target (two spans with the indices of their characters), label, id or idx."""

    labels = ("false", "true")
    files = same_named_files(".json")
    few_files = NO_FILES

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        target = record["target"]
        index = record["idx"] if record.get("id") is None else record["id"]
        meta: dict[str, Any] = {}
        for span in ("span1", "span2"):
            text, start = target[f"{span}_text"], target[f"{span}_index"]
            meta |= {f"{span}_text": text, f"{span}_index": start, f"{span}_length": len(text)}
        yield InputExample(
            guid=f"{set_type}-{index}",
            text_a=record.text("text"),
            text_b=target["span1_index"],
            label=label_of(record),
            meta=meta,
            idx=index,
        )


class MultichoiceProcessor(DataProcessor):
    """inputs_pretokenized, choices_pretokenized, label (the right choice's number; it may be missing).

    A split is the path of a file; the folder of the task's data only helps to find it.
    """

    def examples(self, data_dir: str | Path | None, split: str) -> list[InputExample]:
        path = Path(split)
        if data_dir is not None and not path.exists():
            path = Path(data_dir) / split
        examples = [example for record in read_json_lines(path) for example in self.convert(record, "")]
        if not examples:
            raise ValueError(f"{path}: no questions in it; give JSON lines with inputs_pretokenized")
        return examples

    def has_split(self, split: str) -> bool:
        return True

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        text, choices = record.text("inputs_pretokenized"), record["choices_pretokenized"]
        if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
            raise record.error(f"choices_pretokenized is {choices!r}; it has to be a list of texts")
        label = record.get("label")
        if label is not None and label not in range(len(choices)):
            raise record.error(f"label {label!r}; there are {len(choices)} choices, counted from 0")
        number = str(record.number)
        meta = {"choices": choices, "source": f"{record.path}, line {record.line}"}
        yield InputExample(number, text, None, label, meta, number, num_choices=len(choices))
