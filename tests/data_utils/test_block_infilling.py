"""What every blank-infilling batch has to satisfy, whatever was drawn."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_utils.objective.block_infilling import Batch, BlankInfillingCollator, BlankInfillingSettings
from data_utils.objective.packing import BlockDataset, Sample
from data_utils.objective.spans import (
    SpanLengths,
    context_next_to_blanks,
    documents_of,
    draw_below,
    place_spans,
    sentence_spans,
    shuffle,
    spans_in_documents,
)
from tests.helpers.stand_ins import (
    DBLOCK,
    ENC,
    EOP,
    EOS,
    FULL_STOP,
    GMASK,
    MASK,
    SMASK,
    SOP,
    VOCABULARY,
    make_documents,
    make_text,
)

SEQ_LENGTH = 64
MIXED = BlankInfillingSettings(bert_prob=0.4, gap_sentence_prob=0.3, gpt_min_ratio=0.25)

mixes = st.builds(
    BlankInfillingSettings,
    bert_prob=st.sampled_from([0.0, 0.4]),
    gap_sentence_prob=st.sampled_from([0.0, 0.3, 0.6]),
    gpt_infill_prob=st.sampled_from([0.0, 0.5, 1.0]),
    gpt_min_ratio=st.floats(0.0, 1.0),
    gap_sentence_ratio=st.floats(0.0, 0.5),
    avg_block_length=st.integers(1, 8),
    short_seq_prob=st.sampled_from([0.0, 0.5]),
    single_span_prob=st.sampled_from([0.0, 0.3]),
    block_position_encoding=st.booleans(),
    shuffle_blocks=st.booleans(),
    task_mask=st.booleans(),
    random_position=st.booleans(),
)


def packed(seed: int, count: int = 3) -> list[Sample]:
    """Return samples of SEQ_LENGTH tokens or fewer, some of several documents."""
    generator = random.Random(seed)
    lengths = [generator.randint(1, 150) for _ in range(6)]
    dataset = BlockDataset(make_documents(lengths, seed=seed), tokenizer=VOCABULARY, seq_length=SEQ_LENGTH)
    return [dataset[seed + number] for number in range(count)]


def collator_of(options: BlankInfillingSettings) -> BlankInfillingCollator:
    return BlankInfillingCollator(VOCABULARY, options, max_seq_length=SEQ_LENGTH)


def reconstruct(batch: Batch, row: int) -> list[int]:
    """Put the spans of part B back where part A has their masks; by position, as the model has to."""
    prefix_length = int(batch.attention_mask[row])
    part_a, targets = batch.input_ids[row, :prefix_length].tolist(), batch.target_ids[row]
    positions = batch.position_ids[row, 0]
    spans: dict[int, list[int]] = {}
    for place in range(prefix_length, prefix_length + int((batch.position_ids[row, 1, prefix_length:] > 0).sum())):
        if targets[place] != EOP:
            spans.setdefault(int(positions[place]), []).append(int(targets[place]))
    text = []
    for place, token in enumerate(part_a):
        text += spans.pop(int(positions[place])) if token in (MASK, GMASK, SMASK) else [token]
    assert not spans, "a span without a mask"
    return text


@given(options=mixes, seed=st.integers(0, 10**6), batch_index=st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_the_text_can_be_put_back_together(options, seed, batch_index):
    options = replace(options, short_seq_prob=0.0)
    samples = packed(seed)
    batch = collator_of(options)(samples, batch_index=batch_index)
    texts = [sample.tokens.tolist() for sample in samples]
    rows = [reconstruct(batch, row) for row in range(len(batch.input_ids))]
    if batch.num_dropped == 0:
        assert rows == texts
    assert all(row in texts for row in rows)
    assert len(rows) == len(texts) - batch.num_dropped or (len(rows), batch.num_dropped) == (1, len(texts))


@given(options=mixes, seed=st.integers(0, 10**6), batch_index=st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_parts_positions_and_loss(options, seed, batch_index):
    batch = collator_of(options)(packed(seed), batch_index=batch_index)
    for name in ("input_ids", "target_ids", "loss_mask", "position_ids", "attention_mask"):
        assert getattr(batch, name).dtype == np.int64
        assert getattr(batch, name).flags.c_contiguous
    width = batch.input_ids.shape[1]
    for row, prefix_length in enumerate(batch.attention_mask.tolist()):
        position, in_span = batch.position_ids[row]
        length = prefix_length + int((in_span[prefix_length:] > 0).sum())
        offset = position[0]
        np.testing.assert_array_equal(position[:prefix_length], offset + np.arange(prefix_length))
        assert offset == 0 or (options.random_position and position[:prefix_length].max() <= SEQ_LENGTH)
        assert not in_span[: prefix_length - (batch.objective == "gpt")].any()
        assert not batch.loss_mask[row, :prefix_length].any()
        np.testing.assert_array_equal(
            batch.input_ids[row, : prefix_length - 1], batch.target_ids[row, : prefix_length - 1]
        )
        inputs, targets = batch.input_ids[row, prefix_length:length], batch.target_ids[row, prefix_length:length]
        starts = np.flatnonzero(inputs == SOP).tolist()
        assert length == prefix_length or starts[0] == 0
        for start, end in pairwise([*starts, length - prefix_length]):
            np.testing.assert_array_equal(
                inputs[start + 1 : end], targets[start : end - 1]
            )  # every token predicts the next
            assert len(set(position[prefix_length:length][start:end])) == 1
            steps = in_span[prefix_length:length][start:end]
            expected = np.arange(1, end - start + 1) if options.block_position_encoding else 1
            np.testing.assert_array_equal(steps, expected)
        for values in (batch.input_ids[row], batch.target_ids[row], batch.loss_mask[row], position, in_span):
            assert not values[length:width].any()


@given(seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_short_spans_never_touch_and_stay_in_their_document(seed):
    generator = random.Random(seed)
    tokens = packed(seed, count=1)[0].tokens
    lengths = [generator.randint(1, 5) for _ in range(generator.randint(1, 4))]
    spans = spans_in_documents(generator, lengths, tokens, eos=EOS, enc=ENC, ratio=0.15)
    if spans is None:
        return
    assert sorted(end - start for start, end in spans) == sorted(lengths)
    inside = np.zeros(len(tokens), dtype=int)
    for start, end in spans:
        inside[start:end] += 1
        assert EOS not in tokens[start:end]
    assert inside.max() == 1
    for document_start, document_end in documents_of(tokens, eos=EOS, enc=ENC):
        here = sorted(span for span in spans if document_start <= span[0] < document_end)
        assert all(end <= document_end for _, end in here)
        assert all(first[1] < second[0] for first, second in pairwise(here))


@given(seed=st.integers(0, 10**6), stop=st.integers(1, 1000), count=st.integers(0, 50))
def test_draws_are_those_of_the_standard_library(seed, stop, count):
    ours, theirs = random.Random(seed), random.Random(seed)
    assert draw_below(ours, stop, count) == [theirs.randrange(stop) for _ in range(count)]
    items, others = list(range(count)), list(range(count))
    shuffle(ours, items)
    theirs.shuffle(others)
    assert (items, ours.random()) == (others, theirs.random())


def test_sentences_are_whole_and_enough():
    tokens = np.array([ENC, 100, 101, FULL_STOP, 102, FULL_STOP, 103, EOS, ENC, 104, FULL_STOP, EOS])
    for seed in range(20):
        spans = sentence_spans(random.Random(seed), tokens, tokens == FULL_STOP, eos=EOS, enc=ENC, ratio=0.4)
        assert sum(end - start for start, end in spans) >= int(0.4 * len(tokens))
        assert set(spans) <= {(1, 4), (4, 6), (8, 11)}  # the text before eos without an end is none; ENC comes along


def test_context_next_to_blanks_is_within_reach():
    # part A: a b M c d e f M g
    assert sorted(context_next_to_blanks([(2, 4), (8, 9)], 9, reach=2)) == [0, 1, 3, 4, 5, 6, 8]


def test_place_spans_fills_all_the_room_there_is():
    assert place_spans(random.Random(0), [2, 3], total_length=6, offset=10) == [(10, 12), (13, 16)]


def test_single_span_batches_have_one_span_per_row():
    collator = collator_of(replace(MIXED, single_span_prob=1.0))
    for index in range(10):
        batch = collator([Sample(make_text(40, seed=index), np.ones(43, dtype=np.int64))] * 2, batch_index=index)
        assert batch.objective == "bert"
        assert ((batch.input_ids == SOP).sum(axis=1) == 1).all()


def test_short_sequences_make_a_taller_batch():
    batch = collator_of(replace(MIXED, short_seq_prob=1.0)).split_samples(packed(1), random.Random(4))
    assert len(batch) % 3 == 0
    assert all(piece.tokens[0] == ENC and len(piece.tokens) <= SEQ_LENGTH for piece in batch)


def test_a_prompt_is_kept_out_of_the_loss():
    tokens = make_text(40)
    loss_mask = np.ones_like(tokens)
    loss_mask[:30] = 0
    options = BlankInfillingSettings(bert_prob=0.0, gpt_infill_prob=1.0, gpt_min_ratio=0.9)
    batch = collator_of(options)([Sample(tokens, loss_mask)], batch_index=0)
    assert int(batch.loss_mask.sum()) == int(loss_mask.sum())
    assert batch.target_ids[0][batch.loss_mask[0] == 1].tolist() == tokens[30:].tolist()


@pytest.mark.parametrize("block_mask_prob", [0.0, 1.0])
def test_hidden_inputs_keep_starts_and_targets(block_mask_prob):
    options = BlankInfillingSettings(bert_prob=1.0, block_mask_prob=block_mask_prob)
    samples = [Sample(make_text(50, seed=seed), np.ones(53, dtype=np.int64)) for seed in range(3)]
    batch = collator_of(options)(samples, batch_index=2)
    plain = collator_of(replace(options, block_mask_prob=0.0))(samples, batch_index=2)
    np.testing.assert_array_equal(batch.target_ids, plain.target_ids)
    changed = batch.input_ids != plain.input_ids
    assert (batch.input_ids[changed] == DBLOCK).all()
    part_b = (plain.position_ids[:, 1] > 0) & (plain.input_ids != SOP)
    np.testing.assert_array_equal(changed, part_b & bool(block_mask_prob))


def test_the_batch_depends_on_its_number_and_rank_only():
    samples = packed(3)
    build = BlankInfillingCollator(VOCABULARY, MIXED, max_seq_length=SEQ_LENGTH, rank=1, world_size=2)
    alone = BlankInfillingCollator(VOCABULARY, MIXED, max_seq_length=SEQ_LENGTH)
    build(samples, batch_index=0)
    np.testing.assert_array_equal(build(samples, batch_index=5).input_ids, alone(samples, batch_index=11).input_ids)


def test_spans_of_one_token_have_a_probability_of_their_own():
    generator = random.Random(4)
    drawn = [SpanLengths(3, 40, one_token_prob=0.6).draw(generator) for _ in range(4000)]
    poisson = [SpanLengths(3, 40).draw(generator) for _ in range(4000)]
    alone, longer = drawn.count(1) / 4000, poisson.count(1) / 4000
    assert alone == pytest.approx(0.6 + 0.4 * longer, abs=0.03)
    assert drawn.count(3) / 4000 == pytest.approx(0.4 * poisson.count(3) / 4000, abs=0.03)
    with pytest.raises(ValueError, match=r"--one-token-prob is 1\.5"):
        BlankInfillingSettings(one_token_prob=1.5)


def test_samples_too_short_for_their_spans_never_leave_a_batch_empty():
    tokens = np.array([ENC, 100, EOS])
    sample = Sample(tokens, np.ones_like(tokens))
    options = BlankInfillingSettings(bert_prob=1.0, single_span_prob=1.0, avg_block_length=20)
    batch = collator_of(options)([sample, sample], batch_index=0)
    assert batch.num_dropped == 2
    assert batch.input_ids.tolist() == [tokens.tolist()]
    assert not batch.loss_mask.any()


@pytest.mark.parametrize("tokens", [[ENC], [ENC, EOS], [ENC, 100, EOS]])
@pytest.mark.parametrize("mode", ["bert", "sentence", "gpt"])
def test_the_shortest_samples_make_a_batch(tokens, mode):
    options = BlankInfillingSettings(bert_prob=float(mode == "bert"), gap_sentence_prob=float(mode == "sentence"))
    sample = Sample(np.array(tokens), np.ones(len(tokens), dtype=np.int64))
    for index in range(10):
        batch = collator_of(options)([sample], batch_index=index)
        assert (batch.objective, len(batch.input_ids)) == (mode, 1)


def test_masked_lm_predicts_in_place():
    options = BlankInfillingSettings(bert_prob=1.0, masked_lm=True)
    samples = [Sample(make_text(length), np.ones(length + 3, dtype=np.int64)) for length in (40, 50)]
    batch = collator_of(options)(samples, batch_index=0)
    assert batch.position_ids.shape == batch.input_ids.shape
    for row, sample in enumerate(samples):
        size = len(sample.tokens)
        np.testing.assert_array_equal(batch.target_ids[row, :size], sample.tokens)
        np.testing.assert_array_equal(batch.loss_mask[row] == 1, batch.input_ids[row] == MASK)
        assert batch.attention_mask[row] == size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bert_prob": 0.7, "gap_sentence_prob": 0.4}, "add up to more than 1"),
        ({"bert_prob": 1.5}, "--bert-prob is 1.5"),
        ({"short_seq_prob": -0.1}, "--short-seq-prob is -0.1"),
    ],
)
def test_probabilities_that_are_none_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BlankInfillingSettings(**options)


def test_short_sequences_need_room():
    with pytest.raises(ValueError, match="--short-seq-prob needs --seq-length above 33"):
        BlankInfillingCollator(VOCABULARY, replace(MIXED, short_seq_prob=0.1), max_seq_length=33)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        collator_of(MIXED)([], batch_index=0)
