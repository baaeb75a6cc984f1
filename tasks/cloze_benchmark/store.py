"""The benchmark's HDF5 files: the rows of all candidates as sparse matrices (docs/formats.md#the-cloze-benchmark).

q questions, r rows (candidates of all questions), s positions of a row, a answers of all questions
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.rows import Row
from files.writing import whole_file
from tasks.cloze_benchmark.questions import ClozeQuestion
from tasks.superglue.samples import TaskSample

ROW_GROUPS = ("text", "target", "logit_mask")  # in the order of ``Row.values``; the positions follow
GROUPS = (*ROW_GROUPS, "position", "mask", "choice_start_end")
ANSWER_GROUPS = ("answer_idx", "answer_start_end")
MEMBERS = ("data", "indices", "indptr")
FORMAT, SHAPE = "h5sparse_format", "h5sparse_shape"


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError("the benchmark's files need the packages h5py and scipy: pip install h5py scipy") from None


def write_questions(path: Path, questions: Iterable[ClozeQuestion], *, seq_length: int, with_answers: bool) -> int:
    """Write questions into a new file and return the number of their rows, each of ``seq_length`` positions.

    ``with_answers``: also which candidates are right, as in files for evaluation; in training the first one is.
    """
    h5py, sparse = _package("h5py"), _package("scipy.sparse")
    questions = list(questions)
    rows = [row for question in questions for row in question.sample.rows]
    if not rows:
        raise ValueError(f"no questions for {path}: the texts it is made of hold none")
    lengths = np.array([len(row) for row in rows])
    columns = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    bounds = np.concatenate([[0], np.cumsum(lengths)])

    def of_rows(numbers: slice) -> Any:  # csr [r*k,s] of k of the values of every row, one below the other
        values = [row.values[numbers] for row in rows]
        count = len(values[0])
        if count == 1:
            places, starts = columns, bounds
        else:
            places = np.concatenate([np.tile(np.arange(length, dtype=np.int32), count) for length in lengths])
            starts = np.concatenate([[0], np.cumsum(np.repeat(lengths, count))])
        data = np.concatenate([value.ravel() for value in values])
        return sparse.csr_array((data, places, starts), shape=(len(rows) * count, seq_length))

    def ranges(counts: Sequence[int]) -> np.ndarray:  # [q,2]
        ends = list(accumulate(counts))
        return np.array([[0, *ends[:-1]], ends]).T

    with whole_file(path) as file, h5py.File(file, "w") as content:
        for number, name in enumerate(ROW_GROUPS):
            _write_group(content, name, of_rows(slice(number, number + 1)))
        _write_group(content, "position", of_rows(slice(3, 5)))
        _write_group(content, "mask", np.array([[row.prefix_length] for row in rows]))
        _write_group(content, "choice_start_end", ranges([len(question.sample.rows) for question in questions]))
        if with_answers:
            _write_group(content, "answer_idx", np.array([[n] for q in questions for n in q.right]).reshape(-1, 1))
            _write_group(content, "answer_start_end", ranges([len(question.right) for question in questions]))
    return len(rows)


def _write_group(content: Any, name: str, matrix: Any) -> None:
    columns = _package("scipy.sparse").csc_array(matrix)
    columns.eliminate_zeros()
    columns.sort_indices()
    group = content.create_group(name)
    group.attrs[FORMAT], group.attrs[SHAPE] = "csc", matrix.shape
    for member, kind in zip(MEMBERS, (np.int64, np.int32, np.int64)):
        group.create_dataset(member, data=getattr(columns, member).astype(kind, copy=False))


class StoredQuestions:
    """The questions of a file, made when they are asked for.

    Attributes:
        seq_length: positions of a row.
        num_rows: candidates of all questions.
    """

    def __init__(self, path: Path) -> None:
        """Read the file. Raise ValueError, or OSError, when it is none of the benchmark, or damaged."""
        h5py = _package("h5py")
        if not path.is_file():
            raise ValueError(f"{path} is not there; python -m tasks.cloze_benchmark.prepare makes it")
        try:
            with h5py.File(path, "r") as content:
                present = ANSWER_GROUPS if any(name in content for name in ANSWER_GROUPS) else ()
                matrices = {name: _read_group(content, name) for name in (*GROUPS, *present)}
        except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{path}: no file of the cloze benchmark, or a damaged one ({reason}); make it again"
            ) from error
        self.path = path
        self.num_rows, self.seq_length = matrices["text"].shape
        self._rows = [matrices[name] for name in ROW_GROUPS]
        self._positions = matrices["position"]
        self._prefix_lengths = _dense(matrices["mask"])[:, 0]
        self._choices = _dense(matrices["choice_start_end"])
        answers = [_dense(matrices[name]) for name in present]
        self._answers = answers[0][:, 0] if answers else None
        self._answer_ranges = answers[1] if answers else np.zeros((len(self._choices), 2), dtype=np.int64)
        if problem := self._problem():
            raise ValueError(f"{path}: damaged file of the cloze benchmark ({problem}); make it again")

    def _problem(self) -> str | None:
        """Return what is wrong with the values, None if nothing is."""
        shape, num_questions = (self.num_rows, self.seq_length), len(self._choices)
        if (
            any(rows.shape != shape for rows in self._rows)
            or self._positions.shape != (2 * self.num_rows, self.seq_length)
            or len(self._prefix_lengths) != self.num_rows
            or len(self._answer_ranges) != num_questions
        ):
            return "the matrices differ in their numbers of rows"
        lengths = self._prefix_lengths + self._rows[2].sum(axis=1)
        if (self._prefix_lengths < 1).any() or (lengths > self.seq_length).any():
            return "a row is shorter or longer than there are positions"
        counts = np.diff(self._choices).ravel()
        if not _one_after_the_other(self._choices, self.num_rows) or (counts < 1).any():
            return "candidates are not one after the other"
        answers = np.zeros(0, dtype=np.int64) if self._answers is None else self._answers
        if not _one_after_the_other(self._answer_ranges, len(answers)):
            return "answers are not one after the other"
        limits = np.repeat(counts, np.diff(self._answer_ranges).ravel())
        if ((answers < 0) | (answers >= limits)).any():
            return "an answer is none of the candidates"
        return None

    def check_model(self, *, vocab_size: int, num_positions: int) -> None:
        """Raise ValueError for a model that the rows do not fit."""
        largest = max(int(rows.data.max(initial=0)) for rows in self._rows[:2])
        if largest >= vocab_size or self.seq_length > num_positions:
            raise ValueError(
                f"{self.path} has ids up to {largest} and {self.seq_length} positions, the model a vocabulary of "
                f"{vocab_size} and {num_positions} positions; make the file for it "
                "(python -m tasks.cloze_benchmark.prepare)"
            )

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self._choices)

    def __getitem__(self, number: int) -> ClozeQuestion:
        """Return a question; its sample's uid is its number."""
        start, end = self._choices[number]
        values = [_dense_rows(matrix, start, end) for matrix in self._rows]  # each [c,s]
        positions = _dense_rows(self._positions, 2 * start, 2 * end).reshape(end - start, 2, -1)
        stacked = np.stack([*values, positions[:, 0], positions[:, 1]])  # [5,c,s]
        prefixes = self._prefix_lengths[start:end]
        rows = tuple(
            Row(stacked[:, choice, : prefix + int(stacked[2, choice].sum())], int(prefix))
            for choice, prefix in enumerate(prefixes)
        )
        sample = TaskSample("multi_token", number, 0, rows, choices=True)
        if self._answers is None:
            return ClozeQuestion(sample, (0,))
        first, last = self._answer_ranges[number]
        return ClozeQuestion(sample, tuple(map(int, self._answers[first:last])))


