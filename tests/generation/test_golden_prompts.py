"""Prompts become ids, prefix_length, blanks and positions: prompt_inputs.json."""

from __future__ import annotations

from pathlib import Path

from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer
from generation.inputs import complete_prompt, encode_prompt
from tests.helpers.generation_models import load_json
from tests.helpers.golden_index import GoldenFolder

TOKENIZERS = {
    "bert": {"tokenizer_type": "BertWordPieceTokenizer", "model_type": "bert-base-uncased"},
    "gpt2": {"tokenizer_type": "GPT2BPETokenizer"},
    "roberta": {"tokenizer_type": "GPT2BPETokenizer", "model_type": "roberta"},
    "chinese": {"tokenizer_type": "ChineseSPTokenizer", "fix_command_token": False},
    "chinese_fixed": {"tokenizer_type": "ChineseSPTokenizer", "fix_command_token": True},
}
FLAGS = {"--block-lm": "block_symbols", "--task-mask": "task_mask"}


def recorded_tokenizer(name: str, flags: list[str], vocab_dir: Path) -> Tokenizer:
    """Return the tokenizer of a recorded configuration; an unknown name or flag is an error."""
    options = {option: flag in flags for flag, option in FLAGS.items()}
    assert set(flags) <= set(FLAGS), flags
    return build_tokenizer(**TOKENIZERS[name], **options, vocab_dir=vocab_dir)


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
    for configuration in load_json(golden, "prompt_inputs.json"):
        assert set(configuration) == {"config", "tokenizer", "flags", "cases", "no_block_position"}
        tokenizer = recorded_tokenizer(configuration["tokenizer"], configuration["flags"], vocab_dir)
        for case in configuration["cases"]:
            check_case(case, tokenizer, max_length=512, block_positions=True)
        shifted = configuration["no_block_position"]
        assert set(shifted) == {"out_seq_length", "cases"}
        for case in shifted["cases"]:
            check_case(case, tokenizer, max_length=shifted["out_seq_length"], block_positions=False)
