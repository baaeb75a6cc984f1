"""The run of a sequence-to-sequence task: its batches from any number on, blanks by epoch, what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_utils.tokenizers.tokenizer import build_tokenizer
from mpu.initialize import ParallelTopology
from tasks.seq2seq.run import Seq2SeqRun
from tasks.settings import FinetuningSettings
from tests.helpers.logs import logged_lines
from training.arguments import parse_settings

SENTENCE = "the old man went down to the river in the morning and came back with a bag of fish for the whole village"
FLAGS = (
    "--block-lm", "--tokenizer-model-type", "bert-base-uncased", "--num-layers", "2", "--hidden-size", "32",
    "--num-attention-heads", "2", "--max-position-embeddings", "64", "--src-seq-length", "48", "--tgt-seq-length", "16",
    "--batch-size", "2", "--epochs", "3", "--blank-maskratio", "0.3",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("task")
    words = SENTENCE.split()
    lines = [" ".join(words[start:] + words[:start]) for start in range(7)]
    for name in ("train", "valid", "val", "test"):
        for ending in ("txt", "source", "target"):
            (root / f"{name}.{ending}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "blank").mkdir()
    blanked = [line.replace("river", "<blank>") for line in lines]
    (root / "blank" / "test.maskratio0.3.blank").write_text("\n".join(blanked) + "\n", encoding="utf-8")
    return root


def make_run(folder: Path, vocab_dir: Path, *words: str) -> tuple[Seq2SeqRun, list[str]]:
    """Return a run of one process, and what it said."""
    configuration = parse_settings(FinetuningSettings, [*FLAGS, "--data-dir", str(folder), *words], environment={})
    tokenizer = build_tokenizer(
        "BertWordPieceTokenizer",
        model_type="bert-base-uncased",
        task_mask=configuration.blank.task_mask,
        vocab_dir=vocab_dir,
    )
    with logged_lines() as said:
        run = Seq2SeqRun(configuration, tokenizer=tokenizer, topology=ParallelTopology.single())
    return run, said


@pytest.mark.parametrize("task", ["customization", "blank"])
def test_batches_from_a_number_on_are_those_of_the_whole_run(task: str, folder: Path, vocab_dir: Path) -> None:
    run, _ = make_run(folder, vocab_dir, "--task", task)
    whole = list(run.batches(0))
    assert run.batches_per_epoch == 4 and len(whole) == 12
    for first in (3, 4, 9):
        for found, expected in zip(run.batches(first), whole[first:], strict=True):
            np.testing.assert_array_equal(found.input_ids, expected.input_ids)
    epochs = [
        sorted(row for batch in whole[i : i + 4] for row in batch.tensors().target_ids.tolist()) for i in (0, 4, 8)
    ]
    assert [len(rows) for rows in epochs] == [7] * 3
    texts = [sorted([token for token in row if token] for row in rows) for rows in epochs]
    assert (texts[0] == texts[1] == texts[2]) == (task == "customization")  # other blanks in every epoch


def test_blanks_are_others_in_every_epoch_and_the_same_in_evaluation(folder: Path, vocab_dir: Path) -> None:
    run, _ = make_run(folder, vocab_dir, "--task", "blank", "--task-mask")
    first = run.training[:1]
    drawn = [run.collate(first, epoch=epoch).input_ids.tolist() for epoch in (0, 1, 2, 0)]
    assert drawn[0] == drawn[3] and len({str(rows) for rows in drawn}) > 1
    assert run.metrics == ("bleu",)
    for split in (*run.validation, *run.test):
        assert all("[MASK]" in example.source and example.meta["blanks"] for example in split.examples)
    again, _ = make_run(folder, vocab_dir, "--task", "blank", "--task-mask")
    assert again.validation[0].examples == run.validation[0].examples


def test_padding_is_left_out_unless_the_original_is_asked_for(folder: Path, vocab_dir: Path) -> None:
    widths = []
    for words in ([], ["--compatible"], ["--compatible", "--mask-pad-token"]):
        run, _ = make_run(folder, vocab_dir, "--task", "customization", *words)
        batch = run.collate(run.training[:3])
        widths.append(batch.input_ids.shape[1])
        assert (batch.attention_mask == 48).all() == (words == ["--compatible"])
    assert widths[1] == 48 + 16 and widths[0] == widths[2] < 64


def test_texts_share_rows_where_the_flag_is_given(folder: Path, vocab_dir: Path) -> None:
    for more_words in ([], ["--compatible"]):
        words = ["--task", "customization", *more_words]
        alone, together = (make_run(folder, vocab_dir, *words, *more)[0] for more in ([], ["--pack-samples"]))
        one, other = (run.collate(run.training[:3]) for run in (alone, together))
        assert one.attention_mask.shape == (3,) and other.attention_mask.shape == (3, 2, one.input_ids.shape[1])
        assert one.loss_mask.sum() == other.loss_mask.sum() > 0
        assert together.criterion().weight(other) == alone.criterion().weight(one)


def test_positions_grow_with_the_source(folder: Path, vocab_dir: Path) -> None:
    run, said = make_run(folder, vocab_dir, "--task", "customization", "--src-seq-length", "100", "--multi-token")
    assert run.model_settings.max_position_embeddings == 100
    assert "note: --max-position-embeddings 64 is raised to 100" in said
    assert "note: --multi-token has no effect on customization" in said


def test_splits(folder: Path, vocab_dir: Path) -> None:
    run, _ = make_run(folder, vocab_dir, "--task", "customization", "--eval-valid", "--limit", "3")
    assert [split.name for split in run.test] == ["dev"] and len(run.training) == len(run.test[0].examples) == 3
    run, _ = make_run(folder, vocab_dir, "--task", "customization", "--no-validation", "--epochs", "0")
    assert not run.training and not run.validation and [split.name for split in run.test] == ["test"]


def test_families() -> None:
    def family(*words: str) -> str:
        return parse_settings(FinetuningSettings, ["--block-lm", "--epochs", "1", *words], environment={}).family

    lengths = ("--src-seq-length", "64", "--tgt-seq-length", "8")
    assert family("--task", "Squad") == "understanding"
    assert family("--task", "squad", *lengths) == family("--task", "CNN_DM", *lengths) == "seq2seq"
