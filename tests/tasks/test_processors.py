"""Files become examples; what is wrong with a file or a name is said in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.registry import TASKS, find_task
from tasks.superglue.processors import locate_pronoun, locate_span
from tasks.superglue.readers import DataOptions
from tasks.superglue.run import limited

RTE_ROW = {"premise": "It rained.", "hypothesis": "It was wet.", "label": "entailment", "idx": 0}
WSC_ROW = {
    "text": "Ann thanked Bea because she helped him.",
    "target": {"span1_text": "Bea", "span1_index": 2, "span2_text": "she", "span2_index": 4},
    "label": True,
    "idx": 7,
}


def write(folder: Path, name: str, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def message(function, *arguments, **options) -> str:
    """Return the error's text, which has to be one line."""
    with pytest.raises(ValueError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_task_names_the_nearest():
    assert "rte" in message(find_task, "RTEE")
    assert "multirc" in message(find_task, "multi-rc")
    assert "choose one of" in message(find_task, "zzz")
    assert find_task("COPA") is TASKS["copa"]
    assert "no such file" in message(find_task, "missing.py")
    assert "nothing is learnt" in message(find_task, "squad")


def test_missing_files_and_splits(tmp_path):
    assert "train.jsonl: no such file" in message(TASKS["rte"].examples, tmp_path, "train")
    assert "ax-b has no split 'dev'; it has train, test" in message(TASKS["ax-b"].examples, tmp_path, "dev")
    assert "no examples" in message(TASKS["sst2"].examples, tmp_path, "unlabeled")
    assert "middle/*.txt" in message(TASKS["race"].examples, tmp_path, "dev")
    assert TASKS["agnews"].has_split("dev") and not TASKS["agnews"].has_split("test")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("not json", "line 2: not valid JSON"),
        ("[1, 2]", "line 2: a JSON object is needed, found [1, 2]"),
        ({"premise": "A", "idx": 1}, "line 2: no 'hypothesis'; it has premise, idx"),
        ({**RTE_ROW, "label": "maybe"}, "line 2: label is 'maybe'; the labels are entailment, not_entailment"),
        ({**RTE_ROW, "premise": 3}, "line 2: premise is 3; a text is needed"),
    ],
)
def test_malformed_rows_are_named(tmp_path, row, expected):
    write(tmp_path, "train.jsonl", RTE_ROW, row)
    assert expected in message(TASKS["rte"].examples, tmp_path, "train")


def test_malformed_nested_rows_are_named(tmp_path):
    write(tmp_path, "train.jsonl", {"idx": 1, "passage": {"text": "A", "questions": [{"idx": 0}]}})
    text = message(TASKS["multirc"].examples, tmp_path, "train")
    assert text == f"{tmp_path / 'train.jsonl'}, line 1, passage.questions[0]: no 'question'; it has idx"
    write(tmp_path, "val.jsonl", {"idx": 1, "premise": "A", "choice1": "B", "choice2": "C", "question": "why"})
    assert "question is 'why'" in message(TASKS["copa"].examples, tmp_path, "dev")


def test_tables_and_encodings(tmp_path):
    (tmp_path / "train.tsv").write_text('sentence\tlabel\n"quoted\t1\n', encoding="utf-8")
    (tmp_path / "dev.tsv").write_text("id\tlabel\n1\t1\n", encoding="utf-8")
    assert "line 2: no 'sentence'; it has id, label" in message(TASKS["sst2"].examples, tmp_path, "dev")
    first = TASKS["sst2"].examples(tmp_path, "train")[0]
    assert (first.text_a, first.label) == ('"quoted', "1")
    (tmp_path / "train.csv").write_bytes(b'"1","fine","x"\n"2","caf\xe9","x"\n')
    assert "line 2: not UTF-8" in message(TASKS["agnews"].examples, tmp_path, "train")
    (tmp_path / "train.csv").write_text('"1","two\nlines"\n"2","x"\n', encoding="utf-8")
    assert "line 1: 2 columns, at least 3 are needed" in message(TASKS["agnews"].examples, tmp_path, "train")


def test_a_pronoun_at_the_end_is_divided_from_its_full_stop(tmp_path):
    row = {**WSC_ROW, "target": {**WSC_ROW["target"], "span2_text": "him", "span2_index": 6}}
    write(tmp_path, "train.jsonl", row)
    [example] = TASKS["wsc"].examples(tmp_path, "train")
    assert example.text_a == "Ann thanked Bea because she helped him ."
    assert example.meta["span2_index"] == 6
    write(tmp_path, "train.jsonl", {**row, "target": {**row["target"], "span2_text": "us"}})
    assert "line 1, target: the pronoun 'us' is not word 6" in message(TASKS["wsc"].examples, tmp_path, "train")


