"""The multilingual release's tokenizer as recorded: tokenizer.json, made with mglm_tiny.model."""

from __future__ import annotations

import pickle

import pytest

from data_utils.tokenizers.tokenizer import build_tokenizer


def build(golden, **options):
    file = golden.path("multilingual/mglm_tiny.model")
    return build_tokenizer("ChineseSPTokenizer", model_type=str(file), **options)


def test_command_tables(golden):
    recorded = golden.json("multilingual/tokenizer.json")
    for case in recorded["tables"]:
        tokenizer = build(
            golden, task_mask=case["task_mask"], decoder_mask=case["decoder_mask"], fix_command_token=False
        )
        assert tokenizer.text_tokenizer.size == recorded["num_pieces"]
        assert {token.name: token.id for token in tokenizer.command_tokens} == case["commands"]
        assert tokenizer.num_tokens == case["num_tokens"]
        assert tokenizer.padded_size() == case["padded_128"]


@pytest.mark.parametrize("name", ["cases_task_mask", "cases_task_and_decoder_mask"])
def test_texts(golden, name):
    recorded = golden.json("multilingual/tokenizer.json")
    tokenizer = build(golden, task_mask=True, decoder_mask="decoder" in name)
    for case in recorded[name]:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        assert [tokenizer.id_to_token(index) for index in case["ids"]] == case["tokens"]
        assert tokenizer.decode(case["ids"]) == case["decoded"], case["text"]


def test_ids_and_pieces(golden):
    recorded = golden.json("multilingual/tokenizer.json")
    tokenizer = pickle.loads(pickle.dumps(build(golden, task_mask=True)))  # as a data worker gets it
    for case in recorded["decode"]:
        assert tokenizer.decode(case["ids"]) == case["decoded"]
    for token, index in recorded["token_to_id"].items():
        assert tokenizer.token_to_id(token) == index


def test_the_ending_may_be_left_out(golden):
    file = golden.path("multilingual/mglm_tiny.model")
    whole = build_tokenizer("ChineseSPTokenizer", model_type=str(file))
    short = build_tokenizer("ChineseSPTokenizer", model_type=str(file.with_suffix("")))
    assert short.fingerprint == whole.fingerprint


def test_files_that_are_no_model_are_named(tmp_path):
    pointer = tmp_path / "mglm250k-uni.model"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"mglm250k-uni\.model: .*Git LFS pointer.*git lfs pull"):
        build_tokenizer("ChineseSPTokenizer", model_type=str(pointer))
    pointer.write_bytes(b"")
    with pytest.raises(ValueError, match="it is empty"):
        build_tokenizer("ChineseSPTokenizer", model_type=str(pointer))
    with pytest.raises(ValueError, match=r"nowhere: no such SentencePiece model"):
        build_tokenizer("ChineseSPTokenizer", model_type=str(tmp_path / "nowhere"))


def test_the_names_of_the_chinese_vocabularies(golden):
    """With the file of another one: the order of commands is that of the named model, not that of a path."""
    options = {"path": golden.path("multilingual/mglm_tiny.model"), "task_mask": True}
    large = build_tokenizer("ChineseSPTokenizer", model_type="glm-large", fix_command_token=False, **options)
    huge = build_tokenizer("ChineseSPTokenizer", model_type="glm-10b", **options)
    assert large.command_id("gMASK") == large.text_tokenizer.size + 9
    assert huge.command_id("gMASK") == huge.command_id("eop") == huge.text_tokenizer.size + 7
    assert large.decode([942, 5]) == "[CLS]b"  # without blanks around commands
