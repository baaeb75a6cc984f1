"""The files of every task: SuperGLUE, GLUE, topics and stance, reading, CLUE, and any file of choices."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from files.reading import described
from tasks.readers import (
    Record,
    check_offset,
    read_comma_separated,
    read_document,
    read_json_lines,
    read_tab_separated,
    standardize,
)
from tasks.superglue.readers import (
    NO_FILES,
    DataProcessor,
    InputExample,
    TableProcessor,
    same_named_files,
    split_files,
)

logger = logging.getLogger("glm")

CANDIDATES_PER_EXAMPLE = 9  # of WSC, in training
WRONG_CANDIDATES = 9  # of ReCoRD, beside the right one, in training
SHUFFLE_SEED = 42


class RteProcessor(DataProcessor):
    """premise, hypothesis, label, idx."""

    labels: tuple[str, ...] = ("entailment", "not_entailment")
    premise = "premise"
    hypothesis = "hypothesis"

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        index = self.index(record, numeric=True)
        yield InputExample(
            guid=f"{set_type}-{index}",
            text_a=standardize(record.text(self.premise)),
            text_b=standardize(record.text(self.hypothesis)),
            label=self.label(record),
            idx=index,
        )


class CbProcessor(RteProcessor):
    """As RTE, with three labels."""

    labels = ("entailment", "contradiction", "neutral")


class AxGenderProcessor(RteProcessor):
    """Winogender diagnostics: one file, with labels. Neighbours are pairs, of which both count or none."""

    files = split_files(train="AX-g.jsonl", test="AX-g.jsonl")
    few_files = NO_FILES

    def completed(self, examples: list[InputExample], set_type: str) -> list[InputExample]:
        pairs = [examples[start : start + 2] for start in range(0, len(examples), 2)]
        return [
            replace(one, label=None) if any(example.label is None for example in pair) else one
            for pair in pairs
            for one in pair
        ]


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
        index = self.index(record)
        yield InputExample(
            guid=f"{set_type}-{index}",
            text_a=standardize(record.text("passage")),
            text_b=standardize(record.text("question")),
            label=self.label(record),
            idx=index,
        )


class WicProcessor(DataProcessor):
    """sentence1, sentence2, word, label (true or false), idx."""

    labels = ("false", "true")

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        index = self.index(record, numeric=True)
        yield InputExample(
            guid=f"{set_type}-{index}",
            text_a=standardize(record.text("sentence1")),
            text_b=standardize(record.text("sentence2")),
            label=self.label(record),
            meta={"word": record.text("word")},
            idx=index,
        )


class CopaProcessor(DataProcessor):
    """premise, choice1, choice2, question (cause or effect), label (0 or 1), idx.

    Training examples come once more with their choices exchanged.
    """

    labels = (0, 1)

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        index = self.index(record)
        if record["question"] not in ("cause", "effect"):
            raise record.error(f"question is {described(record['question'])}; it is cause or effect")
        yield InputExample(
            guid=f"{set_type}-{index}",
            text_a=record.text("premise"),
            label=self.label(record),
            meta={"choice1": record.text("choice1"), "choice2": record.text("choice2"), "question": record["question"]},
            idx=index,
        )

    def completed(self, examples: list[InputExample], set_type: str) -> list[InputExample]:
        if set_type not in ("train", "unlabeled"):
            return examples
        mirrored = []
        for example in examples:
            meta = {**example.meta, "choice1": example.meta["choice2"], "choice2": example.meta["choice1"]}
            label = None if example.label is None else 1 - example.label
            mirrored.append(replace(example, guid=f"{example.guid}m", label=label, meta=meta, idx=-1))
        return examples + mirrored


class MultircProcessor(DataProcessor):
    """passage with questions, each with answers that are right or wrong: one example per answer."""

    labels = (0, 1)

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        passage, passage_index = record.row("passage"), self.index(record)
        text = standardize(passage.text("text"))
        for question in passage.rows("questions"):
            asked = standardize(question.text("question"))
            question_index = self.identities.unique(question.get("idx"), question, among=(passage_index,))
            group = (record.number, question.number)
            for answer in question.rows("answers"):
                answer_index = self.identities.unique(answer.get("idx"), answer, among=group)
                yield InputExample(
                    guid=f"{set_type}-p{passage_index}-q{question_index}-a{answer_index}",
                    text_a=text,
                    text_b=asked,
                    label=self.label(answer),
                    meta={
                        "passage_idx": passage_index,
                        "question_idx": question_index,
                        "answer_idx": answer_index,
                        "answer": standardize(answer.text("text")),
                    },
                    idx=[passage_index, question_index, answer_index],
                    group=group,
                )


def locate_span(words: list[str], index: int, span: str) -> int:
    """Return where ``span`` stands among ``words``: at ``index``, or next to it; ``index`` where it does not."""
    span_words = span.lower().split()

    def stands_at(start: int) -> bool:
        return start >= 0 and [word.lower() for word in words[start : start + len(span_words)]] == span_words

    return next((start for start in (index, index - 1, index + 1) if stands_at(start)), index)


def stands_near(words: list[str], index: int, span: str) -> bool:
    """Tell whether ``span`` begins at word ``index`` or next to it, whatever punctuation is glued to its words."""
    letters = "".join(filter(str.isalnum, span.lower()))
    starts = range(max(0, index - 1), min(index + 2, len(words)))
    return any("".join(filter(str.isalnum, " ".join(words[start:]).lower())).startswith(letters) for start in starts)


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
        if for_training and self.options.cloze_eval and example.label == "False":
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
        target = record.row("target")
        words = standardize(record.text("text")).split()
        span, pronoun = target.text("span1_text"), target.text("span2_text")
        label, index = self.label(record), self.index(record)
        span_index = target.value("span1_index", int)
        if label is not None and not stands_near(words, span_index, span):
            raise target.error(f"the span {described(span)} is not word {span_index} of the text, nor next to it")
        span_index = locate_span(words, span_index, span)
        place = locate_pronoun(words, target.value("span2_index", int), pronoun)
        if place is None:
            raise target.error(
                f"the pronoun {described(pronoun)} is not word {target['span2_index']} of the text, nor next to it"
            )
        words, pronoun_index = place
        meta = {
            "span1_text": span,
            "span2_text": pronoun,
            "span1_index": span_index,
            "span2_index": pronoun_index,
        }
        example = InputExample(guid=f"{set_type}-{index}", text_a=" ".join(words), label=label, meta=meta, idx=index)
        if record.get("candidates") is None:
            return example, None
        return example, list(dict.fromkeys(candidate.text("text") for candidate in record.rows("candidates")))


class WscPairProcessor(WscProcessor):
    """WSC as pairs of text and span (``wsc1``); every candidate of a right training example makes a wrong one."""

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        example, candidates = self.read(record, set_type)
        yield replace(example, text_b=example.meta["span1_text"])
        if set_type == "train" and example.label == "True":
            for candidate in candidates or ():
                yield replace(example, text_b=candidate, label="False")


class RecordProcessor(DataProcessor):
    """passage with entities, qas with query and answers: one example per question, in training one per answer.

    Attributes:
        sorted_answers: a question's answers are in alphabetical order, not in the file's.
    """

    labels = ("0", "1")
    few_files = split_files(test="val.jsonl")  # dev stays val.jsonl
    sorted_answers: bool = False

    def records(self, path: Path) -> Iterator[Record]:
        """Yield the records of a file, after a look at how it counts the ends of entities."""
        return with_inclusive_ends(list(super().records(path)))

    def converter(self, set_type: str) -> Callable[[Record], Iterable[InputExample]]:
        shuffler = random.Random(SHUFFLE_SEED)  # one for all rows of a file, in their order
        return partial(self.questions, set_type=set_type, shuffler=shuffler)

    def questions(self, record: Record, *, set_type: str, shuffler: random.Random) -> Iterable[InputExample]:
        """Yield the examples of a passage."""
        passage, passage_index = record.row("passage"), self.index(record)
        raw_text = passage.text("text")
        entities = sorted(
            {standardize(raw_text[start : end + 1]) for start, end in map(entity_span, entities_of(record))}
        )
        text = standardize(raw_text).replace("@highlight\n", "- ")
        for question in record.rows("qas"):
            given = (standardize(answer.text("text")) for answer in question.rows("answers", default=()))
            answers = sorted(set(given)) if self.sorted_answers else list(dict.fromkeys(given))
            if not answers:
                self.unlabelled(
                    question, question.without("answers") if "answers" not in question.fields else "no answers"
                )
            index = self.identities.unique(question.get("idx"), question, among=("question",))
            query = standardize(question.text("query"))
            guid = f"{set_type}-p{passage_index}-q{index}"
            place = {"passage_idx": passage_index, "question_idx": index}
            if set_type != "train" and not self.options.for_training:
                if not entities:
                    raise passage.error("no entities, so there is nothing to choose an answer from")
                meta = {**place, "candidates": entities, "answers": answers}
                label = "1" if answers else None
                yield InputExample(guid, text, query, label, meta, index, len(entities), question.place)
                continue
            for number, answer in enumerate(answers):
                wrong = [entity for entity in entities if entity not in answers]
                if len(wrong) > WRONG_CANDIDATES:
                    shuffler.shuffle(wrong)
                    wrong = wrong[:WRONG_CANDIDATES]
                meta = {**place, "candidates": [answer, *wrong], "answers": [answer]}
                answer_index = [passage_index, index, number]
                answer_guid = f"{guid}-a{number}"
                yield InputExample(answer_guid, text, query, "0", meta, answer_index, len(wrong) + 1, question.place)


def entities_of(record: Record) -> list[Record]:
    """Return the entities of a row of ReCoRD."""
    return record.row("passage").rows("entities")


def entity_span(entity: Record) -> tuple[int, int]:
    """Return the places of an entity's first and last character."""
    return entity.value("start", int), entity.value("end", int)


