"""Choose the next token: filters of logits, processors of scores, draws.

b rows, v vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from files.reading import described
from mpu.kernels.host_memory import send


@dataclass(frozen=True)
class DecodingSettings:
    """How blanks are filled and targets are written; raises ValueError for values that make no sense.

    At most ``max_length`` tokens per blank or target. With one beam a token is drawn after dividing by ``temperature``
    and keeping the ``top_k`` best (0: all; 1: greedy) and then the ``top_p`` nucleus (0: off). With more beams these
    three do not matter to blanks: the best of ``num_beams`` under ``length_penalty`` wins; ``draw_candidates`` draws
    the candidates at random, as the original does. No n-gram of ``no_repeat_ngram_size`` (0: off) occurs twice in a
    piece, and a piece has at least ``min_length`` tokens. ``fill`` says what the next blank sees of one that is filled:
    its mask and the piece after the context (append), or the piece in the mask's place (replace). Targets are searched
    with one beam, too: of the three only the temperature does not matter to them. With ``renormalize_bans`` beams count
    probabilities among what is not forbidden, as the multilingual release does.
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
    fill: str = "append"
    renormalize_bans: bool = False

    def __post_init__(self) -> None:
        if self.fill not in FILL_STYLES:
            raise ValueError(f"--fill is {described(self.fill)}; choose {' or '.join(FILL_STYLES)}")
        for name, (flag, kind, low, high, hint) in _BOUNDS.items():
            value = getattr(self, name)
            fits = not isinstance(value, bool) and isinstance(value, (int, float) if kind is float else kind)
            if not (fits and low <= value <= high):
                what = "a whole number" if kind is int else "a number"
                raise ValueError(f"{flag} is {described(value)}; {what} from {low:g} to {high:g} is needed{hint}")
        if not isinstance(self.draw_candidates, bool):
            raise ValueError(f"draw_candidates is {described(self.draw_candidates)}; true or false is needed")
        if self.min_length > self.max_length:
            raise ValueError(
                f"--min-tgt-length {self.min_length} is above --out-seq-length {self.max_length}; change one of them"
            )


FILL_STYLES = ("append", "replace")  # of GLM, and of its multilingual release
_LARGEST = 10**9  # far beyond any length and vocabulary
DAMAGED = -1  # in place of a token: the row's logits are NaN or infinite
_NOT_FINITE = (
    "the model's logits are NaN or infinite: a weight is damaged (loading the checkpoint names it), or half precision "
    "overflows (leave --fp16 out)"
)
# Flag, type, smallest and largest value, hint. Beyond these temperatures logits overflow in fp32.
_BOUNDS: dict[str, tuple[str, type, float, float, str]] = {
    "max_length": ("--out-seq-length", int, 1, _LARGEST, ""),
    "temperature": ("--temperature", float, 1e-6, 1e6, " (greedy is --top-k 1)"),
    "top_k": ("--top-k", int, 0, _LARGEST, " (0 is off)"),
    "top_p": ("--top-p", float, 0.0, 1.0, " (0 is off)"),
    "num_beams": ("--num-beams", int, 1, 1024, ""),
    "length_penalty": ("--length-penalty", float, -20.0, 20.0, ""),
    "no_repeat_ngram_size": ("--no-repeat-ngram-size", int, 0, _LARGEST, " (0 is off)"),
    "min_length": ("--min-tgt-length", int, 0, _LARGEST, " (0 is off)"),
}


def check_finite(best: Tensor) -> None:
    """Raise ValueError where ``best`` [...], the largest logits of some rows, says that the rows hold no numbers.

    A NaN anywhere makes the largest one NaN. Minus infinity is a row of which everything was forbidden.
    """
    if not bool((best < math.inf).all()):
        raise ValueError(_NOT_FINITE)


def check_undamaged(tokens: Sequence[int]) -> None:
    """Raise ValueError where the tokens of ``pick_tokens`` say that logits are NaN or infinite."""
    if DAMAGED in tokens:
        raise ValueError(_NOT_FINITE)


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
        forbidden = repeating_tokens(tokens, no_repeat_ngram_size)
        if len(tokens) < min_length:
            forbidden |= set(end_ids)
        banned_rows += [row] * len(forbidden)
        banned_tokens += forbidden
    if banned_rows:
        banned = send(torch.tensor([banned_rows, banned_tokens]), scores.device)
        scores = scores.index_put(tuple(banned), scores.new_full((), -math.inf))
    return scores


def draw_uniform(generators: Sequence[Generator], count: int = 1) -> Tensor:
    """Return ``count`` numbers below 1 of each CPU generator, fp64 [count,b]: a row does not affect another."""
    return torch.stack([torch.rand(count, generator=g, dtype=torch.float64) for g in generators], dim=1)


def draw_tokens(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw one token per row of ``logits`` [b,v], by its number of ``uniform`` (``draw_uniform``) [b]."""
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)  # [b,v]
    total = cumulative[:, -1]
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target.unsqueeze(1), right=True).squeeze(1)


def pick_tokens(scores: Tensor, uniform: Tensor | None, *, settings: DecodingSettings, end_id: int) -> Tensor:
    """Return the next token [b] of each row of processed ``scores`` (fp32 [b,v]), by the one-beam part of ``settings``.

    ``uniform`` fp64 [b], on the device of the scores, is what is drawn by, None for the best token. A row with nothing
    left to choose ends with ``end_id``; ``DAMAGED`` stands for a row with scores that are NaN or infinite. Nobody waits
    for the device.
    """
    if uniform is None:
        best, tokens = scores.max(dim=-1)
    else:
        best = scores.amax(dim=-1)
        filtered = filter_logits(scores / settings.temperature, top_k=settings.top_k, top_p=settings.top_p)
        alive = torch.where((best == -math.inf).unsqueeze(1), torch.zeros_like(filtered), filtered)
        tokens = draw_tokens(alive, uniform)
    tokens = tokens.masked_fill(best == -math.inf, end_id)
    return torch.where(best < math.inf, tokens, DAMAGED)


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
    nothing left to choose ends. Raises ValueError for logits that are NaN or infinite.
    """
    scores = process_scores(
        logits.float(),
        generated,
        end_ids=end_ids,
        min_length=settings.min_length,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
    )
    uniform = None if settings.top_k == 1 else send(draw_uniform(generators)[0], scores.device)
    tokens = pick_tokens(scores, uniform, settings=settings, end_id=end_ids[0]).tolist()
    check_undamaged(tokens)
    return tokens
