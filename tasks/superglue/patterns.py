"""Patterns and verbalizers: what the model reads of an example, and the words for labels.

A pattern puts an example into two lists of pieces, A and B: texts, the mask, and slots of a continuous prompt. Every
piece is tokenized on its own, so its leading blank matters. The patterns of the tasks are in ``pvp.py``.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tasks.superglue.readers import InputExample

_TEMPLATE_TOKEN = re.compile(r"( ?\{[A-Za-z_][\w.]*\})")


@dataclass(frozen=True)
class Shortenable:
    """A text that may lose tokens at its end when the sample is too long."""

    text: str


@dataclass(frozen=True)
class Mask:
    """The mask token: the blank that the model fills."""


@dataclass(frozen=True)
class Slot:
    """A place for tokens of a continuous prompt; without one it vanishes."""


@dataclass(frozen=True)
class PromptTokens:
    """``count`` tokens of the continuous prompt."""

    count: int


Piece: TypeAlias = "str | Shortenable | Mask | Slot | PromptTokens"

MASK = Mask()
SLOT = Slot()
S = Shortenable


@dataclass(frozen=True)
class Parts:
    """The pieces of a pattern. ``b`` is empty for patterns of one list."""

    a: Sequence[Piece]
    b: Sequence[Piece] = ()

    @property
    def num_slots(self) -> int:
        """Return the number of slots for continuous prompts."""
        return sum(piece == SLOT for piece in (*self.a, *self.b))

    def with_prompt(self, num_tokens: int) -> Parts:
        """Distribute the tokens of a continuous prompt over the slots, A before B.

        Each slot takes its share rounded up as long as there are tokens; slots that get none vanish. With 0 tokens all
        do. The caller makes sure that there is a slot for the tokens.
        """
        left = num_tokens
        share = -(-num_tokens // self.num_slots) if self.num_slots else 0
        sides: tuple[list[Piece], list[Piece]] = [], []
        for side, pieces in zip(sides, (self.a, self.b)):
            for piece in pieces:
                if piece != SLOT:
                    side.append(piece)
                elif count := min(share, left):
                    side.append(PromptTokens(count))
                    left -= count
        return Parts(*sides)


class PVP:
    """The patterns of a task with their verbalizers.

    Attributes:
        name: of the task, for messages.
        num_patterns: pattern ids are 0 to ``num_patterns - 1``.
        ensemble: the pattern ids that a pattern ensemble uses; None means all.
        free_answers: answers are texts of the example, not words that stand for labels: always several tokens.
        words: for each pattern id (the last one also stands for later ids) the word of every label, leading blank
            included.
    """

    num_patterns: int = 1
    ensemble: Sequence[int] | None = None
    free_answers: bool = False
    words: Sequence[Mapping[Any, str]] = ()

    def __init__(self, name: str, labels: Sequence[Any]) -> None:
        self.name = name
        self.labels = tuple(labels)

    @property
    def pattern_ids(self) -> tuple[int, ...]:
        """Return the pattern ids of an ensemble."""
        return tuple(range(self.num_patterns)) if self.ensemble is None else tuple(self.ensemble)

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        """Put ``example`` into the pattern ``pattern_id``, which exists."""
        raise NotImplementedError(f"{type(self).__name__}.render")

    def rendered(
        self, example: InputExample, pattern_id: int, *, continuous_prompt: bool = False, num_prompt_tokens: int = 0
    ) -> Parts:
        """Put ``example`` into a pattern whose slots hold the tokens of the continuous prompt.

        Raise ValueError for an unknown ``pattern_id``, and when there are tokens and no slot for them.
        """
        self.check(pattern_id, continuous_prompt=continuous_prompt)
        parts = self.render(example, pattern_id)
        if continuous_prompt and num_prompt_tokens and not parts.num_slots:
            raise ValueError(
                f"--continuous-prompt: pattern {pattern_id} of {self.name} has no prompt slot for --num-prompt-tokens "
                f"{num_prompt_tokens}; choose another --pattern-id, or give --prefix-prompt instead"
            )
        return parts.with_prompt(num_prompt_tokens if continuous_prompt else 0)

    def check(self, pattern_id: int, *, continuous_prompt: bool = False) -> None:
        """Raise ValueError for a pattern that does not exist, or not with a continuous prompt."""
        if not 0 <= pattern_id < self.num_patterns:
            known = "only 0" if self.num_patterns == 1 else f"0 to {self.num_patterns - 1}"
            raise ValueError(f"--pattern-id {pattern_id}: {self.name} has the patterns {known}")

    def verbalizers(self, pattern_id: int) -> dict[Any, str]:
        """Return the word of every label, in the order of the labels. Raise ValueError for a task without words."""
        self.check(pattern_id)
        if not self.words:
            raise ValueError(f"{self.name} has no verbalizers: its answers are texts of the example")
        words = self.words[min(pattern_id, len(self.words) - 1)]
        return {label: words[label] for label in self.labels}

    def answers(self, example: InputExample, pattern_id: int) -> list[str]:
        """Return the texts to choose from, in the order of the scores: the labels' words unless overridden."""
        return list(self.verbalizers(pattern_id).values())

    def joined_choices(self, example: InputExample, pattern_id: int) -> tuple[str, list[Parts]] | None:
        """Return a word and, for each choice, the pattern whose blank it fills: the choice that makes it likelier wins.

        None where the answers themselves fill the blank, which is the rule.
        """
        return None


