"""A task declared in one entry, as the README of tasks/superglue shows it: its text is what runs here."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer
from tasks.declaration import Fields, declare
from tasks.registry import find_task
from tasks.superglue.batches import collate
from tasks.superglue.readers import DataOptions
from tasks.superglue.samples import PROMPT, EncodingOptions
from tests.helpers.launching import run

README = Path(__file__).resolve().parents[2] / "tasks" / "superglue" / "README.md"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a WordPiece vocabulary whose words are all those of the README, in lower case."""
    words = sorted(set(re.findall(r"[a-z]+|[^\sa-z]", README.read_text(encoding="utf-8").lower())))
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    file.write_text("\n".join(SPECIAL + words) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return build_tokenizer("BertWordPieceTokenizer", model_type="bert-base-uncased", path=vocabulary)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def declared(tmp_path: Path):
    """Return the README's tasks by name, each with its folder of data."""
    found = {}
    for program, rows in zip(blocks("python"), blocks("json"), strict=True):
        file = tmp_path / "task.py"
        file.write_text(program, encoding="utf-8")
        task = find_task(str(file))
        folder = tmp_path / task.name
        folder.mkdir()
        for split in ("train", "dev", "test"):
            (folder / f"{split}.jsonl").write_text(rows, encoding="utf-8")
        found[task.name] = task, folder
    return found


def decoded(tokenizer: Tokenizer, sample, row: int = 0) -> str:
    return tokenizer.decode(sample.rows[row].input_ids[: sample.rows[row].prefix_length].tolist())


def test_a_pair_of_texts(declared, tokenizer):
    task, folder = declared["tool-reviews"]
    assert task.labels == ("bad", "good")
    examples = task.examples(folder, "train")
    samples = task.build_samples(examples, tokenizer, EncodingOptions(seq_length=64)).samples
    assert [sample.label for sample in samples] == [0, 1, 0, 1]
    assert decoded(tokenizer, samples[0]) == (
        "[CLS] the handle broke on the first day . all in all , the hammer was [MASK] . [PAD]"
    )
    assert list(samples[0].label_ids) == [tokenizer.encode("bad")[0], tokenizer.encode("good")[0]]
    prompted = EncodingOptions(seq_length=64, pattern_id=1, continuous_prompt=True, num_prompt_tokens=3)
    [sample] = task.build_samples(examples[:1], tokenizer, prompted).samples
    assert (sample.rows[0].input_ids == PROMPT).sum() == prompted.prompt_length == 3
    assert task.evaluate([0, 1, 1, 1], examples) == {"accuracy": 75.0, "f1-macro": pytest.approx(0.7333333)}
    lines = task.prediction_lines(examples, [0, 1, 1, 1])
    assert json.loads(lines[2]) == {"idx": 2, "label": "good"}


def test_choices(declared, tokenizer):
    task, folder = declared["tool-quiz"]
    examples = task.examples(folder, "dev")
    samples = task.build_samples(examples, tokenizer, EncodingOptions(seq_length=64)).samples
    assert [sample.label for sample in samples] == [1, 0]
    assert decoded(tokenizer, samples[0], 2) == "[CLS] question : what drives in a nail ? answer : [MASK] . [PAD]"
    answer = samples[0].rows[1].target_ids[samples[0].rows[1].loss_mask == 1]
    assert answer.tolist() == [*tokenizer.encode("a hammer"), tokenizer.command_id("eop")]
    assert task.evaluate([1, 3], examples) == {"accuracy": 50.0}


@pytest.mark.parametrize("name", ["tool-reviews", "tool-quiz"])
def test_every_mode(declared, tokenizer, name):
    task, folder = declared[name]
    for changes in ({}, {"multi_token": True}, {"multi_token": True, "fast_decode": True}, {"cloze_eval": False},
                    {"multi_token": True, "segment_length": 1}):  # fmt: skip
        options = EncodingOptions(seq_length=48, **changes)
        examples = task.examples(folder, "train", DataOptions(cloze_eval=options.cloze_eval))
        samples = task.build_samples(examples, tokenizer, options, for_training=True).samples
        batch = collate(samples, pad_id=tokenizer.command_id("pad"))
        assert len(batch) == len(examples)
        assert batch.input_ids.shape[-1] <= 48


def test_the_command_of_the_readme_runs(declared, vocabulary, tmp_path):
    _, folder = declared["tool-reviews"]
    folder.rename(tmp_path / "tool_reviews")
    (tmp_path / "tool_reviews.py").write_text(blocks("python")[0], encoding="utf-8")
    [line] = blocks("bash")
    python, program, *words = shlex.split(line.replace("\\\n", " "))
    assert python == "python"
    output = run(program, *words, "--tokenizer-path", str(vocabulary), cwd=tmp_path)
    assert "accuracy" in output
    predictions = (tmp_path / "runs" / "tool-reviews" / "tool-reviews-test.jsonl").read_text(encoding="utf-8")
    assert [json.loads(row)["idx"] for row in predictions.splitlines()] == [0, 1, 2, 3]
    assert {json.loads(row)["label"] for row in predictions.splitlines()} <= {"bad", "good"}


def test_what_is_wrong_with_an_entry_is_said_at_once():
    right = {
        "fields": Fields("a"),
        "labels": ("x", "y"),
        "patterns": ["{text_a} {mask}"],
        "words": {"x": "1", "y": "2"},
    }
    declare("right", **right)
    for changes, message in (
        ({"patterns": ["{text_a} no blank"]}, "mask"),
        ({"words": {"x": "1"}}, "no word for"),
        ({"words": ()}, "no words"),
        ({"metrics": ("bleu",)}, "no metric 'bleu'"),
    ):
        with pytest.raises(ValueError, match=message):
            declare("wrong", **{**right, **changes})


def test_tables_of_other_formats(tmp_path):
    (tmp_path / "train.csv").write_text('1,"first, text"\n0,second\n', encoding="utf-8")
    (tmp_path / "dev.tsv").write_text("class\ttext\n1\tthird\n", encoding="utf-8")
    options = {"labels": (0, 1), "patterns": ["{text_a} {mask}"], "words": {0: "no", 1: "yes"}}
    task = declare("t", fields=Fields(1, label=0), files={"train": "train.csv"}, **options)
    assert [(e.text_a, e.label) for e in task.examples(tmp_path, "train")] == [("first, text", 1), ("second", 0)]
    task = declare("t", fields=Fields("text", label="class"), files={"dev": "dev.tsv"}, **options)
    assert [(e.text_a, e.label) for e in task.examples(tmp_path, "dev")] == [("third", 1)]
