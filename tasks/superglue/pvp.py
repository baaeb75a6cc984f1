"""The patterns and verbalizers of the tasks: SuperGLUE, GLUE, topics and stance, reading, CLUE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from files.reading import described
from tasks.superglue.patterns import MASK, PVP, SLOT, Parts, Piece, S, lower_first, without_punctuation
from tasks.superglue.readers import InputExample

NO_YES = {"0": " No", "1": " Yes"}
YES_NO_SENTENCES = {"false": " No", "true": " Yes"}


class RtePVP(PVP):
    """Does the premise entail the hypothesis?"""

    num_patterns = 5
    words: Sequence[Mapping[str, str]] = (
        *({"entailment": " Yes", "not_entailment": " No"},) * 4,
        {"entailment": " true", "not_entailment": " false"},
    )

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        premise, hypothesis = example.text_a, without_punctuation(example.text_b)
        if pattern_id in (0, 2):
            a: list[Piece] = [SLOT, '"', S(hypothesis), '" ?']
            if pattern_id == 0:
                return Parts(a, [SLOT, MASK, ",", SLOT, ' "', S(premise), '"'])
            return Parts(a, [SLOT, MASK, '. "', SLOT, S(premise), '"'])
        if pattern_id in (1, 3):
            mark = "," if pattern_id == 1 else "."
            return Parts([SLOT, S(hypothesis), "?"], [SLOT, MASK, mark, SLOT, S(" " + premise)])
        return self.question(premise, hypothesis, " True or False?")

    def question(self, premise: str, hypothesis: str, choice: str) -> Parts:
        """Return the pattern that asks which of ``choice`` holds."""
        return Parts([SLOT, S(premise), SLOT, " question:", S(" " + hypothesis), choice, SLOT, " answer:", MASK])


class CbPVP(RtePVP):
    """As RTE, with a third answer."""

    words = (
        *({"entailment": " Yes", "contradiction": " No", "neutral": " Maybe"},) * 4,
        {"entailment": " true", "contradiction": " false", "neutral": " neither"},
    )

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        if pattern_id == 4:  # here the hypothesis keeps its punctuation
            return self.question(example.text_a, example.text_b, " true, false or neither?")
        return super().render(example, pattern_id)


class BoolqPVP(PVP):
    """A passage and a question that is answered by yes or no."""

    num_patterns = 6
    words = (YES_NO_SENTENCES, {"false": " false", "true": " true"}) * 3

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        passage, question = example.text_a, S(" " + example.text_b)
        if pattern_id < 2:
            return Parts([SLOT, S(passage), SLOT, " Question:", question, "? Answer:", SLOT, MASK, "."])
        if pattern_id < 4:
            introduction = " Based on the previous passage,"
            return Parts([SLOT, S(passage), introduction, SLOT, question, "?", SLOT, MASK, "."])
        introduction = "Based on the following passage"
        return Parts([introduction, SLOT, question, "?", SLOT, MASK, ".", SLOT, S(" " + passage)])


class CopaPVP(PVP):
    """Which of two sentences is the cause, or the effect, of the premise?

    Patterns 2 and 3 without a continuous prompt predict the joining word instead.
    """

    num_patterns = 4
    ensemble = (0, 1)
    free_answers = True

    def check(self, pattern_id: int, *, continuous_prompt: bool = False) -> None:
        if pattern_id == 3 and continuous_prompt:
            raise ValueError("--pattern-id 3: copa has no continuous prompt for it; choose 0, 1 or 2")
        super().check(pattern_id, continuous_prompt=continuous_prompt)

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        first, second = self.choices(example)
        premise, joiner = S(without_punctuation(" " + example.text_a)), self.joiner(example)
        a: list[Piece]
        if pattern_id == 0:
            a = [SLOT, '"', first, '" or "', second, '"?', SLOT, premise, joiner, SLOT, MASK, "."]
        elif pattern_id == 1:
            a = [SLOT, first, " or", " " + second, "?", SLOT, premise, joiner, SLOT, MASK, "."]
        else:
            a = [SLOT, '"', first, '" or "', second, '"', SLOT, premise, joiner, MASK, ".", SLOT]
        return Parts(a)

    def answers(self, example: InputExample, pattern_id: int) -> list[str]:
        return [" " + choice for choice in self.choices(example)]

    def joined_choices(self, example: InputExample, pattern_id: int) -> tuple[str, list[Parts]] | None:
        if pattern_id not in (2, 3):
            return None
        first, second = self.choices(example)
        premise = S(without_punctuation(example.text_a))
        parts = [Parts(['"', first, '" or "', second, '"?', premise, MASK, " " + c]) for c in (first, second)]
        return " because" if example.meta["question"] == "cause" else " so", parts

    @staticmethod
    def choices(example: InputExample) -> tuple[str, str]:
        """Return the two sentences as they stand inside the pattern."""
        first, second = (without_punctuation(lower_first(example.meta[name])) for name in ("choice1", "choice2"))
        return first, second

    def joiner(self, example: InputExample) -> str:
        """Return the word between premise and choice."""
        return " because" if example.meta["question"] == "cause" else ", so"


class MultircPVP(PVP):
    """Is this answer to a question about a passage correct?"""

    num_patterns = 5
    words = (*({0: " No", 1: " Yes"},) * 3, {0: " False", 1: " True"}, {0: " No", 1: " Yes"})

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        passage = S(without_punctuation(example.text_a.rstrip()))
        question, answer = without_punctuation(example.text_b.rstrip()), example.meta["answer"]
        if pattern_id == 0:
            asked = [SLOT, " Question:", " " + question + "?", SLOT, " Is it", " " + answer, "?", SLOT, MASK, "."]
            return Parts([passage, ".", *asked])
        if pattern_id == 1:
            asked = [SLOT, " Question:", " " + question, "?", SLOT, ' Is the correct answer "', answer, '"?']
            return Parts([passage, ".", *asked, SLOT, MASK, "."])
        if pattern_id == 2:
            asked = [SLOT, " " + question, "?", SLOT, ' Is "', answer, '" a correct answer?', SLOT, MASK, "."]
            return Parts([passage, ". Based on the previous passage,", *asked])
        if pattern_id == 3:
            return Parts([SLOT, passage, SLOT, " " + question, "- [", MASK, "]", SLOT, answer])
        asked = [SLOT, " Question:", " " + question, "?", SLOT, " " + answer, "?", SLOT, MASK, "."]
        return Parts([passage, ".", *asked])


class WicPVP(PVP):
    """Does a word have the same sense in two sentences?"""

    num_patterns = 3
    words = (YES_NO_SENTENCES, YES_NO_SENTENCES, {"false": "2", "true": "b"})

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        first, second, word = example.text_a, example.text_b, example.meta["word"]
        if pattern_id == 0:
            sentences = S(f'"{first}" / "{second}"')
            return Parts([SLOT, sentences, SLOT, f' Similar sense of "{word}"?', SLOT, MASK, "."])
        if pattern_id == 1:
            question = f" Does {word} have the same meaning in both sentences?"
            return Parts([S(first), SLOT, S(" " + second), SLOT, question, SLOT, MASK])
        a = [SLOT, word, " .", SLOT, ' Sense (1) (a) "', S(first), '"', SLOT, " (", MASK, ') "', second, '"']
        return Parts(a)


class WscPVP(PVP):
    """What does a pronoun refer to?"""

    num_patterns = 3
    free_answers = True

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        text, pronoun = S(mark_pronoun(example)), example.meta["span2_text"]
        if pattern_id == 0:
            return Parts([SLOT, text, SLOT, f" The pronoun '*{pronoun}*' refers to", SLOT, MASK, "."])
        if pattern_id == 1:
            question = f" In the previous sentence, the pronoun '*{pronoun}*' refers to"
            return Parts([SLOT, text, SLOT, question, SLOT, MASK, "."])
        question = f" Question: In the passage above, what does the pronoun '*{pronoun}*' refer to?"
        return Parts([SLOT, text, SLOT, question, SLOT, " Answer:", MASK, "."])

    def answers(self, example: InputExample, pattern_id: int) -> list[str]:
        return [" " + text for text in (example.meta["span1_text"], *example.meta.get("candidates", ()))]


class RecordPVP(PVP):
    """Which of the passage's entities belongs into the query?"""

    free_answers = True

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        before, *rest = example.text_b.split("@placeholder")
        if len(rest) != 1:
            raise ValueError(f"the query needs @placeholder once: {described(example.text_b)}")
        return Parts([S(example.text_a), " " + before.rstrip(), MASK, rest[0]])

    def answers(self, example: InputExample, pattern_id: int) -> list[str]:
        return [" " + candidate for candidate in example.meta["candidates"]]


