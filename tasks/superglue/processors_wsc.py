"""WSC: which span does a pronoun refer to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tasks.examples import InputExample
from tasks.processors import DataProcessor
from tasks.readers import Row, standardize

CANDIDATES_PER_EXAMPLE = 9


def locate_span(words: list[str], index: int, span: str) -> int:
    """Return where ``span`` stands among ``words``: at ``index``, or next to it; ``index`` where it does not."""
    wanted = span.lower().split()

    def stands_at(start: int) -> bool:
        return start >= 0 and [word.lower() for word in words[start : start + len(wanted)]] == wanted

    return next((start for start in (index, index - 1, index + 1) if stands_at(start)), index)


def locate_pronoun(words: list[str], index: int, pronoun: str) -> tuple[list[str], int] | None:
    """Return the words and where ``pronoun`` is one of them; None when it is not found.

    It stands at ``index`` or next to it. Where punctuation is glued to it, the word is divided.
    """
    if not 0 <= index < len(words):
        return None
    if words[index] != pronoun:
        if index > 0 and words[index - 1] == pronoun:
            index -= 1
        elif words[index + 1 : index + 2] == [pronoun]:
            index += 1
    word = words[index]
    if word != pronoun and word.startswith(pronoun):
        words = [*words[:index], pronoun, word[len(pronoun) :], *words[index + 1 :]]
    return (words, index) if words[index] == pronoun else None


class WscProcessor(DataProcessor):
    """text, target (two spans with the indices of their words), label (true or false), idx, candidates.

    The language model learns from spans that are right only; more than 9 candidates make several training examples.
    """

    labels = ("False", "True")

    def convert(self, row: Row, set_type: str) -> Iterable[InputExample]:
        example, candidates = self.read(row, set_type)
        for_training = set_type == "train" or self.options.for_training
        if for_training and self.options.cloze and example.label != "True":
            return
        if candidates is None:
            yield example
        elif set_type == "train" and len(candidates) > CANDIDATES_PER_EXAMPLE:
            for start in range(0, len(candidates), CANDIDATES_PER_EXAMPLE):
                chosen = candidates[start : start + CANDIDATES_PER_EXAMPLE]
                chosen += candidates[: CANDIDATES_PER_EXAMPLE - len(chosen)]
                yield replace(example, meta={**example.meta, "candidates": chosen})
        else:
            yield replace(example, meta={**example.meta, "candidates": candidates})

    def read(self, row: Row, set_type: str) -> tuple[InputExample, list[str] | None]:
        """Return a row's example and its candidates, None where the row has no such field."""
        target: dict[str, Any] = row["target"]
        words = standardize(row.text("text")).split()
        span, pronoun = target["span1_text"], target["span2_text"]
        span_index = locate_span(words, target["span1_index"], span)
        found = locate_pronoun(words, target["span2_index"], pronoun)
        if found is None:
            raise row.error(f"the pronoun {pronoun!r} is not word {target['span2_index']} of the text, nor next to it")
        words, pronoun_index = found
        meta = {
            "span1_text": span,
            "span2_text": pronoun,
            "span1_index": span_index,
            "span2_index": pronoun_index,
        }
        label = row.get("label")
        index = row["idx"]
        example = InputExample(
            guid=f"{set_type}-{index}",
            text_a=" ".join(words),
            label=None if label is None else str(label),
            meta=meta,
            idx=index,
        )
        candidates = row.get("candidates")
        if candidates is None:
            return example, None
        return example, list(dict.fromkeys(candidate["text"] for candidate in candidates))


class WscPairProcessor(WscProcessor):
    """WSC as pairs of text and span (``wsc1``); every candidate of a right training example makes a wrong one."""

    def convert(self, row: Row, set_type: str) -> Iterable[InputExample]:
        example, candidates = self.read(row, set_type)
        yield replace(example, text_b=example.meta["span1_text"])
        if set_type == "train" and example.label == "True":
            for candidate in candidates or ():
                yield replace(example, text_b=candidate, label="False")
