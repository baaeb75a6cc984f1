"""Sampling and beam search where the golden vectors do not reach."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from generation.beam_search import BeamSearch
from generation.infill import prompt_generator
from generation.sampling import DecodingSettings, choose_tokens, draw_tokens, draw_uniform, filter_logits


@pytest.mark.parametrize(
    "values",
    [
        {"max_length": 0},
        {"temperature": 0.0},
        {"temperature": math.nan},
        {"top_p": 1.5},
        {"top_k": -1},
        {"num_beams": 0},
        {"min_length": 5, "max_length": 4},
        {"no_repeat_ngram_size": -2},
        {"length_penalty": math.inf},
    ],
)
def test_settings_that_make_no_sense(values: dict):
    with pytest.raises(ValueError, match="--"):
        DecodingSettings(**values)


def test_draws_follow_the_distribution():
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3])
    logits = probabilities.log().expand(4000, 4)
    drawn = draw_tokens(logits, draw_uniform([prompt_generator(7, number) for number in range(4000)])[0])
    frequencies = drawn.bincount(minlength=4) / 4000
    assert frequencies[1] == 0
    torch.testing.assert_close(frequencies, probabilities, atol=0.03, rtol=0)


def test_draws_never_hit_a_removed_token():
    logits = torch.randn(500, 50, generator=torch.Generator().manual_seed(1))
    filtered = filter_logits(logits, top_k=10, top_p=0.6)
    drawn = draw_tokens(filtered, draw_uniform([prompt_generator(3, number) for number in range(500)])[0])
    assert filtered.gather(1, drawn.unsqueeze(1)).isfinite().all()


def test_a_row_that_may_choose_nothing_ends():
    logits = torch.zeros(2, 3)
    for top_k in (0, 1):
        settings = DecodingSettings(max_length=9, min_length=9, no_repeat_ngram_size=1, top_k=top_k)
        tokens = choose_tokens(
            logits, [[0, 1], [0]], settings=settings, end_ids=(2,), generators=[prompt_generator(0, 0)] * 2
        )
        assert tokens == [2, 1]


def test_processors_come_before_the_filters():
    settings = DecodingSettings(max_length=5, min_length=1, top_k=2)
    logits = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    [token] = choose_tokens(logits, [[]], settings=settings, end_ids=(2, 3), generators=[prompt_generator(0, 0)])
    assert token in (0, 1)


def run_table(table: torch.Tensor, settings: DecodingSettings, **arguments) -> BeamSearch:
    """Search next-token logits [step, token, next token] for one example."""
    search = BeamSearch(1, settings=settings, pad_id=0, **arguments)
    tokens = [0] * settings.num_beams
    while not search.finished:
        tokens, _ = search.step(table[search.num_steps, tokens])
    return search


def exhaustive_best(table: torch.Tensor, *, end_id: int, max_steps: int) -> float:
    """Return the highest sum of log-probabilities of any sequence."""
    log_probabilities = table.log_softmax(dim=-1)
    others = [token for token in range(table.size(-1)) if token != end_id]
    best = -math.inf
    for length in range(max_steps + 1):
        for tokens in itertools.product(others, repeat=length):
            path = [*tokens, end_id] if length < max_steps else list(tokens)
            total = sum(log_probabilities[s, p, t].item() for s, (p, t) in enumerate(zip([0, *path], path)))
            best = max(best, total)
    return best


def test_wide_beams_find_the_best_sequence():
    table = 2 * torch.randn(4, 5, 5, generator=torch.Generator().manual_seed(5))
    settings = DecodingSettings(num_beams=64, max_length=3)
    [[best, *_]] = run_table(table, settings, end_ids=(4,)).results()
    assert best.score == pytest.approx(exhaustive_best(table, end_id=4, max_steps=3), abs=1e-4)


def test_two_end_tokens_leave_enough_live_beams():
    """All of the original's 2n candidates may be end tokens, and it stops; (1 + number of ends) n always suffice."""
    table = torch.zeros(6, 6, 6)
    table[:, :, 4:] = 8.0  # two end tokens far ahead of everything else
    table += 0.1 * torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    settings = DecodingSettings(num_beams=3, max_length=4, length_penalty=3.0)
    [hypotheses] = run_table(table, settings, end_ids=(4, 5), start_length=1).results()
    assert len(hypotheses) == 3
    assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)


def test_fewer_tokens_than_beams():
    """Beams that no token is left for stay out of the results."""
    table = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(2))
    settings = DecodingSettings(num_beams=8, max_length=2, no_repeat_ngram_size=1)
    [hypotheses] = run_table(table, settings, end_ids=(2,)).results()
    assert {h.tokens for h in hypotheses} == {(), (0,), (1,), (0, 1), (1, 0)}
    assert all(math.isfinite(h.score) for h in hypotheses)


def test_everything_forbidden_gives_no_hypothesis():
    table = torch.zeros(3, 2, 2)
    settings = DecodingSettings(num_beams=2, max_length=3, min_length=3, no_repeat_ngram_size=1)
    search = run_table(table, settings, end_ids=(1,))
    assert search.num_steps == 2
    assert search.results() == [[]]


def test_probabilities_among_what_is_allowed():
    table = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(4))
    allowed = table[0, 0].clone()
    allowed[3] = -math.inf
    for renormalize, logits in ((True, allowed), (False, table[0, 0])):
        settings = DecodingSettings(num_beams=1, max_length=1, min_length=1, renormalize_bans=renormalize)
        [[best]] = run_table(table, settings, end_ids=(3,)).results()
        assert best.score == pytest.approx(logits.log_softmax(-1)[:3].max().item(), abs=1e-6)
    settings = DecodingSettings(num_beams=2, max_length=3, min_length=3, no_repeat_ngram_size=1, renormalize_bans=True)
    assert run_table(torch.zeros(3, 2, 2), settings, end_ids=(1,)).results() == [[]]


def test_drawn_candidates_depend_on_the_seed_only():
    table = torch.randn(8, 20, 20, generator=torch.Generator().manual_seed(3))
    settings = DecodingSettings(num_beams=3, max_length=6, draw_candidates=True)
    first, again, other = (
        run_table(table, settings, end_ids=(19,), generators=[prompt_generator(seed, 0)]).results()
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
