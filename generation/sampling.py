"""Choose the next token: filters of logits, processors of scores, draws.

b rows, v vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class DecodingSettings:
    """How blanks are filled and targets are written; raises ValueError for values that make no sense.

    At most ``max_length`` tokens per blank or target. With one beam a token is drawn after dividing by ``temperature``
    and keeping the ``top_k`` best (0: all; 1: greedy) and then the ``top_p`` nucleus (0: off). With more beams these
    three do not matter to blanks: the best of ``num_beams`` under ``length_penalty`` wins; ``draw_candidates`` draws
    the candidates at random, as the original does. No n-gram of ``no_repeat_ngram_size`` (0: off) occurs twice in a
    piece, and a piece has at least ``min_length`` tokens. Targets are searched with one beam, too: of the three only
    the temperature does not matter to them.
    """

    max_length: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    num_beams: int = 1
    length_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    min_length: int = 0
    draw_candidates: bool = False

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"--out-seq-length is {self.max_length}; it has to be at least 1")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"--temperature is {self.temperature}; it has to be positive (greedy is --top-k 1)")
        if not 0.0 <= self.top_p <= 1.0:
            raise ValueError(f"--top-p is {self.top_p}; it has to lie between 0 (off) and 1")
        if self.num_beams < 1:
            raise ValueError(f"--num-beams is {self.num_beams}; it has to be at least 1")
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"--length-penalty is {self.length_penalty}; it has to be a number")
        for flag, value in (
            ("--top-k", self.top_k),
            ("--no-repeat-ngram-size", self.no_repeat_ngram_size),
            ("--min-tgt-length", self.min_length),
        ):
            if value < 0:
                raise ValueError(f"{flag} is {value}; it cannot be negative (0 is off)")
        if self.min_length > self.max_length:
            raise ValueError(
                f"--min-tgt-length {self.min_length} is above --out-seq-length {self.max_length}; change one of them"
            )


def filter_logits(logits: Tensor, *, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Return ``logits`` [b,v] with minus infinity for the tokens that may not be drawn.

    ``top_k`` > 0 removes everything strictly below the k-th largest. Then ``top_p`` > 0 removes the tokens before which
    the cumulative probability, best first, exceeds it: the token that crosses the threshold stays.
    """
    if top_k > 0:
        smallest = logits.topk(min(top_k, logits.size(-1)), dim=-1).values[..., -1:]  # [b,1]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    if top_p > 0.0:
        ordered, indices = logits.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities  # the best token has 0
        removed = torch.empty_like(before, dtype=torch.bool).scatter_(-1, indices, before > top_p)
        logits = logits.masked_fill(removed, -math.inf)
    return logits


def repeating_tokens(generated: Sequence[int], ngram_size: int) -> set[int]:
    """Return the tokens that would complete an n-gram already present in ``generated``."""
    if ngram_size <= 0 or len(generated) + 1 < ngram_size:
        return set()
    prefix_size = ngram_size - 1
    prefix = list(generated[len(generated) - prefix_size :])
    starts = range(len(generated) - prefix_size)
    return {generated[i + prefix_size] for i in starts if list(generated[i : i + prefix_size]) == prefix}


def process_scores(
    scores: Tensor,
    generated: Sequence[Sequence[int]],
    *,
    end_ids: Sequence[int],
    min_length: int = 0,
    no_repeat_ngram_size: int = 0,
) -> Tensor:
    """Return ``scores`` [b,v] with minus infinity for what minimum length and n-gram blocking forbid.

    ``generated`` holds the tokens of each row so far.
    """
    banned_rows: list[int] = []
    banned_tokens: list[int] = []
    for row, tokens in enumerate(generated):
        banned = repeating_tokens(tokens, no_repeat_ngram_size)
        if len(tokens) < min_length:
            banned |= set(end_ids)
        banned_rows += [row] * len(banned)
        banned_tokens += banned
    if banned_rows:
        scores = scores.clone()
        scores[banned_rows, banned_tokens] = -math.inf
    return scores


def draw_tokens(logits: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Draw one token per row of ``logits`` [b,v], each with its own CPU generator: a row does not affect another."""
    uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])  # [b]
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)  # [b,v]
    total = cumulative[:, -1]
    target = torch.minimum(uniform.to(logits.device) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target.unsqueeze(1), right=True).squeeze(1)


def choose_tokens(
    logits: Tensor,
    generated: Sequence[Sequence[int]],
    *,
    settings: DecodingSettings,
    end_ids: Sequence[int],
    generators: Sequence[Generator],
) -> list[int]:
    """Choose the next token of each row from ``logits`` [b,v], by the one-beam part of ``settings``.

    The processors come before the filters here, so that they cannot ban everything that the filters leave. A row with
    nothing left to choose ends.
    """
    scores = process_scores(
        logits.float(),
        generated,
        end_ids=end_ids,
        min_length=settings.min_length,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
    )
    if settings.top_k == 1:
        best, tokens = scores.max(dim=-1)
    else:
        best = scores.amax(dim=-1)
        filtered = filter_logits(scores / settings.temperature, top_k=settings.top_k, top_p=settings.top_p)
        alive = torch.where((best == -math.inf).unsqueeze(1), torch.zeros_like(filtered), filtered)
        tokens = draw_tokens(alive, generators)
    return torch.where(best == -math.inf, end_ids[0], tokens).tolist()