def with_inclusive_ends(records: Sequence[Record]) -> Iterator[Record]:
    """Yield rows of ReCoRD whose ends of entities are those of their last characters, as published.

    Some copies have the ends behind it. The answers tell, or where there are none blanks around entities: a file is
    read in the way in which they all fit. Raises ValueError for an entity that fits in neither way.
    """
    exclusive = _ends_behind(records)
    if exclusive:
        logger.warning(f"{records[0].path}: the ends of entities stand behind their last character; they are read so")
    for record in records:
        text = record.row("passage").text("text")
        entities = []
        for entity in entities_of(record):
            start, end = entity_span(entity)
            found = text[max(start, 0) : end + 1 - exclusive]
            if not 0 <= start <= end - exclusive < len(text) or found != found.strip():
                raise entity.error(
                    f"start {start} and end {end} mark {described(found)} in {len(text)} characters, which is no entity"
                )
            entities.append({**entity.fields, "end": end - exclusive})
        passage = {**record["passage"], "entities": entities}
        yield replace(record, fields={**record.fields, "passage": passage})


def _ends_behind(records: Sequence[Record]) -> bool:
    """Tell whether the ends in rows of ReCoRD stand behind the last characters.

    Raises ValueError for an answer that is as long as its offsets say, but stands elsewhere.
    """
    told, fitting = [0, 0], [True, True]  # by the answers, by all entities; with ends inclusive and exclusive
    misplaced = ""
    for record in records:
        text = record.row("passage").text("text")
        for answer in (one for question in record.rows("qas") for one in question.rows("answers", default=())):
            start, end = (answer.value(name, int, default=-1) for name in ("start", "end"))
            words = answer.text("text")
            fits = [start >= 0 and words != "" and text[start : end + 1 - way] == words for way in range(2)]
            told = [count + fit for count, fit in zip(told, fits)]
            if start >= 0 and not any(fits):
                found = described(text[start : end + 1])
                misplaced = f"{answer.place}: start {start} and end {end} mark {found}, not {described(words)}"
                if len(words) in (end - start, end - start + 1):
                    raise ValueError(misplaced)
        for start, end in map(entity_span, entities_of(record)):
            for way in range(2):
                found = text[max(start, 0) : end + 1 - way]
                fitting[way] &= found == found.strip() and 0 <= start <= end - way < len(text)
    if misplaced:
        logger.warning(f"{misplaced}; the texts of answers count")
    if all(told):
        raise ValueError(f"{records[0].path}: the ends of some answers stand at their last character, of others behind")
    return told[1] > 0 if any(told) else fitting == [False, True]


