"""From the settings of a run to its batches: tokenizer, documents, split, packing, blank construction, loaders."""

from __future__ import annotations

import hashlib
import logging
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from data_utils.corpora.language_detection import DetectorMissingError, english_detector
from data_utils.corpora.named import split_weight
from data_utils.corpora.splits import (
    document_order,
    load_order,
    parse_split,
    save_order,
    save_texts,
    should_split,
    split_documents,
)
from data_utils.corpora.store import Documents
from data_utils.corpora.tokenization import Preparation
from data_utils.loaders import BatchLoader, BatchPlan, RandomSampleNumbers
from data_utils.mixtures import EntryPicker, Mixture, loader_fractions, measured_shares, scaled, split_in_blocks
from data_utils.objective.block_infilling import Batch, BlankInfillingCollator, BlankInfillingSettings
from data_utils.objective.context_probe import ContextProbe, make_context_probe
from data_utils.objective.packing import BlockDataset
from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer
from files.cores import usable_cores
from mpu.initialize import ParallelTopology
from mpu.mappings import wait_for_ranks
from training.loop import TrainingData
from training.settings import PretrainingSettings, Settings, spelling

logger = logging.getLogger("glm")

ENGLISH_SAMPLE = 1024  # tokens of a document that the language detector sees
CHECKED_DOCUMENTS = 256  # whose tokens are part of the checksum of a corpus
MEASURED_BATCHES, MEASURED_SAMPLES = 2000, 20_000  # that shares of corpora are measured with
ENTROPY_SAMPLE = 20_000_000  # tokens of the training text that its unigram entropy is taken from


def tokenizer_keywords(settings: Settings) -> dict[str, Any]:
    """Return the keyword arguments of ``build_tokenizer``; of S sentinels those numbered 1 .. S-1 exist."""
    tokenizer, blank = settings.tokenizer, settings.blank
    return {
        "tokenizer_type": tokenizer.tokenizer_type,
        "model_type": tokenizer.tokenizer_model_type,
        "path": tokenizer.vocabulary_path,
        "block_symbols": settings.model.block_lm,
        "task_mask": blank.task_mask,
        "decoder_mask": blank.block_mask_prob > 0 or blank.context_mask_ratio > 0,
        "num_sentinels": settings.model.max_position_embeddings if blank.sentinel_token else 0,
        "fix_command_token": tokenizer.fix_command_token,
        "vocab_dir": tokenizer.vocab_dir,
        "cache_dir": tokenizer.cache_dir,
    }


def build_run_tokenizer(settings: Settings) -> Tokenizer:
    """Build the tokenizer; say so when it is another one than that of the checkpoint to load."""
    tokenizer = build_tokenizer(**tokenizer_keywords(settings))
    if settings.tokenizer_fingerprint not in (None, tokenizer.fingerprint):
        logger.warning(
            "warning: the checkpoint was trained with another tokenizer, or with other command tokens: leave the "
            "tokenizer's flags (--tokenizer-type ..., --task-mask) out to have its own"
        )
    return tokenizer


def blank_infilling(settings: Settings) -> BlankInfillingSettings:
    """Return how blanks are made."""
    return settings.select(
        BlankInfillingSettings,
        shuffle_blocks=not settings.blank.no_shuffle_block,
        block_position_encoding=not settings.blank.no_block_position,
    )


def num_shards(settings: Settings, topology: ParallelTopology) -> int | None:
    """Return the shards that corpora are dealt out to (``--loader-scatter``): as many as there are ranks, at most."""
    scatter = settings.corpus.loader_scatter
    return None if scatter is None else min(scatter, topology.data_parallel_size)


