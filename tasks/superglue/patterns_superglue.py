"""Patterns of the eight SuperGLUE tasks and its diagnostics."""

from __future__ import annotations

from tasks.examples import InputExample
from tasks.patterns import PVP
from tasks.segments import MASK, SLOT, Parts, S, lower_first, without_punctuation

YES_NO_SENTENCES = {"false": " No", "true": " Yes"}


class RtePVP(PVP):
    """Does the premise entail the hypothesis?"""

    num_patterns = 5
    words = (
        *({"entailment": " Yes", "not_entailment": " No"},) * 4,
        {"entailment": " true", "not_entailment": " false"},
    )

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        premise, hypothesis = example.text_a, without_punctuation(example.text_b)
        if pattern_id in (0, 2):
            a = [SLOT, '"', S(hypothesis), '" ?']
            if pattern_id == 0:
                return Parts.of(a, [SLOT, MASK, ",", SLOT, ' "', S(premise), '"'])
            return Parts.of(a, [SLOT, MASK, '. "', SLOT, S(premise), '"'])
        if pattern_id in (1, 3):
            mark = "," if pattern_id == 1 else "."
            return Parts.of([SLOT, S(hypothesis), "?"], [SLOT, MASK, mark, SLOT, S(" " + premise)])
        return self.question(premise, hypothesis, " True or False?")

    def question(self, premise: str, hypothesis: str, choice: str) -> Parts:
        """Return the pattern that asks which of ``choice`` holds."""
        return Parts.of([SLOT, S(premise), SLOT, " question:", S(" " + hypothesis), choice, SLOT, " answer:", MASK])


class CbPVP(RtePVP):
    """As RTE, with a third answer."""

    words = (
        *({"entailment": " Yes", "contradiction": " No", "neutral": " Maybe"},) * 4,
        {"entailment": " true", "contradiction": " false", "neutral": " neither"},
    )

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        if pattern_id == 4:  # here the hypothesis keeps its punctuation
            return self.question(example.text_a, example.text_b, " true, false or neither?")
        return super().fill(example, pattern_id)


class BoolqPVP(PVP):
    """A passage and a question that is answered by yes or no."""

    num_patterns = 6
    words = (YES_NO_SENTENCES, {"false": " false", "true": " true"}) * 3

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        passage, question = example.text_a, S(" " + example.text_b)
        if pattern_id < 2:
            return Parts.of([SLOT, S(passage), SLOT, " Question:", question, "? Answer:", SLOT, MASK, "."])
        if pattern_id < 4:
            introduction = " Based on the previous passage,"
            return Parts.of([SLOT, S(passage), introduction, SLOT, question, "?", SLOT, MASK, "."])
        introduction = "Based on the following passage"
        return Parts.of([introduction, SLOT, question, "?", SLOT, MASK, ".", SLOT, S(" " + passage)])


class CopaPVP(PVP):
    """Which of two sentences is the cause, or the effect, of the premise?

    Patterns 2 and 3 without a continuous prompt predict the joining word instead: see ``tasks.cloze``.
    """

    num_patterns = 4
    ensemble = (0, 1)
    free_answers = True

    def parts(self, example: InputExample, pattern_id: int, *, continuous_prompt: bool = False) -> Parts:
        if pattern_id == 3 and continuous_prompt:
            raise ValueError("--pattern-id 3: copa has no continuous prompt for it; choose 0, 1 or 2")
        return super().parts(example, pattern_id)

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        first, second = self.choices(example)
        premise, joiner = S(without_punctuation(" " + example.text_a)), self.joiner(example)
        if pattern_id == 0:
            a = [SLOT, '"', first, '" or "', second, '"?', SLOT, premise, joiner, SLOT, MASK, "."]
        elif pattern_id == 1:
            a = [SLOT, first, " or", " " + second, "?", SLOT, premise, joiner, SLOT, MASK, "."]
        else:
            a = [SLOT, '"', first, '" or "', second, '"', SLOT, premise, joiner, MASK, ".", SLOT]
        return Parts.of(a)

    def answers(self, example: InputExample, pattern_id: int) -> list[str]:
        return [" " + choice for choice in self.choices(example)]

    def joins(self, pattern_id: int, *, continuous_prompt: bool) -> bool:
        """Return whether the joining word is predicted, given a choice, instead of the choice."""
        return pattern_id in (2, 3) and not continuous_prompt

    def joiner_parts(self, example: InputExample) -> list[Parts]:
        """Return, for each choice, the pattern whose blank is the joining word."""
        first, second = self.choices(example)
        premise = S(without_punctuation(example.text_a))
        return [Parts.of(['"', first, '" or "', second, '"?', premise, MASK, " " + c]) for c in (first, second)]

    @staticmethod
    def choices(example: InputExample) -> tuple[str, str]:
        """Return the two sentences as they stand inside the pattern."""
        first, second = (without_punctuation(lower_first(example.meta[name])) for name in ("choice1", "choice2"))
        return first, second

    def joiner(self, example: InputExample) -> str:
        """Return the word between premise and choice."""
        return " because" if example.meta["question"] == "cause" else ", so"

    def joiner_word(self, example: InputExample) -> str:
        """Return the joining word as an answer."""
        return " because" if example.meta["question"] == "cause" else " so"


