"""Beam search over next-token scores, apart from any model.

b examples, n beams, v vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from generation.sampling import DecodingSettings, check_finite, filter_logits, process_scores
from mpu.kernels.host_memory import send


@dataclass(frozen=True)
class Hypothesis:
    """A finished sequence, without its end token, and its normalised score."""

    tokens: tuple[int, ...]
    score: float


@dataclass
class _Example:
    """The search of one example: live beams (tokens and sums) and the best finished hypotheses, oldest first."""

    beams: list[tuple[int, ...]]
    sums: list[float]
    finished: list[Hypothesis] = field(default_factory=list)
    done: bool = False

    def add(self, new: Hypothesis, *, num_beams: int) -> None:
        """Keep a hypothesis if it is among the n best; of equal worst ones the oldest leaves."""
        if len(self.finished) < num_beams:
            self.finished.append(new)
        elif new.score > (worst := min(h.score for h in self.finished)):
            self.finished.pop(next(i for i, h in enumerate(self.finished) if h.score == worst))
            self.finished.append(new)


class BeamSearch:
    """Search for b examples at once, ``settings.max_length`` tokens at most.

    A hypothesis of l tokens scores its sum of log-probabilities divided by (``start_length`` + l) ^ ``length_penalty``;
    ``start_length`` counts a start token as part of it. With ``draw_candidates`` candidates are drawn without
    replacement; otherwise they are the best.

    Row i * n + k of the model's batch is beam k of example i. At the start all beams of an example are equal and only
    the first one counts. Feed the model, call ``step`` with its logits, feed it what ``step`` returns, and so on until
    ``finished``. ``drop_done`` takes examples that are done out of the batch.
    """

    def __init__(
        self,
        num_examples: int,
        *,
        settings: DecodingSettings,
        end_ids: Sequence[int],
        pad_id: int,
        start_length: int = 0,
        generators: Sequence[Generator] = (),
        prefixes: Sequence[Sequence[int]] = (),
    ) -> None:
        """Start a search; ``generators`` (CPU, one per example) are needed only to draw candidates.

        All beams of an example begin with its prefix, whose probability is not counted; prefixes have one length.
        """
        assert not settings.draw_candidates or len(generators) == num_examples, (len(generators), num_examples)
        self.settings = settings
        self.end_ids = end_ids
        self.pad_id = pad_id
        self.start_length = start_length
        self.generators = generators
        others = [-math.inf] * (settings.num_beams - 1)
        starts = [tuple(prefix) for prefix in prefixes] or [()] * num_examples
        self.examples = [_Example([start] * settings.num_beams, [0.0, *others]) for start in starts]
        self.active = self.examples  # those in the batch
        self.num_steps = len(starts[0]) if starts else 0  # tokens of a beam

    @property
    def finished(self) -> bool:
        """Tell whether nothing is left to search."""
        return self.num_steps >= self.settings.max_length or all(example.done for example in self.examples)

    def step(self, logits: Tensor) -> tuple[list[int], list[int]]:
        """Extend every beam by one token, given the next-token ``logits`` [b*n,v].

        Returns the tokens to feed next [b*n] and, for each row, the row of the present batch that it continues.
        Raises ValueError for logits that are NaN or infinite.
        """
        settings, num_beams = self.settings, self.settings.num_beams
        filtered = filter_logits(logits.float(), top_k=settings.top_k, top_p=settings.top_p)
        log_probabilities = process_scores(
            filtered.log_softmax(dim=-1),
            [tokens for example in self.active for tokens in example.beams],
            end_ids=self.end_ids,
            min_length=settings.min_length,
            no_repeat_ngram_size=settings.no_repeat_ngram_size,
        )
        if settings.renormalize_bans:
            log_probabilities = log_probabilities.log_softmax(dim=-1).nan_to_num(nan=-math.inf, neginf=-math.inf)
        sums = send(torch.tensor([example.sums for example in self.active]), logits.device)  # [b,n]
        totals = (log_probabilities + sums.view(-1, 1)).view(len(self.active), -1)  # [b,n*v]
        scores, indices = self._candidates(totals)
        check_finite(torch.tensor([row[0] for row, example in zip(scores, self.active) if not example.done]))
        next_tokens: list[int] = []
        source_rows: list[int] = []
        for number, example in enumerate(self.active):
            row = number * num_beams
            if example.done:
                next_tokens += [self.pad_id] * num_beams
                source_rows += range(row, row + num_beams)
                continue
            parents = self._walk(example, scores[number], indices[number], vocabulary=logits.size(-1))
            next_tokens += [tokens[-1] if total > -math.inf else self.pad_id
                            for tokens, total in zip(example.beams, example.sums)]  # fmt: skip
            source_rows += [row + parent for parent in parents]
        self.num_steps += 1
        return next_tokens, source_rows

    def drop_done(self) -> list[int]:
        """Take the examples that are done out of the batch; return the rows of the present batch that stay."""
        kept = [number for number, example in enumerate(self.active) if not example.done]
        self.active = [self.active[number] for number in kept]
        self.generators = [self.generators[number] for number in kept] if self.generators else ()
        num_beams = self.settings.num_beams
        return [number * num_beams + beam for number in kept for beam in range(num_beams)]

    def _candidates(self, totals: Tensor) -> tuple[list[list[float]], list[list[int]]]:
        """Return scores and flat indices of the candidates of each example, best first."""
        enough = (1 + len(self.end_ids)) * self.settings.num_beams  # every beam may meet every end token
        count = min(enough, totals.size(-1))
        if not self.settings.draw_candidates:
            return _as_lists(*totals.topk(count, dim=-1))
        # The largest of log-probability + Gumbel noise are draws without replacement from the softmax.
        width = totals.size(-1)
        uniform = torch.stack([torch.rand(width, generator=g, dtype=torch.float64) for g in self.generators])
        gumbel = send(-torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16))), totals.device)
        drawn = (totals.double() + gumbel).topk(count, dim=-1).indices
        scores, order = totals.gather(-1, drawn).sort(dim=-1, descending=True, stable=True)
        return _as_lists(scores, drawn.gather(-1, order))

    def _walk(self, example: _Example, scores: list[float], indices: list[int], *, vocabulary: int) -> list[int]:
        """Turn candidates into finished hypotheses and new beams; return the parent beam of each new one."""
        num_beams = self.settings.num_beams
        beams: list[tuple[int, ...]] = []
        sums: list[float] = []
        parents: list[int] = []
        for rank, (total, index) in enumerate(zip(scores, indices)):
            if total == -math.inf or len(beams) == num_beams:
                break
            parent, token = divmod(index, vocabulary)
            if token in self.end_ids:
                if rank < num_beams:
                    self._finish(example, example.beams[parent], total)
                continue
            beams.append((*example.beams[parent], token))
            sums.append(total)
            parents.append(parent)
        if len(example.finished) == num_beams:
            worst = min(hypothesis.score for hypothesis in example.finished)
            example.done = worst >= self._score(scores[0], self.num_steps)
        example.done = example.done or not beams
        lacking = num_beams - len(beams)  # fewer tokens are allowed than there are beams
        example.beams = beams + [()] * lacking
        example.sums = sums + [-math.inf] * lacking
        return parents + [0] * lacking

    def _score(self, total: float, length: int) -> float:
        """Return the score of ``length`` tokens whose log-probabilities add up to ``total``."""
        return total / max(self.start_length + length, 1) ** self.settings.length_penalty

    def _finish(self, example: _Example, tokens: tuple[int, ...], total: float) -> None:
        example.add(Hypothesis(tokens, self._score(total, len(tokens))), num_beams=self.settings.num_beams)

    def results(self) -> list[list[Hypothesis]]:
        """Return the hypotheses of each example, best first, of equal ones the latest.

        The live beams of an unfinished example count too.
        """
        return [self.result(number) for number in range(len(self.examples))]

    def result(self, number: int) -> list[Hypothesis]:
        """Return the hypotheses of one example."""
        example = self.examples[number]
        if not example.done:
            for tokens, total in zip(example.beams, example.sums):
                if total > -math.inf:
                    self._finish(example, tokens, total)
            example.done = True
        newest_first = example.finished[::-1]
        return sorted(newest_first, key=lambda hypothesis: -hypothesis.score)


def _as_lists(scores: Tensor, indices: Tensor) -> tuple[list[list[float]], list[list[int]]]:
    """Read scores (fp32) and indices [b,candidates] with one wait for the device."""
    if scores.device.type == "cpu":
        return scores.tolist(), indices.tolist()
    values, numbers = torch.stack([scores.double(), indices.double()]).tolist()  # exact: indices are below 2^53
    return values, [[int(number) for number in row] for row in numbers]
