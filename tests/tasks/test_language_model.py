"""Windows count every id once, rows do not depend on padding, figures do not depend on batches or ranks."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_utils.batches import Batch, pad_batch
from data_utils.objective import Objective
from generation.scoring import Score
from model.modeling_glm import GLMModel
from mpu.initialize import initialize_model_parallel
from tasks.language_model.readers import Ending, TokenDocuments, read_documents, read_endings
from tasks.language_model.run import accuracy, perplexity, score_windows
from tasks.language_model.samples import LanguageModelSettings, WindowTable, document_windows, ending_windows
from tests.helpers.distributed import run
from tests.helpers.small_models import TINY_COMMAND_IDS, WordTokenizer, random_model

TOKENIZER = WordTokenizer(TINY_COMMAND_IDS, num_tokens=58, unknown_id=49)
DIRECTIONS = [{"unidirectional": False}, {"unidirectional": True}, {"block_lm": False}]


def made_documents(sizes: list[int], *, seed: int = 0) -> TokenDocuments:
    generator = np.random.default_rng(seed)
    documents = tuple(generator.integers(0, 50, size).astype(np.int32) for size in sizes)
    return TokenDocuments(documents, max(2, sum(sizes)))


def windows(documents: TokenDocuments, options: LanguageModelSettings) -> WindowTable:
    return document_windows(documents, settings=options, tokenizer=TOKENIZER)


def stacked(table: WindowTable, numbers: Sequence[int], *, width: int = 1) -> Batch:
    """Return rows of a table, padded to ``width`` (or to the longest of them)."""
    return pad_batch([table.row(number) for number in numbers], Objective.DOCUMENT, multiple_of=width)


def made_endings(count: int, *, seed: int = 0) -> list[Ending]:
    generator = np.random.default_rng(seed)
    return [
        Ending(
            f"file, line {number + 1}",
            generator.integers(0, 50, int(generator.integers(1, 30))).tolist(),
            generator.integers(0, 50, int(generator.integers(1, 3))).tolist(),
        )
        for number in range(count)
    ]


def passages(endings: list[Ending], options: LanguageModelSettings) -> WindowTable:
    return ending_windows(endings, settings=options, tokenizer=TOKENIZER)


@given(
    sizes=st.lists(st.integers(0, 70), min_size=1, max_size=6),
    seq_length=st.integers(8, 24),
    overlap=st.integers(1, 23),
    direction=st.sampled_from(DIRECTIONS),
)
@settings(max_examples=200, deadline=None)
def test_every_id_but_the_first_is_scored_once(sizes, seq_length, overlap, direction):
    """Each scored target is the id it claims to be, given the ids before it that the window holds."""
    options = LanguageModelSettings(seq_length=seq_length, overlap=overlap, **direction)
    documents = made_documents(sizes)
    if overlap > seq_length - 1 or (overlap == seq_length - 1 and options.left_to_right):
        with pytest.raises(ValueError, match=f"--overlapping-eval {overlap} would leave ids unscored"):
            windows(documents, options)
        return
    table = windows(documents, options)
    ends = np.cumsum([0, *sizes])
    expected = Counter(place for begin, end in pairwise(ends) for place in range(begin + 1, end))
    scored = [range(s + f, s + n) for s, f, n in zip(table.starts, table.scored_from, table.lengths)]
    assert Counter(place for places in scored for place in places) == expected
    assert table.num_scored == sum(expected.values())
    if not len(table):
        return
    batch = stacked(table, range(len(table)))
    assert batch.input_ids.shape[1] <= seq_length + 1
    for row, places in enumerate(scored):
        mask = batch.loss_mask[row].astype(bool)
        assert batch.target_ids[row, mask].tolist() == table.ids[list(places)].tolist()
        if not options.block_lm:  # what is fed at a column is what the column before predicts
            assert batch.input_ids[row, mask].tolist() == table.ids[[place - 1 for place in places]].tolist()
            continue
        prefix_length, start = int(batch.attention_mask[row]), table.starts[row]
        prompt = batch.input_ids[row, 1 : prefix_length - 1].tolist()
        text = batch.input_ids[row, prefix_length + 1 : table.widths[row]].tolist()
        assert [*prompt, *text] == table.ids[start : start + table.lengths[row] - 1].tolist()
        assert batch.input_ids[row, [0, prefix_length - 1, prefix_length]].tolist() == [51, 54, 55]
        assert batch.position_ids[row, :, prefix_length].tolist() == [prefix_length - 1, 1]


def test_documents_without_two_ids_are_left_out():
    options = LanguageModelSettings(seq_length=8, overlap=3)
    documents = made_documents([0, 1, 5, 1, 0, 9])
    table = windows(documents, options)
    assert table.num_scored == 4 + 8
    assert not len(windows(made_documents([1, 0]), options))


def test_blocks_without_positions_of_their_own():
    options = LanguageModelSettings(seq_length=12, overlap=3, block_positions=False)
    batch = stacked(windows(made_documents([30]), options), [0, 1])
    written = np.arange(batch.input_ids.shape[1]) >= batch.attention_mask[:, None]
    assert (batch.position_ids[:, 1] == written).all()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_long_passages_lose_ids_of_their_context(direction):
    endings = [Ending("here", list(range(40)), [41, 42])]
    table = passages(endings, LanguageModelSettings(seq_length=16, **direction))
    batch = stacked(table, [0])
    assert batch.input_ids.shape == (1, 16)
    assert batch.target_ids[0, batch.loss_mask[0].astype(bool)].tolist() == [41, 42]
    kept = table.ids.tolist()
    assert kept[-3:] == [39, 41, 42]
    assert kept[0] == (0 if direction.get("unidirectional") else 40 - (len(kept) - 2))
    assert kept[1:-2] == list(range(40 - (len(kept) - 3), 40))


def test_passages_of_one_word():
    ending = Ending("file, line 7", [], [3])
    for direction in DIRECTIONS[:2]:
        batch = stacked(passages([ending], LanguageModelSettings(seq_length=16, **direction)), [0])
        assert batch.input_ids[0].tolist() == [51, 54, 50, 55]
    with pytest.raises(ValueError, match=r"^file, line 7: one word; without --block-lm another one"):
        passages([ending], LanguageModelSettings(seq_length=16, block_lm=False))
    with pytest.raises(ValueError, match=r"^file, line 7: its last word has 30 ids, .* raise --seq-length 16$"):
        passages([replace(ending, label=[3] * 30)], LanguageModelSettings(seq_length=16))


def one_by_one(model: GLMModel, table: WindowTable, *, width: int) -> list[Score]:
    """Return the scores of full-length rows with all their logits, one row at a time."""
    scores = []
    for number in range(len(table)):
        batch = stacked(table, [number], width=width).tensors()
        with torch.inference_mode():
            logits = model(batch.input_ids, batch.position_ids, batch.attention_mask)
        mask = batch.loss_mask.bool()
        targets = batch.target_ids[mask]
        loss = float(torch.nn.functional.cross_entropy(logits[mask].double(), targets, reduction="sum"))
        scores.append(Score(-loss, len(targets), bool((logits[mask].argmax(dim=-1) == targets).all())))
    return scores


def assert_same(scores: Sequence[Score], expected: Sequence[Score]) -> None:
    for score, true in zip(scores, expected, strict=True):
        assert score.log_probability == pytest.approx(true.log_probability, rel=1e-5)
        assert score[1:] == true[1:]


def plain_model() -> GLMModel:
    """Return a model without block positions."""
    config = replace(random_model().config, block_position_encoding=False)
    return GLMModel(config, generator=torch.Generator().manual_seed(3)).eval()


@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_scores_do_not_depend_on_batches_and_padding(direction, batch_size: int):
    model = random_model() if direction.get("block_lm", True) else plain_model()
    documents = windows(
        made_documents([2, 61, 17, 1, 33]), LanguageModelSettings(seq_length=20, overlap=6, **direction)
    )
    endings = passages(made_endings(21), LanguageModelSettings(seq_length=24, **direction))
    for table in (documents, endings):
        expected = one_by_one(model, table, width=40)
        scores = score_windows(model, table, batch_size=batch_size)
        assert_same(scores, expected)


def test_accuracy_counts_passages_that_are_right_in_all_their_targets():
    model = random_model()
    options = LanguageModelSettings(seq_length=40)
    endings = []
    for number, ending in enumerate(made_endings(12)):
        label: list[int] = []
        for _ in range(2):  # the model's own first choices, or in every third passage another second one
            batch = stacked(passages([replace(ending, label=[*label, 0])], options), [0]).tensors()
            with torch.inference_mode():
                logits = model(batch.input_ids, batch.position_ids, batch.attention_mask)
            label.append(int(logits[0, -1].argmax()))
        wrong = number % 3 == 0
        endings.append(replace(ending, label=[label[0], (label[1] + wrong) % 64]))
    for batch_size in (1, 5):
        scores = score_windows(model, passages(endings, options), batch_size=batch_size)
        assert [score.greedy for score in scores] == [number % 3 != 0 for number in range(12)]
        assert accuracy(scores)["accuracy"] == pytest.approx(100 * 8 / 12)


def test_scores_restore_the_mode_and_ignore_dropout():
    config = replace(random_model().config, output_dropout=0.5, attention_dropout=0.5)
    model = GLMModel(config, generator=torch.Generator().manual_seed(1)).train()
    table = windows(made_documents([30]), LanguageModelSettings(seq_length=20, overlap=6))
    first, second = (score_windows(model, table, batch_size=4) for _ in range(2))
    assert first == second and model.training


def shared_scores(parallel_size: int, batch_size: int) -> list[list[Score]]:
    """Return what this rank knows of documents and endings."""
    topology = initialize_model_parallel(parallel_size)
    model = GLMModel(random_model().config, topology=topology, generator=torch.Generator().manual_seed(0)).eval()
    tables = rank_tables()
    return [score_windows(model, table, batch_size=batch_size, topology=topology) for table in tables]


def rank_tables() -> list[WindowTable]:
    options = LanguageModelSettings(seq_length=20, overlap=6, unidirectional=True)
    return [
        windows(made_documents([2, 61, 17, 1, 33]), options),
        windows(made_documents([5]), options),  # fewer windows than ranks
        passages(made_endings(21), LanguageModelSettings(seq_length=24)),
    ]


@pytest.mark.parametrize(("parallel_size", "batch_size"), [(1, 1), (1, 16), (2, 4)])
def test_ranks_share_windows_and_shards_score_alike(parallel_size: int, batch_size: int):
    expected = [score_windows(random_model(), table, batch_size=4) for table in rank_tables()]
    for found in run(shared_scores, 2, parallel_size, batch_size):
        for scores, shared in zip(expected, found, strict=True):
            assert_same(shared, scores)


def test_perplexity_by_the_original_s_denominators():
    scores = [Score(-30.0, 9, False), Score(-15.0, 9, False)]
    found = perplexity(scores, num_scored=18, num_tokens=21, num_original_tokens=11)
    assert found == {
        "avg loss": 45 / 20,
        "ppl": math.exp(45 / 20),
        "adjusted ppl": pytest.approx(math.exp(45 / 10)),
        "loss per token": 45 / 18,
        "ppl per token": math.exp(45 / 18),
    }
    high = perplexity([Score(-900.0, 18, False)], num_scored=18, num_tokens=21, num_original_tokens=2)
    assert high["ppl"] == high["adjusted ppl"] == high["ppl per token"] == math.exp(20)
    single = perplexity(scores, num_scored=18, num_tokens=21, num_original_tokens=1)  # Chinese without blanks
    assert "adjusted ppl" not in single


def test_readers(tmp_path: Path):
    file = tmp_path / "texts.txt"
    file.write_text("  w1 w2  w3 \n\n \nw4\r\nw5 w6\n", encoding="utf-8", newline="")
    found = read_documents(file, task="language_model", tokenizer=TOKENIZER)
    assert [ids.tolist() for ids in found.documents] == [[1, 2, 3], [4], [5, 6]]
    assert (found.num_original_tokens, found.num_tokens) == (3 + 1 + 2, 6)  # two blanks are no word
    whole = read_documents(file, task="wikitext", tokenizer=TOKENIZER)
    assert [ids.tolist() for ids in whole.documents] == [[1, 2, 3, 4, 5, 6]]
    assert whole.num_original_tokens == len(["w1", "w2", "w3", "\n\n", "\nw4\nw5", "w6"])
    first = read_documents(file, task="language_model", tokenizer=TOKENIZER, limit=4)
    assert [len(ids) for ids in first.documents] == [3, 1]
    rows = [{"text": "w1 w2\n w1"}, {"text": " w3 "}, {"text": "w5 w51 w5"}]
    file.write_text("\n".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    endings = read_endings(file, tokenizer=TOKENIZER)
    assert [(one.context, one.label) for one in endings] == [([1, 2], [1]), ([], [3]), ([5, 51], [5])]
    assert endings[1].place == f"{file}, line 3"
    assert read_endings(file, tokenizer=TOKENIZER, limit=2) == endings[:2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "w1 w2"}\n{"text": \n', "line 2: not valid JSON"),
        (b'{"text": "w1 w2"}\n\n{"words": "w1"}\n', "line 3: no 'text'; it has words"),
        (b'{"text": 3}\n', "line 1: text is 3; a text is needed"),
        (b'{"text": "w1 w2"}\n[1]\n', "line 2: a JSON object is needed, found [1]"),
        (b'{"text": "  "}\n', "line 1: the text is empty"),
        (b"\n\n", "line 1: no passages"),
        (b"", "line 1: no passages"),
        (b'{"text": "w1"}\n\xff\n', "line 2: not UTF-8 text"),
    ],
)
def test_mistakes_in_passages_name_file_and_line(content: bytes, message: str, tmp_path: Path):
    file = tmp_path / "wrong.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_endings(file, tokenizer=TOKENIZER)
    assert str(error.value).startswith(f"{file}, ") and "\n" not in str(error.value)


@pytest.mark.parametrize("task", ["wikitext", "language_model"])
def test_mistakes_in_texts_name_file_and_line(task: str, tmp_path: Path):
    file = tmp_path / "wrong.txt"
    with pytest.raises(ValueError, match="no such file; --valid-data names it"):
        read_documents(file, task=task, tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match="is a folder; a file is needed"):
        read_documents(tmp_path, task=task, tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match=r"a\.JSONL: a file of JSON; "):
        read_documents(tmp_path / "a.JSONL", task=task, tokenizer=TOKENIZER)
    for content, message in ((b" \n", "line 1: no text"), (b"a\n\xfe", "line 2: not UTF-8 text")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            read_documents(file, task=task, tokenizer=TOKENIZER)
        assert str(error.value).startswith(f"{file}, ")