class MultircPVP(PVP):
    """Is this answer to a question about a passage correct?"""

    num_patterns = 5
    words = (*({0: " No", 1: " Yes"},) * 3, {0: " False", 1: " True"}, {0: " No", 1: " Yes"})

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        passage = S(without_punctuation(example.text_a.rstrip()))
        question, answer = without_punctuation(example.text_b.rstrip()), example.meta["answer"]
        if pattern_id == 0:
            asked = [SLOT, " Question:", " " + question + "?", SLOT, " Is it", " " + answer, "?", SLOT, MASK, "."]
            return Parts.of([passage, ".", *asked])
        if pattern_id == 1:
            asked = [SLOT, " Question:", " " + question, "?", SLOT, ' Is the correct answer "', answer, '"?']
            return Parts.of([passage, ".", *asked, SLOT, MASK, "."])
        if pattern_id == 2:
            asked = [SLOT, " " + question, "?", SLOT, ' Is "', answer, '" a correct answer?', SLOT, MASK, "."]
            return Parts.of([passage, ". Based on the previous passage,", *asked])
        if pattern_id == 3:
            return Parts.of([SLOT, passage, SLOT, " " + question, "- [", MASK, "]", SLOT, answer])
        asked = [SLOT, " Question:", " " + question, "?", SLOT, " " + answer, "?", SLOT, MASK, "."]
        return Parts.of([passage, ".", *asked])


class WicPVP(PVP):
    """Does a word have the same sense in two sentences?"""

    num_patterns = 3
    words = (YES_NO_SENTENCES, YES_NO_SENTENCES, {"false": "2", "true": "b"})

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        first, second, word = example.text_a, example.text_b, example.meta["word"]
        if pattern_id == 0:
            sentences = S(f'"{first}" / "{second}"')
            return Parts.of([SLOT, sentences, SLOT, f' Similar sense of "{word}"?', SLOT, MASK, "."])
        if pattern_id == 1:
            question = f" Does {word} have the same meaning in both sentences?"
            return Parts.of([S(first), SLOT, S(" " + second), SLOT, question, SLOT, MASK])
        a = [SLOT, word, " .", SLOT, ' Sense (1) (a) "', S(first), '"', SLOT, " (", MASK, ') "', second, '"']
        return Parts.of(a)


class WscPVP(PVP):
    """What does a pronoun refer to?"""

    num_patterns = 3
    free_answers = True

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        text, pronoun = S(mark_pronoun(example)), example.meta["span2_text"]
        if pattern_id == 0:
            return Parts.of([SLOT, text, SLOT, f" The pronoun '*{pronoun}*' refers to", SLOT, MASK, "."])
        if pattern_id == 1:
            question = f" In the previous sentence, the pronoun '*{pronoun}*' refers to"
            return Parts.of([SLOT, text, SLOT, question, SLOT, MASK, "."])
        question = f" Question: In the passage above, what does the pronoun '*{pronoun}*' refer to?"
        return Parts.of([SLOT, text, SLOT, question, SLOT, " Answer:", MASK, "."])

    def answers(self, example: InputExample, pattern_id: int) -> list[str]:
        return [" " + text for text in (example.meta["span1_text"], *example.meta.get("candidates", ()))]


class RecordPVP(PVP):
    """Which of the passage's entities belongs into the query?"""

    free_answers = True

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        before, *rest = example.text_b.split("@placeholder")
        if len(rest) != 1:
            raise ValueError(f"example {example.guid}: the query needs @placeholder once: {example.text_b!r}")
        return Parts.of([S(example.text_a), " " + before.rstrip(), MASK, rest[0]])

    def answers(self, example: InputExample, pattern_id: int) -> list[str]:
        return [" " + candidate for candidate in example.meta["candidates"]]


def mark_pronoun(example: InputExample) -> str:
    """Return the text of a WSC example with the pronoun between asterisks."""
    words = example.text_a.split(" ")
    index = example.meta["span2_index"]
    return " ".join((*words[:index], f"*{words[index]}*", *words[index + 1 :]))
