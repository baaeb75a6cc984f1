"""The Hugging Face tokenizers give our ids and texts, survive saving, and build inputs."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is an extra")

import tokenizers
import torch
from packaging import version
from transformers import AutoTokenizer, BatchEncoding

from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer
from model.hf import tokenization_glm
from model.hf.tokenization_glm import GLMTokenizer
from tests.helpers.hf_models import tiny_tokenizer

TEXTS = (
    "Ng is an adjunct professor at [MASK] (formerly associate professor and Director of its Stanford AI Lab).",
    "Straße  naïve 1,000!\n\tnext line [MASK][MASK] x",
    "凯旋门位于意大利米兰市古城堡旁。1807年为纪念[MASK]而建，门高25米。",
    "hello <|startofpiece|> world <|endofpiece|> <|endoftext|> [CLS] é",
    " leading and trailing blanks ",
    "<mask> <s> </s> <unk> <pad>",
    "[mask] [Mask] [MASK",
    "emoji 😀 and  \u00a0 spaces",
    "",
)
TASK_MASK_TEXTS = ("a long text follows: [gMASK]", "one [sMASK] sentence.  [MASK]")


@dataclass(frozen=True)
class Family:
    """A family: its class, its vocabulary's folder (any SentencePiece model will do), our flags, its ids."""

    class_name: str
    folder: str
    tokenizer_type: str
    model_type: str | None
    ids: dict[str, int]
    task_masks: bool = False


FAMILIES = (
    Family(
        "GLMBertTokenizer", "bert-uncased", "BertWordPieceTokenizer", None,
        {"pad": 0, "eos": 0, "cls": 101, "sep": 102, "unk": 100, "mask": 103, "sop": 30522, "eop": 30523},
    ),
    Family(
        "GLMGPT2Tokenizer", "gpt2", "GPT2BPETokenizer", "gpt2",
        {"pad": 50256, "eos": 50256, "cls": 50259, "sep": 50261, "unk": 50262, "mask": 50260, "sop": 50257,
         "eop": 50258, "gmask": 50263, "smask": 50264},
        task_masks=True,
    ),
    Family(
        "GLMRobertaTokenizer", "roberta", "GPT2BPETokenizer", "roberta",
        {"pad": 2, "eos": 2, "cls": 0, "sep": 2, "unk": 3, "mask": 50264, "sop": 50265, "eop": 50266},
    ),
    Family(
        "GLMChineseTokenizer", "chinese-sp", "ChineseSPTokenizer", None,
        {"pad": 50000, "eos": 50000, "cls": 50002, "sep": 50001, "unk": 50004, "mask": 50003, "sop": 50006,
         "eop": 50007, "gmask": 50009, "smask": 50008},
        task_masks=True,
    ),
    Family(
        "GLMSentencePieceTokenizer", "sentencepiece", "SentencePieceTokenizer", None,
        {"pad": 50000, "eos": 50000, "cls": 50003, "sep": 50005, "unk": 50006, "mask": 50004, "sop": 50001,
         "eop": 50002, "gmask": 50007, "smask": 50008},
        task_masks=True,
    ),
)  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.folder)
def family(request: pytest.FixtureRequest) -> Family:
    if request.param.folder in ("chinese-sp", "sentencepiece"):
        pytest.importorskip("sentencepiece")
    return request.param


