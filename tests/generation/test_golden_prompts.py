"""Prompts become ids, prefix_length, blanks and positions: prompt_inputs.json."""

from __future__ import annotations

from pathlib import Path

from data_utils.tokenizers.tokenizer import Tokenizer
from generation.inputs import complete_prompt, encode_prompt
from tests.helpers.golden_index import GoldenFolder
from tests.helpers.golden_tokenizers import options_of, recorded_tokenizer


def check_case(case: dict, tokenizer: Tokenizer, *, max_length: int, block_positions: bool):
    keys = {"prompt", "context_text", "context_ids", "sep", "mask_positions", "end_tokens"}
    assert set(case) == (keys if block_positions else keys | {"position_ids"})
    text = complete_prompt(case["prompt"], tokenizer=tokenizer)
    assert text == case["context_text"]
    inputs = encode_prompt(text, tokenizer=tokenizer, max_length=max_length, block_positions=block_positions)
    assert list(inputs.input_ids) == case["context_ids"]
    assert len(inputs) == case["sep"]
    assert list(inputs.positions) == case.get("position_ids", list(range(len(inputs))))
    assert [blank.start for blank in inputs.blanks] == case["mask_positions"]
    ends = case["end_tokens"]
    assert (ends is None) == (not inputs.blanks)
    assert ends is None or list(tokenizer.special.ends) == ends


def test_prompt_inputs(golden: GoldenFolder, vocab_dir: Path):
    for configuration in golden.json("generation/prompt_inputs.json"):
        assert set(configuration) == {"config", "tokenizer", "flags", "cases", "no_block_position"}
        tokenizer = recorded_tokenizer(configuration["tokenizer"], vocab_dir, **options_of(configuration["flags"]))
        for case in configuration["cases"]:
            check_case(case, tokenizer, max_length=512, block_positions=True)
        shifted = configuration["no_block_position"]
        assert set(shifted) == {"out_seq_length", "cases"}
        for case in shifted["cases"]:
            check_case(case, tokenizer, max_length=shifted["out_seq_length"], block_positions=False)
