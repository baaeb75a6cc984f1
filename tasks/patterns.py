"""Patterns and verbalizers: what the model reads of an example, and the words for labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tasks.examples import InputExample
from tasks.segments import MASK, SLOT, Parts, Piece, Shortenable, fill_slots

_TEMPLATE_TOKEN = re.compile(r"( ?\{[A-Za-z_][\w.]*\})")


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

    num_patterns: ClassVar[int] = 1
    ensemble: ClassVar[Sequence[int] | None] = None
    free_answers: ClassVar[bool] = False
    words: ClassVar[Sequence[Mapping[Any, str]]] = ()

    def __init__(self, name: str, labels: Sequence[Any]) -> None:
        self.name = name
        self.labels = tuple(labels)

    @property
    def pattern_ids(self) -> tuple[int, ...]:
        """Return the pattern ids of an ensemble."""
        return tuple(range(self.num_patterns)) if self.ensemble is None else tuple(self.ensemble)

    def parts(self, example: InputExample, pattern_id: int, *, continuous_prompt: bool = False) -> Parts:
        """Put ``example`` into a pattern. Raise ValueError for an unknown ``pattern_id``."""
        if not 0 <= pattern_id < self.num_patterns:
            raise self.unknown(pattern_id)
        return self.fill(example, pattern_id)

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        """Put ``example`` into the pattern ``pattern_id``, which exists."""
        raise self.unknown(pattern_id)

    def slotted(
        self, example: InputExample, pattern_id: int, *, continuous_prompt: bool = False, num_prompt_tokens: int = 0
    ) -> Parts:
        """Put ``example`` into a pattern whose slots hold the tokens of the continuous prompt.

        Raise ValueError when there are tokens and no slot for them.
        """
        parts = self.parts(example, pattern_id, continuous_prompt=continuous_prompt)
        if continuous_prompt and num_prompt_tokens and not parts.num_slots:
            raise ValueError(
                f"--continuous-prompt: pattern {pattern_id} of {self.name} has no prompt slot for --num-prompt-tokens "
                f"{num_prompt_tokens}; choose another --pattern-id, or give --prefix-prompt instead"
            )
        return fill_slots(parts, num_prompt_tokens if continuous_prompt else 0)

    def unknown(self, pattern_id: int) -> ValueError:
        """Return the error for a pattern that does not exist."""
        known = "only 0" if self.num_patterns == 1 else f"0 to {self.num_patterns - 1}"
        return ValueError(f"--pattern-id {pattern_id}: {self.name} has the patterns {known}")

    def verbalizers(self, pattern_id: int) -> dict[Any, str]:
        """Return the word of every label, in the order of the labels. Raise ValueError for a task without words."""
        if not 0 <= pattern_id < self.num_patterns:
            raise self.unknown(pattern_id)
        if not self.words:
            raise ValueError(f"{self.name} has no verbalizers: its answers are texts of the example")
        words = self.words[min(pattern_id, len(self.words) - 1)]
        return {label: words[label] for label in self.labels}

    def answers(self, example: InputExample, pattern_id: int) -> list[str]:
        """Return the texts to choose from, in the order of the scores: the labels' words unless overridden."""
        return list(self.verbalizers(pattern_id).values())


class TemplatePVP(PVP):
    """Patterns written as templates, for tasks that are declared in the registry.

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
        self.num_patterns = len(self.templates)  # type: ignore[misc]  # a constant of the object here
        self.words = tuple(words)  # type: ignore[misc]
        self.choices = choices
        self.free_answers = choices is not None  # type: ignore[misc]
        for number, entry in enumerate(self.words):
            if missing := [label for label in self.labels if label not in entry]:
                raise ValueError(f"{name}: the verbalizers of pattern {number} have no word for {missing}")

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        """Put the example's texts into the template."""
        a, b = self.templates[pattern_id]
        return Parts.of([_substitute(token, example) for token in a], [_substitute(token, example) for token in b])

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
    return [[t for t in _TEMPLATE_TOKEN.split(side) if t] for side in (a, b)]  # type: ignore[return-value]


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