class MnliProcessor(TableProcessor):
    """sentence1, sentence2, gold_label."""

    labels = ("contradiction", "entailment", "neutral")
    files = split_files(
        train="train.tsv",
        dev=("dev_matched.tsv", "dev_matched"),
        test=("test_matched.tsv", "test_matched"),
        unlabeled=("train.tsv", "train"),
    )
    text_a, text_b, label_field = "sentence1", "sentence2", "gold_label"
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

    text_a, text_b, label_field = "#1 String", "#2 String", "Quality"


class QqpProcessor(GlueProcessor):
    """question1, question2, is_duplicate."""

    text_a, text_b, label_field = "question1", "question2", "is_duplicate"


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
        named = set_type == "test"
        sentence = standardize(record.text("sentence" if named else 3))
        label = self.label(record, key="label" if named else 1)
        yield InputExample(f"{set_type}-{record.number}", sentence, label=label)


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
        yield InputExample(f"{set_type}-{record.number}", text_a, text_b, self.label(record, key=0))

    def texts(self, record: Record) -> tuple[str, str | None]:
        """Return the texts of a record."""
        return plain_text(record.text(1)), None


class AgnewsProcessor(TopicProcessor):
    """label, headline, body."""

    labels = ("1", "2", "3", "4")

    def texts(self, record: Record) -> tuple[str, str | None]:
        headline, body = (standardize(record.text(column).replace("\\", " ")) for column in (1, 2))
        return headline, body


