"""Fill the blanks of requests that come and go, all together, and tell of every token.

``RequestFiller`` fills several candidates for every blank, and goes on to the next one with the first of them. Requests
that draw share one batch, whatever their settings (``SampledRows``); beam searches with the same settings, which began
together, share one (``SearchedBlanks``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Generator

from generation.infill import (
    BlankFiller,
    Candidate,
    Row,
    SampledRows,
    SearchedBlanks,
    Token,
    prompt_generator,
    with_piece,
)
from generation.inputs import PromptInputs
from generation.sampling import DecodingSettings

MOST_SAMPLES = 1024  # of a blank: their generators are numbered by blank and sample


@dataclass(frozen=True, eq=False)
class FillRequest:
    """A prompt and how its blanks are filled.

    Attributes:
        inputs: the prompt.
        settings: with one beam ``num_samples`` candidates are drawn, otherwise a candidate per beam is searched.
        seed: the first sample of every blank is what ``BlankFiller.fill`` draws with it.
        given: the ids of the first blanks, which are not filled.
        prefix: the ids that the first blank to be filled begins with.
    """

    inputs: PromptInputs
    settings: DecodingSettings
    num_samples: int = 1
    seed: int = 1234
    given: tuple[tuple[int, ...], ...] = ()
    prefix: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for pieces that do not fit the prompt's blanks, and several samples of a greedy choice."""
        blanks, settings = len(self.inputs.blanks), self.settings
        if not 1 <= self.num_samples <= MOST_SAMPLES:
            raise ValueError(f"{self.num_samples} samples; from 1 to {MOST_SAMPLES} are possible")
        if self.num_samples > 1 and (settings.num_beams > 1 or settings.top_k == 1):
            raise ValueError(
                f"{self.num_samples} samples with num_beams {settings.num_beams} and top_k {settings.top_k}: samples "
                "are drawn with one beam and another top_k than 1"
            )
        if len(self.given) >= blanks:
            raise ValueError(f"pieces for {len(self.given)} of {blanks} blanks are given; leave one at least to fill")
        if any(len(piece) > settings.max_length for piece in self.given) or len(self.prefix) >= settings.max_length:
            raise ValueError(
                f"a given piece has at most {settings.max_length} tokens, a prefix fewer (out_seq_length); shorten it"
            )

    @property
    def num_rows(self) -> int:
        """Return how many rows of a batch it takes."""
        return max(self.num_samples, self.settings.num_beams)

    @property
    def num_columns(self) -> int:
        """Return how many columns of the cache its rows take at most."""
        return len(self.inputs) + len(self.inputs.blanks) * (self.settings.max_length + 1)


@dataclass(frozen=True)
class TokenDrawn:
    """A sample of a blank has got a token; an end token ends it."""

    request: FillRequest
    blank: int
    candidate: int
    token: Token


@dataclass(frozen=True)
class BeamAhead:
    """The best unfinished beam of a blank that is being searched."""

    request: FillRequest
    blank: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class CandidateDone:
    """A candidate of a blank is complete."""

    request: FillRequest
    blank: int
    number: int
    candidate: Candidate


@dataclass(frozen=True)
class RequestDone:
    """All candidates of all blanks are complete; ``pieces`` are the ids of the first ones, and what was given."""

    request: FillRequest
    pieces: tuple[tuple[int, ...], ...]


Event = TokenDrawn | BeamAhead | CandidateDone | RequestDone


@dataclass
class _Progress:
    """A request that is being filled.

    Attributes:
        inputs: what the model is given now: where pieces replace their masks, with those that are filled.
        pieces: of the blanks that are filled.
        prefix: of the blank that is filled next.
        generator: of the first sample of every blank.
        drawn: the rows that are at work, and what each has drawn for its blank.
        best: the first candidate of the present blank, while others are at work.
    """

    request: FillRequest
    inputs: PromptInputs
    pieces: list[tuple[int, ...]]
    prefix: tuple[int, ...]
    generator: Generator
    drawn: dict[Row, list[Token]] = field(default_factory=dict)
    best: tuple[int, ...] = ()

    @property
    def replaces(self) -> bool:
        return self.request.settings.fill == "replace"