def mark_pronoun(example: InputExample) -> str:
    """Return the text of a WSC example with the pronoun between asterisks."""
    words = example.text_a.split(" ")
    index = example.meta["span2_index"]
    return " ".join((*words[:index], f"*{words[index]}*", *words[index + 1 :]))


class MnliPVP(PVP):
    """Premise and hypothesis: entailment, neutral or contradiction."""

    num_patterns = 4
    words = (
        *({"contradiction": " Wrong", "entailment": " Right", "neutral": " Maybe"},) * 2,
        *({"contradiction": " No", "entailment": " Yes", "neutral": " Maybe"},) * 2,
    )

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        premise, hypothesis = S(without_punctuation(example.text_a)), S(example.text_b)
        if pattern_id in (0, 2):
            return Parts(['"', premise, '" ?'], [MASK, ', "', hypothesis, '"'])
        return Parts([premise, "?"], [MASK, ",", hypothesis])


class TopicPVP(PVP):
    """What is a text about? ``noun`` is what pattern 1 calls the text."""

    num_patterns = 6
    noun = ""

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        texts = [S(example.text_a), S(example.text_b)]
        patterns: tuple[list[Piece], ...] = (
            [MASK, ":", *texts],
            [MASK, f" {self.noun}:", *texts],
            [texts[0], "(", MASK, ")", texts[1]],
            [*texts, "(", MASK, ")"],
            ["[ Category:", MASK, "]", *texts],
            [MASK, "-", *texts],
        )
        return Parts(patterns[pattern_id])


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

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        text = S(example.text_a)
        if pattern_id == 0:
            return Parts(["It was", MASK, ".", text])
        if pattern_id == 1:
            return Parts([text, ". All in all, it was", MASK, "."])
        if pattern_id == 2:
            return Parts(["Just", MASK, "!"], [text])
        return Parts([text], [" In summary, the restaurant is", MASK, "."])


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

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        question, comment = S(example.text_a), S(example.text_b)
        if pattern_id % 2 == 0:
            return Parts(['"', question, '"'], [MASK, '. "', comment, '"'])
        return Parts([question], [MASK, ".", comment])


