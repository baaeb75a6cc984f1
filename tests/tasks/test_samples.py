"""Samples and batches beyond what is recorded: where the original fails, and that padding means nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer
from model.config import GLMConfig
from model.heads import MultiTokenCloze, MultiTokenClozeFast, SingleTokenCloze
from model.modeling_glm import GLMModel
from tasks.registry import TASKS
from tasks.superglue.batches import TaskBatch, collate, length_buckets
from tasks.superglue.readers import InputExample
from tasks.superglue.samples import ClozeEncoder, EncodingOptions, Piece, TaskSample, truncate
from tests.helpers.logs import logged_lines

VOCABULARY = """[PAD] [UNK] [CLS] [SEP] [MASK] yes no maybe true false question answer or because so , . ? : ! " ' * ( )
the rain fell on stones and grew loud at night a it was wet - # ann bea she thanked helped him pronoun refers to in"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    file.write_text("\n".join(VOCABULARY.split()) + "\n", encoding="utf-8")
    return build_tokenizer("BertWordPieceTokenizer", model_type="bert-base-uncased", path=file)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GLMModel:
    torch.manual_seed(7)
    config = GLMConfig(
        vocab_size=tokenizer.padded_size(8), num_layers=2, hidden_size=16, num_attention_heads=2,
        max_position_embeddings=128, output_dropout=0.0, attention_dropout=0.0, embedding_dropout=0.0,
    )  # fmt: skip
    model = GLMModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def rte(premise: str, hypothesis: str = "it was wet .", number: int = 0) -> InputExample:
    return InputExample(f"train-{number}", premise, hypothesis, "entailment", idx=number)


def copa(premise: str, first: str, second: str) -> InputExample:
    return InputExample("train-0", premise, label=1, meta={"choice1": first, "choice2": second, "question": "cause"})


def samples_of(name: str, examples, tokenizer: Tokenizer, **options) -> tuple[TaskSample, ...]:
    return TASKS[name].build_samples(examples, tokenizer, EncodingOptions(**{"seq_length": 64, **options})).samples


def batch_of(samples, tokenizer: Tokenizer, **options) -> TaskBatch:
    return collate(samples, pad_id=tokenizer.command_id("pad"), **options).tensors()


def scores(model: GLMModel, batch: TaskBatch) -> torch.Tensor:
    common = batch.input_ids, batch.position_ids, batch.prefix_lengths
    with torch.no_grad():
        if batch.kind == "single_token":
            return SingleTokenCloze(model)(*common, batch.target_ids)[0]
        if batch.kind == "multi_token":
            return MultiTokenCloze(model)(*common, batch.target_ids, batch.loss_mask)
        return MultiTokenClozeFast(model)(
            *common,
            answer_ids=batch.answer_ids,
            answer_position_ids=batch.answer_position_ids,
            answer_prefix_lengths=batch.answer_prefix_lengths,
            target_ids=batch.target_ids,
            loss_mask=batch.loss_mask,
        )


LONG, SHORT = "the rain fell on stones and grew loud at night", "rain fell"


@pytest.mark.parametrize("changes", [{}, {"multi_token": True}, {"multi_token": True, "fast_decode": True}])
def test_a_sample_scores_the_same_in_every_batch(model, tokenizer, changes):
    samples = samples_of("rte", [rte(LONG), rte(SHORT, number=1)], tokenizer, **changes)
    together = scores(model, batch_of(samples, tokenizer))
    assert together.shape == (2, 2)
    for number, sample in enumerate(samples):
        for options in ({}, {"pad_to": 64}, {"multiple_of": 8}):
            alone = scores(model, batch_of([sample], tokenizer, **options))
            torch.testing.assert_close(alone[0], together[number], atol=1e-5, rtol=1e-5)


def test_fast_decode_scores_as_the_full_rows_do(model, tokenizer):
    examples = [rte(LONG), rte(SHORT, number=1)]
    full = scores(model, batch_of(samples_of("rte", examples, tokenizer, multi_token=True), tokenizer))
    fast_samples = samples_of("rte", examples, tokenizer, multi_token=True, fast_decode=True)
    torch.testing.assert_close(scores(model, batch_of(fast_samples, tokenizer)), full, atol=1e-5, rtol=1e-5)


def test_fast_decode_keeps_long_answers(model, tokenizer):
    examples = [copa(SHORT, f"{LONG} and {LONG}", "it was wet"), copa(LONG, SHORT, "it fell")]
    full = scores(model, batch_of(samples_of("copa", examples, tokenizer, seq_length=96), tokenizer))
    fast = samples_of("copa", examples, tokenizer, seq_length=96, fast_decode=True)
    assert max(map(len, fast[0].answers)) > 16
    torch.testing.assert_close(scores(model, batch_of(fast, tokenizer)), full, atol=1e-5, rtol=1e-5)


