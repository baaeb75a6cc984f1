"""What the files of tasks hold: labels in every spelling, rows without one, ids, offsets, tables, lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_utils.tokenizers.tokenizer import build_tokenizer
from tasks.declaration import Fields, declare
from tasks.multitask import language_model_form
from tasks.readers import read_comma_separated, read_label, read_tab_separated, read_text
from tasks.registry import TASKS
from tasks.seq2seq.metrics import multi_bleu, uncounted_scripts
from tasks.seq2seq.readers import Seq2SeqOptions, read_examples, read_line_pairs, read_nested
from tasks.superglue.batches import collate
from tasks.superglue.readers import DataOptions
from tasks.superglue.samples import TaskSample
from tests.helpers.logs import logged_lines

WIC = {"sentence1": "A bat flew.", "sentence2": "He swung a bat.", "word": "bat"}
RTE = {"premise": "It rained.", "hypothesis": "It was wet."}
COPA = {"premise": "It rained.", "choice1": "It was wet.", "choice2": "It was dry.", "question": "effect"}
WSC_TEXT = "Ann thanked Bea because she had helped her ."
WSC = {"text": WSC_TEXT, "target": {"span1_text": "Bea", "span1_index": 2, "span2_text": "she", "span2_index": 4}}
TRAINING = DataOptions(for_training=True, needs_labels=True)


def write(path: Path, *rows: Any) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize(
    ("labels", "label", "spellings"),
    [
        (("false", "true"), "true", (True, "true", "True", " TRUE ", 1, "1", 1.0)),
        (("False", "True"), "False", (False, "false", "FALSE", 0, "0")),
        ((0, 1), 1, (1, "1", True, "True", 1.0)),
        (("0", "1"), "0", (0, "0", False, "false")),
        (("entailment", "not_entailment"), "entailment", ("entailment", "Entailment", "entailment ")),
        ((-1, 0, 1), -1, (-1, "-1", -1.0)),
        (("100", "101"), "101", (101, "101")),
        (("a", "A"), "A", ("A",)),
        (("false", "true"), None, (None, "", " ", -1, "-1", -1.0)),
    ],
)
def test_a_label_in_every_spelling(labels, label, spellings):
    for value in spellings:
        assert read_label(value, labels, place="f") == label, value


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (("false", "true"), ("maybe", 2, -2, 0.5, float("nan"), [], ["true"], {}, "truefalse", 10**400)),
        (("entailment", "not_entailment"), (0, 1, True, "0", "yes")),
        ((1, 2), (True, False, 0)),
        ((0, 1, 2), (True, "false")),
    ],
)
def test_what_is_no_label(labels, values):
    for value in values:
        with pytest.raises(ValueError, match=r"^f: class is .*; the labels are ") as caught:
            read_label(value, labels, place="f", name="class")
        assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    ("name", "row", "values", "labels"),
    [
        ("wic", WIC, (True, "false", 0, -1, None), ["true", "false", "false", None, None]),
        ("boolq", {"passage": "p", "question": "q"}, ("True", False, "1"), ["true", "false", "true"]),
        ("wsc", WSC, (True, "true", 1, "False", -1), ["True", "True", "True", "False", None]),
        ("copa", COPA, ("1", 0, -1), [1, 0, None]),
    ],
)
def test_tasks_read_labels_alike(name, row, values, labels, tmp_path):
    write(tmp_path / "val.jsonl", *({**row, "idx": number, "label": label} for number, label in enumerate(values)))
    with logged_lines() as lines:
        examples = TASKS[name].examples(tmp_path, "dev")
    assert [example.label for example in examples] == labels
    counted = [number for number, label in enumerate(labels) if label is not None]
    assert TASKS[name].counted_rows(examples) == counted
    missing = len(labels) - len(counted)
    assert any(f"{missing} of {len(labels)} examples have no label" in line for line in lines) == bool(missing)


@pytest.mark.parametrize(
    ("name", "row", "place"),
    [
        ("rte", RTE, "line 2: no label to train on: no 'label'; did you mean 'labels'?"),
        ("copa", COPA, "line 2: no label to train on"),
        ("wic", WIC, "line 2: no label to train on"),
        ("wsc", WSC, "line 2: no label to train on"),
        ("wsc1", WSC, "line 2: no label to train on"),
        (
            "multirc",
            {
                "passage": {
                    "text": "p",
                    "questions": [{"question": "q", "answers": [{"text": "a", "idx": 0}], "idx": 0}],
                }
            },
            "line 1, passage.questions[0].answers[0]: no label",
        ),
        (
            "record",
            {"passage": {"text": "Ann", "entities": []}, "qas": [{"query": "q", "idx": 0}]},
            "line 1, qas[0]: no label to train on: no 'answers'",
        ),
    ],
)
def test_nothing_is_trained_without_a_label(name, row, place, tmp_path):
    rows = {**row, "idx": 1, "label": {"rte": "entailment"}.get(name, 1)}, {**row, "idx": 2, "labels": 1}
    write(tmp_path / "train.jsonl", *rows)
    with pytest.raises(ValueError) as caught:
        TASKS[name].examples(tmp_path, "train", TRAINING)
    assert str(caught.value).startswith(f"{tmp_path / 'train.jsonl'}, {place}")


def test_a_declared_task_with_a_misspelt_label(tmp_path):
    options = {"patterns": ["{text_a} {mask}"], "words": {"bad": "bad", "good": "good"}}
    task = declare("d", fields=Fields("text"), labels=("bad", "good"), files={"train": "train.JSONL"}, **options)
    write(tmp_path / "train.JSONL", {"text": "fine", "lable": "good"})
    with pytest.raises(
        ValueError, match=r"train.JSONL, line 1: no label to train on: no 'label'; did you mean 'lable'\?"
    ):
        task.examples(tmp_path, "train", TRAINING)
    with logged_lines() as lines:
        [example] = task.examples(tmp_path, "train")
    assert example.label is None and "did you mean 'lable'?" in lines[0]
    with pytest.raises(ValueError, match=r"no \.jsonl, \.ndjson, \.json, \.tsv, \.csv file"):
        declare("d", fields=Fields("text"), labels=("bad", "good"), files={"train": "train.txt"}, **options)


def test_batches_do_not_make_a_class_of_no_label():
    import numpy as np

    from data_utils.rows import Row

    sample = TaskSample("single_token", "u", None, (Row(np.ones((5, 4), dtype=np.int64), 2),), label_ids=(1, 2))
    assert collate([sample], pad_id=0).labels.tolist() == [-1]
    with pytest.raises(AssertionError):
        language_model_form(sample)


def test_unlabelled_copies_and_pairs(tmp_path):
    write(tmp_path / "unlabeled.jsonl", {**COPA, "idx": 0})
    assert [example.label for example in TASKS["copa"].examples(tmp_path, "unlabeled")] == [None, None]
    labels = ("entailment", "entailment", None, "entailment")
    write(tmp_path / "AX-g.jsonl", *({**RTE, "idx": number, "label": label} for number, label in enumerate(labels)))
    assert TASKS["ax-g"].counted_rows(TASKS["ax-g"].examples(tmp_path, "test")) == [0, 1]


def passages(*ids: tuple[Any, list[Any]]) -> list[dict[str, Any]]:
    """Return rows of MultiRC: the id of each passage, and those of its questions."""
    answers = [{"text": "a", "idx": 0, "label": 1}, {"text": "b", "idx": 1, "label": 0}]
    return [
        {
            "idx": passage,
            "passage": {"text": "p", "questions": [{"question": "q", "idx": one, "answers": answers} for one in asked]},
        }
        for passage, asked in ids
    ]


@pytest.mark.parametrize(
    ("rows", "repeated"),
    [
        (passages((0, [0, 1]), (1, [2, 3])), False),
        (passages((0, [0, 1]), (1, [0, 1])), False),
        (passages((0, [0, 0]), (0, [0, 1])), True),
        (passages((None, [None, ""]), (None, [0, 1])), True),
    ],
)
def test_questions_are_told_apart_by_their_place(rows, repeated, tmp_path):
    task = TASKS["multirc"]
    write(tmp_path / "val.jsonl", *rows)
    with logged_lines() as lines:
        examples = task.examples(tmp_path, "dev")
    predictions = [1, 0, 1, 0, 1, 0, 0, 0]  # the last question has a wrong answer
    assert task.evaluate(predictions, examples)["em"] == 0.75
    entries = [json.loads(line) for line in task.prediction_lines(examples, predictions)]
    assert [len(entry["passage"]["questions"]) for entry in entries] == [2, 2]
    assert any("told apart by their place" in line for line in lines) == repeated
    assert len({example.guid for example in examples}) == 8


def squad(*ids: Any, start: Any = 0, context: str = "Ann met Bea.") -> dict[str, Any]:
    answers = [{"text": "Ann", **({} if start is None else {"answer_start": start})}]
    asked = [{"question": f"q{n}", "answers": answers, **({} if i is None else {"id": i})} for n, i in enumerate(ids)]
    return {"data": [{"paragraphs": [{"context": context, "qas": asked}]}]}


@pytest.mark.parametrize(
    ("ids", "named"), [(("a", "b"), False), ((1, 2), False), ((None, None), True), (("a", "a"), True), ((1, "1"), True)]
)
def test_ids_of_questions(ids, named, tmp_path):
    write(tmp_path / "q.json", squad(*ids))
    with logged_lines() as lines:
        questions = list(read_nested(tmp_path / "q.json"))
    assert len({question.identity for question in questions}) == 2
    assert any("data[0].paragraphs[0].qas[" in line for line in lines) == named


def test_answers_stand_at_their_offsets(tmp_path):
    write(tmp_path / "q.json", squad("a", start=1))
    with pytest.raises(
        ValueError, match=r"answers\[0\]: answer_start is 1, where 'nn ' stands, not 'Ann'; it stands at 0"
    ):
        list(read_nested(tmp_path / "q.json"))
    with logged_lines() as lines:
        assert len(list(read_nested(tmp_path / "q.json", exact_offsets=False))) == 1
    assert "1 answers" in lines[0]
    write(tmp_path / "q.json", squad("a", context="Nobody."))
    with logged_lines() as lines:
        assert len(list(read_nested(tmp_path / "q.json"))) == 1
    assert "stands nowhere" in lines[0]
    write(tmp_path / "q.json", squad("a", start=None))
    assert len(list(read_nested(tmp_path / "q.json"))) == 1


@pytest.mark.parametrize("place", [1, -3, 100, "0", None, 2.5])
def test_spans_stand_at_their_offsets(place, tmp_path):
    target = {"span1_text": "小明", "span1_index": place, "span2_text": "他", "span2_index": 4}
    write(tmp_path / "dev.json", {"text": "小明说，他来了。", "target": target, "idx": 0, "label": "true"})
    with pytest.raises(ValueError, match=r"dev.json, line 1, target: .*span1_index"):
        TASKS["cluewsc"].examples(tmp_path, "dev")
    write(tmp_path / "val.jsonl", {**WSC, "target": {**WSC["target"], "span1_index": 5}, "idx": 0, "label": True})
    with pytest.raises(ValueError, match="line 1, target: the span 'Bea' is not word 5 of the text, nor next to it"):
        TASKS["wsc"].examples(tmp_path, "dev")


def record_row(*, behind: int, answers: bool = True, extra: Any = ()) -> dict[str, Any]:
    """Return a row of ReCoRD; ``behind`` is 1 where ends stand behind the last character."""
    text = "Ann Bell met Tom Reed in Oslo."
    spans = [{"start": start, "end": start + length - 1 + behind} for start, length in ((0, 8), (13, 8), (25, 4))]
    given = {"answers": [{**spans[0], "text": "Ann Bell"}]} if answers else {}
    asked = {"idx": 0, "query": "@placeholder left.", **given}
    return {"idx": 0, "passage": {"text": text, "entities": [*spans, *extra]}, "qas": [asked]}


@pytest.mark.parametrize("answers", [True, False])
def test_ends_of_entities_are_recognised(answers, tmp_path):
    for behind in (0, 1):
        write(tmp_path / "val.jsonl", record_row(behind=behind, answers=answers))
        with logged_lines() as lines:
            [example] = TASKS["record"].examples(tmp_path, "dev")
        assert example.meta["candidates"] == ["Ann Bell", "Oslo", "Tom Reed"]
        assert any("the ends of entities stand behind" in line for line in lines) == bool(behind)
    write(tmp_path / "val.jsonl", record_row(behind=0), {**record_row(behind=1), "idx": 1})
    with pytest.raises(ValueError, match=r"val\.jsonl: the ends of some answers"):
        TASKS["record"].examples(tmp_path, "dev")


@pytest.mark.parametrize(
    ("start", "end", "problem"),
    [
        (0, 8, "'Ann Bell '"),
        (900, 910, "'' in 30 characters"),
        (-4, 2, "'Ann'"),
        (5, 3, "''"),
        ("0", 1, "a whole number"),
    ],
)
def test_entities_that_are_none(start, end, problem, tmp_path):
    write(tmp_path / "val.jsonl", record_row(behind=0, extra=[{"start": start, "end": end}]))
    with pytest.raises(ValueError, match=r"val.jsonl, line 1, passage.entities\[3\]: ") as caught:
        TASKS["record"].examples(tmp_path, "dev")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("start", "end", "refused"), [(1, 8, True), (13, 20, True), (0, 1, False), (0, 70, False), (None, None, False)]
)
def test_answers_of_entities_stand_at_their_offsets(start, end, refused, tmp_path):
    row = record_row(behind=0)
    row["qas"][0]["answers"] = [{"start": start, "end": end, "text": "Ann Bell"}]
    write(tmp_path / "val.jsonl", row)
    if refused:
        with pytest.raises(ValueError, match=rf"line 1, qas\[0\].answers\[0\]: start {start} and end {end} mark '"):
            TASKS["record"].examples(tmp_path, "dev")
        return
    with logged_lines() as lines:
        assert TASKS["record"].examples(tmp_path, "dev")[0].meta["answers"] == ["Ann Bell"]
    assert any("the texts of answers count" in line for line in lines) == (start is not None)


def test_no_entities(tmp_path):
    row = record_row(behind=0)
    write(tmp_path / "val.jsonl", {**row, "passage": {**row["passage"], "entities": []}})
    with pytest.raises(ValueError, match="line 1, passage: no entities, so there is nothing to choose an answer from"):
        TASKS["record"].examples(tmp_path, "dev")
    assert len(TASKS["record"].examples(tmp_path, "dev", TRAINING)) == 1  # the right answer is there


@pytest.mark.parametrize(
    ("reader", "text", "problem"),
    [
        (read_tab_separated, "a\tb\n1\t2\t3\n", "line 2: 3 columns, line 1 has 2; a tab"),
        (read_tab_separated, "a\tb\n\n1\n", "line 3: 1 columns, line 1 has 2; a tab"),
        (read_tab_separated, "a\ta\n1\t2\n", "line 1: two columns are called 'a'"),
        (read_comma_separated, '1,"a"\n2,"b\n3,"c"\n', "line 2: not comma-separated values"),
        (read_comma_separated, '1,"a"\n2,"b\n', "line 2: not comma-separated values"),
        (read_comma_separated, '1,a\n2,"b" c,d\n', "line 2: not comma-separated values"),
        (read_comma_separated, "1,a\n2,b,c\n", "line 2: 3 columns, line 1 has 2; a comma"),
        (read_comma_separated, "1,a\rb\n", "line 1: a carriage return outside of quotes"),
        (read_comma_separated, '1,"x\ny"\n2\n', "line 3: 1 columns, line 1 has 2"),
    ],
)
def test_rows_of_tables_have_the_columns_of_the_first(reader, text, problem, tmp_path):
    write(tmp_path / "table", text[:-1])
    with pytest.raises(ValueError) as caught:
        list(reader(tmp_path / "table"))
    assert str(caught.value).startswith(f"{tmp_path / 'table'}, {problem}")


def test_tables_hold_long_fields_quotes_and_line_ends(tmp_path):
    long = "x" * 200_000
    write(tmp_path / "a.csv", f'1,"{long}"\r', '2,"a ""b""\r', 'c\rd"')
    rows = [[record.text(0), record.text(1)] for record in read_comma_separated(tmp_path / "a.csv")]
    assert rows == [["1", long], ["2", 'a "b"\r\nc\rd']]
    write(tmp_path / "a.tsv", "a\tb\r", f'"{long}\tx\ry\r')
    [record] = read_tab_separated(tmp_path / "a.tsv")
    assert (record.text("a"), record.text("b")) == (f'"{long}', "x\ry")


def test_lines_end_with_a_line_feed(tmp_path):
    write(tmp_path / "a.source", "one \r two\r", "three\u2028 four", "five")
    write(tmp_path / "a.target", "1", "", "3")
    with logged_lines() as lines:
        pairs = read_line_pairs(tmp_path / "a.source", tmp_path / "a.target")
    assert pairs == [("one \r two", "1"), ("three\u2028 four", ""), ("five", "3")]
    assert lines == [f"{tmp_path / 'a.target'}: 1 of 3 lines are empty, the first is line 2"]


def test_a_file_of_a_similar_name_is_offered(tmp_path):
    write(tmp_path / "val.Source", "a")
    with pytest.raises(ValueError, match=r"val.source: no such file; did you mean val.Source\?"):
        read_text(tmp_path / "val.source")


def test_empty_predictions_score_nothing():
    assert multi_bleu(["", ""], [["a b", "c"]]).score == 0.0


def test_scripts_that_words_are_not_counted_of():
    assert uncounted_scripts(["naïve café déjà vu", "plain", ""]) is None
    assert "2 of 3 references" in str(uncounted_scripts(["старая мельница", "老磨坊在河边", "mill"]))


def test_questions_without_answers(tmp_path):
    file = {"data": [{"paragraphs": [{"context": "Ann met Bea.", "qas": [{"id": "a", "question": "Who?"}]}]}]}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ann", "met", "bea", "who", "?", "."]
    vocabulary = write(tmp_path / "vocab.txt", *words)
    tokenizer = build_tokenizer("BertWordPieceTokenizer", model_type="bert-base-uncased", path=vocabulary)
    options = Seq2SeqOptions(src_seq_length=32, tgt_seq_length=8)
    for name in ("train", "train-v2.0", "dev-v2.0", "dev"):
        write(tmp_path / f"{name}.json", file)
    for task in ("squad", "cmrc", "squad_generation"):
        with pytest.raises(ValueError, match=r"qas\[0\]: no label to train on: no 'answers'"):
            read_examples(task, tmp_path, "train", tokenizer=tokenizer, options=options)
        [example] = read_examples(task, tmp_path, "dev", tokenizer=tokenizer, options=options)
        assert example.labelled == (task == "squad_generation")  # whose target is the question