class TemplatePVP(PVP):
    """Patterns written as templates, for tasks that are declared in one entry (``tasks/declaration.py``).

    ``{text_a}`` and ``{text_b}`` (or ``{meta.NAME}``) stand for the example's texts, which may be shortened;
    ``{mask}`` for the blank; ``{prompt}`` for a slot of the continuous prompt; ``||`` divides A from B. A blank in
    front of a text belongs to it.
    """

    def __init__(
        self,
        name: str,
        labels: Sequence[Any],
        *,
        templates: Sequence[str],
        words: Sequence[Mapping[Any, str]] = (),
        choices: str | None = None,
    ) -> None:
        """``choices`` names the entry of ``meta`` that lists an example's answers; without it ``words`` are needed."""
        super().__init__(name, labels)
        self.templates = tuple(_parse_template(name, template) for template in templates)
        self.num_patterns = len(self.templates)
        self.words = tuple(words)
        self.choices = choices
        self.free_answers = choices is not None
        for number, entry in enumerate(self.words):
            if missing := [label for label in self.labels if label not in entry]:
                raise ValueError(f"{name}: the verbalizers of pattern {number} have no word for {missing}")

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        """Put the example's texts into the template."""
        a, b = self.templates[pattern_id]
        return Parts([_substitute(token, example) for token in a], [_substitute(token, example) for token in b])

    def answers(self, example: InputExample, pattern_id: int) -> list[str]:
        """Return the example's own choices, each with a blank in front, or the labels' words."""
        if self.choices is None:
            return super().answers(example, pattern_id)
        return [" " + choice for choice in example.meta[self.choices]]


def _parse_template(name: str, template: str) -> tuple[list[str], list[str]]:
    """Return the pieces of A and of B; raise ValueError for a template without one mask."""
    if template.count("{mask}") != 1 or template.count("||") > 1:
        raise ValueError(f"{name}: the pattern {template!r} needs {{mask}} once, and || at most once")
    a, _, b = template.partition("||")
    return [t for t in _TEMPLATE_TOKEN.split(a) if t], [t for t in _TEMPLATE_TOKEN.split(b) if t]


def _substitute(token: str, example: InputExample) -> Piece:
    if not _TEMPLATE_TOKEN.fullmatch(token):
        return token
    field = token.strip(" {}")
    if field == "mask":
        return MASK
    if field == "prompt":
        return SLOT
    value = example.meta[field[5:]] if field.startswith("meta.") else getattr(example, field)
    return Shortenable(" " * token.startswith(" ") + str(value))


def without_punctuation(text: str) -> str:
    """Return ``text`` without the ASCII punctuation at its end."""
    return text.rstrip(string.punctuation)


def lower_first(text: str) -> str:
    """Return ``text`` with its first character in lower case."""
    return text[:1].lower() + text[1:]
