"""Prompts, positions, checks, and answers put in place."""

from __future__ import annotations

import pytest

from generation.inputs import (
    Blank,
    check_prompt_fits,
    complete_prompt,
    encode_prompt,
    insert_answers,
    require_blank,
)
from tests.helpers.small_models import TINY_COMMAND_IDS, WordTokenizer

TOKENIZER = WordTokenizer(TINY_COMMAND_IDS, num_tokens=58)
WITHOUT_TASK_MASKS = WordTokenizer(TINY_COMMAND_IDS, num_tokens=58, task_mask=False)


def test_a_prompt_without_a_mask_gets_one():
    assert complete_prompt("w1", tokenizer=TOKENIZER) == "w1 [gMASK]"
    assert complete_prompt("w1", tokenizer=WITHOUT_TASK_MASKS) == "w1 [MASK]"
    assert complete_prompt("w1 [sMASK]", tokenizer=TOKENIZER) == "w1 [sMASK]"


def test_the_end_token_depends_on_the_text():
    assert encode_prompt("w1 [gMASK]", tokenizer=TOKENIZER).input_ids == (51, 1, 54)
    assert encode_prompt("w1 [gMASK] ", tokenizer=TOKENIZER).input_ids == (51, 1, 54, 50)


def test_tokens_of_a_piece():
    blank = Blank(index=3, start=7)
    assert [blank.position_of(step) for step in range(3)] == [(7, 1), (7, 2), (7, 3)]
    assert [blank.position_of(step, block_positions=False) for step in range(3)] == [(7, 1), (8, 1), (9, 1)]


def test_positions_that_just_fit_and_just_do_not():
    limits = {"max_length": 4, "max_position_embeddings": 4}
    check_prompt_fits(encode_prompt("w1 w2 [MASK]", tokenizer=TOKENIZER), **limits)  # 5 ids: positions 0..4
    with pytest.raises(ValueError, match="has 6 tokens and needs 6 positions, the model has 5; shorten"):
        check_prompt_fits(encode_prompt("w1 w2 w3 [MASK]", tokenizer=TOKENIZER), **limits)
    with pytest.raises(ValueError, match="lower --out-seq-length"):
        check_prompt_fits(encode_prompt("[MASK]", tokenizer=TOKENIZER), max_length=5, max_position_embeddings=4)


def test_positions_without_block_positions_leave_room_for_the_pieces():
    inputs = encode_prompt("[MASK] w1 [MASK]", tokenizer=TOKENIZER, max_length=5, block_positions=False)
    assert inputs.positions == (0, 1, 7, 8, 14)
    assert [blank.start for blank in inputs.blanks] == [1, 8]
    check_prompt_fits(inputs, max_length=5, max_position_embeddings=14, block_positions=False)
    with pytest.raises(ValueError, match="shorten the prompt"):
        check_prompt_fits(inputs, max_length=5, max_position_embeddings=13, block_positions=False)


def test_a_missing_blank_is_named_with_the_masks_there_are():
    with pytest.raises(ValueError, match=r"no blank to fill in the prompt 'w1': mark it with \[MASK\]$"):
        require_blank(encode_prompt("w1", tokenizer=WITHOUT_TASK_MASKS), tokenizer=WITHOUT_TASK_MASKS)


def test_a_tokenizer_without_block_symbols_is_refused():
    tokenizer = WordTokenizer({"pad": 1, "eos": 1, "ENC": 2, "MASK": 3}, num_tokens=4)
    with pytest.raises(ValueError, match="--block-lm"):
        assert tokenizer.special


@pytest.mark.parametrize(
    ("text", "answers", "filled"),
    [
        ("The [MASK] sat.", ["cat"], "The cat sat."),
        ("at [MASK] (", [" the stanford"], "at the stanford ("),  # a byte-level answer brings its blank
        ("at[MASK].", [" the"], "at the."),
        ("[MASK] is [sMASK]", [" it", ""], "it is "),
        ("a [MASK] b", [""], "a b"),
        ("[MASK][MASK]", ["x", "y"], "xy"),
        ("今天[MASK]很好，[gMASK]", ["天气", "出去玩"], "今天天气很好，出去玩"),
    ],
)
def test_answers_in_place(text: str, answers: list[str], filled: str):
    assert insert_answers(text, answers, tokenizer=TOKENIZER) == filled
