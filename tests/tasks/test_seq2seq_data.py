"""Files of the sequence-to-sequence tasks become examples and samples; mistakes in them get one line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_utils.corpora.tokenization import CACHE_FOLDER
from data_utils.tokenizers.tokenizer import Tokenizer
from tasks.seq2seq.outputs import recover_answer
from tasks.seq2seq.readers import BLANK, ContextOffsets, Seq2SeqExample, Seq2SeqOptions, find_answers, read_examples
from tasks.seq2seq.samples import Seq2SeqSample, build_sample, draw_blanks, mask_name, with_blanks
from tasks.seq2seq.store import StoredExamples, stored_examples
from tasks.settings import SEQ2SEQ_TASKS
from tests.helpers.golden_tokenizers import recorded_tokenizer
from tests.helpers.logs import logged_lines

WORDS = st.lists(st.sampled_from(["red", "car", "of", "the", "a", "b"]), max_size=30).map(" ".join)


@pytest.fixture(scope="module")
def bert(vocab_dir: Path) -> Tokenizer:
    return recorded_tokenizer("bert", vocab_dir)


def options(src_seq_length: int = 32, tgt_seq_length: int = 8, **chosen: Any) -> Seq2SeqOptions:
    return Seq2SeqOptions(src_seq_length=src_seq_length, tgt_seq_length=tgt_seq_length, **chosen)


def write(folder: Path, **files: str) -> Path:
    """Write ``train_source="..."`` as ``train.source``."""
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


def question(identity: str, text: str, *answers: str) -> dict[str, Any]:
    return {"id": identity, "question": text, "answers": [{"text": answer} for answer in answers]}


def nested(context: str, *questions: dict[str, Any]) -> str:
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": list(questions)}]}]})


def read(task: str, folder: Path, split: str, tokenizer: Tokenizer, **chosen: Any) -> list[Seq2SeqExample]:
    return read_examples(task, folder, split, tokenizer=tokenizer, options=options(**chosen))


def check_layout(sample: Seq2SeqSample, chosen: Seq2SeqOptions, tokenizer: Tokenizer, *, slots: int) -> None:
    """Check what every sample has: shapes, padding, positions, and targets that are the next ids."""
    size, pad = chosen.src_seq_length, tokenizer.command_id("pad")
    assert sample.prefix_length == size
    assert sample.input_ids.shape == (size + slots,)
    assert sample.position_ids.shape == (2, size + slots)
    assert 0 < sample.context_length <= size
    assert (sample.input_ids[sample.context_length : size] == pad).all()
    assert (sample.position_ids[0, :size] == np.arange(size)).all()
    assert not sample.position_ids[1, :size].any()
    assert all(0 <= position < sample.context_length for position in sample.mask_positions)
    if sample.target_ids is None:
        assert sample.loss_mask is None
        assert sample.input_ids[size] == tokenizer.command_id("sop")
    else:
        assert not sample.loss_mask[:size].any()
        ends = sample.target_ids == tokenizer.command_id("eop")
        scored = np.flatnonzero((sample.loss_mask == 1) & ~ends)
        scored = scored[scored < size + slots - 1]
        assert (sample.target_ids[scored] == sample.input_ids[scored + 1]).all()


def test_pairs_of_lines_are_stripped(bert, tmp_path):
    write(tmp_path, train_source="  one \r\ntwo\n", train_target="first\n second\t\n")
    examples = read("customization", tmp_path, "train", bert)
    assert [(e.guid, e.source, e.target, e.reference) for e in examples] == [
        ("train-0", "one", "first", "first"),
        ("train-1", "two", "second", "second"),
    ]


@pytest.mark.parametrize("task", ["gigaword", "cnn_dm", "cnn_dm_original", "customization"])
def test_files_of_different_length(task: str, bert, tmp_path):
    write(tmp_path, val_source="a\nb\nc\n", val_target="x\ny\n")
    with pytest.raises(ValueError, match=r"val\.source has 3 lines, .*val\.target has 2: line 3 has no partner"):
        read(task, tmp_path, "dev", bert)


def test_the_shorter_file_decides_in_the_original(bert, tmp_path):
    write(tmp_path, val_source="a\nb\nc\n", val_target="x\ny\n")
    assert len(read("customization", tmp_path, "dev", bert, compatible=True)) == 2


@pytest.mark.parametrize("name", ["train.source", "train.target"])
def test_empty_and_missing_files(name: str, bert, tmp_path):
    write(tmp_path, train_source="a\n", train_target="x\n")
    (tmp_path / name).write_text(" \n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{name}: the file is empty"):
        read("customization", tmp_path, "train", bert)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=rf"{name}: no such file"):
        read("customization", tmp_path, "train", bert)


def test_unknown_names(bert, tmp_path):
    with pytest.raises(ValueError, match="'summary' is no sequence-to-sequence task; choose one of gigaword"):
        read("summary", tmp_path, "train", bert)
    with pytest.raises(ValueError, match="split 'val'; choose one of train, dev, test"):
        read("gigaword", tmp_path, "val", bert)


@pytest.mark.parametrize("task", ["squad_generation", "cmrc"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"data": [\n{"paragraphs": ]}', r"train\.json: not valid JSON \(.*, line 2, column 16\)"),
        ("[]", r"train\.json: a JSON object is needed, found \[\]"),
        ('{"data": [{}]}', r"train\.json, data\[0\]: no 'paragraphs'"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', r"data\[0\]\.paragraphs\[0\]: no 'context'"),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": 3, "answers": []}]}]}]}',
            r"data\[0\]\.paragraphs\[0\]\.qas\[0\]: question is 3; a text is needed",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": [{}]}]}]}]}',
            r"qas\[0\]\.answers\[0\]: no 'text'",
        ),
        ('{"data": []}', r"train\.json: no question"),
    ],
)
def test_malformed_questions(task: str, content: str, problem: str, bert, tmp_path):
    (tmp_path / "train.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=problem) as caught:
        read(task, tmp_path, "train", bert)
    assert "\n" not in str(caught.value)


def test_one_example_per_distinct_answer_in_file_order(bert, tmp_path):
    text = nested("Rain falls on Rome.", question("q", "What falls?", "Rain", "rain", "Rain", "Rome"))
    (tmp_path / "train.json").write_text(text, encoding="utf-8")
    (tmp_path / "test.json").write_text(text, encoding="utf-8")
    examples = read("squad_generation", tmp_path, "train", bert)
    assert [example.meta["answer"] for example in examples] == ["Rain", "rain", "Rome"]
    assert {example.target for example in examples} == {"What falls?"}
    [hidden] = read("squad_generation", tmp_path, "test", bert)
    assert hidden.meta["answer"] == "FAKE_ANSWER"


def test_a_generated_question_is_compared_with_the_question(bert, tmp_path):
    text = nested("Rain falls.", question("q", "What falls?", "Rain"))
    (tmp_path / "dev.json").write_text(text, encoding="utf-8")
    [example] = read("squad_generation", tmp_path, "dev", bert)
    assert example.reference == "what falls ?"
    [example] = read("squad_generation", tmp_path, "dev", bert, compatible=True)
    assert example.reference == "rain"


SQUAD_FILE = nested(
    "the first words of a long text say nothing but the last of them name the city of Oslo",
    question("q", "Which city?", "Oslo"),
    question("r", "Which river?"),
)


def test_windows_do_not_depend_on_the_answer_when_evaluating(bert, tmp_path):
    for name in ("train-v1.1.json", "dev-v1.1.json", "dev-v2.0.json"):
        (tmp_path / name).write_text(SQUAD_FILE, encoding="utf-8")
    kept = read("squad_v1", tmp_path, "train", bert, src_seq_length=16)
    assert kept and all("oslo" in example.source for example in kept)
    assert {example.meta["idx"] for example in kept} == {"q"}
    shown = read("squad_v1", tmp_path, "dev", bert, src_seq_length=16)
    assert {example.meta["idx"] for example in shown} == {"q", "r"}
    assert [e.source for e in shown] == [e.source for e in read("squad", tmp_path, "test", bert, src_seq_length=16)]
    assert [e.source for e in read("squad_v1", tmp_path, "dev", bert, src_seq_length=16, compatible=True)] == [
        e.source for e in kept
    ]
    words = {word for example in shown for word in example.source.split()}
    assert words == set(json.loads(SQUAD_FILE)["data"][0]["paragraphs"][0]["context"].lower().split())


def test_a_question_too_long_for_the_source(bert, tmp_path):
    (tmp_path / "dev-v2.0.json").write_text(SQUAD_FILE, encoding="utf-8")
    with pytest.raises(ValueError, match=r"qas\[0\]: the question leaves no room in --src-seq-length 6"):
        read("squad", tmp_path, "dev", bert, src_seq_length=6)


def test_answers_come_back_as_they_are_written(bert):
    context = "Café Müller's 1,000-seat hall — in the U.S. — opened at 9 a.m."
    ids = bert.encode(context)
    meta = {"context": context, "context_ids": ids, "context_offsets": ContextOffsets(bert).of(context, ids)}
    for start in range(len(ids)):
        for end in range(start + 1, len(ids) + 1):
            found = recover_answer(ids[start:end], meta, tokenizer=bert)
            assert found in context
            if not bert.id_to_token(ids[start]).startswith("##"):  # a piece is no word of its own
                assert bert.encode(found) == ids[start:end]


def test_no_answer_and_foreign_words(bert):
    meta = {"context": "Rain", "context_ids": bert.encode("Rain"), "context_offsets": ((0, 4),)}
    assert recover_answer(bert.encode("N/A"), meta, tokenizer=bert) == "n / a"
    assert recover_answer(bert.encode("in the u.s. 1,000"), meta, tokenizer=bert) == "in the u.s . 1,000"


def test_rare_characters_warn_once(bert):
    """The library writes a capital sigma at the end of a word otherwise; answers are then cleaned up, not cut out."""
    context = "the ΟΔΟΣ was wet - it rained"
    ids, offsets = bert.encode(context), ContextOffsets(bert)
    with logged_lines() as lines:
        assert offsets.of(context, ids) is None
        assert offsets.of(f"{context} !", [*ids, 999]) is None
    assert len(lines) == 1 and lines[0].startswith("no character offsets for a context with rare characters: 'the ")
    meta = {"context": context, "context_ids": ids, "context_offsets": None}
    assert recover_answer(bert.encode("wet - it"), meta, tokenizer=bert) == "wet-it"


def test_xsum_problems(bert, tmp_path):
    splits = tmp_path / "XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json"
    splits.write_text('{"train": ["7"],\n "test": }', encoding="utf-8")
    with pytest.raises(ValueError, match=r"5-5\.json: not valid JSON \(.*, line 2, column 10\)"):
        read("xsum", tmp_path, "train", bert)
    splits.write_text('{"train": ["7"]}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"5-5\.json: no 'validation'; it has train"):
        read("xsum", tmp_path, "dev", bert)
    with pytest.raises(ValueError, match=r"7\.summary: no such file"):
        read("xsum", tmp_path, "train", bert)
    (tmp_path / "7.summary").write_text("[SN]RESTBODY[SN]\nbody\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"7\.summary: no section \[SN\]FIRST-SENTENCE\[SN\]"):
        read("xsum", tmp_path, "train", bert)


def test_blanks_must_be_there(bert, tmp_path):
    (tmp_path / "blank").mkdir()
    (tmp_path / "test.txt").write_text("a b c\nd e f\n", encoding="utf-8")
    (tmp_path / "blank" / "test.maskratio0.3.blank").write_text("a <blank> c\nd e f\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"test\.maskratio0\.3\.blank, line 2: no <blank> to fill in 'd e f'"):
        read("blank", tmp_path, "test", bert, blank_maskratio=0.3)
    (tmp_path / "train.txt").write_text("a b\nc <blank>\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"train\.txt, line 2: a blank in the text"):
        read("blank", tmp_path, "train", bert)
    write(tmp_path, train_source="no mask\n", train_target="x\n")
    with pytest.raises(ValueError, match=r"train\.source, line 1: no \[MASK\] to fill"):
        read("extraction", tmp_path, "train", bert)
    write(tmp_path, train_source="in [MASK] by [MASK]\n", train_target="1987\n")
    with pytest.raises(ValueError, match=r"train\.target, line 1: 1 answers .* for 2 blanks"):
        read("extraction", tmp_path, "train", bert)


@given(text=WORDS, ratio=st.floats(0.05, 0.95), seed=st.integers())
def test_blanks_and_answers_make_the_text(text: str, ratio: float, seed: int):
    source, answers = draw_blanks(text, ratio=ratio, generator=random.Random(seed))
    assert sum(len(answer.split()) for answer in answers) == int(len(text.split()) * ratio)
    assert source.count(BLANK) == len(answers)
    assert f"{BLANK} {BLANK}" not in source
    rebuilt = source
    for answer in answers:
        rebuilt = rebuilt.replace(BLANK, answer, 1)
    assert rebuilt.split() == text.split()
    found = find_answers(source, text)  # one reading of several, perhaps, but one that gives the text
    assert found is not None and len(found) == len(answers)
    for answer in found:
        source = source.replace(BLANK, answer, 1)
    assert source.split() == text.split()


@pytest.mark.parametrize(
    ("source", "target", "answers"),
    [
        ("a [MASK] d", "a b c d", ("b c",)),
        ("[MASK] b [MASK]", "a b c b d", ("a", "c b d")),
        ("a [MASK]", "a", None),
        ("a [MASK] c", "x b c", None),
        ("a b", "a b", ()),
    ],
)
def test_answers_are_found(source: str, target: str, answers: tuple[str, ...] | None):
    assert find_answers(source, target) == answers


def test_blanks_follow_from_seed_epoch_and_example():
    text = " ".join(f"w{n}" for n in range(100))
    examples = [Seq2SeqExample(f"train-{n}", text, text, text) for n in range(2)]

    def drawn(example: Seq2SeqExample, epoch: int = 0, **chosen: Any) -> str:
        return with_blanks(example, options=options(**chosen), epoch=epoch).source

    first = drawn(examples[0])
    assert first == drawn(examples[0])
    assert len({first, drawn(examples[1]), drawn(examples[0], epoch=1), drawn(examples[0], seed=1)}) == 4
    blanks = with_blanks(examples[0], options=options())
    assert with_blanks(blanks, options=options(), epoch=5) is blanks


def test_blanks_that_are_cut_off_are_not_asked_for(bert):
    text = "one two three four five six [MASK] seven [MASK] eight"
    example = Seq2SeqExample("train-0", text, "", "", {"blanks": ("x", "y")})
    chosen = options(src_seq_length=7)
    sample = build_sample("extraction", example, tokenizer=bert, options=chosen, for_training=True)
    assert sample.mask_positions == (6,)
    assert sample.loss_mask.sum() == 2
    check_layout(sample, chosen, bert, slots=8)
    chosen = options(src_seq_length=6)
    sample = build_sample("extraction", example, tokenizer=bert, options=chosen, for_training=False)
    assert sample.mask_positions == ()
    check_layout(sample, chosen, bert, slots=1)


def test_blank_task_writes_the_mask_of_the_task(vocab_dir):
    tokenizer = recorded_tokenizer("bert", vocab_dir, task_mask=True)
    chosen = options(task_mask=True, blank_maskratio=0.5)
    example = Seq2SeqExample("test-0", "a [MASK] c [MASK]", "a b c d", "a b c d", {"blanks": ("b", "d")})
    for task, name in (("blank", "gMASK"), ("extraction", "MASK")):
        assert mask_name(task, chosen) == name
        sample = build_sample(task, example, tokenizer=tokenizer, options=chosen, for_training=False)
        ids = sample.input_ids[list(sample.mask_positions)]
        assert ids.tolist() == [tokenizer.command_id(name)] * 2


def test_the_appended_mask_is_the_one_to_fill(bert):
    example = Seq2SeqExample("test-0", "a [MASK] in the text", "x", "x")
    sample = build_sample("customization", example, tokenizer=bert, options=options(), for_training=False)
    assert sample.mask_positions == (sample.context_length - 2,)
    assert sample.position_ids[:, -1].tolist() == [sample.context_length - 2, 1]
    old = build_sample("customization", example, tokenizer=bert, options=options(compatible=True), for_training=False)
    assert old.mask_positions == (2,)


def test_over_long_questions_and_answers_are_cut(vocab_dir, bert):
    chinese = recorded_tokenizer("chinese", vocab_dir)
    chosen = options(src_seq_length=12)
    example = Seq2SeqExample("dev-0", "文" * 20, "答案", "答案", {"question": "很长的问题" * 20, "answer": "答案"})
    sample = build_sample("cmrc", example, tokenizer=chinese, options=chosen, for_training=True)
    check_layout(sample, chosen, chinese, slots=8)
    assert sample.input_ids[sample.mask_positions[0]] == chinese.command_id("MASK")
    example = Seq2SeqExample("dev-0", "words " * 20, "what ?", "what ?", {"question": "what ?", "answer": "x " * 30})
    sample = build_sample("squad_generation", example, tokenizer=bert, options=chosen, for_training=True)
    check_layout(sample, chosen, bert, slots=8)
    assert sample.mask_positions == (1,)


EXAMPLE_META = {"question": "what is it ?", "answer": "the car", "idx": "q"}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    task=st.sampled_from(SEQ2SEQ_TASKS),
    source=WORDS.filter(bool),
    target=WORDS,
    src_seq_length=st.integers(14, 40),
    tgt_seq_length=st.integers(1, 12),
    for_training=st.booleans(),
    block_positions=st.booleans(),
)
def test_every_sample_has_the_layout(
    bert, task, source, target, src_seq_length, tgt_seq_length, for_training, block_positions
):
    chosen = options(src_seq_length, tgt_seq_length, block_positions=block_positions, blank_maskratio=0.4)
    meta = {**EXAMPLE_META, "blanks": ("red car",)} if task == "extraction" else EXAMPLE_META
    text = f"{BLANK} {source}" if task == "extraction" else source
    example = Seq2SeqExample("train-3", text, target, target, meta)
    sample = build_sample(task, example, tokenizer=bert, options=chosen, for_training=for_training)
    slots = {True: int(src_seq_length * 0.4) if task == "blank" else tgt_seq_length, False: 1}[for_training]
    check_layout(sample, chosen, bert, slots=slots)
    assert sample.uid == "train-3"
    if not block_positions:
        assert set(sample.position_ids[1, src_seq_length:]) <= {0, 1}
    if for_training and task not in ("blank", "extraction"):
        expected = [*bert.encode(f" {target}"), bert.command_id("eop")][:tgt_seq_length]
        assert sample.target_ids[sample.loss_mask == 1].tolist() == expected
        assert (sample.position_ids[0, src_seq_length:] == sample.mask_positions[0]).all()


REAL = {  # folder of each task's real data, and how many examples its splits have
    "gigaword": ("gigaword_style", ("train", "dev", "test")),
    "cnn_dm": ("cnn_dm", ("train", "dev", "test")),
    "cnn_dm_original": ("cnn_dm_original", ("train", "dev", "test")),
    "xsum": ("xsum", ("train", "dev", "test")),
    "squad_generation": ("squad_generation", ("train", "dev", "test")),
    "squad": ("squad", ("dev",)),
    "squad_v1": ("squad", ("train", "dev")),
    "blank": ("blank_yahoo", ("train", "dev", "test")),
    "customization": ("customization", ("train", "dev", "test")),
}


def test_a_store_gives_the_examples_again(bert, tmp_path, caplog):
    """Questions have the most in ``meta``: texts, ids, offsets."""
    context = "The tram is red; the door is gréén."
    write(
        tmp_path, **{"train-v1.1.json": nested(context, question("a", "what?", "door"), question("b", "how?", "red"))}
    )
    plain = read("squad_v1", tmp_path, "train", bert)
    reads = []

    def stored() -> StoredExamples:
        def again() -> list[Seq2SeqExample]:
            reads.append(len(reads))
            return read("squad_v1", tmp_path, "train", bert)

        return stored_examples(again, name="squad_v1-train", folders=[tmp_path], key={})

    assert list(stored()) == plain and stored()[:1] == plain[:1] and stored()[-1] == plain[-1]
    assert reads == [0], "read once"
    [data] = (tmp_path / CACHE_FOLDER).glob("squad_v1-train-*.bin")
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    assert list(stored()) == plain and reads == [0, 1] and "it is made again" in caplog.text
    write(tmp_path, **{"train-v1.1.json": nested(context, question("a", "what else?", "door"))})
    assert [example.meta["question"] for example in stored()] == ["what else?"]
    other = stored_examples(lambda: plain, name="squad_v1-train", folders=[tmp_path], key={"limit": 2})
    assert list(other) == plain, "another key, another store"
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "back").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"train-v1\.1\.json"):
        stored_examples(
            lambda: read("squad_v1", tmp_path / "none", "train", bert),
            name="squad_v1-train", folders=[tmp_path / "none"], key={},
        )  # fmt: skip
    assert not (tmp_path / "none" / CACHE_FOLDER).exists()


@pytest.mark.parametrize("task", REAL)
def test_real_data(task: str, data_dir: Path, bert):
    folder, splits = data_dir / "seq2seq" / REAL[task][0], REAL[task][1]
    chosen = options(192, 32, blank_maskratio=0.3)
    for split in splits:
        examples = read_examples(task, folder, split, tokenizer=bert, options=chosen)
        assert [example.guid for example in examples] == [f"{split}-{n}" for n in range(len(examples))]
        assert len(examples) >= 50
        for example in examples[::7]:
            assert example.source and example.target and example.reference
            for_training = split == "train"
            sample = build_sample(task, example, tokenizer=bert, options=chosen, for_training=for_training)
            slots = (57 if task == "blank" else 32) if for_training else 1
            check_layout(sample, chosen, bert, slots=slots)
            if task != "blank":
                assert sample.input_ids[sample.mask_positions[0]] == bert.command_id("MASK")


def test_real_answers_are_found_in_their_contexts(data_dir: Path, bert):
    """Nearly every gold answer that a window holds comes back letter by letter."""
    examples = read("squad_v1", data_dir / "seq2seq" / "squad", "train", bert, src_seq_length=384)
    same = [recover_answer(bert.encode(e.target), e.meta, tokenizer=bert).lower() == e.target.lower() for e in examples]
    assert len(same) > 500 and sum(same) > 0.97 * len(same)


def test_real_blanks_have_answers(data_dir: Path, bert):
    examples = read("blank", data_dir / "seq2seq" / "blank_yahoo", "test", bert, blank_maskratio=0.1)
    known = [example for example in examples if example.meta["blanks"] is not None]
    assert len(known) > 0.95 * len(examples)
    for example in known:
        assert len(example.meta["blanks"]) == example.source.split().count(BLANK)
