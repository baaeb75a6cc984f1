"""Mix several data sets: downstream tasks among pre-training batches, languages, and sources with weights.

Languages are balanced by temperature t: a corpus of length l counts as l^t, which small ones gain by. With a fraction
of the documents below 1 each corpus is made larger or smaller once (``scaled``); else a draw chooses a corpus first.
Weights that are given (``corpus.jsonl@0.3``) are shares of the tokens: a corpus of short documents is drawn more often.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_utils.corpora.splits import document_order, should_split, split_indices
from data_utils.corpora.store import ConcatenatedDocuments, Document, Documents, DocumentSubset
from data_utils.objective.packing import ITEMS_PER_DOCUMENT, BlockDataset, ItemGenerator, seed_words

ENTRY_TOKENS = 10  # a document counts once more for every ten tokens
BLOCK_SIZE = 10_000  # documents, of each of which the same ones are chosen
TASK_TEMPERATURE = 0.8
TASK_SIZE_LIMIT = 200_000  # examples of a task that count
TRIED_SAMPLES, TRIED_ROUNDS = 4000, 12  # that shares of tokens are made equal to weights with


def mixture_weights(lengths: Sequence[int], *, temperature: float, max_limit: int | None = None) -> np.ndarray:
    """Return the probability of each data set, float64 [k]: its length, limited, to the power of the temperature."""
    sizes = np.asarray(lengths, dtype=np.float64)
    if max_limit is not None:
        sizes = np.minimum(sizes, max_limit)
    weights = sizes**temperature
    return weights / weights.sum()


class MixedDataset:
    """Items drawn from several data sets by weight; item i depends on i and the lengths only."""

    def __init__(
        self,
        datasets: Sequence[Any],
        *,
        reweight: bool = True,
        temperature: float = TASK_TEMPERATURE,
        max_limit: int | None = TASK_SIZE_LIMIT,
        weights: np.ndarray | None = None,
    ) -> None:
        """``reweight`` False strings the data sets together instead, again from the start after the last one.

        ``weights`` float64 [k] are the probabilities of the data sets, whatever their lengths and the temperature.
        """
        self.datasets = list(datasets)
        self.reweight = reweight
        lengths = [len(dataset) for dataset in self.datasets]
        if not lengths or min(lengths) == 0:
            raise ValueError(f"a mixture needs data sets that are not empty; their lengths are {lengths}")
        self._lengths = lengths
        self._ends = np.cumsum(lengths)
        if weights is None:
            weights = mixture_weights(lengths, temperature=temperature, max_limit=max_limit)
        self.weights = weights
        cumulative = np.cumsum(self.weights)
        self._cumulative = cumulative / cumulative[-1]

    def __len__(self) -> int:
        return ITEMS_PER_DOCUMENT * int(self._ends[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """Return (number of the data set, number of its item) of item ``index``."""
        if self.reweight:
            generator = ItemGenerator(seed_words(index))
            number = int(self._cumulative.searchsorted(generator.random_sample(), side="right"))
            return number, generator.randint(self._lengths[number])
        place = index % int(self._ends[-1])
        number = int(self._ends.searchsorted(place, side="right"))
        return number, place - (int(self._ends[number - 1]) if number else 0)

    def __getitem__(self, index: int) -> Any:
        """Return item ``index``."""
        number, item = self.locate(index)
        return self.datasets[number][item]


def downstream_draw(iteration: int, *, rank: int, world_size: int) -> float:
    """Return the number that decides on the kind of a step: below ``--multi-task-ratio`` it is a downstream batch."""
    return random.Random(iteration * world_size + rank).random()


class LengthSampled:
    """A sequence of entries in which longer documents come more often: one of n tokens ``n // 10 + 1`` times."""

    def __init__(self, documents: Documents) -> None:
        self.documents = documents
        self.ends = np.cumsum(np.asarray(documents.lengths, dtype=np.int64) // ENTRY_TOKENS + 1)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def number(self, index: int) -> int:
        """Return the number of the document of entry ``index``."""
        return int(self.ends.searchsorted(index, side="right"))

    def __getitem__(self, index: int) -> Document:
        return self.documents[self.number(index)]


def draws_of_shares(
    corpora: Sequence[LengthSampled], shares: np.ndarray, *, seq_length: int, one_document: bool
) -> np.ndarray:
    """Return how often each corpus is to be drawn, float64 [k], so that of all tokens it has its share, float64 [k].

    Samples of ``seq_length`` tokens are packed from lengths alone, as ``BlockDataset`` does but for the ends of
    sentences; a corpus with too few of the tokens is drawn more often, and again, always with the same random numbers.
    """
    lengths = [np.asarray(corpus.documents.lengths, dtype=np.int64) for corpus in corpora]
    draws = shares
    for _ in range(TRIED_ROUNDS if len(corpora) > 1 else 0):
        generator = np.random.default_rng(0)
        tokens = np.zeros(len(corpora))
        room = np.full(TRIED_SAMPLES, seq_length)
        while len(room):
            chosen = np.minimum(np.cumsum(draws).searchsorted(generator.random(len(room)), "right"), len(corpora) - 1)
            places = generator.random(len(room))
            needed = np.empty(len(room), dtype=np.int64)
            for number, corpus in enumerate(corpora):
                mine = chosen == number
                entries = (places[mine] * len(corpus)).astype(np.int64)
                needed[mine] = lengths[number][corpus.ends.searchsorted(entries, side="right")] + 2
            taken = np.minimum(needed, room)
            tokens += np.bincount(chosen, weights=taken, minlength=len(corpora))
            room = (room - needed)[needed < room] if not one_document else room[:0]
        seen = np.maximum(tokens / tokens.sum(), 1e-9)
        draws = draws * shares / seen
        draws = draws / draws.sum()
    return draws


def loader_fractions(sizes: Sequence[int], *, fraction: float, temperature: float) -> np.ndarray:
    """Return how many times each corpus is taken, float64 [k], so that ``fraction`` of all documents are."""
    shares = np.asarray(sizes, dtype=np.float64) / sum(sizes)
    return mixture_weights(sizes, temperature=temperature) * fraction / shares


def scaled(documents: Documents, ratio: float, *, generator: random.Random, block_size: int = BLOCK_SIZE) -> Documents:
    """Return the documents ``ratio`` times: whole, then of every block the same randomly chosen ones."""
    count = len(documents)
    block = min(count, block_size)
    chosen = sorted(generator.sample(range(block), int(ratio % 1 * block)))
    whole = np.tile(np.arange(count), int(ratio))
    return DocumentSubset(documents, np.concatenate([whole, _in_blocks(chosen, count, block)]))


def _in_blocks(residues: Sequence[int] | np.ndarray, count: int, block: int) -> np.ndarray:
    """Return the numbers below ``count`` that have one of ``residues`` modulo ``block``, sorted, int64 [n]."""
    starts = np.arange(0, count, block)[:, None]
    numbers = (starts + np.sort(np.asarray(residues, dtype=np.int64))).reshape(-1)
    return numbers[numbers < count]


def split_in_blocks(
    documents: Documents, fractions: Sequence[float], *, block_size: int = BLOCK_SIZE
) -> list[DocumentSubset | Documents | None]:
    """Divide documents as ``splits.split_documents`` does one block, the other blocks in the same way."""
    if not should_split(fractions):
        return [documents, None, None]
    count = len(documents)
    block = min(count, block_size)
    parts = split_indices(block, fractions, order=document_order(block))
    chosen = [None if part is None else _in_blocks(part, count, block) for part in parts]
    return [None if part is None or not len(part) else DocumentSubset(documents, part) for part in chosen]


class Mixture(ConcatenatedDocuments):
    """The documents of several corpora, and ``entries``, from which samples are drawn.

    Attributes:
        names: of the corpora.
        entries: what to draw from evenly: entries of all corpora, or with a temperature below 1 draws by weight.
        shares: of each corpus in what is drawn, float64 [k].
        asked: share of the tokens that each corpus is to have, float64 [k]; None where no weights were given.
    """

    def __init__(
        self,
        names: Sequence[str],
        corpora: Sequence[Documents],
        *,
        temperature: float = 1.0,
        weights: Sequence[float] | None = None,
        seq_length: int = 512,
        one_document: bool = False,
    ) -> None:
        """``weights`` [k], in any proportion, are shares of the tokens of samples of ``seq_length`` tokens."""
        super().__init__(corpora)
        self.names = tuple(names)
        sampled = [LengthSampled(corpus) for corpus in corpora]
        lengths = [len(corpus) for corpus in sampled]
        if not lengths or min(lengths) == 0:
            empty = [name for name, length in zip(self.names, lengths) if not length]
            raise ValueError(f"{', '.join(empty) or 'the mixture'}: no documents; leave the corpus out")
        self.entries: MixedDataset | ConcatenatedDocuments
        self.asked: np.ndarray | None = None
        if weights is not None:
            self.asked = np.asarray(weights, dtype=np.float64) / sum(weights)
            draws = draws_of_shares(sampled, self.asked, seq_length=seq_length, one_document=one_document)
            self.entries = MixedDataset(sampled, weights=draws)
            self.shares = draws
        elif temperature < 1:
            self.entries = MixedDataset(sampled, temperature=temperature, max_limit=None)
            self.shares = self.entries.weights
        else:
            self.entries = ConcatenatedDocuments(sampled)  # type: ignore[arg-type]  # only lengths are missing
            self.shares = np.asarray(lengths) / sum(lengths)

    def locate(self, entry: int) -> tuple[int, int]:
        """Return the number of the corpus that an entry is of, and that of its document among all."""
        if isinstance(self.entries, MixedDataset):
            source, entry = self.entries.locate(entry)
            sampled = self.entries.datasets[source]
        else:
            ends: Any = self.entries.cumulative_sizes
            source = int(ends.searchsorted(entry, side="right"))
            sampled, entry = self.entries.parts[source], entry - (int(ends[source - 1]) if source else 0)
        before = int(self.cumulative_sizes[source - 1]) if source else 0
        return source, before + sampled.number(entry)


class EntryPicker:
    """Draw documents from entries, each as probable as the others; ``drawn`` counts them by corpus."""

    def __init__(self, mixture: Mixture, *, accept: Callable[[np.ndarray], bool] | None = None) -> None:
        self.documents, self.accept = mixture, accept
        self.sources: list[int] = []  # of the documents that were picked, until somebody empties it
        self.noting = False

    def pick_number(self, generator: ItemGenerator) -> int:
        """Draw the number of a document; one that is not accepted is drawn again."""
        while True:
            source, number = self.documents.locate(generator.randint(len(self.documents.entries)))
            if self.accept is None or self.accept(self.documents[number].tokens):
                if self.noting:
                    self.sources.append(source)
                return number


def measured_shares(dataset: BlockDataset, numbers: Sequence[int]) -> np.ndarray:
    """Return the share of each corpus of a mixture in the tokens of samples ``numbers``, float64 [k]."""
    picker = dataset.picker
    assert isinstance(picker, EntryPicker)
    tokens = np.zeros(len(picker.documents.names))
    picker.noting = True
    for number in numbers:
        picker.sources.clear()
        sample = dataset[number]
        starts = np.flatnonzero((sample.tokens == dataset.opening) & (sample.loss_mask == 0))[: len(picker.sources)]
        ends = [*starts[1:], len(sample.tokens)]
        for source, start, end in zip(picker.sources, starts, ends):
            tokens[source] += end - start
    picker.noting = False
    return tokens / max(1.0, tokens.sum())
