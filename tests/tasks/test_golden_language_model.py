"""Language-model evaluation: recorded windows, losses and accuracies (lm_items.json, lm_metrics.json)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_utils.batches import Batch, pad_batch
from data_utils.objective import Objective
from tasks.language_model.readers import Ending, TokenDocuments, read_documents, read_endings
from tasks.language_model.run import accuracy, perplexity, score_windows
from tasks.language_model.samples import LanguageModelSettings, WindowTable, document_windows, ending_windows
from tests.helpers.golden_models import tiny_model
from tests.helpers.golden_tokenizers import recorded_tokenizer
from tests.helpers.small_models import WordTokenizer

FLAGS = {"--block-lm", "--task-mask", "--unidirectional"}
COMMON_KEYS = {"task", "tokenizer", "flags", "seq_length", "overlapping_eval", "file", "items"}
KEYS = {
    "lambda": COMMON_KEYS | {"label_tokens"},
    "wikitext": COMMON_KEYS | {"num_original_tokens", "num_tokenized_tokens", "sequences_per_document"},
}
KEYS["language_model"] = KEYS["wikitext"]
BLOCK_KEYS = {"text", "target", "attention_mask", "loss_mask", "position_id"}


def settings_of(recorded: dict[str, Any]) -> LanguageModelSettings:
    assert set(recorded["flags"]) <= FLAGS, recorded["flags"]
    return LanguageModelSettings(
        seq_length=recorded["seq_length"],
        overlap=recorded["overlapping_eval"],
        unidirectional="--unidirectional" in recorded["flags"],
        block_lm="--block-lm" in recorded["flags"],
        compatible=True,
    )


def windows_of(
    recorded: dict[str, Any], path: Path, tokenizer: Any, settings: LanguageModelSettings
) -> tuple[WindowTable, TokenDocuments | list[Ending]]:
    task = recorded["task"]
    if task == "lambda":
        endings = read_endings(path, tokenizer=tokenizer)
        return ending_windows(endings, settings=settings, tokenizer=tokenizer), endings
    documents = read_documents(path, task=task, tokenizer=tokenizer)
    return document_windows(documents, settings=settings, tokenizer=tokenizer), documents


def padded(table: WindowTable, number: int, *, width: int, pad_id: int) -> Batch:
    """Return the row of a window, padded to ``width``."""
    return pad_batch([table.row(number)], Objective.DOCUMENT, pad_id=pad_id, multiple_of=width)


def check_row(table: WindowTable, number: int, item: dict[str, Any], *, pad_id: int) -> None:
    """Compare a window, padded to the recorded length, with a recorded item."""
    if table.special is None:
        # Recorded are the ids; what a column predicts stands one column further on.
        assert set(item) == {"text", "loss_mask"}
        ids, scored = np.array(item["text"]), np.array(item["loss_mask"])
        batch = padded(table, number, width=len(ids) - 1, pad_id=pad_id)
        used = int(table.lengths[number])
        assert batch.attention_mask.tolist() == [0]
        assert batch.input_ids[0].tolist() == ids[:-1].tolist()[: used - 1] + [pad_id] * (len(ids) - used)
        assert batch.target_ids[0, : used - 1].tolist() == ids[1:used].tolist()
        assert batch.loss_mask[0].tolist() == scored[1:].tolist()
        assert (ids[used:] == pad_id).all()
        return
    assert set(item) == BLOCK_KEYS
    batch = padded(table, number, width=len(item["text"]), pad_id=pad_id)
    assert batch.input_ids[0].tolist() == item["text"]
    assert batch.target_ids[0].tolist() == item["target"]
    assert batch.attention_mask.tolist() == [item["attention_mask"]]
    assert batch.loss_mask[0].tolist() == item["loss_mask"]
    assert batch.position_ids[0].tolist() == item["position_id"]


def check_cut_row(table: WindowTable, number: int, ending: Ending, *, settings: LanguageModelSettings) -> None:
    """The original lost the mask of this passage; ours fills the row and keeps both ends of the context."""
    row = table.row(number)
    assert len(row) == settings.seq_length
    assert row.input_ids[:3].tolist() == [table.special.cls, ending.context[0], table.special.long_mask]
    scored = row.loss_mask.astype(bool)
    assert row.target_ids[scored].tolist() == ending.label and scored[-1]
    last = row.input_ids.tolist()
    fed = [*ending.context, *ending.label[:-1]]
    assert last[-8:] == fed[-8:]


def test_items(golden, vocab_dir, tmp_path: Path):
    for case, recorded in enumerate(golden.json("generation/lm_items.json")):
        assert set(recorded) == KEYS[recorded["task"]]
        path = tmp_path / f"{case}.txt"
        path.write_text(recorded["file"], encoding="utf-8", newline="")
        tokenizer = recorded_tokenizer(recorded["tokenizer"], vocab_dir, task_mask="--task-mask" in recorded["flags"])
        settings = settings_of(recorded)
        table, texts = windows_of(recorded, path, tokenizer, settings)
        if recorded["task"] == "lambda":
            assert [ending.label for ending in texts] == recorded["label_tokens"]
            assert len(table) == len(recorded["items"])
        else:
            assert texts.num_original_tokens == recorded["num_original_tokens"]
            assert texts.num_tokens == recorded["num_tokenized_tokens"]
            counts = [
                len(document_windows(TokenDocuments((ids,), 1), settings=settings, tokenizer=tokenizer))
                for ids in texts.documents
            ]
            assert counts == recorded["sequences_per_document"]
            assert len(recorded["items"]) <= len(table) == sum(counts)
        for number, item in enumerate(recorded["items"]):
            if "error" in item:
                assert item == {"error": "AssertionError"} and recorded["task"] == "lambda" and settings.unidirectional
                check_cut_row(table, number, texts[number], settings=settings)
            else:
                check_row(table, number, item, pad_id=tokenizer.command_id("eos"))


def tiny_tokenizer(golden, *, task_mask: bool) -> WordTokenizer:
    description = golden.json("generation/interactive_tiny.json")
    return WordTokenizer(description["command_ids"], num_tokens=description["model"]["vocab_size"], task_mask=task_mask)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_perplexities(golden, batch_size: int):
    recorded = golden.json("generation/lm_metrics.json")
    assert set(recorded) == {"model", "documents", "perplexity", "lambada"}
    description = golden.json("generation/interactive_tiny.json")["model"]
    assert description["weights"] == recorded["model"]
    model = tiny_model(golden, description)
    documents = tuple(np.array(ids, dtype=np.int32) for ids in recorded["documents"])
    texts = {"documents": documents, "one_document": (np.concatenate(documents),)}
    for case in recorded["perplexity"]:
        expected = dict(case)
        settings = LanguageModelSettings(
            seq_length=expected.pop("seq_length"),
            overlap=expected.pop("overlapping_eval"),
            unidirectional=expected.pop("unidirectional"),
            compatible=True,
        )
        tokenizer = tiny_tokenizer(golden, task_mask=expected.pop("task_mask"))
        given = TokenDocuments(texts[expected.pop("documents")], expected.pop("num_original_tokens"))
        table = document_windows(given, settings=settings, tokenizer=tokenizer)
        scores = score_windows(model, table, batch_size=batch_size)
        metrics = perplexity(
            scores,
            num_scored=table.num_scored,
            num_tokens=given.num_tokens,
            num_original_tokens=given.num_original_tokens,
        )
        assert len(table) == expected.pop("num_windows")
        assert given.num_tokens == expected.pop("num_tokenized_tokens")
        assert table.num_scored == expected.pop("scored_tokens")
        total = expected.pop("total_loss")
        assert -sum(score.log_probability for score in scores) == pytest.approx(total, rel=1e-4)
        assert metrics["avg loss"] == pytest.approx(expected.pop("avg_loss"), rel=1e-4)
        assert metrics["ppl"] == pytest.approx(expected.pop("ppl"), rel=1e-3)
        assert metrics["adjusted ppl"] == pytest.approx(expected.pop("adjusted_ppl"), rel=1e-3)
        assert metrics["loss per token"] == pytest.approx(total / table.num_scored, rel=1e-4)
        assert not expected, expected


@pytest.mark.parametrize("batch_size", [1, 16])
def test_lambada(golden, batch_size: int):
    model = tiny_model(golden, golden.json("generation/interactive_tiny.json")["model"])
    for case in golden.json("generation/lm_metrics.json")["lambada"]:
        assert set(case) == {"unidirectional", "lines", "accuracy"}
        tokenizer = tiny_tokenizer(golden, task_mask=False)
        settings = LanguageModelSettings(seq_length=64, unidirectional=case["unidirectional"])
        endings = [
            Ending(line, tokenizer.encode(line.rpartition(" ")[0]), tokenizer.encode(line.rpartition(" ")[2]))
            for line in case["lines"]
        ]
        table = ending_windows(endings, settings=settings, tokenizer=tokenizer)
        assert accuracy(score_windows(model, table, batch_size=batch_size)) == {"accuracy": case["accuracy"]}
