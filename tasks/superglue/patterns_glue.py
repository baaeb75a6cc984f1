"""Patterns of GLUE, topic, stance and reading tasks."""

from __future__ import annotations

from tasks.examples import InputExample
from tasks.patterns import PVP
from tasks.segments import MASK, Parts, S, lower_first, without_punctuation

NO_YES = {"0": " No", "1": " Yes"}


class MnliPVP(PVP):
    """Premise and hypothesis: entailment, neutral or contradiction."""

    num_patterns = 4
    words = (
        *({"contradiction": " Wrong", "entailment": " Right", "neutral": " Maybe"},) * 2,
        *({"contradiction": " No", "entailment": " Yes", "neutral": " Maybe"},) * 2,
    )

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        premise, hypothesis = S(without_punctuation(example.text_a)), S(example.text_b)
        if pattern_id in (0, 2):
            return Parts.of(['"', premise, '" ?'], [MASK, ', "', hypothesis, '"'])
        return Parts.of([premise, "?"], [MASK, ",", hypothesis])


class TopicPVP(PVP):
    """What is a text about? ``noun`` is what pattern 1 calls the text."""

    num_patterns = 6
    noun = ""

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        texts = [S(example.text_a), S(example.text_b)]
        return Parts.of(
            (
                [MASK, ":", *texts],
                [MASK, f" {self.noun}:", *texts],
                [texts[0], "(", MASK, ")", texts[1]],
                [*texts, "(", MASK, ")"],
                ["[ Category:", MASK, "]", *texts],
                [MASK, "-", *texts],
            )[pattern_id]
        )


class AgnewsPVP(TopicPVP):
    """Topics of news."""

    noun = "News"
    words = ({"1": " World", "2": " Sports", "3": " Business", "4": " Tech"},)


class YahooPVP(TopicPVP):
    """Topics of questions."""

    noun = "Question"
    words = (
        {
            "1": " Society",
            "2": " Science",
            "3": " Health",
            "4": " Education",
            "5": " Computer",
            "6": " Sports",
            "7": " Business",
            "8": " Entertainment",
            "9": " Relationship",
            "10": " Politics",
        },
    )


class YelpPolarityPVP(PVP):
    """Is a review positive?"""

    num_patterns = 4
    words = ({"1": " bad", "2": " good"},)

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        text = S(example.text_a)
        if pattern_id == 0:
            return Parts.of(["It was", MASK, ".", text])
        if pattern_id == 1:
            return Parts.of([text, ". All in all, it was", MASK, "."])
        if pattern_id == 2:
            return Parts.of(["Just", MASK, "!"], [text])
        return Parts.of([text], [" In summary, the restaurant is", MASK, "."])


class YelpFullPVP(YelpPolarityPVP):
    """How many stars has a review?"""

    words = ({"1": " terrible", "2": " bad", "3": " okay", "4": " good", "5": " great"},)


class XstancePVP(PVP):
    """Is a comment for or against what the question asks?"""

    num_patterns = 6
    words = (
        *({"FAVOR": "Ja", "AGAINST": "Nein"},) * 2,
        *({"FAVOR": "Yes", "AGAINST": "No"},) * 2,
        *({"FAVOR": "Oui", "AGAINST": "Non"},) * 2,
    )

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        question, comment = S(example.text_a), S(example.text_b)
        if pattern_id % 2 == 0:
            return Parts.of(['"', question, '"'], [MASK, '. "', comment, '"'])
        return Parts.of([question], [MASK, ".", comment])


class Sst2PVP(PVP):
    """Is a sentence positive?"""

    num_patterns = 2
    words = ({"0": " terrible", "1": " great"}, {"0": " bad", "1": " good"})

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        return Parts.of([S(example.text_a), " It was", MASK, "."])


class ColaPVP(PVP):
    """Is a sentence grammatical?"""

    words = ({"0": " incorrect", "1": " correct"},)

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        return Parts.of(['"', S(example.text_a), '"', " This is", MASK, "."])


class MrpcPVP(PVP):
    """Do two sentences say the same?"""

    num_patterns = 2
    words = (NO_YES,)

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        second = lower_first(example.text_b)
        if pattern_id == 0:
            return Parts.of([S(example.text_a)], [MASK, ", ", S(second)])
        return Parts.of([S(example.text_a)], [" Does it mean that", S(without_punctuation(second)), "?", MASK])


class QqpPVP(PVP):
    """Do two questions ask the same?"""

    num_patterns = 2
    words = (NO_YES,)

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        second = S(lower_first(example.text_b))
        if pattern_id == 0:
            return Parts.of([S(example.text_a)], [" Do you mean ", second, MASK, "."])
        return Parts.of([S(example.text_a)], [MASK, ", ", second])


class QnliPVP(PVP):
    """Does a sentence answer a question?"""

    num_patterns = 3
    words = ({"not_entailment": " No", "entailment": " Yes"},)

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        question, passage = S(" " + without_punctuation(example.text_a)), example.text_b
        if pattern_id == 0:
            return Parts.of([S(passage), " Question:", question, "? Do you know the answer?", MASK, "."])
        if pattern_id == 1:
            introduction = " Based on the previous passage, do you know the answer"
            return Parts.of([S(passage), introduction, question, "?", MASK, "."])
        introduction = "Based on the following passage, do you know the answer"
        return Parts.of([introduction, question, "?", MASK, ".", S(" " + passage)])


class SquadPVP(PVP):
    """A passage and a question whose answer is one text: the loss of a single choice teaches nothing."""

    free_answers = True

    def parts(self, example: InputExample, pattern_id: int, *, continuous_prompt: bool = False) -> Parts:
        return Parts.of([S(example.text_a), " " + example.text_b, MASK, "."])

    def answers(self, example: InputExample, pattern_id: int) -> list[str]:
        return [" " + example.meta["answer"]["text"]]


class RacePVP(PVP):
    """A question about a passage with four options; a question may have a gap written as ``_``."""

    num_patterns = 2
    free_answers = True

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        question = " " + example.text_b
        introduction = [" Based on the previous passage,"] * pattern_id
        before, gap, after = question.partition("_")
        if gap:
            return Parts.of([S(example.text_a)], [*introduction, S(before.rstrip()), MASK, S(after)])
        if pattern_id == 0:
            return Parts.of([S(example.text_a)], [" Question:", S(question), " Answer:", MASK])
        return Parts.of([S(example.text_a)], [*introduction, S(question), MASK])

    def answers(self, example: InputExample, pattern_id: int) -> list[str]:
        return [" " + choice for choice in example.meta["choices"]]
