"""Divide documents: into training, validation and test parts, and among the ranks."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_utils.corpora.store import Documents, DocumentSubset, read_numbers
from files.reading import lines_of
from files.writing import whole_file

logger = logging.getLogger("glm")

SPLIT_SEED = 1234  # of the order of documents; the original does not use --seed here
NUM_PARTS = 3


def parse_split(
    split: str, *, valid_data: Sequence[str] | None = None, test_data: Sequence[str] | None = None
) -> list[float]:
    """Return the fractions of training, validation and test documents, which add up to 1.

    Args:
        split: ``a,b,c`` or ``a/b/c`` or one number, in any proportion; what is missing to 1 is added as one more part.
        valid_data, test_data: corpora of their own for these parts; then they get nothing of the split.

    Raises:
        ValueError: not numbers, negative ones, or nothing left.
    """
    separator = "/" if "/" in split and "," not in split else ","
    try:
        parts = [float(part) for part in split.split(separator)]
    except ValueError:
        parts = [-1.0]
    if not all(part >= 0 for part in parts) or not sum(parts) < float("inf"):
        raise ValueError(f"--split is {split!r}; up to three proportions such as 949,50,1 or 0.9/0.1 are needed")
    if len(parts) > NUM_PARTS:
        logger.warning(f"--split {split}: only the first three proportions count, as in the original")
    if parts[0] == 0:
        raise ValueError(f"--split {split!r} gives no document to train on: its first part has to be positive")
    if sum(parts) < 1:
        parts.append(1 - sum(parts))
    parts = [*parts, 0.0, 0.0][:NUM_PARTS]
    if valid_data:
        parts[1] = 0.0
    if test_data:
        parts[2] = 0.0
    total = sum(parts)
    return [part / total for part in parts]


def should_split(fractions: Sequence[float]) -> bool:
    """Tell whether more than one part gets documents."""
    return max(fractions) / sum(fractions) != 1


def document_order(num_documents: int, *, shuffle: bool = True) -> np.ndarray:
    """Return the order in which documents are dealt out, int64 [n]."""
    order = np.arange(num_documents, dtype=np.int64)
    if shuffle:
        np.random.RandomState(SPLIT_SEED).shuffle(order)
    return order


def load_order(path: str | Path, num_documents: int) -> np.ndarray:
    """Return the order saved in a .npy file (``--load-splits``).

    Raises:
        ValueError: missing, no array of whole numbers, of another length, or without every document once.
    """
    try:
        order = read_numbers(Path(path), num_documents, in_memory=True).astype(np.int64)
    except ValueError as error:
        raise ValueError(f"--load-splits: {error}; the corpora have {num_documents} documents") from None
    if num_documents and (order.min() < 0 or order.max() >= num_documents):
        raise ValueError(f"--load-splits: {path} names documents outside 0 .. {num_documents - 1}")
    missing = np.flatnonzero(np.bincount(order, minlength=num_documents) == 0)
    if len(missing):
        raise ValueError(f"--load-splits: {path} is no order: it lacks {len(missing)} documents, such as {missing[0]}")
    return order


def save_order(path: str | Path, order: np.ndarray) -> None:
    """Write an order to a .npy file (``--save-splits``), atomically."""
    with whole_file(path) as file:
        np.save(file, order)


def split_indices(num_documents: int, fractions: Sequence[float], *, order: np.ndarray) -> list[np.ndarray | None]:
    """Return the document numbers of each part; None for a part with fraction 0.

    A part that rounds to nothing still gets one document, which the next part gets as well (as in the original); a
    warning tells.
    """
    parts: list[np.ndarray | None] = []
    start, residual, rounds_to_none = 0, 0.0, False
    for fraction in fractions:
        if fraction == 0:
            parts.append(None)
            continue
        proportion = num_documents * fraction
        residual += proportion % 1
        count = int(int(proportion) + residual)
        rounds_to_none |= count == 0
        parts.append(order[start : start + max(count, 1)])
        start += count
        residual %= 1
    if rounds_to_none:
        logger.warning(
            f"one part of the split of {num_documents} documents rounds to none; it shares a document with another "
            "part: give it a larger proportion of --split, or --valid-data / --test-data"
        )
    return parts


def split_documents(
    documents: Documents,
    fractions: Sequence[float],
    *,
    order: np.ndarray | None = None,
    training_only: bool = False,
) -> list[DocumentSubset | Documents | None]:
    """Divide documents by fractions; everything is training data when one fraction is all, whichever it is.

    Args:
        documents: of all corpora.
        fractions: from ``parse_split``.
        order: in which they are dealt out; None shuffles with the fixed seed.
        training_only: leave the other parts, which nobody asked for, unused.

    Returns:
        (training, validation, test); None for a part without documents.
    """
    if not should_split(fractions):
        return [documents, None, None]
    order = document_order(len(documents)) if order is None else order
    if training_only:
        fractions = [fractions[0], 0.0, 0.0]
    return [
        None if part is None or not len(part) else DocumentSubset(documents, part)
        for part in split_indices(len(documents), fractions, order=order)
    ]


def save_texts(path: str | Path, documents: Documents, *, decode: Callable[[list[int]], str]) -> None:
    """Write the decoded documents, one per line (``--save-test-data``); line breaks in them become spaces."""
    with whole_file(path) as file:
        for index in range(len(documents)):
            text = " ".join(lines_of(decode(documents[index].tokens.tolist())))
            file.write(f"{text}\n".encode())


# ------------------------------------------------------------------------------------------------------ shards


def first_two_thirds(documents: Documents) -> Documents:
    """Keep the first two thirds of the documents, which is what ``--half-lazy-loader`` does in spite of its name."""
    return DocumentSubset(documents, np.arange(2 * len(documents) // 3))


def scatter_assignment(num_documents: int, num_shards: int, *, generator: random.Random) -> list[list[int]]:
    """Deal the documents of one corpus out to shards: shuffled, then consecutive slices."""
    order = list(range(num_documents))
    generator.shuffle(order)
    size = (num_documents - 1) // num_shards + 1
    return [order[shard * size : (shard + 1) * size] for shard in range(num_shards)]


def scatter(parts: Sequence[Documents], *, num_shards: int, shard: int, seed: int) -> list[Documents]:
    """Take one shard of every corpus (``--loader-scatter``); one generator deals out all of them, in order."""
    generator = random.Random(seed)
    shards: list[Documents] = []
    for part in parts:
        indices = scatter_assignment(len(part), num_shards, generator=generator)[shard]
        if not indices:
            raise ValueError(f"--loader-scatter {num_shards}: shard {shard} of {len(part)} documents is empty")
        shards.append(DocumentSubset(part, indices))
    return shards
