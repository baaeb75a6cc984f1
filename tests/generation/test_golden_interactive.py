"""The interactive program: interactive_tiny.json, interactive_text.json, interactive_logits.npz, tiny_model.pt."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from generation.infill import BlankFiller
from generation.inputs import complete_prompt
from generation.interactive import InteractiveSession
from generation.sampling import DecodingSettings
from model.modeling_glm import GLMModel
from tests.helpers.golden_index import GoldenFolder
from tests.helpers.golden_models import Recorder, recipe_model, tiny_model
from tests.helpers.golden_tokenizers import options_of, recorded_tokenizer
from tests.helpers.small_models import WordTokenizer

TINY_SETTINGS = {"task_mask", "out_seq_length", "seq_length", "mem_length", "num_beams", "length_penalty", "top_k",
                 "candidates"}  # fmt: skip


def run_session(model: GLMModel, tokenizer, prompt: str, *, settings: DecodingSettings, seq_length: int) -> str:
    """Type one prompt and ``stop``; return what the samples file holds."""
    lines = iter([prompt, "stop"])
    samples = io.StringIO()
    InteractiveSession(
        BlankFiller(model, tokenizer),
        settings=settings,
        seq_length=seq_length,
        seed=1,
        samples=samples,
        read_line=lambda _text: next(lines),
    ).run()
    return samples.getvalue()


def check_memory(case: dict, recorder: Recorder, *, limit: int, greedy: bool):
    """Compare the number of positions kept after each blank, where a call follows that shows it."""
    starts = [cached for _, _, block, cached in recorder.steps if block == 1]
    if not greedy:
        # Nothing slid out of the original's memory; every blank starts from what its predecessors left.
        assert max(case["mem_len_after"]) < limit, "beams with a sliding memory are not supported"
        starts = list(dict.fromkeys(starts))  # an empty winner is fed as one start token, too
    contexts = [len(case["context_ids"]), *case["mem_len_after"][:-1]]
    assert starts == [min(limit, length) for length in contexts]


def test_interactive_tiny(golden: GoldenFolder, capsys: pytest.CaptureFixture):
    content = golden.json("generation/interactive_tiny.json")
    assert set(content) == {"model", "command_ids", "runs"}
    for run in content["runs"]:
        assert set(run) == {"name", "settings", "min_gap", "cases"}
        recorded = run["settings"]
        assert set(recorded) == TINY_SETTINGS
        greedy = recorded["num_beams"] == 1
        assert recorded["top_k"] == int(greedy)
        # Rows of the vocabulary that stand for no token were never hidden in the original.
        tokenizer = WordTokenizer(
            content["command_ids"], num_tokens=content["model"]["vocab_size"], task_mask=recorded["task_mask"]
        )
        settings = DecodingSettings(
            max_length=recorded["out_seq_length"],
            top_k=recorded["top_k"],
            num_beams=recorded["num_beams"],
            length_penalty=recorded["length_penalty"],
        )
        for case in run["cases"]:
            # A model with limited memory forgets the oldest positions, as the original did for all models.
            limit = recorded["mem_length"]
            model = tiny_model(golden, content["model"], max_memory_length=limit if greedy else 0)
            recorder = Recorder().attach(model)
            file = run_session(model, tokenizer, case["prompt"], settings=settings, seq_length=recorded["seq_length"])
            what = (run["name"], case["prompt"])
            assert file == case["file"], what
            printed = capsys.readouterr().out
            assert f"\nContext: {case['context']}\n" in printed, what
            assert f"\nGLM: {case['printed']}\n" in printed, what
            assert tokenizer.encode(case["printed"]) == case["output_ids"], what
            assert [context[0] for context in recorder.contexts] == [case["context_ids"]] * bool(case["output_ids"]), (
                what
            )
            if case["output_ids"]:
                check_memory(case, recorder, limit=limit, greedy=greedy)
            if "steps" in case:
                assert recorder.steps == case["steps"], what


def test_memory_is_never_dropped_by_default(golden: GoldenFolder):
    """Without a limit the results are those of a large limit, whatever --seq-length says."""
    content = golden.json("generation/interactive_tiny.json")
    model = tiny_model(golden, content["model"])
    assert model.new_cache(1, 8).window is None


def test_interactive_logits(golden: GoldenFolder):
    arrays = dict(np.load(golden.path("generation/interactive_logits.npz")))
    assert set(arrays) == {"context_ids", "context_logits", "step_tokens", "step_positions", "step_logits"}
    content = golden.json("generation/interactive_tiny.json")
    run = next(run for run in content["runs"] if run["settings"]["num_beams"] == 1)
    [case] = [case for case in run["cases"][:1] if case["context_ids"] == arrays["context_ids"].tolist()]
    model = tiny_model(golden, content["model"])
    recorder = Recorder().attach(model)
    tokenizer = WordTokenizer(content["command_ids"], num_tokens=content["model"]["vocab_size"])
    settings = DecodingSettings(max_length=run["settings"]["out_seq_length"], top_k=1)
    run_session(model, tokenizer, case["prompt"], settings=settings, seq_length=64)
    context_logits, *step_logits = recorder.logits
    expected = torch.from_numpy(arrays["context_logits"])
    torch.testing.assert_close(context_logits, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat(step_logits), torch.from_numpy(arrays["step_logits"]), atol=1e-4, rtol=0)
    assert [step[0] for step in recorder.steps] == arrays["step_tokens"].tolist()
    assert [step[1:3] for step in recorder.steps] == arrays["step_positions"].tolist()


def test_interactive_text(golden: GoldenFolder, vocab_dir: Path, capsys: pytest.CaptureFixture):
    for configuration in golden.json("generation/interactive_text.json"):
        assert set(configuration) == {"config", "tokenizer", "flags", "model", "settings", "min_gap", "cases"}
        recorded = configuration["settings"]
        assert set(recorded) == {"top_k", "out_seq_length", "seq_length"}
        tokenizer = recorded_tokenizer(configuration["tokenizer"], vocab_dir, **options_of(configuration["flags"]))
        assert tokenizer.num_tokens == configuration["model"]["num_tokens"]
        assert tokenizer.padded_size() == configuration["model"]["vocab_size"]
        model = recipe_model(configuration["model"])
        settings = DecodingSettings(max_length=recorded["out_seq_length"], top_k=recorded["top_k"])
        recorder = Recorder().attach(model)
        for case in configuration["cases"]:
            assert set(case) == {"prompt", "context_ids", "output_ids", "printed"}
            run_session(model, tokenizer, case["prompt"], settings=settings, seq_length=recorded["seq_length"])
            assert recorder.contexts[-1][0] == case["context_ids"]
            assert f"\nGLM: {case['printed']}\n" in capsys.readouterr().out, case["prompt"]


def test_all_texts_in_one_batch(golden: GoldenFolder, vocab_dir: Path):
    """The recorded ids come out too when the prompts of a configuration share one padded batch."""
    for configuration in golden.json("generation/interactive_text.json"):
        recorded = configuration["settings"]
        tokenizer = recorded_tokenizer(configuration["tokenizer"], vocab_dir, **options_of(configuration["flags"]))
        filler = BlankFiller(recipe_model(configuration["model"]), tokenizer)
        settings = DecodingSettings(max_length=recorded["out_seq_length"], top_k=recorded["top_k"])
        cases = configuration["cases"]
        results = filler.fill([complete_prompt(c["prompt"], tokenizer=tokenizer) for c in cases], settings=settings)
        assert [list(result.output_ids) for result in results] == [case["output_ids"] for case in cases]
