"""The command that shows training samples."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data_utils.objective.block_infilling import BlankInfillingCollator, BlankInfillingSettings
from data_utils.objective.packing import Sample
from data_utils.rows import mask_picture
from data_utils.show import FirstDocuments, describe_row, get_parser, main
from tests.helpers.small_corpus import make_corpus
from tests.helpers.stand_ins import VOCABULARY, make_text
from training.arguments import get_parser as get_training_parser


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = make_corpus(tmp_path_factory.mktemp("corpus")).folder
    return [
        "--train-data", str(folder / "train.jsonl"), "--tokenizer-type", "SentencePieceTokenizer",
        "--tokenizer-path", str(folder / "tokenizer.model"), "--seq-length", "48",
    ]  # fmt: skip


def test_flags_mean_what_they_mean_in_training():
    ours = {action.dest: action for action in get_parser()._actions}
    theirs = {action.dest: action for action in reversed(get_training_parser()._actions)}  # the first of each
    own = {"help", "batches", "first_batch", "picture_width"}
    other_defaults = {"seq_length", "batch_size", "train_data", "tokenizer_path"}  # what fits a screen; what is needed
    for name in set(ours) - own:
        assert ours[name].option_strings == theirs[name].option_strings
        assert ours[name].type == theirs[name].type or theirs[name].type is str
        assert name in other_defaults or ours[name].default == theirs[name].default, name


def test_every_objective_is_shown(words, capsys):
    main([*words, "--bert-prob", "0.4", "--gap-sentence-prob", "0.3", "--task-mask", "--batches", "8"])
    shown = capsys.readouterr().out
    for text in ("objective bert", "objective sentence", "objective gpt", "[MASK]", "[sMASK]", "[gMASK]", "span 1:"):
        assert text in shown
    assert shown.count("who sees whom") == 8


def test_a_batch_is_the_same_wherever_showing_starts(words, capsys):
    main([*words, "--batches", "3"])
    all_three = capsys.readouterr().out
    main([*words, "--batches", "1", "--first-batch", "2"])
    assert all_three.endswith(capsys.readouterr().out)


@pytest.mark.parametrize("flag", ["--no-shuffle-block", "--no-block-position", "--random-position"])
def test_spans_are_found_in_every_form(words, capsys, flag):
    main([*words, "--bert-prob", "1", flag, "--batches", "2"])
    shown = capsys.readouterr().out.split("== batch")[1:]
    for row in shown:
        part_a = next(line for line in row.splitlines() if "part A" in line)
        assert row.count("part B, span") == part_a.count("[MASK") > 0
        ends = [line for line in row.splitlines() if line.startswith("  target")]
        assert all(line.endswith("<|endofpiece|>") for line in ends)


def test_numbered_spans_are_found():
    settings = BlankInfillingSettings(bert_prob=1.0, sentinel_token=True, block_position_encoding=False)
    collator = BlankInfillingCollator(VOCABULARY, settings, max_seq_length=64)
    tokens = make_text(50)
    batch = collator([Sample(tokens, np.ones_like(tokens))], batch_index=1)
    starts = {VOCABULARY.command_id(name) for name in ("sop", "sop1", "sop2", "sop3", "sop4")}
    lines = list(describe_row(batch, 0, name=str, starts=starts))
    inputs = [line.split()[1:] for line in lines if line.startswith("  input")]
    assert len(inputs) > 1
    assert [int(words[0]) for words in inputs] == [
        VOCABULARY.command_id("sop" if number == 0 else f"sop{number}") for number in range(len(inputs))
    ]


def test_masked_in_place_is_shown(words, capsys):
    main([*words, "--bert-prob", "1", "--masked-lm", "--batches", "1"])
    assert "masked in place:" in capsys.readouterr().out


def test_long_rows_are_drawn_coarser():
    picture = mask_picture(100, 200, width=20)
    assert len(picture) == len(picture[0]) == 20
    assert picture[0] == "#" * 10 + "." * 10
    assert picture[-1] == "#" * 10 + "+" * 10


def test_corpora_share_the_documents_that_are_read(words, tmp_path):
    class Letters:
        def encode_batch(self, texts, *, as_text):
            return [[ord(letter) for letter in text] for text in texts]

    for name in "ab":
        rows = (json.dumps({"text": name * 3}) + "\n" for _ in range(500))
        (tmp_path / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    documents = FirstDocuments([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], Letters())
    assert [int(documents[index].tokens[0]) for index in range(len(documents))] == [ord("a")] * 100 + [ord("b")] * 100


@pytest.mark.parametrize("flags", ["--batch-size 0", "--picture-width 0", "--gpt-min-ratio 2", "--first-batch -1"])
def test_numbers_out_of_bounds(words, flags):
    with pytest.raises(ValueError, match=rf"{flags.replace(' ', ' is ')}.*needed"):
        main([*words, *flags.split()])


def test_an_empty_corpus_is_one_clear_line(words, tmp_path):
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="empty"):
        main(["--train-data", str(tmp_path / "empty.jsonl"), *words[2:]])
