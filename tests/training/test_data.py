"""From settings to batches: splits, ranks, shards, sample order, random states, what is refused."""

from __future__ import annotations

import gzip
import json
import math
import re
import threading
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from data_utils.batches import Batch
from data_utils.corpora.store import Document
from data_utils.tokenizers.tokenizer import Tokenizer
from files.locks import locked
from mpu.initialize import ParallelTopology, initialize_model_parallel
from tests.helpers import distributed
from tests.helpers.logs import logged_lines
from tests.helpers.small_corpus import SmallCorpus, make_corpus
from tests.helpers.training_data import SINGLE, build, configure, take
from training.arguments import parse_settings
from training.data import build_pretraining_data, build_run_tokenizer, unigram_entropy
from training.settings import PretrainingSettings


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def rank_of(rank: int, world_size: int) -> ParallelTopology:
    return replace(SINGLE, data_parallel_rank=rank, data_parallel_size=world_size)


def same(left: Batch, right: Batch) -> bool:
    names = ("input_ids", "target_ids", "loss_mask", "position_ids", "attention_mask")
    return left.objective == right.objective and all(np.array_equal(getattr(left, n), getattr(right, n)) for n in names)


@pytest.mark.parametrize("words", [(), ("--shuffle",), ("--short-seq-prob", "0.5")])
def test_batches_depend_on_their_number_only(corpus: SmallCorpus, words: tuple[str, ...]):
    straight = take(build(corpus, *words), 6)
    resumed = take(build(corpus, *words), 3, start=3)
    assert all(same(left, right) for left, right in zip(straight[3:], resumed, strict=True))
    assert not same(straight[0], straight[1])


def _wait_for_a_store(folder: Path, lock: Path, seconds: float) -> tuple[int, list[str]]:
    """Read documents in a world whose steps wait for three seconds; somebody else makes the store that long."""
    rank = dist.get_rank()
    dist.destroy_process_group()
    store = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=3))
    topology = initialize_model_parallel()
    with ExitStack() as held:
        if rank == 0:
            held.enter_context(locked(lock))
            threading.Timer(seconds, held.pop_all().close).start()
    with logged_lines() as lines:
        data = build(SmallCorpus(folder), topology=topology)
    dist.barrier()
    return len(data.sizes), [line for line in lines if "waiting for" in line]


def test_ranks_wait_for_the_one_that_tokenizes_beyond_the_timeout_of_a_step(tmp_path: Path):
    corpus = make_corpus(tmp_path)
    build(corpus)
    (made,) = tmp_path.rglob("*train*.json")
    for file in made.parent.glob(f"{made.stem}*"):
        file.unlink()
    first, second = distributed.run(_wait_for_a_store, 2, tmp_path, made.with_suffix(".lock"), 6.0)
    assert first[0] == second[0] == 2
    assert len(first[1]) == 1 and not second[1]


def test_shuffling_takes_other_samples(corpus: SmallCorpus):
    plain, shuffled = take(build(corpus), 1), take(build(corpus, "--shuffle"), 1)
    assert not same(plain[0], shuffled[0])


def test_validation_batches_are_the_same_each_time(corpus: SmallCorpus):
    data = build(corpus)
    assert data.valid is not None
    first, second = list(data.valid()), list(data.valid())
    assert len(first) == 4 and all(same(left, right) for left, right in zip(first, second, strict=True))
    assert build(corpus, "--eval-iters", "0").valid is None


def test_nobody_gets_test_data_unasked(corpus: SmallCorpus):
    """The training documents are the same with and without: the default of --split deals them out."""
    unasked, asked = build(corpus), build(corpus, "--split", "1000,1,1")
    assert unasked.test is None and asked.test is not None
    assert unasked.identity == asked.identity


def test_ranks_take_different_samples(corpus: SmallCorpus):
    ranks = [build(corpus, topology=rank_of(rank, 2)) for rank in range(2)]
    assert [data.samples_per_batch for data in ranks] == [8, 8]
    left, right = (take(data, 1)[0] for data in ranks)
    assert not same(left, right)


def test_ranks_of_one_shard_share_its_documents(corpus: SmallCorpus):
    ranks = [build(corpus, "--loader-scatter", "2", topology=rank_of(rank, 4)) for rank in range(4)]
    sizes = [take(data, 1) and data.sizes["training"] for data in ranks]
    assert sizes[0] == sizes[2] and sizes[1] == sizes[3]
    assert all(int(size.split()[0]) <= 31 for size in sizes)
    with pytest.raises(ValueError, match="--loader-scatter 3"):
        build(corpus, "--loader-scatter", "3", topology=rank_of(0, 4))


