"""Detokenisers of the language-model data sets."""

from __future__ import annotations

import re

from tasks.seq2seq.detokenizers import replace_all

_LINE_ENDS = [(" \n", "\n"), ("\n ", "\n")]
_PTB = [(" '", "'"), *_LINE_ENDS, (" n't", "n't"), (" N ", "1 "), ("$ 1", "$1"), ("# 1", "#1")]
_WIKITEXT_NUMBERS = [("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")]
_WIKITEXT_MARKS = [(f" {mark} ", f"{mark} ") for mark in ":;.!?,"]
_WIKITEXT_PAIRS = [
    (re.compile(rf"{re.escape(opening)}\s*([^{re.escape(closing)}]*?)\s*{re.escape(closing)}"), (opening, closing))
    for opening, closing in ("()", "[]", "{}", '""', "''")
]
_WIKITEXT_REST = [
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    *_LINE_ENDS,
    (" N ", " 1 "),
    (" 's", "'s"),
]


def ptb(text: str) -> str:
    """Return Penn Treebank text as running text."""
    return replace_all(text, _PTB)


def wikitext(text: str) -> str:
    """Return WikiText as running text.

    The original's rule for apostrophes before digits matches a slash followed by an apostrophe, a blank, a digit and a
    slash, and puts its own pattern there; it is kept so that perplexities stay comparable.
    """
    text = replace_all(text, _WIKITEXT_NUMBERS[:1])
    text = re.sub("/' [0-9]/", "/'[0-9]/", text)
    text = replace_all(text, [*_WIKITEXT_NUMBERS[1:], *_WIKITEXT_MARKS])
    for pattern, (opening, closing) in _WIKITEXT_PAIRS:
        text = pattern.sub(lambda match, a=opening, b=closing: f"{a}{match[1]}{b}", text)
    return replace_all(text, _WIKITEXT_REST)


def lambada(text: str) -> str:
    """Return ``text`` as it is."""
    return text