def test_spans_are_found_next_to_their_index():
    words = ["the", "old", "man", "saw", "him"]
    assert locate_span(words, 2, "the old") == 2  # nowhere near: stays
    assert locate_span(words, 1, "The old") == 0
    assert locate_span(words, 0, "old man") == 1
    assert locate_pronoun(words, 3, "him") == (words, 4)
    assert locate_pronoun(words, 5, "him") is None
    assert locate_pronoun(["him", "saw"], 0, "saw") == (["him", "saw"], 1)


def test_examples_for_a_loss(tmp_path):
    write(tmp_path, "val.jsonl", WSC_ROW, {**WSC_ROW, "label": False, "idx": 8})
    for options, expected in ((DataOptions(), [7, 8]), (DataOptions(for_training=True), [7])):
        assert [example.idx for example in TASKS["wsc"].examples(tmp_path, "dev", options)] == expected
    for for_training, count in ((False, 1), (True, 2)):
        text = "Ann met Bea."
        passage = {"text": text, "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}]}
        answers = [{"text": "Bea"}, {"text": "Ann"}]
        write(tmp_path, "val.jsonl", {"idx": 0, "passage": passage, "qas": [
            {"idx": 1, "query": "@placeholder waved", "answers": answers}]})  # fmt: skip
        examples = TASKS["record"].examples(tmp_path, "dev", DataOptions(for_training=for_training))
        assert len(examples) == count
        assert examples[0].meta["answers"] == (["Bea"] if for_training else ["Bea", "Ann"])  # as they come first


def test_files_of_race_come_in_order(tmp_path):
    for level in ("high", "middle"):
        for name in ("2", "1"):
            folder = tmp_path / "dev" / level
            folder.mkdir(parents=True, exist_ok=True)
            row = {
                "id": f"{level}{name}",
                "article": "A . b",
                "questions": ["Q"],
                "options": [["a"] * 4],
                "answers": ["A"],
            }
            (folder / f"{name}.txt").write_text(json.dumps(row), encoding="utf-8")
    found = [example.idx[1] for example in TASKS["race"].examples(tmp_path, "dev")]
    assert found == ["middle1", "middle2", "high1", "high2"]


def test_labels_that_the_file_does_not_have(tmp_path):
    row = {"sentence1": "A bank.", "sentence2": "The bank.", "word": "bank", "idx": 3}
    write(tmp_path, "test.jsonl", row)
    wic = TASKS["wic"].examples(tmp_path, "test")
    assert wic[0].label is None
    assert TASKS["wic"].counted_rows(wic) == []
    write(tmp_path, "test.jsonl", {**row, "label": False})
    assert TASKS["wic"].counted_rows(TASKS["wic"].examples(tmp_path, "test")) == [0]


def test_the_score_of_the_most_frequent_class(tmp_path):
    rows = [
        {**RTE_ROW, "label": "entailment" if number % 3 else "not_entailment", "idx": number} for number in range(9)
    ]
    examples = TASKS["rte"].examples(write(tmp_path, "val.jsonl", *rows), "dev")
    assert TASKS["rte"].majority_baseline(examples) == {"accuracy": pytest.approx(100 * 6 / 9)}


def test_every_task_has_what_it_needs():
    for name, task in TASKS.items():
        assert task.name == name == name.lower()
        if name == "multichoice":
            continue
        assert task.labels
        assert task.metrics
        if task.pvp is not None:
            for pattern_id in task.patterns.pattern_ids:
                if not task.patterns.free_answers:
                    assert list(task.patterns.verbalizers(pattern_id)) == list(task.labels)
    assert "has the patterns 0 to 4" in message(TASKS["rte"].patterns.rendered, None, 5)
    assert "leave out --cloze-eval" in message(lambda: TASKS["wsc1"].patterns)


def test_a_limited_split_is_drawn_from_all_of_it():
    """Files sorted by class keep their classes; the choice is the same every time and in order."""
    examples = [0] * 50 + [1] * 50
    chosen = limited(range(100), 20)
    assert list(chosen) == sorted(set(chosen)) == list(limited(range(100), 20))
    assert 0 < sum(limited(examples, 20)) < 20
    assert limited(examples, None) is examples and limited(examples, 100) is examples