def test_the_split_is_saved_and_loaded(corpus: SmallCorpus, tmp_path: Path):
    order = tmp_path / "order.npy"
    without_valid = ("--split", "50,8,2", "--save-test-data", str(tmp_path / "test.txt"))
    words = [word for word in corpus.words() if word not in ("--valid-data", str(corpus.folder / "valid.jsonl"))]
    flags = [*words, *without_valid, "--save-splits", str(order)]
    settings = parse_settings(PretrainingSettings, flags, environment={})
    tokenizer = build_run_tokenizer(settings)
    sizes = build_pretraining_data(settings, tokenizer=tokenizer, topology=SINGLE).sizes
    assert sorted(np.load(order)) == list(range(60))
    counts = [int(sizes[name].split()[0]) for name in ("training", "validation", "test")]
    assert counts == [50, 8, 2]
    assert len((tmp_path / "test.txt").read_text(encoding="utf-8").splitlines()) == 2
    np.save(order, np.arange(59))
    with pytest.raises(ValueError, match="--load-splits"):
        build(corpus, "--load-splits", str(order))


def test_no_test_documents_to_save(corpus: SmallCorpus, tmp_path: Path):
    with pytest.raises(ValueError, match="--save-test-data"):
        build(corpus, "--split", "1", "--save-test-data", str(tmp_path / "test.txt"))


def test_worker_processes_leave_the_random_state_alone(corpus: SmallCorpus):
    with_workers, without = build(corpus, "--num-workers", "1"), build(corpus)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    batches = take(with_workers, 3)
    assert torch.equal(before, torch.get_rng_state())
    assert all(same(left, right) for left, right in zip(batches, take(without, 3), strict=True))


@pytest.mark.parametrize("words", [("--no-pre-tokenize",), ("--no-lazy-loader",), ("--half-lazy-loader",)])
def test_the_originals_ways_of_reading(corpus: SmallCorpus, words: tuple[str, ...], tmp_path: Path):
    (batch,) = take(build(corpus, *words, "--data-cache-dir", str(tmp_path)), 1)
    assert batch.input_ids.shape[0] == 4 and batch.loss_mask.any()


def test_unigram_entropy_of_equally_frequent_tokens():
    documents = [Document(np.array([0, 1])), Document(np.array([2, 3, 3, 2, 1, 0]))]
    assert unigram_entropy(documents, size=9) == pytest.approx(math.log(4))


def test_command_tokens_are_those_the_objectives_need(corpus: SmallCorpus):
    def tokenizer(*words: str) -> Tokenizer:
        return build_run_tokenizer(configure(corpus, *words))

    plain = tokenizer()
    assert plain.has_command("gMASK") and not plain.has_command("dBLOCK")
    assert tokenizer("--block-mask-prob", "0.1").has_command("dBLOCK")


def test_languages_have_the_shares_that_are_said(corpus: SmallCorpus, tmp_path: Path):
    folder = tmp_path / "texts"
    folder.mkdir()
    rows = (corpus.folder / "train.jsonl").read_text(encoding="utf-8").split("\n")[:36]
    texts = [json.loads(row)["text"] for row in rows]
    for language, count in (("en", 36), ("sw", 6)):
        content = "\n\n".join(text.replace("\n\n", "\n") for text in texts[:count])
        with gzip.open(folder / f"{language}_01.json.gz", "wt", encoding="utf-8") as file:
            file.write(content)
    words = ("--train-data", f"multilingual={folder}", "--split", "4,1,1", "--data-cache-dir", str(tmp_path / "cache"))
    with logged_lines() as lines:
        data = build(corpus, *words, "--dataset-temperature", "0.3")
    table = [line for line in lines if line.startswith("  multilingual-")]
    assert [line.split()[0] for line in table] == ["multilingual-en", "multilingual-sw"]
    said = [float(line.split("%")[1].split()[-1]) for line in table]
    assert sum(said) == pytest.approx(100, abs=0.02) and said[1] > 25
    assert data.summary is not None and data.valid is not None
    measured = re.findall(r"multilingual-\w+ ([\d.]+) %", data.summary(200)[0])
    assert [float(share) for share in measured] == pytest.approx(said, abs=8)
    assert build(corpus, *words, "--loader-fraction", "0.5").summary is not None
    assert build(corpus, "--train-data", f"multilingual-sw={folder}").summary is None
    with pytest.raises(ValueError, match=r"no file de_\*\.json\.gz; its languages are en, sw"):
        build(corpus, "--train-data", f"multilingual-de={folder}")
    with pytest.raises(ValueError, match=r"--load-splits, .* do not go with --loader-fraction"):
        configure(corpus, *words, "--loader-fraction", "0.5", "--save-splits", str(tmp_path / "order.npy"))