class PretrainingDocuments:
    """Read, tokenize and split the documents of a run."""

    def __init__(
        self,
        settings: Settings,
        *,
        tokenizer: Tokenizer,
        topology: ParallelTopology,
    ) -> None:
        self.settings = settings
        self.tokenizer = tokenizer
        self._topology = topology
        scatter = num_shards(settings, topology)
        if scatter is not None and topology.data_parallel_size % scatter:
            raise ValueError(
                f"--loader-scatter {scatter}: the {topology.data_parallel_size} data-parallel ranks cannot share that "
                f"many shards evenly; give a divisor of {topology.data_parallel_size}"
            )

    def parts(self) -> tuple[Documents, Documents | None, Documents | None]:
        """Return the documents for training, validation and test; what has no documents is None.

        The first rank tokenizes; the others wait, then find its stores.
        """
        first = self._topology.rank == 0
        if not first:
            wait_for_ranks(self._topology)
        parts = self._parts(first=first)
        if first:
            wait_for_ranks(self._topology)
        return parts

    def _parts(self, *, first: bool) -> tuple[Documents, Documents | None, Documents | None]:
        corpus, data = self.settings.corpus, self.settings.data
        if corpus.balances:
            return self._balanced_parts()
        train = self.read(corpus.train_data or ())
        fractions = parse_split(corpus.split, valid_data=data.valid_data or (), test_data=data.test_data or ())
        order = None
        if should_split(fractions):
            count = len(train)
            order = load_order(corpus.load_splits, count) if corpus.load_splits else document_order(count)
            if corpus.save_splits and not corpus.load_splits and first:
                save_order(corpus.save_splits, order)
        # The default of --split makes test data, also beside --valid-data, where nobody asked for any.
        asked = {"split", "test_data", "save_test_data"} & self.settings.given or not data.valid_data
        train_part, valid, test = split_documents(train, fractions, order=order, training_only=not asked)
        if train_part is None:
            raise ValueError(f"--split {corpus.split} leaves no document to train on: there are {len(train)}")
        valid = self.read(data.valid_data) if data.valid_data else valid
        test = self.read(data.test_data) if data.test_data else test
        if corpus.save_test_data and first:
            if test is None:
                raise ValueError("--save-test-data: there are no test documents; see --test-data and --split")
            save_texts(corpus.save_test_data, test, decode=self.tokenizer.decode)
        return train_part, valid, test

    def _balanced_parts(self) -> tuple[Documents, Documents | None, Documents | None]:
        """Return mixtures of the corpora, each of which is split by itself and taken more or less often."""
        corpus, data, batch = self.settings.corpus, self.settings.data, self.settings.batch
        named = self._preparation().corpora(corpus.train_data or ())
        weights = list(corpus.weights) or None
        if weights and len(weights) != len(named):
            raise ValueError(
                f"--train-data: {len(weights)} weights for {len(named)} corpora; a weight is for one source, and for "
                "one language (multilingual-de=FOLDER@0.3)"
            )
        names, sizes = [name.partition("=")[0] for name, _ in named], [len(documents) for _, documents in named]
        if len(set(names)) < len(names):
            names = [name for name, _ in named]
        fraction, temperature = corpus.loader_fraction, corpus.dataset_temperature
        parts = [documents for _, documents in named]
        if fraction < 1:
            ratios = loader_fractions(sizes, fraction=fraction, temperature=temperature)
            generator = random.Random(f"fractions {self.settings.run.seed}")
            parts = [scaled(part, ratio, generator=generator) for part, ratio in zip(parts, ratios)]
            temperature = 1.0
        fractions = parse_split(corpus.split, valid_data=data.valid_data or (), test_data=data.test_data or ())
        split = list(zip(*(split_in_blocks(part, fractions) for part in parts)))
        mixtures: list[Documents | None] = []
        for held in split:
            present = [number for number, part in enumerate(held) if part is not None]
            mixtures.append(
                Mixture(
                    [names[number] for number in present],
                    [held[number] for number in present],
                    temperature=temperature,
                    weights=weights and [weights[number] for number in present],
                    seq_length=batch.seq_length,
                    one_document=batch.sample_one_document,
                )
                if present
                else None
            )
        train, valid, test = mixtures
        if train is None:
            raise ValueError(f"--split {corpus.split} leaves no document to train on")
        return (
            train,
            self.read(data.valid_data) if data.valid_data else valid,
            (self.read(data.test_data) if data.test_data else test),
        )

    def read(self, sources: Sequence[str]) -> Documents:
        """Return the documents of ``sources``, tokenized once and kept on disk."""
        for source in sources:
            if split_weight(source)[1] is not None:
                raise ValueError(f"{source}: weights are for --train-data; --valid-data and --test-data are used whole")
        return self._preparation().documents(sources)

    def _preparation(self) -> Preparation:
        corpus = self.settings.corpus
        return Preparation(
            tokenizer=self.tokenizer,
            build_tokenizer=partial(build_tokenizer, **tokenizer_keywords(self.settings)),
            cache_dir=corpus.data_cache_dir,
            text_field=corpus.text_field,
            text_unit=corpus.text_unit,
            commands_in_text=corpus.commands_in_text,
            num_workers=usable_cores(),
            skip_malformed=corpus.skip_malformed,
            pre_tokenize=not corpus.no_pre_tokenize,
            in_memory=corpus.no_lazy_loader,
            half_of_documents=corpus.half_lazy_loader,
            drop_duplicates=corpus.drop_duplicates,
            num_shards=num_shards(self.settings, self._topology),
            shard=self._topology.data_parallel_rank % (num_shards(self.settings, self._topology) or 1),
            seed=self.settings.run.seed,
            progress=sys.stderr.isatty(),
        )