def test_rows_that_fill_up_are_marked(tokenizer):
    meta = {"span1_text": "ann", "span2_text": "she", "span2_index": 3, "candidates": ["bea", "the rain"]}
    example = InputExample("dev-0", "ann thanked bea she helped him", None, "True", meta)
    few = replace(example, guid="dev-1", meta={**meta, "candidates": []})
    for changes in ({}, {"fast_decode": True}):
        samples = samples_of("wsc", [example, few], tokenizer, wsc_negative=True, loss_func="mix", **changes)
        batch = batch_of(samples, tokenizer)
        assert batch.choice_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
        assert (batch.target_ids[1] == batch.target_ids[1, :1]).all()
    same = batch_of(samples[:1], tokenizer)
    assert same.choice_mask.tolist() == [[1, 1, 1]]  # also where no row is missing
    kind = samples[0].kind
    assert [TASKS["wsc"].predicted_class(kind, row) for row in (0, 1, 2)] == [1, 0, 0]
    assert TASKS["wsc"].predicted_class("classification", 0) == 0


def test_the_other_side_is_shortened_when_one_has_nothing_left(tokenizer):
    a, b = [Piece((1, 2), shortenable=True), Piece((3,))], [Piece((4, 5, 6, 7))]
    shortened_a, shortened_b, removed = truncate(a, b, max_length=8)
    assert (removed, shortened_a[0].ids, shortened_b) == (2, (), tuple(b))
    with pytest.raises(ValueError, match="needs 8 positions"):
        truncate(a, b, max_length=7)
    [sample] = samples_of("copa", [copa(LONG, "it was wet", "it fell")], tokenizer, seq_length=28)
    assert sample.length <= 28
    with pytest.raises(ValueError, match=r"^example train-0: needs \d+ positions even without .* --seq-length is 12$"):
        samples_of("copa", [copa(SHORT, LONG, LONG)], tokenizer, seq_length=12)


@given(
    sides=st.tuples(*[st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=6), st.booleans()), max_size=4)] * 2),
    answer=st.one_of(st.none(), st.lists(st.integers(0, 9), max_size=4)),
    max_length=st.integers(3, 30),
)
@settings(max_examples=200, deadline=None)
def test_truncation_fits_and_takes_no_more_than_it_must(sides, answer, max_length):
    pieces = [[Piece(tuple(ids), flag) for ids, flag in side] for side in sides]
    total = sum(len(piece.ids) for side in pieces for piece in side) + len(answer or ()) + 2 + (not answer)
    try:
        *shortened, removed = truncate(*pieces, answer=answer, max_length=max_length)
    except ValueError:
        fixed = sum(len(piece.ids) for side in pieces for piece in side if not piece.shortenable)
        assert fixed + len(answer or ()) + 2 + (not answer) > max_length
        return
    assert removed == max(0, total - max_length)
    for before, after in zip(pieces, shortened):
        for old, new in zip(before, after, strict=True):
            assert new.ids == old.ids[: len(new.ids)]
            assert new.shortenable or new == old


def test_classification_reads_what_the_original_cannot(tokenizer):
    [single] = samples_of("sst2", [InputExample("dev-0", SHORT, label="1")], tokenizer, cloze_eval=False)
    assert tokenizer.decode(single.rows[0].input_ids.tolist()) == "[CLS] rain fell [PAD]"
    assert single.rows[0].prefix_length == 4
    [empty] = samples_of("tnews", [InputExample("dev-0", SHORT, "", "100")], tokenizer, cloze_eval=False)
    assert tokenizer.decode(empty.rows[0].input_ids.tolist()) == "[CLS] rain fell [SEP] [PAD]"
    meta = {"span1_text": "rain", "span2_text": "it", "span2_index": 5, "span2_length": 2}
    chinese = InputExample("dev-0", "rain it was", 0, "true", meta)
    [spans] = samples_of("cluewsc", [chinese], tokenizer, cloze_eval=False)
    assert tokenizer.decode(spans.rows[0].input_ids.tolist()) == "[CLS] rain * it * was [SEP] rain [PAD]"
    for name, example in (("race", rte(SHORT)), ("squad", rte(SHORT))):
        with pytest.raises(ValueError, match="give --cloze-eval"):
            samples_of(name, [example], tokenizer, cloze_eval=False)


def test_a_position_after_the_context_for_pooling(tokenizer):
    for text in (SHORT, LONG * 3):
        [sample] = samples_of("rte", [rte(text)], tokenizer, cloze_eval=False, seq_length=16, pool_token="start")
        assert sample.rows[0].prefix_length < sample.length <= 16


