"""The patterns and verbalizers of XNLI, PAWS-X and PANX (docs/multilingual.md)."""

from __future__ import annotations

from tasks.superglue.patterns import MASK, Parts, S, without_punctuation
from tasks.superglue.pvp import NO_YES, RtePVP
from tasks.superglue.readers import InputExample


class XnliPVP(RtePVP):
    """Does the premise entail the hypothesis? The misspelling of pattern 4 belongs to the released model.

    Patterns 0 to 3 are those of RTE with the words that an earlier state of the release had.
    """

    words = (
        *({"neutral": " Maybe", "entailment": " Yes", "contradiction": " No"},) * 4,
        {"neutral": " Maybe", "entailment": " True", "contradiction": " False"},
    )

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        if pattern_id < 4:
            return super().render(example, pattern_id)
        premise, hypothesis = example.text_a.strip(), without_punctuation(example.text_b).strip()
        introduction = 'Based on the fact written in foreign language: "'
        question = ' Is the followling statement reasonably True or definitely False: "'
        return Parts([introduction, S(premise), '".', question, S(hypothesis), '"?', " Answer:", MASK])


class PawsxPVP(RtePVP):
    """Do two sentences say the same? Pattern 4 is not part of an ensemble."""

    words = (NO_YES,)
    ensemble = (0, 1, 2, 3)


class PanxPVP(RtePVP):
    """What kind of entity is a token of a sentence?"""

    num_patterns = 4
    words = ({"LOC": " location", "PER": " person", "ORG": " group", "O": " no"},)

    def render(self, example: InputExample, pattern_id: int) -> Parts:
        if pattern_id == 0:
            tokens, index = example.text_a.split(" ")[1:], example.meta["index"]
            left, right = " ".join(tokens[: index + 1]), " ".join(tokens[index + 1 :])
            return Parts([S(left), "(", MASK, ")", " ", S(right)])
        start = 'In "' if pattern_id in (1, 3) else '"'
        end = "entity." if pattern_id == 1 else "word."
        return Parts([start, S(example.text_a[1:]), '" ,'], ['"', S(example.text_b), '"', "is a", MASK, end])
