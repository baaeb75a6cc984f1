"""The data of a pre-training run on the small corpus, as the program builds it."""

from __future__ import annotations

import itertools

from data_utils.batches import Batch
from mpu.initialize import ParallelTopology
from tests.helpers.small_corpus import SmallCorpus
from training.arguments import parse_settings
from training.data import build_pretraining_data, build_run_tokenizer
from training.loop import TrainingData
from training.settings import PretrainingSettings

SINGLE = ParallelTopology.single()


def configure(corpus: SmallCorpus, *words: str) -> PretrainingSettings:
    flags = [*corpus.words(), "--train-iters", "8", *words]
    return parse_settings(PretrainingSettings, flags, environment={})


def build(corpus: SmallCorpus, *words: str, topology: ParallelTopology = SINGLE) -> TrainingData:
    configuration = configure(corpus, *words)
    tokenizer = build_run_tokenizer(configuration)
    return build_pretraining_data(configuration, tokenizer=tokenizer, topology=topology)


def take(data: TrainingData, count: int, start: int = 0) -> list[Batch]:
    return list(itertools.islice(data.train(start), count))
