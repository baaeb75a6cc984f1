"""What goes over HTTP, as JSON: a request to fill a text, and the messages that answer it (docs/web.md)."""

from __future__ import annotations

import difflib
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from data_utils.tokenizers.tokenizer import Tokenizer
from files.reading import described, value_of
from generation.infill import BlankFiller, Token
from generation.inputs import (
    MASK_COMMANDS,
    complete_prompt,
    insert_answers,
    masks_taken_as_text,
    require_blank,
    split_at_masks,
)
from generation.requests import BeamAhead, CandidateDone, Event, FillRequest, RequestDone, TokenDrawn
from generation.sampling import DecodingSettings
from generation.web.limits import Limits

JsonObject = dict[str, Any]
PLACE = "the request"
NUMBERS: dict[str, tuple[type, float]] = {  # settings of a request, with the type and the default of each
    "out_seq_length": (int, 32), "min_tgt_length": (int, 0), "num_beams": (int, 1), "samples": (int, 1),
    "temperature": (float, 1.0), "top_k": (int, 0), "top_p": (float, 0.0), "length_penalty": (float, 0.0),
    "no_repeat_ngram_size": (int, 0), "seed": (int, 1234),
}  # fmt: skip
FIELDS = ("text", *NUMBERS, "given", "prefix", "stream")
LARGEST_SEED = 2**63 - 1


def read_request(fields: Any, filler: BlankFiller, *, limits: Limits, fill: str = "append") -> FillRequest:
    """Return the request that a JSON object describes. Raises ValueError for what it cannot be or may not have."""
    if not isinstance(fields, dict):
        raise ValueError(f"{PLACE} is {described(fields)}; an object with a text under 'text' is needed")
    for name in fields:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            raise ValueError(
                f"{PLACE} has {described(name)}; {f'did you mean {near[0]!r}? ' if near else ''}known are "
                f"{', '.join(FIELDS)}"
            )
    longest = limits.describe(filler)["out_seq_length"]
    bounds = {
        "out_seq_length": {"at_least": 1, "at_most": longest},
        "num_beams": {"at_least": 1, "at_most": limits.candidates},
        "samples": {"at_least": 1, "at_most": limits.candidates},
        "seed": {"at_least": 0, "at_most": LARGEST_SEED},
    }
    values: dict[str, Any] = {
        name: value_of(fields, name, kind, place=PLACE, default=default, **bounds.get(name, {}))
        for name, (kind, default) in NUMBERS.items()
    }
    seed, samples = values.pop("seed"), values.pop("samples")
    max_length = min(values.pop("out_seq_length"), longest)  # the default may be more than this model has positions
    settings = DecodingSettings(max_length=max_length, min_length=values.pop("min_tgt_length"), fill=fill, **values)
    text = complete_prompt(value_of(fields, "text", str, place=PLACE), tokenizer=filler.tokenizer)
    inputs = filler.encode(text, settings=settings)
    require_blank(inputs, tokenizer=filler.tokenizer)
    if len(inputs.blanks) > limits.blanks:
        raise ValueError(f"{PLACE} has {len(inputs.blanks)} blanks; at most {limits.blanks} are filled, split the text")
    given = value_of(fields, "given", list, place=PLACE, default=[])
    request = FillRequest(
        inputs, settings, samples, seed,
        given=tuple(_ids(piece, f"given[{number}]", filler.tokenizer) for number, piece in enumerate(given)),
        prefix=_ids(value_of(fields, "prefix", list, place=PLACE, default=[]), "prefix", filler.tokenizer),
    )  # fmt: skip
    if request.num_rows * request.num_columns > limits.cache_tokens:
        raise ValueError(
            f"{PLACE} needs room for {request.num_rows} times {request.num_columns} tokens (candidates times text and "
            f"answers), there is room for {limits.cache_tokens}; ask for fewer candidates or a smaller out_seq_length"
        )
    return request


