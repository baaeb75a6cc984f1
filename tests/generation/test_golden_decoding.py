"""Filters, processors and beam search: logit_filters.json, beam_table.json with table_lm.npz."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from generation.beam_search import BeamSearch
from generation.sampling import DecodingSettings, filter_logits, process_scores, repeating_tokens
from tests.helpers.golden_index import GoldenFolder

# Short names of the settings and the options they set; the last changes nothing without a model.
BEAM_SETTINGS = {
    "beams": "num_beams",
    "lp": "length_penalty",
    "min_len": "min_length",
    "ngram": "no_repeat_ngram_size",
    "tgt": "max_length",
    "top_k": "top_k",
    "no_block_position": None,
}


def pad_results(winners: Sequence[Sequence[int]], *, end_id: int, pad_id: int) -> list[list[int]]:
    """Return rows of equal length: the end token directly after a shorter row, then padding."""
    width = max(map(len, winners), default=0)
    rows = []
    for tokens in winners:
        ending = [end_id] if len(tokens) < width else []
        rows.append([*tokens, *ending, *[pad_id] * (width - len(tokens) - len(ending))])
    return rows


def kept_indices(logits: torch.Tensor) -> list[list[int]]:
    """Return the indices of each row that are not minus infinity."""
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


def test_logit_filters(golden: GoldenFolder):
    content = golden.json("generation/logit_filters.json")
    assert set(content) == {"logits", "filters", "batch_top_k", "no_repeat_ngram", "min_length"}
    logits = {name: torch.tensor([values]) for name, values in content["logits"].items()}
    for case in content["filters"]:
        assert set(case) == {"logits_name", "top_k", "top_p", "kept", "probs"}
        filtered = filter_logits(logits[case["logits_name"]], top_k=case["top_k"], top_p=case["top_p"])
        assert kept_indices(filtered) == [case["kept"]], case
        probabilities = filtered.softmax(dim=-1)[0, case["kept"]]
        torch.testing.assert_close(probabilities, torch.tensor(case["probs"]), atol=1e-6, rtol=0)


def test_filters_of_a_batch(golden: GoldenFolder):
    content = golden.json("generation/logit_filters.json")
    batch = content["batch_top_k"]
    assert set(batch) == {"logits", "top_k", "kept"}
    assert kept_indices(filter_logits(torch.tensor(batch["logits"]), top_k=batch["top_k"])) == batch["kept"]
    # All recorded rows with the same filters give the same as batch of several rows.
    groups: dict[tuple[int, float], list[dict]] = {}
    for case in content["filters"]:
        groups.setdefault((case["top_k"], case["top_p"]), []).append(case)
    for (top_k, top_p), cases in groups.items():
        rows = torch.tensor([content["logits"][case["logits_name"]] for case in cases])
        assert kept_indices(filter_logits(rows, top_k=top_k, top_p=top_p)) == [case["kept"] for case in cases]


def test_no_repeat_ngram(golden: GoldenFolder):
    for case in golden.json("generation/logit_filters.json")["no_repeat_ngram"]:
        assert set(case) == {"ngram_size", "input_ids", "banned"}
        for generated, banned in zip(case["input_ids"], case["banned"], strict=True):
            assert repeating_tokens(generated, case["ngram_size"]) == set(banned), case
        size = 1 + max((t for row in [*case["input_ids"], *case["banned"]] for t in row), default=0)
        scores = torch.zeros(len(case["input_ids"]), size)
        processed = process_scores(scores, case["input_ids"], end_ids=(), no_repeat_ngram_size=case["ngram_size"])
        assert [row.isinf().nonzero().flatten().tolist() for row in processed] == case["banned"]


def test_min_length(golden: GoldenFolder):
    for case in golden.json("generation/logit_filters.json")["min_length"]:
        assert set(case) == {"min_length", "eos", "cur_len", "banned"}
        generated = [[0] * case["cur_len"] for _ in case["banned"]]
        scores = torch.zeros(len(generated), case["eos"] + 1)
        processed = process_scores(scores, generated, end_ids=(case["eos"],), min_length=case["min_length"])
        assert [row.isinf().nonzero().flatten().tolist() for row in processed] == case["banned"]


def search(table: torch.Tensor, settings: DecodingSettings, content: dict[str, Any]) -> BeamSearch:
    """Search the table of next-token logits [example, step, token, next token]."""
    beams = BeamSearch(len(table), settings=settings, end_ids=(content["eop"],), pad_id=content["pad"])
    examples = [number for number in range(len(table)) for _ in range(settings.num_beams)]
    tokens = [0] * len(examples)
    while not beams.finished:
        tokens, _ = beams.step(table[examples, beams.num_steps, tokens])
    return beams


def test_beam_search(golden: GoldenFolder):
    content = golden.json("generation/beam_table.json")
    assert set(content) == {"table", "eop", "pad", "note", "cases"}
    arrays = np.load(golden.path(f"generation/{content['table']}"))
    table = torch.from_numpy(arrays["T"])
    for case in content["cases"]:
        assert set(case) == {"settings", "min_gap", "output_ids", "padded_rows", "scores", "hypotheses"}
        settings = {BEAM_SETTINGS[name]: value for name, value in case["settings"].items()}
        settings.pop(None, None)
        results = search(table, DecodingSettings(**settings), content).results()
        winners = [hypotheses[0] for hypotheses in results]
        assert [list(winner.tokens) for winner in winners] == case["output_ids"], case["settings"]
        assert [winner.score for winner in winners] == pytest.approx(case["scores"], abs=1e-4)
        rows = pad_results([w.tokens for w in winners], end_id=content["eop"], pad_id=content["pad"])
        assert rows == case["padded_rows"], case["settings"]
        for hypotheses, expected in zip(results, case["hypotheses"], strict=True):
            assert [list(h.tokens) for h in hypotheses] == [e["ids"] for e in expected], case["settings"]
            assert [h.score for h in hypotheses] == pytest.approx([e["score"] for e in expected], abs=1e-4)


def test_examples_do_not_influence_each_other(golden: GoldenFolder):
    content = golden.json("generation/beam_table.json")
    table = torch.from_numpy(np.load(golden.path(f"generation/{content['table']}"))["T"])
    settings = DecodingSettings(max_length=table.size(1) - 1, num_beams=4, length_penalty=1.0)
    together = search(table, settings, content).results()
    assert together == [search(table[i : i + 1], settings, content).results()[0] for i in range(len(table))]