def build_pretraining_data(
    configuration: PretrainingSettings, *, tokenizer: Tokenizer, topology: ParallelTopology
) -> TrainingData:
    """Return where the batches of a run come from."""
    documents = PretrainingDocuments(configuration, tokenizer=tokenizer, topology=topology)
    train, valid, test = documents.parts()
    batch, run = configuration.batch, configuration.run
    sizes = {
        name: f"{len(part):,} documents, {int(part.lengths.sum()):,} tokens"
        for name, part in (("training", train), ("validation", valid), ("test", test))
        if part is not None
    }
    sizes["training"] += f", of {' '.join(configuration.corpus.train_data or ())}"
    entropy = unigram_entropy(train, size=tokenizer.num_tokens)
    if isinstance(train, Mixture):
        for line in share_table(train):
            logger.info(line)
    make = partial(batch_loader, configuration=configuration, tokenizer=tokenizer, topology=topology)
    num_batches = run.train_iters * batch.gradient_accumulation_steps
    train_loader = make(
        train,
        seq_length=batch.seq_length,
        batch_size=batch.batch_size,
        num_batches=num_batches,
        num_workers=batch.num_workers,
        records_origin=run.record_order,
    )

    def evaluation(part: Documents | None) -> BatchLoader | None:
        if part is None or run.eval_iters == 0:
            return None
        return make(
            part,
            seq_length=batch.eval_seq_length or batch.seq_length,
            batch_size=batch.evaluation_batch_size,
            num_batches=run.eval_iters,
            num_workers=0,  # processes forked amid training now and then inherit a lock that gloo's threads hold
        )

    def batches(loader: BatchLoader | None) -> Callable[[], Iterator[Batch]] | None:
        return None if loader is None else lambda: loader.batches(0, run.eval_iters)

    valid_loader = evaluation(valid)
    if run.probe_context and valid_loader is None:
        raise ValueError("--probe-context needs validation text: give --valid-data, or a --split that leaves some")

    return TrainingData(
        train=train_loader.batches,
        samples_per_batch=batch.batch_size * topology.data_parallel_size,
        valid=batches(valid_loader),
        test=batches(evaluation(test)),
        probe=context_probe(valid_loader, configuration, topology) if valid_loader and run.probe_context else None,
        unigram_entropy=entropy,
        sizes=sizes,
        summary=partial(training_shares, train, train_loader) if isinstance(train, Mixture) else None,
        tokenizer_fingerprint=tokenizer.fingerprint,
        identity=data_identity(configuration, train),
    )