@pytest.fixture(scope="module")
def vocabulary(family: Family, vocab_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a family's vocabulary."""
    if family.folder != "sentencepiece":
        return vocab_dir / family.folder
    folder = tmp_path_factory.mktemp("vocabulary")
    shutil.copyfile(vocab_dir / "chinese-sp" / "cog-pretrain.model", folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="module")
def folder(family: Family, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of the vocabulary and a tokenizer_config.json that names the class."""
    target = tmp_path_factory.mktemp(family.folder)
    for file in vocabulary.iterdir():
        if file.suffix in (".txt", ".json", ".model"):
            shutil.copyfile(file, target / file.name)
    config = {
        "tokenizer_class": family.class_name,
        "auto_map": {"AutoTokenizer": [f"tokenization_glm.{family.class_name}", None]},
    }
    (target / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


@pytest.fixture(scope="module")
def tokenizer(folder: Path):
    return GLMTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def own(family: Family, vocabulary: Path) -> Tokenizer:
    return own_tokenizer(family, vocabulary)


def own_tokenizer(family: Family, folder: Path) -> Tokenizer:
    """Return our own tokenizer of the vocabulary in ``folder``."""
    path = folder / "tokenizer.model" if family.folder == "sentencepiece" else folder
    return build_tokenizer(family.tokenizer_type, model_type=family.model_type, path=path, task_mask=family.task_masks)


def texts_of(family: Family) -> tuple[str, ...]:
    return TEXTS + (TASK_MASK_TEXTS if family.task_masks else ())


def test_the_class_and_the_ids_are_those_of_the_family(family: Family, tokenizer):
    assert type(tokenizer).__name__ == family.class_name
    assert tokenizer.is_fast == (family.folder != "sentencepiece")
    for name, expected in family.ids.items():
        assert getattr(tokenizer, f"{name}_token_id") == expected, name
    names = ("mask", "smask", "gmask") if family.task_masks else ("mask",)
    assert tokenizer.mask_token_ids == [family.ids[name] for name in names]
    assert tokenizer.model_input_names == ["input_ids", "position_ids", "attention_mask"]
    assert tokenizer.truncation_side == "left"
    assert (tokenizer.sop_token, tokenizer.eop_token) == ("<|startofpiece|>", "<|endofpiece|>")
    if not family.task_masks:
        for name in ("gmask", "smask"):
            with pytest.raises(ValueError, match=r"has no \[[gs]MASK\]; use \[MASK\]"):
                getattr(tokenizer, f"{name}_token_id")


def test_ids_and_texts_equal_ours(family: Family, tokenizer, own: Tokenizer):
    for text in texts_of(family):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == own.encode(text), text
        expected = own.decode(ids)
        if family.ids["sep"] == family.ids["eos"]:  # one id, of which our program prints the other text
            expected = expected.replace("[SEP]", "<|endoftext|>")
        assert tokenizer.decode(ids) == expected, text


def test_pieces_are_names_of_ids(family: Family, tokenizer):
    for text in texts_of(family):
        pieces = tokenizer.tokenize(text)
        assert tokenizer.convert_tokens_to_ids(pieces) == tokenizer(text, add_special_tokens=False)["input_ids"], text


def test_new_tokens_get_new_ids(family: Family, folder: Path):
    tokenizer = GLMTokenizer.from_pretrained(folder)
    highest = max(tokenizer.get_vocab().values())
    assert tokenizer.add_tokens(["<new>", "<newer>"]) == 2
    assert tokenizer.convert_tokens_to_ids(["<new>", "<newer>"]) == [highest + 1, highest + 2]
    assert len(tokenizer) == highest + 3 > max(family.ids.values()) + 2
    assert {name: getattr(tokenizer, f"{name}_token_id") for name in family.ids} == family.ids
    assert tokenizer("<new>", add_special_tokens=False)["input_ids"] == [highest + 1]


def test_special_tokens_are_told_from_a_text(family: Family, tokenizer):
    encoded = tokenizer("hello", return_special_tokens_mask=True)
    ids = encoded["input_ids"]
    assert encoded["special_tokens_mask"] == [1, *[0] * (len(ids) - 2), 1]
    assert tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True) == encoded["special_tokens_mask"]


def test_a_context_is_wrapped(family: Family, tokenizer):
    plain = tokenizer("hello", add_special_tokens=False)["input_ids"]
    other = tokenizer("world", add_special_tokens=False)["input_ids"]
    ids = family.ids
    end = ids["sep"] if family.folder == "bert-uncased" else ids["eos"]
    encoded = tokenizer("hello")
    assert encoded["input_ids"] == [ids["cls"], *plain, end]
    assert set(encoded) == {"input_ids", "attention_mask"}
    middle = [end, end] if family.folder == "roberta" else [ids["sep"]]
    pair = tokenizer("hello", "world", return_special_tokens_mask=True)
    assert pair["input_ids"] == [ids["cls"], *plain, *middle, *other, end]
    special = [1, *[0] * len(plain), *[1] * len(middle), *[0] * len(other), 1]
    assert pair["special_tokens_mask"] == special
    if tokenizer.is_fast:
        assert [part is None for part in pair.sequence_ids()] == [bool(one) for one in special]


def test_a_file_without_a_form_for_pairs_gets_one(vocab_dir: Path, tmp_path: Path):
    """Exports before 0.2 had none for GPT-2's family."""
    names = ("vocab.json", "merges.txt")
    tokenizer = tokenization_glm.GLMGPT2Tokenizer(*(str(vocab_dir / "gpt2" / name) for name in names))
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    single = content["post_processor"]["single"]
    pair = [{"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB")]
    content["post_processor"] = {**content["post_processor"], "single": single, "pair": pair}
    file.write_text(json.dumps(content), encoding="utf-8")
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert loaded("hello", "world")["input_ids"] == tokenizer("hello", "world")["input_ids"]
    assert loaded("hello")["input_ids"] == tokenizer("hello")["input_ids"]


AWKWARD = (  # characters that one normalisation or another treats differently, blanks, pieces that look like tokens
    " ", "  ", "\n", "\t", "<n>", "<s>", "</s>", "<unk>", "▁", "[MASK]", " [gMASK]", "[CLS]", "<|endoftext|>",
    "［ＣＬＳ］", "<|unused5|>", "e\u0301", "𝐀\u0301", "ｶﾞ", "㉠ᅡ", "각",
    *"你我一a b.。，１２ｱ\u3000\u200b\xa0é～ＡＢ㎏①﹏…—[]<>1|😀\ufe0f\x00\x07\ufeff",
)  # fmt: skip


def test_the_chinese_tokenizer_is_sentencepiece_with_offsets(vocab_dir: Path, data_dir: Path):
    pytest.importorskip("sentencepiece")
    file = vocab_dir / "chinese-sp" / "cog-pretrain.model"
    fast = tokenization_glm.GLMChineseTokenizer(str(file))
    own = build_tokenizer("ChineseSPTokenizer", path=file.parent, task_mask=True)
    lines = (data_dir / "pretrain" / "zh_valid.jsonl").read_text(encoding="utf-8").splitlines()
    texts = ["".join(value for value in json.loads(line).values() if isinstance(value, str)) for line in lines]
    assert len(texts) > 50
    chance = random.Random(0)
    texts += ["".join(chance.choices(AWKWARD, k=chance.randint(1, 12))) for _ in range(3000)]
    for text, ids in zip(texts, fast(texts, add_special_tokens=False)["input_ids"]):
        assert ids == own.encode(text), text
        assert fast.decode(ids) == own.decode(ids), text
    if version.parse(tokenizers.__version__) < version.parse("0.20"):
        return  # words that are one piece have no offsets in this version
    text = "凯旋门位于 意大利[MASK]，１８０７年～㎏"
    encoded = fast(text, return_offsets_mapping=True)
    parts = [text[start:end] for start, end in encoded["offset_mapping"]]
    assert "".join(parts) == text and parts[0] == parts[-1] == ""
    assert parts[encoded["input_ids"].index(50003)] == "[MASK]"


def test_truncation_keeps_the_end(tokenizer):
    whole = tokenizer("one two three four five six seven eight nine ten")["input_ids"]
    cut = tokenizer("one two three four five six seven eight nine ten", truncation=True, max_length=6)["input_ids"]
    assert cut == [whole[0], *whole[-5:]]


def test_special_tokens_can_be_left_out(family: Family, tokenizer):
    inputs = tokenizer(["hello world [MASK]", "x"], padding=True)
    piece = [family.ids["sop"], *tokenizer("hello", add_special_tokens=False)["input_ids"], family.ids["eop"]]
    assert tokenizer.decode(piece, skip_special_tokens=True).strip() == "hello"
    assert tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True).strip() == "hello world"
    assert inputs["attention_mask"][1][-1] == 0 and inputs["input_ids"][1][-1] == family.ids["pad"]


def test_saved_tokenizers_come_back(family: Family, tokenizer, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path / "once")
    again = AutoTokenizer.from_pretrained(tmp_path / "once", trust_remote_code=True)
    assert type(again).__name__ == family.class_name
    again.save_pretrained(tmp_path / "twice")
    loaded = [again, GLMTokenizer.from_pretrained(tmp_path / "twice")]
    assert (tmp_path / "twice" / "tokenizer.json").is_file() == tokenizer.is_fast
    for name in tokenizer.vocab_files_names.values():
        assert (tmp_path / "twice" / name).is_file(), name
    for other in loaded:
        for name, expected in family.ids.items():
            assert getattr(other, f"{name}_token_id") == expected, name
        for text in texts_of(family):
            encoded = tokenizer(text)["input_ids"]
            assert other(text)["input_ids"] == encoded, text
            assert other.decode(encoded) == tokenizer.decode(encoded), text
            assert other.decode(encoded, skip_special_tokens=True) == tokenizer.decode(
                encoded, skip_special_tokens=True
            )
    reread = own_tokenizer(family, tmp_path / "twice")
    assert reread.encode(TEXTS[0]) == tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]