def _read_group(content: Any, name: str) -> Any:
    """Return a matrix of a file by its rows, csr."""
    if name not in content:
        raise ValueError(f"no group {name}")
    group = content[name]
    if group.attrs[FORMAT] != "csc":
        raise ValueError(f"{name} is stored as {group.attrs[FORMAT]!r}, not as 'csc'")
    data, indices, indptr = (group[member][:] for member in MEMBERS)
    if len(data) and not 0 <= data.min() <= data.max() < 2**31:
        raise ValueError(f"{name}/data holds numbers from {data.min()} to {data.max()}")
    values = data.astype(np.int32)  # half the memory: whole files are read
    columns = _package("scipy.sparse").csc_array((values, indices, indptr), shape=tuple(group.attrs[SHAPE]))
    columns.check_format(full_check=True)
    return columns.tocsr()


def _dense_rows(matrix: Any, start: int, end: int) -> np.ndarray:
    """Return int32 [end-start,s] of csr rows, faster than scipy for a few of them."""
    bounds = matrix.indptr[start : end + 1]
    rows = np.zeros((end - start, matrix.shape[1]), dtype=np.int32)
    places = slice(bounds[0], bounds[-1])
    rows[np.repeat(np.arange(end - start), np.diff(bounds)), matrix.indices[places]] = matrix.data[places]
    return rows


def _one_after_the_other(ranges: np.ndarray, total: int) -> bool:
    """Tell whether ranges [q,2] cover 0 to ``total`` without gaps."""
    starts, ends = ranges.T
    return bool((starts <= ends).all()) and [*starts, total] == [0, *ends]


def _dense(matrix: Any) -> np.ndarray:
    return matrix.toarray().astype(np.int64)