class YahooProcessor(TopicProcessor):
    """label, title, body of the question, answer."""

    labels = tuple(str(number) for number in range(1, 11))

    def texts(self, record: Record) -> tuple[str, str | None]:
        return plain_text(f"{record.text(1)} {record.text(2)}"), plain_text(record.text(3))


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
            guid = self.identities.unique(record.get("id"), record, name="id")
            yield InputExample(guid, question, comment, self.label(record))


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
        identity = self.identities.unique(record.get("id"), record, name="id")
        questions, options = record.texts("questions"), record.value("options", list)
        answers = record.value("answers", list, default=[None] * len(questions))
        if not len(questions) == len(options) == len(answers):
            raise record.error(f"{len(questions)} questions, {len(options)} options and {len(answers)} answers")
        for number, fields in enumerate(zip(questions, options, answers)):
            asked = replace(record, fields=dict(zip(("question", "options", "answer"), fields)), within=f"[{number}]")
            choices = asked.texts("options")
            yield InputExample(
                guid=f"{set_type}-p{identity}-q{number}",
                text_a=text,
                text_b=asked.text("question"),
                label=self.label(asked, self.labels[: len(choices)], key="answer"),
                meta={"choices": choices},
                idx=[set_type, identity, number],
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
        document = read_document(path)
        paragraphs = (paragraph for article in document.rows("data") for paragraph in article.rows("paragraphs"))
        for number, paragraph in enumerate(paragraphs):
            yield replace(paragraph, number=number)

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        context = record.text("context")
        for question in record.rows("qas"):
            answers = question.rows("answers")
            if answers:
                check_offset(answers[0], context, "text", "answer_start")
            answer = answers[0].fields if answers else {"text": "N/A"}
            meta = {"answer": answer, "answers": [one.fields for one in answers]}
            guid = self.identities.unique(question.get("id"), question, name="id")
            yield InputExample(guid, context, question.text("question"), "0", meta, source=question.place)


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
        target, text = record.row("target"), record.text("text")
        index = (
            self.index(record) if record.get("id") is None else self.identities.unique(record["id"], record, name="id")
        )
        meta: dict[str, Any] = {}
        for span in ("span1", "span2"):
            words, start = check_offset(target, text, f"{span}_text", f"{span}_index")
            meta |= {f"{span}_text": words, f"{span}_index": start, f"{span}_length": len(words)}
        yield InputExample(
            guid=f"{set_type}-{index}",
            text_a=text,
            text_b=target["span1_index"],
            label=self.label(record),
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
        examples = self.read_file(path, "")
        if not examples:
            raise ValueError(f"{path}: no questions in it; give JSON lines with inputs_pretokenized")
        return examples

    def has_split(self, split: str) -> bool:
        return True

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        text, choices = record.text("inputs_pretokenized"), record.texts("choices_pretokenized")
        label, number = self.label(record, range(len(choices))), str(record.number)
        yield InputExample(number, text, None, label, {"choices": choices}, number, num_choices=len(choices))
