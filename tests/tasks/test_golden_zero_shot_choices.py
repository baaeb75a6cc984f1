"""Multiple choice: the items of real tokenizers and the scores of the tiny model (multichoice.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generation.scoring import score_questions
from model.heads import MultiTokenCloze
from tasks.metrics import evaluate
from tasks.registry import TASKS
from tasks.superglue.batches import collate
from tasks.superglue.objective import score_rows, shared_question
from tasks.superglue.samples import EncodingOptions
from tasks.superglue.task import SampleSet
from tests.helpers.engines import scoring_engine
from tests.helpers.golden_models import tiny_model
from tests.helpers.golden_tokenizers import recorded_tokenizer
from tests.helpers.small_models import WordTokenizer

TASK = TASKS["multichoice"]
NAMES = {
    "text": "input_ids",
    "position": "position_ids",
    "mask": "prefix_lengths",
    "target": "target_ids",
    "logit_mask": "loss_mask",
}
FILE_KEYS = {"jsonl", "datasets", "tiny_jsonl", "tiny_seq_length", "tiny_scores", "seq2seq_loss"}


def read(lines: list[dict[str, Any]], folder: Path) -> list:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return TASK.examples(None, str(path))


def options_of(flags: list[str], seq_length: int) -> tuple[EncodingOptions, bool]:
    """Return the options of recorded flags, and whether there is a task mask; an unknown flag is an error."""
    assert set(flags) <= {"--block-lm", "--task-mask", "--unidirectional"}, flags
    assert "--block-lm" in flags
    return EncodingOptions(seq_length=seq_length, unidirectional="--unidirectional" in flags), "--task-mask" in flags


def test_items(golden, vocab_dir, tmp_path: Path):
    recorded = golden.json("generation/multichoice.json")
    assert set(recorded) == FILE_KEYS
    examples = read(recorded["jsonl"], tmp_path)
    for data in recorded["datasets"]:
        assert set(data) == {"tokenizer", "flags", "seq_length", "items"}
        options, task_mask = options_of(data["flags"], data["seq_length"])
        tokenizer = recorded_tokenizer(data["tokenizer"], vocab_dir, task_mask=task_mask)
        samples = TASK.build_samples(examples, tokenizer, options).samples
        for sample, item in zip(samples, data["items"], strict=True):
            if "error" in item:  # the original loses the mask; ours keeps it
                assert item == {"error": "AssertionError"}
                assert all(tokenizer.special.mask in row.input_ids for row in sample.rows)
                assert sample.length <= data["seq_length"]
                continue
            assert set(item) == {*NAMES, "label", "uid"}
            assert (sample.label or 0, sample.uid) == (item["label"], item["uid"])
            batch = collate([sample], pad_id=tokenizer.command_id("pad"), pad_to=data["seq_length"])
            for key, name in NAMES.items():
                assert (getattr(batch, name)[0] == np.array(item[key])).all(), (data["tokenizer"], key, sample.uid)


def tiny_samples(golden, recorded: dict[str, Any], folder: Path, *, unidirectional: bool) -> tuple[list, SampleSet]:
    description = golden.json("generation/interactive_tiny.json")
    tokenizer = WordTokenizer(description["command_ids"], num_tokens=description["model"]["vocab_size"])
    options = EncodingOptions(seq_length=recorded["tiny_seq_length"], unidirectional=unidirectional)
    examples = read(recorded["tiny_jsonl"], folder)
    return examples, TASK.build_samples(examples, tokenizer, options)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_scores(golden, tmp_path: Path, batch_size: int):
    recorded = golden.json("generation/multichoice.json")
    description = golden.json("generation/interactive_tiny.json")
    model = tiny_model(golden, description["model"])
    pad = description["command_ids"]["pad"]
    for run in recorded["tiny_scores"]:
        assert set(run) == {
            "unidirectional", "length_penalty", "predictions", "labels", "accuracy", "choice_scores",
            "batch_of_first_three",
        }  # fmt: skip
        examples, samples = tiny_samples(golden, recorded, tmp_path, unidirectional=run["unidirectional"])
        assert [sample.label or 0 for sample in samples.samples] == run["labels"]
        head = MultiTokenCloze(model, length_penalty=run["length_penalty"])
        engine = scoring_engine(head)
        rows = score_rows(engine, samples.samples, batch_size=batch_size, pad_id=pad)
        questions = [shared_question(sample) for sample in samples.samples]
        assert None not in questions, "the context is run once"
        alone = score_questions(model, questions, batch_size=batch_size)
        for row, scores, expected in zip(rows, alone, run["choice_scores"], strict=True):
            np.testing.assert_allclose(row[: len(expected)], expected, atol=1e-3)
            penalized = [one.log_probability / one.num_tokens ** max(0.0, run["length_penalty"]) for one in scores]
            np.testing.assert_allclose(penalized, expected, atol=1e-3)
        chosen = [int(row.argmax()) for row in score_rows(engine, samples.samples, batch_size=batch_size, pad_id=pad)]
        assert chosen == run["predictions"]
        assert evaluate(TASK.metrics, chosen, run["labels"], examples)["accuracy"] == pytest.approx(run["accuracy"])
        batch = collate(samples.samples[:3], pad_id=pad, pad_to=recorded["tiny_seq_length"])
        expected = run["batch_of_first_three"]
        assert set(expected) == {"loss_mask", "text_shape"}
        assert batch.choice_mask.tolist() == expected["loss_mask"]
        assert list(batch.input_ids.shape) == expected["text_shape"]
