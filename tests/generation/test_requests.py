"""Requests that are filled together: what each would get alone, token by token, whoever comes and goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from generation.api import GLM
from generation.infill import BlankFiller, Candidate
from generation.inputs import encode_prompt
from generation.requests import BeamAhead, CandidateDone, Event, FillRequest, RequestDone, RequestFiller, TokenDrawn
from generation.sampling import DecodingSettings
from model.modeling_glm import GLMModel
from tests.helpers.small_models import DECODING, PROMPTS, TINY_COMMAND_IDS, WORDS, random_model

WAYS = {name: one for name, one in DECODING.items() if not one.draw_candidates}
ENDS = (TINY_COMMAND_IDS["eop"], TINY_COMMAND_IDS["eos"])


@pytest.fixture(scope="module")
def model() -> GLMModel:
    return random_model()


def request(text: str, settings: DecodingSettings, **options) -> FillRequest:
    return FillRequest(encode_prompt(text, tokenizer=WORDS, fill=settings.fill), settings, **options)


def finish(filler: RequestFiller) -> list[Event]:
    events = []
    while filler.active:
        events += filler.step()
    return events


def pieces_of(events: Sequence[Event]) -> dict[FillRequest, tuple[tuple[int, ...], ...]]:
    return {event.request: event.pieces for event in events if isinstance(event, RequestDone)}


def candidates_of(events: Sequence[Event], one: FillRequest) -> dict[tuple[int, int], Candidate]:
    mine = [event for event in events if isinstance(event, CandidateDone) and event.request is one]
    return {(event.blank, event.number): event.candidate for event in mine}


@pytest.mark.parametrize(("static", "fill"), [(False, "append"), (False, "replace"), (True, "append")])
def test_all_kinds_of_requests_together(model: GLMModel, static: bool, fill: str):
    """Every one gets what ``BlankFiller.fill`` gives it alone, though they come one after the other."""
    plain = BlankFiller(model, WORDS)
    filler = RequestFiller(BlankFiller(model, WORDS, static=static))
    events, expected = [], {}
    for name, settings in WAYS.items():
        settings = replace(settings, fill=fill)
        for text in PROMPTS[2:5:2]:
            samples = 3 if settings.num_beams == 1 and settings.top_k != 1 else 1
            one = request(text, settings, seed=7, num_samples=samples)
            [filled] = plain.fill([text], settings=settings, seed=7)
            expected[one] = (name, filled.pieces)
            filler.add([one])
            events += filler.step()
    events += finish(filler)
    found = pieces_of(events)
    assert {one: (expected[one][0], pieces) for one, pieces in found.items()} == expected
    for one in expected:
        blanks = len(one.inputs.blanks)
        assert set(candidates_of(events, one)) == {(b, n) for b in range(blanks) for n in range(one.num_rows)}
    assert not filler.searches and not filler.samples.rows and not filler.owners


def test_what_is_told_of_tokens():
    """Streams add up to candidates, and probabilities are those of the scorer."""
    glm = GLM(random_model(vocab_size=WORDS.num_tokens), WORDS)
    filler = RequestFiller(glm.filler, num_alternatives=4)
    settings = DecodingSettings(max_length=5, temperature=0.7, top_k=9)
    drawn, searched = request(PROMPTS[0], settings, num_samples=4), request(PROMPTS[0], DECODING["beams"])
    filler.add([drawn, searched])
    events = finish(filler)
    for one in (drawn, searched):
        for (_, number), candidate in candidates_of(events, one).items():
            assert [token.id for token in candidate.tokens] == list(candidate.ids)
            for token in candidate.tokens:
                ids, values = zip(*token.alternatives)
                assert len(ids) == 4 and list(values) == sorted(values, reverse=True)
                assert token.log_probability <= values[0] <= 0 and math.exp(values[0]) * 64 >= 1
                assert dict(token.alternatives).get(token.id, token.log_probability) == token.log_probability
            if candidate.ids:
                [[score]] = glm.score([PROMPTS[0]], [WORDS.decode(candidate.ids)])
                assert sum(token.log_probability for token in candidate.tokens) == pytest.approx(score, abs=1e-4)
            stream = [e for e in events if isinstance(e, TokenDrawn) and (e.request, e.candidate) == (one, number)]
            if one is drawn:
                assert [e.token.id for e in stream if e.token.id not in ENDS] == list(candidate.ids)
                assert sum(e.token.log_probability for e in stream) == pytest.approx(candidate.log_probability)
                assert candidate.ended == (stream[-1].token.id in ENDS)
    beams = list(candidates_of(events, searched).values())
    ranks = [one.log_probability / (1 + len(one.ids)) ** 0.7 for one in beams]
    assert len(beams) == 3 and ranks == sorted(ranks, reverse=True)
    assert any(isinstance(event, BeamAhead) and event.ids for event in events)


@pytest.mark.parametrize("name", ["greedy", "beams"])
@pytest.mark.parametrize("fill", ["append", "replace"])
def test_what_is_given(model: GLMModel, name: str, fill: str):
    """With its first pieces and the beginning of the next one, a request comes to the same end."""
    settings = replace(DECODING[name], fill=fill, no_repeat_ngram_size=0)
    filler = RequestFiller(BlankFiller(model, WORDS))
    whole = request(PROMPTS[2], settings)
    filler.add([whole])
    pieces = pieces_of(finish(filler))[whole]
    assert len(pieces) == 3 and len(pieces[1]) > 1
    for given, prefix in ((pieces[:1], ()), (pieces[:2], ()), (pieces[:1], pieces[1][:1])):
        if prefix and name == "beams":
            continue  # the best of those that begin so may be another
        one = request(PROMPTS[2], settings, given=given, prefix=prefix)
        filler.add([one, request(PROMPTS[0], settings)])  # which has nothing given
        assert pieces_of(finish(filler))[one] == pieces
    other = request(PROMPTS[2], settings, given=((1, 2, 3),), prefix=(4,))
    filler.add([other])
    events = finish(filler)
    assert pieces_of(events)[other][0] == (1, 2, 3)
    assert {blank for blank, _ in candidates_of(events, other)} == {1, 2}
    assert all(one.ids[:1] == (4,) for (blank, _), one in candidates_of(events, other).items() if blank == 1)


@pytest.mark.parametrize("static", [False, True])
def test_a_dropped_request_computes_no_more(model: GLMModel, static: bool):
    plain = BlankFiller(model, WORDS)
    filler = RequestFiller(BlankFiller(model, WORDS, static=static))
    settings = replace(DECODING["full sampling"], min_length=7)
    stay = [request(PROMPTS[2], settings), request(PROMPTS[2], DECODING["beams"])]
    go = [request(PROMPTS[4], settings, num_samples=5), request(PROMPTS[4], DECODING["beams"])]
    filler.add([go[0], stay[0], stay[1], go[1]])
    rows = []
    events = []
    for _ in range(3):
        rows.append(len(filler.samples.rows))
        events += filler.step()
    filler.drop([*go, request(PROMPTS[0], settings)])  # one that is not there, too
    rows.append(len(filler.samples.rows))
    assert rows == [6, 6, 6, 1]
    [search] = filler.searches
    assert search.numbers == [0] and len(search.logits) == 3
    found = pieces_of([*events, *finish(filler)])
    assert set(found) == set(stay)
    for one in stay:
        assert found[one] == plain.fill([one.inputs.text], settings=one.settings)[0].pieces
    filler.add(go)
    filler.drop(go)
    assert not filler.samples.rows and not filler.searches and not filler.active


@torch.inference_mode()
def test_columns_that_nobody_sees_go_when_rows_join(model: GLMModel):
    """A batch that is never empty does not grow for ever."""
    filler = RequestFiller(BlankFiller(model, WORDS))
    settings = DecodingSettings(max_length=6, top_k=1, min_length=6)
    lengths = []
    for _ in range(20):
        filler.add([request(PROMPTS[0], settings)])
        filler.step(), filler.step()
        lengths.append(filler.samples.state.length)
    assert max(lengths[5:]) == max(lengths[:5]) <= 5 + 6 + 2


def test_refusals():
    settings = DECODING["full sampling"]
    cases = {
        "pieces for 1 of 1 blanks": {"given": ((1,),)},
        "at most 7 tokens": {"prefix": (1,) * 7},
        "0 samples": {"num_samples": 0},
    }
    for message, options in cases.items():
        with pytest.raises(ValueError, match=message):
            request(PROMPTS[0], settings, **options)
    for name in ("greedy", "beams"):
        with pytest.raises(ValueError, match="2 samples with num_beams"):
            request(PROMPTS[0], DECODING[name], num_samples=2)
