"""What a multilingual model is asked: the words around the blank (docs/multilingual.md).

Every part of a prompt is encoded on its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# These two tasks write their prompts with the colon of ASCII, and one of them translates.
_COLON_TASKS = ("ncls_multitask", "lcsts")
# What MLQA's questions and answers are introduced by: English, whatever the language, unless --localized-prompts.
_INTRODUCTIONS = {
    "en": ("Question", "Answer"), "de": ("Frage", "Antworten"), "es": ("Pregunta", "Responder"),
    "vi": ("câu hỏi", "trả lời"), "zh": ("问题", "答案"), "ar": ("سؤال", "اجابه"), "hi": ("प्रश्न", "जवाब"),
}  # fmt: skip


def summary_prompt(task: str, meta: Mapping[str, Any]) -> str:
    """Return what stands between a text and the blank of its summary; ``meta`` has ``tgt_lang`` and ``task``."""
    chinese = meta.get("tgt_lang") == "zh"
    if task not in _COLON_TASKS:
        return " 中文摘要：" if chinese else " tl;dr:"
    if meta.get("task") == "trans":
        return " 中文翻译:"
    return " 中文摘要:" if chinese else " TL;DR:"


def question_prompt(question: str, language: str) -> tuple[str, str]:
    """Return the question with its introduction, and that of the answer, in ``language`` (that of the context)."""
    asked, answered = _INTRODUCTIONS.get(language.split("-", maxsplit=1)[0], _INTRODUCTIONS["en"])
    return f" {asked}: {question}", f" {answered}: "
