"""Ids, texts and command tables as recorded: tokenizer_*.json, command_tokens.json, sentence_end.json.

tokenizer_bert.json, tokenizer_gpt2.json, tokenizer_roberta.json, tokenizer_chinese.json, tokenizer_chinese_fixed.json
"""

from __future__ import annotations

import hashlib

import pytest

from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer

FAMILIES = {
    "bert": {"tokenizer_type": "BertWordPieceTokenizer", "model_type": "bert-large-uncased"},
    "gpt2": {"tokenizer_type": "GPT2BPETokenizer"},
    "roberta": {"tokenizer_type": "GPT2BPETokenizer", "model_type": "roberta"},
    "chinese": {"tokenizer_type": "ChineseSPTokenizer", "fix_command_token": False},
    "chinese_fixed": {"tokenizer_type": "ChineseSPTokenizer", "fix_command_token": True},
}
FLAGS = {"--block-lm", "--task-mask", "--fix-command-token"}
# The original names these ids after its unused type tokens; they are the vocabulary's own.
RENAMED = {"<str0>": "<unk>", "<str1>": "<s>"}


def build(name: str, vocab_dir, **options) -> Tokenizer:
    return build_tokenizer(vocab_dir=vocab_dir, **{**FAMILIES[name], **options})


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_texts(golden, vocab_dir, name):
    recorded = golden.json(f"generation/tokenizer_{name}.json")
    assert recorded["tokenizer"] == name
    assert set(recorded["flags"]) <= FLAGS
    tokenizer = build(name, vocab_dir, task_mask="--task-mask" in recorded["flags"])
    assert tokenizer.num_tokens == recorded["num_tokens"]
    assert tokenizer.num_text_tokens == recorded["num_text_tokens"]
    assert len(tokenizer.command_tokens) == recorded["num_command_tokens"]
    assert tokenizer.padded_size() == recorded["padded_vocab_size"]
    assert tokenizer.command_id("eos") == recorded["eod_token"]
    assert commands(tokenizer) == recorded["command_tokens"]
    batch = tokenizer.encode_batch([case["text"] for case in recorded["cases"]])
    for case, ids in zip(recorded["cases"], batch, strict=True):
        assert set(case) <= {"text", "ids", "tokens", "decoded", "as_tokens"}
        assert ids == case["ids"] == tokenizer.encode(case["text"]), case["text"]
        assert tokenizer.decode(case["ids"]) == case["decoded"], case["text"]
        if "tokens" in case:
            expected = case["tokens"]
            if name.startswith("chinese"):
                expected = [RENAMED.get(token, token) for token in expected]
            assert [tokenizer.id_to_token(index) for index in case["ids"]] == expected
        if "as_tokens" in case:
            assert tokenizer.encode_as_tokens(case["text"]) == case["as_tokens"]


def commands(tokenizer: Tokenizer) -> list[list]:
    return [[t.name, t.text, t.id, t.lstrip, t.rstrip] for t in tokenizer.command_tokens]


def test_command_tables(golden, vocab_dir):
    for case in golden.json("generation/command_tokens.json"):
        options = dict(case["options"])
        tokenizer = build(
            case["tokenizer"],
            vocab_dir,
            block_symbols=options.pop("add_block_symbols"),
            task_mask=options.pop("add_task_mask"),
            decoder_mask=options.pop("add_decoder_mask"),
            fix_command_token=options.pop("fix_command_token"),
            num_sentinels=options.pop("add_sentinel_token"),
        )
        assert not options, f"unknown options {options}"
        assert commands(tokenizer) == case["command_tokens"]
        assert tokenizer.num_tokens == case["num_tokens"]
        assert tokenizer.num_text_tokens == case["num_text_tokens"]
        assert len(tokenizer.command_tokens) == case["num_command_tokens"]
        assert tokenizer.padded_size() == case["padded_128"]
        for text, index in case["token_map"].items():
            assert tokenizer.token_to_id(text) == index
        for index, text in case["id_map"].items():
            assert tokenizer.id_to_token(int(index)) == text


def test_sentence_ends(golden, vocab_dir):
    predicates = {"block_strategy": "span", "block_dataset": "document", "gpt2_dataset": "causal"}
    for case in golden.json("generation/sentence_end.json"):
        tokenizer = build(case["tokenizer"], vocab_dir, task_mask=True)
        assert set(case) == {"tokenizer", "num_tokens", "ids_without_token", *predicates}
        assert tokenizer.num_tokens == case["num_tokens"]
        for theirs, ours in predicates.items():
            ids = tokenizer.sentence_end_table(ours).nonzero()[0].tolist()
            expected = case[theirs]
            assert (len(ids), ids[: len(expected["first"])]) == (expected["count"], expected["first"])
            assert ids[-len(expected["last"]) :] == expected["last"]
            assert hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest() == expected["sha256"]
        for index in case["ids_without_token"]:
            with pytest.raises(ValueError, match="stands for no token"):
                tokenizer.id_to_token(index)
