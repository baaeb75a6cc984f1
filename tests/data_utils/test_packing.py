"""Packed samples: the generator of an item, cuts at sentences, prompts, documents that are refused."""

from __future__ import annotations

import random
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_utils.corpora.store import Document
from data_utils.objective.packing import BlockDataset, DocumentPicker, ItemGenerator, seed_words
from tests.helpers.stand_ins import ENC, EOS, FULL_STOP, VOCABULARY, StandInDocuments, make_documents

WORD = st.integers(0, 2**32 - 1)


@given(st.integers(0, 2**40))
def test_seed_words_are_those_of_randint(index):
    seeder = random.Random(index)
    assert seed_words(index) == [seeder.randint(0, 2**32 - 1) for _ in range(16)]


@given(st.lists(WORD, min_size=15, max_size=15), WORD | st.just(0), st.lists(st.integers(1, 2**40), max_size=20))
@settings(max_examples=60, deadline=None)
def test_an_item_generator_is_numpys(words, last, stops):
    ours, theirs = ItemGenerator([*words, last]), np.random.RandomState([*words, last])
    for stop in [1, 2**32 - 1, 2**32, 2**32 + 1, *stops]:
        assert ours.randint(stop) == theirs.randint(stop, dtype=np.int64)
        assert ours.random_sample() == theirs.random_sample()


def pack_step_by_step(
    documents: StandInDocuments, index: int, *, seq_length: int, across: bool, non_sentence_start: float
) -> tuple[list[int], list[int]]:
    """Pack a sample as the specification (5.1) tells it, token by token."""
    generator = np.random.RandomState(seed_words(index))
    ends = list(accumulate(documents.lengths.tolist()))

    def pick() -> list[tuple[int, int]]:
        place = generator.randint(ends[-1])
        document = documents[next(number for number, end in enumerate(ends) if end > place)]
        return [*zip(document.tokens.tolist(), document.loss_mask().tolist(), strict=True), (EOS, 1)]

    def is_end(pair: tuple[int, int]) -> bool:
        return pair[0] == FULL_STOP

    def cut(x: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
        k = len(x) - size
        if k <= 0:
            return x
        while k < len(x) - 1 and not is_end(x[len(x) - k - 1]):
            k += 1
        if len(x) - k < size // 2:
            k = len(x) - size
        return x[: len(x) - k]

    x = pick()
    extra = len(x) - seq_length + 1
    if extra > 0:
        s, moved = generator.randint(extra), 0
        if generator.random_sample() > non_sentence_start:
            if generator.random_sample() < 0.5:
                while moved < seq_length // 2 and s > 0 and not is_end(x[s - 1]):
                    s, moved = s - 1, moved + 1
            else:
                while moved < seq_length // 2 and s < len(x) and not is_end(x[s - 1]):
                    s, moved = s + 1, moved + 1
        result = cut([(ENC, 0), *x[s:]], seq_length)
    else:
        result = [(ENC, 0), *x]
        while across and len(result) < seq_length:
            new = [(ENC, 0), *pick()]
            last = len(new) >= seq_length - len(result)
            result += cut(new, seq_length - len(result))
            if last:
                break
    return [token for token, _ in result], [weight for _, weight in result]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    prompt_length=st.integers(0, 12),
    index=st.integers(0, 10**10),
    seq_length=st.integers(2, 40),
    across=st.booleans(),
    non_sentence_start=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(max_examples=300, deadline=None)
def test_samples_are_those_of_the_rules_step_by_step(
    lengths, seed, prompt_length, index, seq_length, across, non_sentence_start
):
    documents = make_documents(lengths, seed=seed, prompt_length=prompt_length)
    dataset = BlockDataset(
        documents,
        tokenizer=VOCABULARY,
        seq_length=seq_length,
        sample_across_documents=across,
        non_sentence_start=non_sentence_start,
    )
    tokens, loss_mask = pack_step_by_step(
        documents, index, seq_length=seq_length, across=across, non_sentence_start=non_sentence_start
    )
    sample = dataset[index]
    assert sample.tokens.tolist() == tokens
    assert sample.loss_mask.tolist() == loss_mask
    assert len(sample.tokens) <= seq_length


def test_prompts_inside_of_a_document_are_not_predicted():
    documents = make_documents([9])
    weights = np.array([0, 0, 1, 1, 0, 0, 1, 1, 1])
    documents._documents[0] = Document(documents[0].tokens, 2, weights)
    sample = BlockDataset(documents, tokenizer=VOCABULARY, seq_length=11)[0]
    assert sample.loss_mask.tolist() == [0, *weights.tolist(), 1]


def test_long_documents_are_drawn_more_often():
    picker = DocumentPicker(make_documents([900, 100]))
    generator = ItemGenerator(seed_words(5))
    drawn = [picker.pick_number(generator) for _ in range(1000)]
    assert 850 < drawn.count(0) < 950
    evenly = DocumentPicker(make_documents([900, 100]), by_length=False)
    assert 430 < [evenly.pick_number(generator) for _ in range(1000)].count(0) < 570


def test_refused_documents_are_drawn_again():
    documents = make_documents([30, 30])
    wanted = documents[1].tokens
    dataset = BlockDataset(documents, tokenizer=VOCABULARY, seq_length=20, accept=lambda tokens: tokens is wanted)
    for index in range(20):
        assert set(dataset[index].tokens.tolist()) <= {ENC, EOS, *wanted.tolist()}


def test_documents_without_tokens_are_never_drawn():
    documents = make_documents([0, 5, 0])
    dataset = BlockDataset(documents, tokenizer=VOCABULARY, seq_length=9, sample_across_documents=False)
    for index in range(20):
        assert dataset[index].tokens.tolist() == [ENC, *documents[1].tokens.tolist(), EOS]


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_an_empty_corpus_is_refused(lengths):
    with pytest.raises(ValueError, match="no tokens"):
        BlockDataset(make_documents(lengths), tokenizer=VOCABULARY, seq_length=8)


def test_a_sequence_too_short_for_text_is_refused():
    with pytest.raises(ValueError, match="--seq-length is 1"):
        BlockDataset(make_documents([5]), tokenizer=VOCABULARY, seq_length=1)
