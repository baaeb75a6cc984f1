"""From a prompt with blanks to ids and two rows of positions, and from answers back to text.

Pure Python: nothing here needs torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

MASK_COMMANDS = ("MASK", "sMASK", "gMASK")
MASK_ENDING = "MASK]"  # a prompt that contains it is taken to have a blank, as in the original
GENERATION_MASK_TEXT = "[gMASK]"  # a prompt that ends with it gets no end token


class PromptTokenizer(Protocol):
    """What prompts need of a tokenizer (``data_utils.tokenizers.tokenizer.Tokenizer`` has it)."""

    num_tokens: int
    command_tokens: Sequence

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, command texts as their ids."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``."""

    def command_id(self, name: str) -> int:
        """Return the id of a command."""

    def has_command(self, name: str) -> bool:
        """Tell whether there is a command of that name."""


@dataclass(frozen=True)
class BlankTokens:
    """The command ids that decoding needs."""

    start: int  # <|startofpiece|>, fed first for every blank
    ends: tuple[int, ...]  # each of them ends a piece
    masks: frozenset[int]
    pad: int

    @classmethod
    def of(cls, tokenizer: PromptTokenizer) -> BlankTokens:
        """Collect them from a tokenizer. Raises ValueError when it has no tokens for blank infilling."""
        if not tokenizer.has_command("sop"):
            raise ValueError("the tokenizer has no <|startofpiece|>: filling blanks needs --block-lm")
        return cls(
            start=tokenizer.command_id("sop"),
            ends=(tokenizer.command_id("eop"), tokenizer.command_id("eos")),
            masks=frozenset(tokenizer.command_id(name) for name in MASK_COMMANDS if tokenizer.has_command(name)),
            pad=tokenizer.command_id("pad"),
        )


@dataclass(frozen=True)
class Blank:
    """One blank: where its mask is in the ids, and the position that its <|startofpiece|> gets."""

    index: int
    start: int

    def position_of(self, step: int, *, block_positions: bool = True) -> tuple[int, int]:
        """Return (position, block position) of the token fed at ``step``, the start token being step 0.

        With block positions all tokens of a piece share the mask's position and count in the second row. Without, they
        count in the first row and the second is 1.
        """
        return (self.start, step + 1) if block_positions else (self.start + step, 1)


@dataclass(frozen=True)
class PromptInputs:
    """A prompt as the model sees it: ``input_ids`` and ``positions`` of equal length; block positions are all 0."""

    text: str
    input_ids: tuple[int, ...]
    positions: tuple[int, ...]
    blanks: tuple[Blank, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


def complete_prompt(text: str, *, tokenizer: PromptTokenizer) -> str:
    """Return ``text``, with a mask at its end if it has none: [gMASK] where the tokenizer knows it, else [MASK]."""
    if MASK_ENDING in text:
        return text
    return f"{text} {GENERATION_MASK_TEXT if tokenizer.has_command('gMASK') else '[MASK]'}"


def encode_prompt(
    text: str, *, tokenizer: PromptTokenizer, max_length: int = 0, block_positions: bool = True
) -> PromptInputs:
    """Turn ``text`` into ids, positions and blanks.

    The ids are [ENC], the text, and the end token unless the text ends with [gMASK] (a test of the text, before
    tokenisation). Without ``block_positions`` the positions after each mask leave room for ``max_length`` tokens.
    """
    tokens = BlankTokens.of(tokenizer)
    ids = [tokenizer.command_id("ENC"), *tokenizer.encode(text)]
    if not text.endswith(GENERATION_MASK_TEXT):
        ids.append(tokenizer.command_id("eos"))
    positions: list[int] = []
    blanks: list[Blank] = []
    shift = 0
    for index, token in enumerate(ids):
        positions.append(index + shift)
        if token in tokens.masks:
            blanks.append(Blank(index, index + shift))
            shift += 0 if block_positions else max_length
    return PromptInputs(text, tuple(ids), tuple(positions), tuple(blanks))


def check_prompt_fits(
    inputs: PromptInputs, *, max_length: int, max_position_embeddings: int, block_positions: bool = True
) -> None:
    """Raise ValueError when the context or its pieces need positions that the model does not have.

    The tables have ``max_position_embeddings + 1`` rows. Nothing is ever cut off silently.
    """
    if max_length > max_position_embeddings:
        raise ValueError(
            f"up to {max_length} tokens per blank are asked for, the model has positions for "
            f"{max_position_embeddings}; lower --out-seq-length"
        )
    last = max(inputs.positions)
    if not block_positions and inputs.blanks:
        last = max(last, inputs.blanks[-1].start + max_length - 1)
    if last > max_position_embeddings:
        raise ValueError(
            f"the prompt has {len(inputs)} tokens and needs {last + 1} positions, the model has "
            f"{max_position_embeddings + 1}; shorten the prompt"
        )


def require_blank(inputs: PromptInputs, *, tokenizer: PromptTokenizer) -> None:
    """Raise ValueError when the prompt has no blank to fill."""
    if not inputs.blanks:
        names = ", ".join(f"[{name}]" for name in MASK_COMMANDS if tokenizer.has_command(name))
        raise ValueError(f"no blank to fill in the prompt {_shorten(inputs.text)!r}: mark it with {names}")


def shorten(ids: Sequence[int], room: int, *, mask_id: int | None = None) -> list[int]:
    """Return at most ``room`` neighbours of ``ids``: the last ones, unless the last ``mask_id`` is not among them.

    It then stands in the middle of what is kept, or as near to it as the beginning of ``ids`` allows.
    """
    ids = list(ids)
    start = max(0, len(ids) - room)
    if mask_id is not None and mask_id in ids[:start] and mask_id not in ids[start:]:
        last = start - 1 - ids[:start][::-1].index(mask_id)
        start = max(0, last - room // 2)
    return ids[start : start + room]


def insert_answers(text: str, answers: Sequence[str], *, tokenizer: PromptTokenizer) -> str:
    """Return ``text`` with its masks replaced by ``answers`` in order.

    The user's blanks are kept; where an answer brings its own leading blank, as byte-level tokenizers' do, it is not
    doubled.
    """
    masks = BlankTokens.of(tokenizer).masks
    texts = sorted({token.text for token in tokenizer.command_tokens if token.id in masks}, key=len, reverse=True)
    pieces = re.split("|".join(map(re.escape, texts)), text)
    assert len(pieces) == len(answers) + 1, (len(pieces), len(answers))
    filled = pieces[0]
    for answer, following in zip(answers, pieces[1:]):
        after_blank = not filled or filled[-1].isspace()
        filled += answer.lstrip() if after_blank else answer
        filled += following[1:] if not answer and after_blank and following[:1].isspace() else following
    return filled


def _shorten(text: str, *, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
