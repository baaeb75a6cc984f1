"""Tokenizers without released vocabularies: a trained one, finding files, mistakes."""

from __future__ import annotations

import json
import pickle
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_utils.tokenizers.text_tokenizers import ByteLevelBPE, WordCache, WordPiece, _byte_alphabet
from data_utils.tokenizers.tokenizer import build_tokenizer, sentence_end_table
from data_utils.tokenizers.vocabularies import find_vocabulary
from data_utils.train_tokenizer import MODEL_TYPES, train


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    text = folder / "text.jsonl"
    words = "the cat sat on the mat . a dog ran to the red house ! who saw it ?"
    words = [*words.split()]
    lines = [" ".join(words[i % 7 : i % 7 + 9]) for i in range(200)]
    text.write_text("\n".join(json.dumps({"text": line}) for line in lines), encoding="utf-8")
    return train([str(text)], folder / "tokenizer.model", vocab_size=300, num_threads=1)


def test_training_is_deterministic(model, tmp_path):
    text = model.parent / "text.jsonl"
    again = train([str(text)], tmp_path / "again.model", vocab_size=300, num_threads=1)
    assert again.read_bytes() == model.read_bytes()


def test_too_large_a_vocabulary_is_one_line(model, tmp_path):
    with pytest.raises(ValueError, match="--vocab-size 9000 does not fit this text") as caught:
        train([str(model.parent / "text.jsonl")], tmp_path / "t.model", vocab_size=9000)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_fits_the_text(model, tmp_path, capsys):
    chinese = tmp_path / "zh.txt"
    chinese.write_text("".join(map(chr, range(0x4E00, 0x4E00 + 400))) * 3, encoding="utf-8")
    for text, vocab_size, sizes in (
        (model.parent / "text.jsonl", 9000, range(260, 9000)),
        (chinese, 300, range(700, 950)),
    ):
        train([str(text)], tmp_path / "t.model", vocab_size=vocab_size, fit=True)
        assert build_tokenizer("ChineseSPTokenizer", model_type=str(tmp_path / "t.model")).text_tokenizer.size in sizes
        assert "a vocabulary of " in capsys.readouterr().out


def test_words_that_are_one_piece(model, tmp_path):
    train([str(model.parent / "text.jsonl")], tmp_path / "w.model", vocab_size=320, words=["Xylophone", "no"])
    tokenizer = build_tokenizer("ChineseSPTokenizer", model_type=str(tmp_path / "w.model"))
    for word in (" Xylophone", " no"):
        assert [tokenizer.id_to_token(index) for index in tokenizer.encode(word)] == [word.replace(" ", "\u2581")]


def test_a_malformed_line_is_reported_as_such(model, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text((model.parent / "text.jsonl").read_text("utf-8") + '\n{"text": broken\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"text\.jsonl:201"):
        train([str(text)], tmp_path / "t.model", vocab_size=300)
    train([str(text)], tmp_path / "t.model", vocab_size=300, skip_malformed=True)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_a_trained_tokenizer_knows_every_character(model, text):
    tokenizer = build_tokenizer("SentencePieceTokenizer", path=model)
    unknown = tokenizer.token_to_id("<unk>")
    assert unknown not in tokenizer.encode(text.replace("<unk>", ""))


def test_command_tokens_of_a_trained_tokenizer(model):
    tokenizer = build_tokenizer("SentencePieceTokenizer", path=model, task_mask=True, decoder_mask=True)
    size = tokenizer.text_tokenizer.size
    assert [t.id for t in tokenizer.command_tokens] == [size, *range(size, tokenizer.num_tokens)]
    ids = tokenizer.encode("the cat [MASK] the mat [gMASK]")
    assert ids.count(tokenizer.command_id("MASK")) == ids.count(tokenizer.command_id("gMASK")) == 1
    assert ids == [
        *tokenizer.encode("the cat"),
        tokenizer.command_id("MASK"),
        *tokenizer.encode(" the mat"),
        tokenizer.command_id("gMASK"),
    ]
    assert tokenizer.padded_size() % 128 == 0


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("the cat sat.\n  "), max_size=30).filter(str.strip))
def test_a_trained_tokenizer_keeps_blanks_and_line_ends(model, text):
    tokenizer = build_tokenizer("SentencePieceTokenizer", path=model)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_after_a_mask_has_the_ids_of_running_text(model):
    tokenizer = build_tokenizer("SentencePieceTokenizer", path=model)
    for rest in (" on the mat .", ".", "\nthe dog"):
        assert tokenizer.encode("the cat" + rest) == tokenizer.encode("the cat") + tokenizer.encode("[MASK]" + rest)[1:]
    line_end = tokenizer.token_to_id("\n")
    assert tokenizer.sentence_end_table("span")[line_end]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_threads_do_not_matter(model, tmp_path, model_type):
    text = str(model.parent / "text.jsonl")
    size = {"char": 30, "unigram": 280}.get(model_type, 300)
    one, two = (
        train([text], tmp_path / f"{n}.model", vocab_size=size, model_type=model_type, num_threads=n) for n in (1, 2)
    )
    first, second = (build_tokenizer("SentencePieceTokenizer", path=path) for path in (one, two))
    assert [first.id_to_token(i) for i in range(first.num_tokens)] == [
        second.id_to_token(i) for i in range(second.num_tokens)
    ]