class Sst2PVP(PVP):
    """Is a sentence positive?"""

    num_patterns = 2
    words = ({"0": " terrible", "1": " great"}, {"0": " bad", "1": " good"})

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        return Parts([S(example.text_a), " It was", MASK, "."])


class ColaPVP(PVP):
    """Is a sentence grammatical?"""

    words = ({"0": " incorrect", "1": " correct"},)

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        return Parts(['"', S(example.text_a), '"', " This is", MASK, "."])


class MrpcPVP(PVP):
    """Do two sentences say the same?"""

    num_patterns = 2
    words = (NO_YES,)

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        second = lower_first(example.text_b)
        if pattern_id == 0:
            return Parts([S(example.text_a)], [MASK, ", ", S(second)])
        return Parts([S(example.text_a)], [" Does it mean that", S(without_punctuation(second)), "?", MASK])


class QqpPVP(PVP):
    """Do two questions ask the same?"""

    num_patterns = 2
    words = (NO_YES,)

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        second = S(lower_first(example.text_b))
        if pattern_id == 0:
            return Parts([S(example.text_a)], [" Do you mean ", second, MASK, "."])
        return Parts([S(example.text_a)], [MASK, ", ", second])


class QnliPVP(PVP):
    """Does a sentence answer a question?"""

    num_patterns = 3
    words = ({"not_entailment": " No", "entailment": " Yes"},)

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        question, passage = S(" " + without_punctuation(example.text_a)), example.text_b
        if pattern_id == 0:
            return Parts([S(passage), " Question:", question, "? Do you know the answer?", MASK, "."])
        if pattern_id == 1:
            introduction = " Based on the previous passage, do you know the answer"
            return Parts([S(passage), introduction, question, "?", MASK, "."])
        introduction = "Based on the following passage, do you know the answer"
        return Parts([introduction, question, "?", MASK, ".", S(" " + passage)])


