"""Patterns of the Chinese tasks."""

from __future__ import annotations

from tasks.examples import InputExample
from tasks.patterns import PVP
from tasks.segments import MASK, SLOT, Parts, S


class AfqmcPVP(PVP):
    """Do two questions ask the same?"""

    num_patterns = 2
    words = ({"0": "▁不是", "1": "▁是"},)

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        first, second = S(example.text_a), S(example.text_b)
        if pattern_id == 0:
            return Parts.of([first, "？"], ["你是说", second, "？", MASK, "。"])
        return Parts.of([first, "？"], [MASK, "，", second])


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

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        return Parts.of(["标题：", S(example.text_a), "关键词：", S(example.text_b), "类别：", MASK])


class CluewscPVP(PVP):
    """Does a pronoun refer to this span?"""

    num_patterns = 2
    words = ({"false": "不是", "true": "是"},)

    def fill(self, example: InputExample, pattern_id: int) -> Parts:
        text = S(mark_spans(example))
        span, pronoun = example.meta["span1_text"], example.meta["span2_text"]
        if pattern_id == 0:
            return Parts.of([SLOT, text, f"代词'*{pronoun}*'", MASK, f"指#{span}#."])
        return Parts.of(["在如下的句子中：", text, f"代词'*{pronoun}*'", MASK, f"指'#{span}#'."])


def mark_spans(example: InputExample) -> str:
    """Return the text with ``#`` around the span and ``*`` around the pronoun."""
    meta = example.meta
    marks = [(meta["span1_index"], meta["span1_length"], "#"), (meta["span2_index"], meta["span2_length"], "*")]
    text = example.text_a
    for start, length, mark in sorted(marks, reverse=True):
        text = f"{text[:start]}{mark}{text[start : start + length]}{mark}{text[start + length :]}"
    return text