def test_fingerprints_tell_tokenizers_apart(model, tmp_path):
    one = build_tokenizer("SentencePieceTokenizer", path=model)
    same = build_tokenizer("SentencePieceTokenizer", path=model)
    other = build_tokenizer("SentencePieceTokenizer", path=model, task_mask=True)
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_tokenizers_travel_to_worker_processes(model):
    tokenizer = build_tokenizer("SentencePieceTokenizer", path=model)
    assert pickle.loads(pickle.dumps(tokenizer)).encode("the cat [MASK]") == tokenizer.encode("the cat [MASK]")


def test_blank_text_has_no_tokens(model):
    tokenizer = build_tokenizer("SentencePieceTokenizer", path=model)
    assert tokenizer.encode_batch(["", " \n\t"]) == [[], []]


def test_ids_that_stand_for_nothing(model):
    tokenizer = build_tokenizer("SentencePieceTokenizer", path=model)
    assert tokenizer.decode([tokenizer.num_tokens, 10**6]) == ""
    with pytest.raises(ValueError, match="stands for no token"):
        tokenizer.id_to_token(10**6)
    with pytest.raises(ValueError, match="no command token 'gMASK'"):
        tokenizer.command_id("gMASK")


def test_sentence_ends():
    texts = ["a", "b.", "?", None, "…", "：", "\n"]
    assert sentence_end_table(texts, "span").tolist() == [False, True, True, False, True, False, True]
    assert sentence_end_table(texts, "causal").tolist() == [False, True, True, False, False, False, False]
    assert sentence_end_table(texts, "document").dtype == np.bool_


def test_wordpiece_cleaning(tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[UNK]", "cafe", "σας", "!", "中", "文", "##s"]), encoding="utf-8")
    tokenizer = WordPiece(vocabulary)
    assert tokenizer.tokens("Café!\u0000") == ["cafe", "!"]
    assert tokenizer.tokens("ΣΑΣ") == ["σας"]  # a sigma that ends a word has a form of its own
    assert tokenizer.tokens("中文 cafes") == ["中", "文", "cafe", "##s"]
    assert tokenizer.tokens("x" * 101) == ["[UNK]"]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_cleaning_leaves_no_accents_and_no_control_characters(text):
    cleaned = WordPiece.normalize(_bare_wordpiece(), text)
    assert not any(unicodedata.category(character) == "Mn" for character in cleaned)
    assert "\x00" not in cleaned
    assert "\ufffd" not in cleaned


def _bare_wordpiece() -> WordPiece:
    from data_utils.tokenizers.text_tokenizers import _Cleaning, _Splitting

    tokenizer = object.__new__(WordPiece)
    tokenizer.lower_case, tokenizer._cleaning = True, _Cleaning()
    tokenizer._splitting = _Splitting(drop_accents=True)
    return tokenizer


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("abé中'’s1.!\t\n\r \x1c\x85\xa0\u2003\u2028\u3000"), max_size=25) | st.text(max_size=25))
def test_cached_stretches_give_the_ids_of_the_whole_text(byte_level, text):
    whole = byte_level._tokenizer.encode(text, add_special_tokens=False).ids
    assert byte_level.encode_batch([text]) == [whole]
    assert byte_level.decode_runs([whole]) == text


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """Return byte-level BPE with a few merges over blanks, which reach over a border if one is in the wrong place."""
    folder = tmp_path_factory.mktemp("bpe")
    pieces = list(_byte_alphabet())
    merges = [("Ġ", "Ġ"), ("ĠĠ", "Ġ"), ("Ċ", "Ċ"), ("Ġ", "Ċ"), ("Ċ", "Ġ"), ("a", "b"), ("Ġ", "ab")]
    merges += [("'", "s"), ("1", ".")]
    pieces += ["".join(pair) for pair in merges]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return ByteLevelBPE(folder / "vocab.json", folder / "merges.txt")


