"""Filling blanks: independence of the batch, equality with plain forward passes, limits."""

from __future__ import annotations

import itertools

import pytest
import torch

from generation.infill import BlankFiller, FilledPrompt
from generation.inputs import encode_prompt
from generation.sampling import DecodingSettings
from model.modeling_glm import GLMModel
from tests.helpers.small_models import DECODING, PROMPTS, TINY_COMMAND_IDS, WORDS, WordTokenizer, random_model


@pytest.fixture(scope="module")
def model() -> GLMModel:
    return random_model()


@pytest.mark.parametrize("settings", DECODING.values(), ids=DECODING)
def test_a_prompt_does_not_depend_on_its_batch(model: GLMModel, settings: DecodingSettings):
    filler = BlankFiller(model, WORDS)
    alone = filler.fill(PROMPTS, settings=settings, batch_size=1)
    assert [len(result.pieces) for result in alone] == [1, 1, 3, 1, 2, 1]
    for batch_size in (2, 4, 6):
        together = filler.fill(PROMPTS, settings=settings, batch_size=batch_size)
        assert together == alone, batch_size


def greedy_by_full_passes(model: GLMModel, prompt: str, *, max_length: int) -> list[list[int]]:
    """Fill the blanks of a prompt without a cache: the whole sequence goes through the model for every token."""
    inputs = encode_prompt(prompt, tokenizer=WORDS)
    ids, positions = list(inputs.input_ids), [[p, 0] for p in inputs.positions]
    pieces = []
    for blank in inputs.blanks:
        piece: list[int] = []
        token = TINY_COMMAND_IDS["sop"]
        while len(piece) < max_length:
            ids.append(token)
            positions.append([blank.start, len(piece) + 1])
            position_ids = torch.tensor(positions).T.unsqueeze(0)
            with torch.inference_mode():
                logits = model(torch.tensor([ids]), position_ids, torch.tensor(len(inputs)), output="last_logits")
            token = int(logits[0, : WORDS.num_tokens].argmax())
            if token in (TINY_COMMAND_IDS["eop"], TINY_COMMAND_IDS["eos"]):
                break
            piece.append(token)
        pieces.append(piece)
    return pieces


def test_greedy_equals_full_passes(model: GLMModel):
    results = BlankFiller(model, WORDS).fill(PROMPTS, settings=DECODING["greedy"])
    for prompt, result in zip(PROMPTS, results):
        assert list(map(list, result.pieces)) == greedy_by_full_passes(model, prompt, max_length=7), prompt


def test_one_beam_of_a_search_is_greedy(model: GLMModel):
    """The winner of earlier blanks is context of the later ones, as in sampling."""
    filler = BlankFiller(model, WORDS)
    inputs = [filler.encode(prompt, settings=DECODING["greedy"]) for prompt in PROMPTS]
    with torch.inference_mode():
        found = filler._beam_search(inputs, settings=DecodingSettings(max_length=7), generators=[None] * len(inputs))
    greedy = filler.fill(PROMPTS, settings=DECODING["greedy"])
    assert found == [list(map(list, result.pieces)) for result in greedy]


def test_results(model: GLMModel):
    [result] = BlankFiller(model, WORDS).fill(PROMPTS[4:5], settings=DECODING["processors"])
    assert isinstance(result, FilledPrompt)
    assert all(3 <= len(piece) <= 7 for piece in result.pieces)
    sop = TINY_COMMAND_IDS["sop"]
    assert list(result.output_ids) == [sop, *result.pieces[0], sop, *result.pieces[1]]
    assert result.output_text == " ".join(f"<|startofpiece|> {answer}" for answer in result.answers)
    assert result.text == f"w1 {result.answers[0]} {result.answers[1]} w2"


def test_no_ngram_twice_and_no_padding_row(model: GLMModel):
    settings = DecodingSettings(max_length=30, no_repeat_ngram_size=2, min_length=20, temperature=3.0)
    for result in BlankFiller(model, WORDS).fill(PROMPTS, settings=settings):
        for piece in result.pieces:
            pairs = list(itertools.pairwise(piece))
            assert len(set(pairs)) == len(pairs)
            assert max(piece) < WORDS.num_tokens


def test_padding_rows_are_never_chosen():
    model = random_model(seed=4)
    with torch.no_grad():
        model.word_embeddings.weight[WORDS.num_tokens :] = 50 * model.word_embeddings.weight[3]
        model.word_embeddings.weight[-1] *= -1  # one of the two is far ahead of every token
    for name in ("greedy", "beams"):
        for result in BlankFiller(model, WORDS).fill(PROMPTS, settings=DECODING[name]):
            assert all(token < WORDS.num_tokens for token in result.output_ids)


def test_seeds(model: GLMModel):
    filler = BlankFiller(model, WORDS)
    settings = DECODING["full sampling"]
    assert filler.fill(PROMPTS, settings=settings, seed=1) == filler.fill(PROMPTS, settings=settings, seed=1)
    assert filler.fill(PROMPTS, settings=settings, seed=1) != filler.fill(PROMPTS, settings=settings, seed=2)


def test_the_cache_grows(model: GLMModel, monkeypatch: pytest.MonkeyPatch):
    expected = BlankFiller(model, WORDS).fill(PROMPTS, settings=DECODING["greedy"])
    monkeypatch.setattr("generation.state.CACHE_GROWTH", 1)
    assert BlankFiller(model, WORDS).fill(PROMPTS, settings=DECODING["greedy"]) == expected


def test_without_block_positions(model: GLMModel):
    filler = BlankFiller(model, WORDS, block_positions=False)
    for name in ("greedy", "beams"):
        alone = filler.fill(PROMPTS, settings=DECODING[name], batch_size=1)
        assert filler.fill(PROMPTS, settings=DECODING[name]) == alone
    assert alone != BlankFiller(model, WORDS).fill(PROMPTS, settings=DECODING["beams"])


def test_refusals(model: GLMModel):
    filler = BlankFiller(model, WORDS)
    with pytest.raises(ValueError, match="no blank to fill"):
        filler.fill(["w1 w2"], settings=DECODING["greedy"])
    with pytest.raises(ValueError, match="shorten the prompt"):
        filler.fill(["w1 " * 70 + "[MASK]"], settings=DECODING["greedy"])
    with pytest.raises(ValueError, match="choose the tokenizer"):
        BlankFiller(model, WordTokenizer(TINY_COMMAND_IDS, num_tokens=65))