def context_probe(loader: BatchLoader, configuration: Settings, topology: ParallelTopology) -> ContextProbe:
    """Return the probe of the validation data (``--probe-context``)."""
    assert isinstance(loader.dataset, BlockDataset) and isinstance(loader.collator, BlankInfillingCollator)
    return make_context_probe(
        loader.dataset,
        loader.collator,
        batch_size=configuration.batch.evaluation_batch_size,
        rank=topology.data_parallel_rank,
        world_size=topology.data_parallel_size,
    )


def data_identity(configuration: PretrainingSettings, train: Documents) -> dict[str, Any]:
    """Return what a place in the training data depends on, by option or name.

    Batch sizes and numbers of ranks are none of it: places are counted in samples.
    """
    batch, corpus, mixture = configuration.batch, configuration.corpus, configuration.mixture
    groups: dict[Any, tuple[str, ...]] = {
        batch: ("seq_length", "shuffle", "sample_one_document", "non_sentence_start", "pack_samples"),
        corpus: (
            "filter_english",
            "loader_scatter",
            *(("loader_fraction", "dataset_temperature") if corpus.balances else ()),
        ),
        configuration.blank: tuple(vars(configuration.blank)),
        mixture: ("multi_task_data", "multi_task_ratio", "multi_seq_length") if mixture.multi_task_ratio else (),
    }
    values = {spelling(name): getattr(group, name) for group, names in groups.items() for name in names}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    weights = {"the weights of --train-data": list(corpus.weights)} if corpus.weights else {}
    return {"the training documents": described_documents(train), **values, **weights}