def test_a_vocabulary_alone_loads_without_tokenizer_json(family: Family, folder: Path, tokenizer, tmp_path: Path):
    for name in tokenizer.vocab_files_names.values():
        if (folder / name).is_file():
            shutil.copyfile(folder / name, tmp_path / name)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert loaded(list(texts_of(family)))["input_ids"] == tokenizer(list(texts_of(family)))["input_ids"]


def test_special_tokens_of_published_files_add_no_ids(family: Family, folder: Path, tokenizer, tmp_path: Path):
    """The settings of the family's own library are understood: no token is added for another name of the same piece."""
    published = {
        "bert-uncased": {"mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[PAD]"},
        "gpt2": {"mask_token": "[MASK]", "bos_token": "<|endoftext|>", "unk_token": "[UNK]"},
        "roberta": {"mask_token": "<mask>", "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>",
                    "sep_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"},
        "chinese-sp": {"mask_token": "[MASK]", "eos_token": "<|endoftext|>", "cls_token": "[CLS]"},
        "sentencepiece": {"mask_token": "[MASK]", "eos_token": "<|endoftext|>", "cls_token": "[CLS]"},
    }[family.folder]  # fmt: skip
    shutil.copytree(folder, tmp_path / "model")
    config = tmp_path / "model" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **published}), encoding="utf-8")
    loaded = GLMTokenizer.from_pretrained(tmp_path / "model")
    assert len(loaded) == len(tokenizer)
    for name, expected in family.ids.items():
        assert getattr(loaded, f"{name}_token_id") == expected, name
    for text in texts_of(family):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"], text