class RequestFiller:
    """Fill requests together; ``step`` calls the model once for every batch there is."""

    def __init__(self, filler: BlankFiller, *, num_alternatives: int = 5) -> None:
        """``num_alternatives`` is how many tokens are told of beside each one that was chosen."""
        self.filler = filler
        self.num_alternatives = num_alternatives
        self.samples = SampledRows(filler, num_alternatives=num_alternatives, followers=self._followers)
        self.searches: dict[SearchedBlanks, list[_Progress]] = {}
        self.active: dict[FillRequest, _Progress] = {}
        self.owners: dict[Row, _Progress] = {}

    @torch.inference_mode()
    def add(self, requests: Sequence[FillRequest]) -> None:
        """Take requests in; the model runs over their prompts."""
        new = []
        for request in requests:
            inputs = request.inputs
            if request.settings.fill == "replace":
                for piece in request.given:
                    inputs = with_piece(inputs, piece)
            generator = prompt_generator(request.seed, 0)
            self.active[request] = _Progress(request, inputs, list(request.given), request.prefix, generator)
            new.append(self.active[request])
        self._start(new)

    @torch.inference_mode()
    def drop(self, requests: Collection[FillRequest]) -> None:
        """Compute no more for some requests."""
        gone = [self.active.pop(request) for request in requests if request in self.active]
        rows = [row for progress in gone for row in progress.drawn]
        self.samples.drop(rows)
        self.owners = {row: progress for row, progress in self.owners.items() if row not in rows}
        for search, members in list(self.searches.items()):
            self._leave(search, [number for number in search.numbers if members[number] in gone])

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Take one step with everything that is at work; return what happened.

        Raises ValueError for logits that are NaN or infinite.
        """
        waiting: list[_Progress] = []
        events = [*self._step_samples(waiting), *self._step_searches(waiting)]
        self._start(waiting)
        return events

    def _start(self, waiting: Iterable[_Progress]) -> None:
        """Begin with the next blank of requests that stand before one."""
        rows: list[Row] = []
        searched: dict[tuple[DecodingSettings, int], list[_Progress]] = {}
        for progress in waiting:
            settings = progress.request.settings
            if settings.num_beams > 1:
                searched.setdefault((settings, len(progress.prefix)), []).append(progress)
                continue
            inputs, given = self._blank(progress)
            row = Row(inputs, progress.generator, settings=settings, special=self.filler.special, given=given,
                      prefix=progress.prefix)  # fmt: skip
            progress.drawn[row] = []
            self.owners[row] = progress
            rows.append(row)
        if rows:
            self.samples.join(rows)
        for (settings, _), members in searched.items():
            blanks = [self._blank(progress) for progress in members]
            pieces = [[*given, progress.prefix] for progress, (_, given) in zip(members, blanks)]
            search = SearchedBlanks(
                self.filler,
                self.filler.context([inputs for inputs, _ in blanks], pieces, settings=[settings] * len(members)),
                [inputs.blanks[len(given)] for inputs, given in blanks],
                settings=settings,
                generators=[progress.generator for progress in members],
                prefixes=[progress.prefix for progress in members],
                num_alternatives=self.num_alternatives,
            )
            self.searches[search] = members

    def _blank(self, progress: _Progress) -> tuple[PromptInputs, Sequence[Sequence[int]]]:
        """Return the inputs for the next blank, and the pieces of the blanks before it that they hold."""
        if progress.replaces:
            return replace(progress.inputs, blanks=progress.inputs.blanks[:1]), ()
        return progress.inputs, progress.pieces

    def _followers(self, row: Row) -> list[Row]:
        """Return the other samples of the blank that a row has opened."""
        progress = self.owners[row]
        first = self._number(progress, len(row.pieces) - 1) * MOST_SAMPLES
        rows = [
            row.follower(prompt_generator(progress.request.seed, first + number), number=number)
            for number in range(1, progress.request.num_samples)
        ]
        progress.drawn |= {row: [] for row in rows}
        self.owners |= dict.fromkeys(rows, progress)
        return rows

    def _number(self, progress: _Progress, local: int) -> int:
        """Return the number of a blank in the request, given that in the inputs."""
        return len(progress.pieces) if progress.replaces else local

    def _step_samples(self, waiting: list[_Progress]) -> Iterator[Event]:
        if not self.samples.rows:
            return
        before = [(row, len(row.pieces) - 1) for row in self.samples.rows]
        for (row, local), token in zip(before, self.samples.step()):
            progress, ended = self.owners[row], token.id in self.filler.special.ends
            drawn, blank = progress.drawn[row], self._number(progress, local)
            drawn.append(token)
            yield TokenDrawn(progress.request, blank, row.number, token)
            if not (row.done or row.opened):
                continue
            total = sum(one.log_probability for one in drawn)
            ids, tokens = tuple(row.pieces[local]), tuple(drawn[: len(drawn) - ended])
            yield CandidateDone(progress.request, blank, row.number, Candidate(ids, tokens, total, ended))
            if row.number == 0:
                progress.best = ids
                if not progress.replaces:
                    progress.pieces = [tuple(piece) for piece in row.pieces[: local + 1]]
            if row.done:
                del progress.drawn[row], self.owners[row]
            else:
                progress.drawn[row] = []
            if not progress.drawn:
                yield from self._next_blank(progress, waiting)

    def _step_searches(self, waiting: list[_Progress]) -> Iterator[Event]:
        for search, members in list(self.searches.items()):
            search.step()
            over = [number for number in search.numbers if search.is_over(number)]
            for number in search.numbers:
                progress = members[number]
                blank = len(progress.pieces)
                if number not in over:
                    yield BeamAhead(progress.request, blank, search.ahead(number))
                    continue
                candidates = search.results(number) or [Candidate(progress.prefix, (), -math.inf, False)]
                for rank, candidate in enumerate(candidates):
                    yield CandidateDone(progress.request, blank, rank, candidate)
                progress.best = candidates[0].ids
                if not progress.replaces:
                    progress.pieces.append(progress.best)
                yield from self._next_blank(progress, waiting)
            self._leave(search, over)

    def _leave(self, search: SearchedBlanks, numbers: Collection[int]) -> None:
        search.drop(numbers)
        if not search.numbers:
            del self.searches[search]

    def _next_blank(self, progress: _Progress, waiting: list[_Progress]) -> Iterator[Event]:
        """Put a request before its next blank, or end it; the blank before is filled with ``best``."""
        if progress.replaces:
            piece = self.filler.that_fits(progress.best, progress.inputs)
            progress.inputs = with_piece(progress.inputs, piece)
            progress.pieces.append(piece)
        progress.prefix = ()
        if len(progress.pieces) < len(progress.request.inputs.blanks):
            waiting.append(progress)
            return
        del self.active[progress.request]
        yield RequestDone(progress.request, tuple(progress.pieces))