def described_documents(documents: Documents) -> str:
    """Return how many documents these are, and a checksum of their lengths, their order and some of their tokens."""
    digest = hashlib.sha256(np.ascontiguousarray(documents.lengths, dtype=np.int64).tobytes())
    for index in range(0, len(documents), max(1, len(documents) // CHECKED_DOCUMENTS)):
        digest.update(np.asarray(documents[index].tokens, dtype=np.int64).tobytes())
    tokens = int(documents.lengths.sum())
    return f"{len(documents):,} documents of {tokens:,} tokens, checksum {digest.hexdigest()[:12]}"


def batch_loader(
    documents: Documents,
    *,
    configuration: PretrainingSettings,
    tokenizer: Tokenizer,
    topology: ParallelTopology,
    seq_length: int,
    batch_size: int,
    num_batches: int,
    num_workers: int,
    records_origin: bool = False,
) -> BatchLoader:
    """Return the loader of this data rank's batches of ``documents``; ``records_origin`` is for ``--record-order``."""
    batch, rank, world_size = configuration.batch, topology.data_parallel_rank, topology.data_parallel_size
    accept = english_filter(tokenizer) if configuration.corpus.filter_english else None
    mixture = documents if isinstance(documents, Mixture) else None
    dataset = BlockDataset(
        documents,
        tokenizer=tokenizer,
        seq_length=seq_length,
        sample_across_documents=not batch.sample_one_document,
        non_sentence_start=batch.non_sentence_start,
        accept=accept,
        picker=None if mixture is None else EntryPicker(mixture, accept=accept),
        num_entries=None if mixture is None else len(mixture.entries),
    )
    collator = BlankInfillingCollator(
        tokenizer,
        blank_infilling(configuration),
        max_seq_length=batch.seq_length,
        rank=rank,
        world_size=world_size,
        pack=batch.pack_samples,
    )
    global_batch_size = batch_size * world_size
    order = RandomSampleNumbers(len(dataset), global_batch_size * num_batches) if batch.shuffle else None
    shards = num_shards(configuration, topology) or 1  # the ranks of one shard share its samples
    plan = BatchPlan(
        num_samples=len(dataset) if order is None else len(order),
        global_batch_size=global_batch_size // shards,
        rank=rank // shards,
        world_size=world_size // shards,
        order=order,
        drop_last=world_size // shards > 1,
    )
    return BatchLoader(dataset, collator, plan, num_workers=num_workers, records_origin=records_origin)


def loader_of_rank(
    configuration: PretrainingSettings,
    *,
    tokenizer: Tokenizer,
    num_batches: int,
    num_workers: int = 0,
    rank: int = 0,
    num_ranks: int = 1,
) -> tuple[Documents, BatchLoader]:
    """Return the training documents and batches of one data rank, in a process that waits for no other rank."""
    topology = replace(ParallelTopology.single(), data_parallel_size=num_ranks, data_parallel_rank=rank)
    documents = PretrainingDocuments(configuration, tokenizer=tokenizer, topology=topology).parts()[0]
    loader = batch_loader(
        documents,
        configuration=configuration,
        tokenizer=tokenizer,
        topology=topology,
        seq_length=configuration.batch.seq_length,
        batch_size=configuration.batch.batch_size,
        num_batches=num_batches,
        num_workers=num_workers,
    )
    return documents, loader


def share_table(mixture: Mixture) -> list[str]:
    """Return the lines that say how often each corpus of a mixture is drawn."""
    tokens = np.array([float(np.asarray(part.lengths).sum()) for part in mixture.parts])
    of_all = tokens / max(1.0, tokens.sum())
    lines = []
    for number, (name, part) in enumerate(zip(mixture.names, mixture.parts, strict=True)):
        line = f"  {name:24} {len(part):10,} documents  {100 * of_all[number]:6.2f} % of the tokens"
        line += f"  {100 * mixture.shares[number]:6.2f} % of the draws"
        if mixture.asked is not None:
            line += f"  {100 * mixture.asked[number]:6.2f} % of the training asked for"
        lines.append(line)
    return ["shares of the corpora:", *lines]


def training_shares(mixture: Mixture, loader: BatchLoader, num_batches: int) -> tuple[str, dict[str, Any]]:
    """Return what share each corpus had in the samples of the first ``num_batches`` batches of this data rank.

    A line and a row of ``metrics.jsonl``. Samples depend on their numbers alone, so that some thousand of them are made
    again and counted.
    """
    step = max(1, -(-num_batches // MEASURED_BATCHES))
    numbers = [number for batch in range(0, num_batches, step) for number in loader.plan.numbers(batch)]
    numbers = numbers[:MEASURED_SAMPLES]
    assert isinstance(loader.dataset, BlockDataset)
    seen = dict(zip(mixture.names, measured_shares(loader.dataset, numbers).tolist(), strict=True))
    asked = None if mixture.asked is None else dict(zip(mixture.names, mixture.asked.tolist(), strict=True))
    found = ", ".join(
        f"{name} {100 * share:.2f} %" + ("" if asked is None else f" (asked for {100 * asked[name]:.2f} %)")
        for name, share in seen.items()
    )
    line = f"shares of the tokens trained on: {found} ({len(numbers):,} samples counted)"
    return line, {"kind": "shares", "samples": len(numbers), "seen": seen, "asked": asked}


def english_filter(tokenizer: Tokenizer) -> Callable[[np.ndarray], bool]:
    """Return a function that tells from its token ids whether a document is English (``--filter-english``)."""
    try:
        is_english = english_detector()
    except DetectorMissingError as error:
        raise ValueError(f"--filter-english: {error}") from None

    def accept(tokens: np.ndarray) -> bool:
        return is_english(tokenizer.decode(tokens[:ENGLISH_SAMPLE].tolist()).replace("\n", " "))

    return accept


def unigram_entropy(documents: Documents, *, size: int) -> float:
    """Return the entropy in nats of the first documents' tokens: the loss of a model that knows frequencies only."""
    counts = np.zeros(size, dtype=np.int64)
    for index in range(len(documents)):
        counts += np.bincount(np.asarray(documents[index].tokens), minlength=size)
        if index % 1000 == 0 and counts.sum() >= ENTROPY_SAMPLE:
            break
    probabilities = counts[counts > 0] / counts.sum()
    return float(-(probabilities * np.log(probabilities)).sum())