def test_a_missing_file_is_named(family: Family, folder: Path, tokenizer, tmp_path: Path):
    shutil.copyfile(folder / "tokenizer_config.json", tmp_path / "tokenizer_config.json")
    with pytest.raises((ValueError, OSError)) as caught:
        GLMTokenizer.from_pretrained(tmp_path)
    assert any(
        name in str(caught.value) or family.class_name in str(caught.value) for name in tokenizer.vocab_files_names
    )
    if family.folder in ("gpt2", "roberta"):
        shutil.copyfile(folder / "vocab.json", tmp_path / "vocab.json")
        with pytest.raises(ValueError, match=r"lacks merges\.txt \(or tokenizer\.json\)"):
            GLMTokenizer.from_pretrained(tmp_path)


def test_inputs_for_training(family: Family, tokenizer):
    """The worked example of the user's documents: two contexts, two targets."""
    texts = ["Tsinghua University is located in [MASK].", "One minus one equals zero, is it correct? Answer: [MASK]"]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    built = tokenizer.build_inputs_for_generation(inputs, targets=["Beijing", "No"], max_gen_length=8, padding=False)
    ids = tokenizer(["Beijing", "No"], add_special_tokens=False)["input_ids"]
    length = inputs["input_ids"].size(1)
    for row, target in enumerate(ids):
        count = len(target) + 1
        assert built["labels"][row, length : length + count].tolist() == [*target, family.ids["eop"]]
        assert (built["labels"][row, :length] == -100).all() and (built["labels"][row, length + count :] == -100).all()
        assert built["input_ids"][row, length : length + count].tolist() == [family.ids["sop"], *target]
        blank = inputs["input_ids"][row].tolist().index(family.ids["mask"])
        assert (built["position_ids"][row, 0, length:] == blank).all()
    assert isinstance(built, BatchEncoding) and built.to("cpu")["labels"].size(1) == length + max(map(len, ids)) + 1


def test_inputs_for_multiple_choice(family: Family, tokenizer):
    inputs = tokenizer(["Beijing is the capital of [MASK]."], return_tensors="pt")
    built = tokenizer.build_inputs_for_multiple_choice(inputs, [["China", "New Zealand"]])
    ids = tokenizer(["China", "New Zealand"], add_special_tokens=False)["input_ids"]
    assert [choice.tolist() for choice in built["choice_ids"][0]] == ids
    for choice, places in zip(ids, built["choice_indices"][0]):
        assert built["input_ids"][0, places].tolist() == [family.ids["sop"], *choice[:-1]]
        assert built["position_ids"][0, 1, places].tolist() == list(range(1, len(choice) + 1))
        seen = built["attention_mask"][0, 0, places][:, places]
        assert torch.equal(seen, torch.ones_like(seen).tril())