def test_word_cache_starts_again_when_full():
    calls = []

    def encode_words(words):
        calls.append(sorted(words))
        return [[len(word)] * 2 for word in words]

    cache = WordCache(encode_words, capacity=5)
    assert cache.encode([["a", "bb", "a"], []]) == [[1, 1, 2, 2, 1, 1], []]
    assert cache.encode([["bb"], ["ccc"]]) == [[2, 2], [3, 3]]
    assert cache.encode([["a"]]) == [[1, 1]]
    assert calls == [["a", "bb"], ["ccc"], ["a"]]


def test_lone_surrogates_are_no_characters(model):
    tokenizer = build_tokenizer("SentencePieceTokenizer", path=model)
    assert tokenizer.encode("the \ud83d cat") == tokenizer.encode("the \ufffd cat")
    assert tokenizer.encode("the \ud83d\ude00") == tokenizer.encode("the 😀")


def test_sentinels_are_numbered_from_one_to_one_less(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n", encoding="utf-8")
    tokenizer = build_tokenizer("BertWordPieceTokenizer", path=tmp_path, num_sentinels=3)
    assert [token.name for token in tokenizer.command_tokens[-4:]] == ["MASK1", "sop1", "MASK2", "sop2"]
    assert tokenizer.num_tokens == 6 + 2 + 4
    assert tokenizer.command_id("MASK") == 4  # ids are those of the vocabulary given


def test_vocabulary_of_another_type_is_refused(byte_level, tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\na\n", encoding="utf-8")
    with pytest.raises(ValueError, match="bert vocabulary has no"):
        build_tokenizer("BertWordPieceTokenizer", path=tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}', encoding="utf-8")
    (tmp_path / "merges.txt").write_text("a b\n", encoding="utf-8")
    with pytest.raises(ValueError, match="not a BPE vocabulary"):
        build_tokenizer("GPT2BPETokenizer", path=tmp_path)
    (tmp_path / "merges.txt").write_text("", encoding="utf-8")
    for content in ("{}", '{"a": 0, "b": 1000000000}'):
        (tmp_path / "vocab.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"vocab\.json: the ids of its \d pieces are not 0, 1, 2"):
            build_tokenizer("GPT2BPETokenizer", path=tmp_path)
    with pytest.raises(ValueError, match="choose gpt2 or roberta"):
        build_tokenizer("GPT2BPETokenizer", model_type="bert-base-uncased")


def test_cased_vocabularies_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for folder in ("bert-uncased", "bert-base-chinese"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nA\na\n", encoding="utf-8")
    chosen = build_tokenizer("BertWordPieceTokenizer", model_type="bert-base-chinese", vocab_dir=tmp_path)
    assert chosen.encode("A a") == [5, 6]
    assert build_tokenizer("BertWordPieceTokenizer", vocab_dir=tmp_path).encode("A a") == [6, 6]
    with pytest.raises(ValueError, match="'bert-base-cased' not found"):
        build_tokenizer(
            "BertWordPieceTokenizer",
            model_type="bert-base-cased",
            vocab_dir=tmp_path,
            cache_dir=str(tmp_path / "hub"),
        )


def test_vocabulary_is_found_in_order(tmp_path, monkeypatch):
    for folder in ("given", "shelf/bert-uncased"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "vocab.txt").write_text("[UNK]\n", encoding="utf-8")
    monkeypatch.setenv("GLM_VOCAB_DIR", str(tmp_path / "shelf"))
    assert find_vocabulary("bert") == [tmp_path / "shelf/bert-uncased/vocab.txt"]
    assert find_vocabulary("bert", path=tmp_path / "given") == [tmp_path / "given/vocab.txt"]
    assert find_vocabulary("bert", path=tmp_path / "given/vocab.txt") == [tmp_path / "given/vocab.txt"]


def test_a_missing_vocabulary_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GLM_VOCAB_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ValueError, match="set GLM_VOCAB_DIR=FOLDER") as caught:
        find_vocabulary("gpt2", cache_dir=str(tmp_path / "hub"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no such vocabulary file"):
        find_vocabulary("bert", path=tmp_path / "nowhere")


def test_mistakes():
    with pytest.raises(ValueError, match="choose one of"):
        build_tokenizer("BertTokenizer")
    with pytest.raises(ValueError, match="no such SentencePiece model"):
        build_tokenizer("SentencePieceTokenizer", path="nowhere.model")
    with pytest.raises(ValueError, match="CharacterLevelTokenizer"):
        build_tokenizer("CharacterLevelTokenizer")