def _ids(value: Any, name: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return a list of token ids."""
    if not isinstance(value, list):
        raise ValueError(f"{PLACE}: {name} is {described(value)}; a list of token ids is needed")
    for token in value:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < tokenizer.num_tokens:
            raise ValueError(
                f"{PLACE}: {name} has {described(token)}; token ids from 0 to {tokenizer.num_tokens - 1} are needed"
            )
    return tuple(value)


def command_of(request: FillRequest, program: Sequence[str]) -> str:
    """Return the command line that fills the same text in the same way, its first candidates.

    Pieces that were given are filled anew by it.
    """
    settings = request.settings
    flags: dict[str, Any] = {
        "--prompt": request.inputs.text, "--seed": request.seed, "--out-seq-length": settings.max_length
    }  # fmt: skip
    if settings.num_beams > 1:
        flags |= {"--num-beams": settings.num_beams, "--length-penalty": settings.length_penalty}
    else:
        flags |= {"--temperature": settings.temperature, "--top-k": settings.top_k, "--top-p": settings.top_p}
    flags |= {
        "--min-tgt-length": settings.min_length, "--no-repeat-ngram-size": settings.no_repeat_ngram_size,
        "--fill": settings.fill,
    }  # fmt: skip
    words = [word for flag, value in flags.items() for word in (flag, str(value))]
    return shlex.join([*program, *words])


def shared_length(text: str, other: str) -> int:
    """Return how many characters at the beginning of two texts are the same."""
    longest = min(len(text), len(other))
    return next((place for place in range(longest) if text[place] != other[place]), longest)


@lru_cache(maxsize=1 << 17)
def text_alone(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of a token by itself; that of one that ends a piece is empty."""
    if token in tokenizer.special.ends:
        return ""
    text = tokenizer.decode([token])
    return tokenizer.id_to_token(token) if not text.strip() or "\ufffd" in text else text


def token_texts(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """Return the text that each token adds to those before it; together they are the text of ``ids``.

    A token that ends inside a character, as bytes do, adds nothing; the one that completes it adds the character.
    """
    whole = tokenizer.decode(ids)
    ends = [0]
    for number in range(1, len(ids)):
        text = tokenizer.decode(ids[:number]).rstrip("\ufffd")
        ends.append(max(ends[-1], shared_length(text, whole)))
    return [whole[start:end] for start, end in zip(ends, [*ends[1:], len(whole)])] if ids else []


def _probability(log_probability: float) -> JsonObject:
    """Return a probability and its logarithm as JSON has them; what nothing allows has no logarithm."""
    finite = math.isfinite(log_probability)
    return {"probability": math.exp(log_probability), "log_probability": log_probability if finite else None}


@dataclass
class Reply:
    """What is told of one request.

    ``messages`` turns what happens into the lines of a stream, ``whole`` is the answer as one object. Both can be had
    at any time, also of a request that was stopped.
    """

    request: FillRequest
    tokenizer: Tokenizer
    program: Sequence[str]
    pieces: dict[int, dict[int, list[int]]] = field(default_factory=dict)  # ids of blank and candidate, so far
    blanks: dict[int, dict[int, JsonObject]] = field(default_factory=dict)  # complete candidates
    shown: dict[tuple[int, int], str] = field(default_factory=dict)  # the text of a candidate that was told of
    stopped: str | None = None

    def __post_init__(self) -> None:
        for number, piece in enumerate(self.request.given):
            self.pieces[number] = {0: list(piece)}

    def start(self) -> JsonObject:
        """Return the first message of a stream."""
        pieces = split_at_masks(self.request.inputs.text, tokenizer=self.tokenizer)
        names = masks_taken_as_text(self.request.inputs.text, self.tokenizer)
        prefix = self._text(self.request.prefix)
        return {"type": "start", "texts": pieces[::2], "masks": pieces[1::2], "prefix": prefix, "taken_as_text": names}

    def messages(self, event: Event) -> Iterator[JsonObject]:
        """Take in what happened; yield what a stream tells of it."""
        if isinstance(event, TokenDrawn):
            yield from self._token(event)
        elif isinstance(event, BeamAhead):
            self.pieces.setdefault(event.blank, {})[0] = list(event.ids)
            yield {"type": "beam", "blank": event.blank, "text": self._text(event.ids), "ids": list(event.ids)}
        elif isinstance(event, CandidateDone):
            yield self._candidate(event)
        elif isinstance(event, RequestDone):
            for number, piece in enumerate(event.pieces):
                self.pieces.setdefault(number, {})[0] = list(piece)

    def whole(self) -> JsonObject:
        """Return the answer as one object: the filled text, and the candidates of every blank that are complete."""
        return {
            **self.end(),
            "blanks": [
                {"mask": mask, "candidates": [one for _, one in sorted(self.blanks.get(number, {}).items())]}
                for number, mask in enumerate(self.start()["masks"])
            ],
        }

    def end(self) -> JsonObject:
        """Return the last message of a stream."""
        blanks = range(len(self.request.inputs.blanks))
        answers = [self._text(self.pieces.get(number, {}).get(0, ())) for number in blanks]
        text = insert_answers(self.request.inputs.text, answers, tokenizer=self.tokenizer)
        command = command_of(self.request, self.program)
        return {"type": "done", "text": text, "answers": answers, "stopped": self.stopped, "command": command}

    def _token(self, event: TokenDrawn) -> Iterator[JsonObject]:
        start = list(self.request.prefix) if event.blank == len(self.request.given) else []
        ids = self.pieces.setdefault(event.blank, {}).setdefault(event.candidate, start)
        if event.token.id in self.tokenizer.special.ends:
            return
        key = (event.blank, event.candidate)
        before = self.shown.get(key, self._text(ids))
        ids.append(event.token.id)
        self.shown[key] = self._text(ids).rstrip("\ufffd")  # half a character waits for the token that completes it
        text = self.shown[key][shared_length(before, self.shown[key]) :]
        told = {"type": "token", "blank": event.blank, "candidate": event.candidate}
        yield told | self._described(event.token, text)

    def _candidate(self, event: CandidateDone) -> JsonObject:
        one = event.candidate
        self.pieces.setdefault(event.blank, {})[event.number] = list(one.ids)
        texts = token_texts(one.ids, self.tokenizer)
        told: JsonObject = {
            "text": self._text(one.ids),
            "ids": list(one.ids),
            **_probability(one.log_probability),
            "ended": one.ended,
            "tokens": [self._described(*pair) for pair in zip(one.tokens, texts[len(one.ids) - len(one.tokens) :])],
        }
        self.blanks.setdefault(event.blank, {})[event.number] = told
        return {"type": "candidate", "blank": event.blank, "candidate": event.number, **told}

    def _described(self, token: Token, text: str) -> JsonObject:
        alternatives = [
            {"id": number, "text": text_alone(self.tokenizer, number), **_probability(value)}
            for number, value in token.alternatives
        ]
        return {"id": token.id, "text": text, **_probability(token.log_probability), "alternatives": alternatives}

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)


def describe_model(name: str, filler: BlankFiller, *, limits: Limits, fill: str) -> JsonObject:
    """Return what a client may want to know of the model and the server."""
    config, tokenizer = filler.model.config, filler.tokenizer
    return {
        "model": name,
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "positions": config.max_position_embeddings,
        "vocabulary": tokenizer.num_tokens,
        "masks": [f"[{mask}]" for mask in MASK_COMMANDS if tokenizer.has_command(mask)],
        "fill": fill,
        "defaults": {name: default for name, (_, default) in NUMBERS.items()},
        "limits": limits.describe(filler),
    }


def fault(code: str, message: str) -> Mapping[str, Any]:
    """Return what a client gets instead of an answer; in a stream it is the last message."""
    return {"type": "error", "code": code, "message": message}