def test_options_that_exclude_each_other(tokenizer):
    for changes, message in (
        ({"prefix_prompt": 2}, "--prefix-prompt needs --continuous-prompt"),
        ({"continuous_prompt": True}, "--num-prompt-tokens or --prefix-prompt"),
        ({"continuous_prompt": True, "num_prompt_tokens": 1, "fast_decode": True}, "exclude each other"),
        ({"fast_decode": True, "segment_length": 2}, "exclude each other"),
        ({"pattern_id": 9}, "rte has the patterns 0 to 4"),
        ({"wsc_negative": False, "cloze_eval": False, "continuous_prompt": True}, "give --cloze-eval"),
    ):
        with pytest.raises(ValueError, match=message):
            samples_of("rte", [rte(SHORT)], tokenizer, **changes)
    example = InputExample("dev-0", SHORT, label="1")
    with pytest.raises(ValueError, match="pattern 0 of sst2 has no prompt slot"):
        samples_of("sst2", [example], tokenizer, continuous_prompt=True, num_prompt_tokens=2, multi_token=True)
    prompt = EncodingOptions(seq_length=64, continuous_prompt=True, num_prompt_tokens=2)
    with pytest.raises(ValueError, match="exclude each other"):
        TASKS["rte"].labelled_texts([rte(SHORT)], tokenizer, prompt)


def test_a_prefix_needs_no_slot(tokenizer):
    example = InputExample("dev-0", SHORT, label="1")
    task = TASKS["yelp-polarity"]
    with pytest.raises(ValueError, match=r"has to be one token; give --multi-token"):
        task.build_samples([example], tokenizer, EncodingOptions(seq_length=64))
    options = EncodingOptions(seq_length=64, continuous_prompt=True, prefix_prompt=3, multi_token=True)
    [sample] = task.build_samples([example], tokenizer, options).samples
    assert batch_of([sample], tokenizer).prompt_positions.tolist() == [[[1, 2, 3]] * 2]
    assert options.prompt_length == 3


def test_words_of_several_tokens_are_named_once(tokenizer):
    with pytest.raises(ValueError) as caught:
        samples_of("cb", [InputExample("train-0", "a", "b", "neutral")], tokenizer, pattern_id=4)
    assert str(caught.value).startswith("cb: the word ' neither' of label neutral is 1 tokens")


def test_literal_commands_count_and_are_said(tokenizer):
    with logged_lines() as lines:
        samples_of("rte", [rte("the [MASK] fell")], tokenizer)
        samples_of("rte", [rte(SHORT)], tokenizer)
    assert lines == ["rte: 1 texts hold command tokens such as [MASK], which count as those"]


def test_wsc_without_candidates_is_language_modelling_whatever_the_loss(tokenizer):
    meta = {"span1_text": "ann", "span2_text": "she", "span2_index": 3}
    example = InputExample("dev-0", "ann thanked bea she helped him", None, "True", meta)
    for loss in ("cross_entropy", "hinge", "generative", "mix"):
        [sample] = samples_of("wsc", [example], tokenizer, loss_func=loss)
        assert sample.kind == "language_model"
    [text] = TASKS["wsc"].labelled_texts([example], tokenizer, EncodingOptions(seq_length=64))
    assert tokenizer.command_id("MASK") not in text
    assert (text[0], text[-1]) == (tokenizer.command_id("ENC"), tokenizer.command_id("pad"))


def test_segments_of_an_answer_add_up_to_it(tokenizer):
    example = copa(LONG, "the rain fell on stones", "it was wet")
    [whole] = samples_of("copa", [example], tokenizer)
    [pieces] = samples_of("copa", [example], tokenizer, segment_length=2)
    for choice in range(2):
        rows = [row for row, owner in zip(pieces.rows, pieces.segment_ids, strict=True) if owner == choice]
        targets = [t for row in rows for t in row.target_ids[row.loss_mask == 1]]
        assert targets == whole.rows[choice].target_ids[whole.rows[choice].loss_mask == 1].tolist()
        contexts = [row.prefix_length for row in rows]
        assert contexts == [contexts[0] + 2 * number for number in range(len(rows))]


def test_buckets_put_like_beside_like(tokenizer):
    samples = samples_of("rte", [rte(LONG), rte(SHORT, number=1), rte(LONG, number=2)], tokenizer)
    assert length_buckets(samples) == [1, 0, 2]


def test_an_empty_answer_is_refused(tokenizer):
    example = InputExample("dev-0", SHORT, "x", "A", {"choices": ["rain", "", "a", "it"]})
    with pytest.raises(ValueError, match="an answer to choose from is empty"):
        samples_of("race", [example], tokenizer)
    example = InputExample("0", SHORT, meta={"choices": ["rain", ""]})
    with pytest.raises(ValueError, match="example 0: a choice is empty"):
        samples_of("multichoice", [example], tokenizer)


def test_the_encoder_keeps_count(tokenizer, tmp_path: Path):
    result = TASKS["rte"].build_samples([rte(LONG), rte(SHORT)], tokenizer, EncodingOptions(seq_length=20))
    assert result.num_truncated == 1
    assert isinstance(ClozeEncoder(TASKS["rte"].patterns, tokenizer, EncodingOptions()).special.mask, int)