class SquadPVP(PVP):
    """A passage and a question whose answer is one text: the loss of a single choice teaches nothing."""

    free_answers = True

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        return Parts([S(example.text_a), " " + example.text_b, MASK, "."])

    def answers(self, example: InputExample, pattern_id: int) -> list[str]:
        return [" " + example.meta["answer"]["text"]]


class RacePVP(PVP):
    """A question about a passage with four options; a question may have a gap written as ``_``."""

    num_patterns = 2
    free_answers = True

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        question = " " + example.text_b
        introduction = [" Based on the previous passage,"] * pattern_id
        before, gap, after = question.partition("_")
        if gap:
            return Parts([S(example.text_a)], [*introduction, S(before.rstrip()), MASK, S(after)])
        if pattern_id == 0:
            return Parts([S(example.text_a)], [" Question:", S(question), " Answer:", MASK])
        return Parts([S(example.text_a)], [*introduction, S(question), MASK])

    def answers(self, example: InputExample, pattern_id: int) -> list[str]:
        return [" " + choice for choice in example.meta["choices"]]


class AfqmcPVP(PVP):
    """Do two questions ask the same?"""

    num_patterns = 2
    words = ({"0": "▁不是", "1": "▁是"},)

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        first, second = S(example.text_a), S(example.text_b)
        if pattern_id == 0:
            return Parts([first, "？"], ["你是说", second, "？", MASK, "。"])
        return Parts([first, "？"], [MASK, "，", second])


class TnewsPVP(PVP):
    """Topics of news."""

    words = (
        {
            "100": "故事",
            "101": "文化",
            "102": "娱乐",
            "103": "体育",
            "104": "金融",
            "106": "居家",
            "107": "汽车",
            "108": "教育",
            "109": "科技",
            "110": "军事",
            "112": "旅游",
            "113": "世界",
            "114": "股票",
            "115": "农业",
            "116": "游戏",
        },
    )

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        return Parts(["标题：", S(example.text_a), "关键词：", S(example.text_b), "类别：", MASK])


class CluewscPVP(PVP):
    """Does a pronoun refer to this span?"""

    num_patterns = 2
    words = ({"false": "不是", "true": "是"},)

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        text = S(mark_spans(example))
        span, pronoun = example.meta["span1_text"], example.meta["span2_text"]
        if pattern_id == 0:
            return Parts([SLOT, text, f"代词'*{pronoun}*'", MASK, f"指#{span}#."])
        return Parts(["在如下的句子中：", text, f"代词'*{pronoun}*'", MASK, f"指'#{span}#'."])


def mark_spans(example: InputExample) -> str:
    """Return the text with ``#`` around the span and ``*`` around the pronoun."""
    meta = example.meta
    marks = [(meta["span1_index"], meta["span1_length"], "#"), (meta["span2_index"], meta["span2_length"], "*")]
    text = example.text_a
    for start, length, mark in sorted(marks, reverse=True):
        text = f"{text[:start]}{mark}{text[start : start + length]}{mark}{text[start + length :]}"
    return text