def test_left_padding_can_be_left_out_of_the_positions():
    tokenizer = tiny_tokenizer()
    texts = ["w1 [MASK]", "w1 w2 w3 [MASK] w4"]
    single = tokenizer.build_inputs_for_generation(tokenizer(texts[:1], return_tensors="pt"), max_gen_length=3)
    tokenizer.padding_side = "left"
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    counted = tokenizer.build_inputs_for_generation(batch, max_gen_length=3)
    skipped = tokenizer.build_inputs_for_generation(batch, max_gen_length=3, skip_padding=True)
    added = counted["position_ids"].size(2) - single["position_ids"].size(2)
    assert added > 0
    assert torch.equal(skipped["position_ids"][0, :, added:], single["position_ids"][0])
    shift = torch.tensor([[added], [0]])
    assert torch.equal(counted["position_ids"][0, :, added:], single["position_ids"][0] + shift)


def test_the_first_blank_of_any_kind_is_meant():
    tokenizer = tiny_tokenizer()
    inputs = tokenizer(["w1 [gMASK] [MASK]", "w1 w2 [sMASK]"], return_tensors="pt", padding=True)
    built = tokenizer.build_inputs_for_generation(inputs, max_gen_length=2)
    assert built["position_ids"][:, 0, -1].tolist() == [2, 3]
    choice = tokenizer.build_inputs_for_multiple_choice(tokenizer(["[gMASK] [MASK]"], return_tensors="pt"), [["w1"]])
    assert choice["position_ids"][0, 0, -1] == 2  # [MASK] alone counts there


def test_wrong_calls_are_answered_in_one_line(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    inputs = tokenizer(["w1 [MASK]", "[MASK] w2"], return_tensors="pt", padding=True)
    cases = {
        r"max_gen_length is 0": lambda: tokenizer.build_inputs_for_generation(inputs, max_gen_length=0),
        r"there are 1 targets for 2 texts": lambda: tokenizer.build_inputs_for_generation(inputs, targets="w1"),
        r"text 1 of the batch has no blank": lambda: tokenizer.build_inputs_for_generation(
            tokenizer(["w1 [MASK]", "w1 w2"], return_tensors="pt", padding=True)
        ),
        r'return_tensors="pt"': lambda: tokenizer.build_inputs_for_generation(tokenizer("w1 [MASK]")),
        r"choices for 1 of 2 texts": lambda: tokenizer.build_inputs_for_multiple_choice(inputs, [["w1"]]),
        r"a list of texts for each row": lambda: tokenizer.build_inputs_for_multiple_choice(inputs, ["w1", "w2"]),
        r"choice 0 of text 1 is empty": lambda: tokenizer.build_inputs_for_multiple_choice(inputs, [["w1"], [""]]),
        r"tokenizer_class of tokenizer_config.json is 'BertTokenizer'": lambda: GLMTokenizer.from_pretrained(tmp_path),
    }
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf-8")
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_vocabularies_of_another_kind_are_refused(tmp_path: Path):
    file = tmp_path / "vocab.txt"
    file.write_text("a\nb\n[PAD]\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"has no \[CLS\]; is it a BERT vocab\.txt"):
        tokenization_glm.GLMBertTokenizer(str(file))
    with pytest.raises(ValueError, match=r"not a BPE vocabulary and its merges"):
        tokenization_glm.GLMGPT2Tokenizer(str(file), str(file))
    pytest.importorskip("sentencepiece")
    with pytest.raises(ValueError, match=r"is not a SentencePiece model"):
        tokenization_glm.GLMChineseTokenizer(str(file))
    with pytest.raises(ValueError, match=r"lacks cog-pretrain\.model"):
        tokenization_glm.GLMChineseTokenizer(str(tmp_path / "missing.model"))


def test_cased_bert_keeps_letters(tmp_path: Path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Hello", "hello", "na", "##ïve"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    cased = tokenization_glm.GLMBertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=False)
    assert cased("Hello hello naïve", add_special_tokens=False)["input_ids"] == [5, 6, 7, 8]
    cased.save_pretrained(tmp_path / "saved")
    again = tokenization_glm.GLMBertTokenizer.from_pretrained(tmp_path / "saved")
    assert again("Hello hello naïve", add_special_tokens=False)["input_ids"] == [5, 6, 7, 8]
    assert json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())["do_lower_case"] is False
    assert again.sop_token_id == len(pieces)
