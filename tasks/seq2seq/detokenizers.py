"""Ordered text replacements of the sequence-to-sequence data sets and metrics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import punctuation

Replacements = Sequence[tuple[str, str]]


def replace_all(text: str, replacements: Replacements) -> str:
    """Return ``text`` after each replacement, one after the other."""
    for old, new in replacements:
        text = text.replace(old, new)
    return text


_BRACKETS = [("-lrb-", "("), ("-rrb-", ")"), ("-lsb-", "["), ("-rsb-", "]"), ("-lcb-", "{"), ("-rcb-", "}")]
_GIGAWORD = [
    ("UNK", "[UNK]"),
    ("<unk>", "[UNK]"),
    *_BRACKETS,
    ("&amp;", "&"),
    ("&lt;", "<"),
    ("&gt;", ">"),
]
_CNN_DM = [
    *((old.upper(), new) for old, new in _BRACKETS),
    ("''", '"'),
    ("``", '"'),
    ("`", "'"),
    (" n't", "n't"),
    (" 's", "'s"),
    (" 'd", "'d"),
    (" 'll", "'ll"),
]
_BLANK_SOURCE = [("_UNK", "[UNK]"), ("<blank>", "[MASK]")]
_BLANK_OUTPUT = [
    ("` `", "``"),
    ("' '", "''"),
    ("n ' t", "n't"),
    ("' s", "'s"),
    ("' m", "'m"),
    ("' re", "'re"),
    (". . .", "..."),
    (" . .", " .."),
    ("- -", "--"),
    ("u . s .", "u.s."),
    ("u . k .", "u.k."),
    ("e . g .", "e.g."),
]


def gigaword(text: str) -> str:
    """Return a line of Gigaword with ``[UNK]``, brackets and ampersands in place of their codes."""
    return replace_all(text, _GIGAWORD)


def cnn_dm(text: str, *, is_target: bool) -> str:
    """Return a tokenised CNN/DailyMail line as running text; sentence breaks become ``[SEP]`` in a target."""
    return replace_all(text, [("<S_SEP>", "[SEP]" if is_target else ""), *_CNN_DM])


def blank_text(text: str) -> str:
    """Return a line of the blank-filling data with the tokenizer's ``[UNK]`` and ``[MASK]``."""
    return replace_all(text, _BLANK_SOURCE)


def clean_filled(text: str) -> str:
    """Return a filled text without the blanks that WordPiece puts around punctuation."""
    return replace_all(text, _BLANK_OUTPUT)


_ABBREVIATIONS = [
    (re.compile(rf"\b{re.escape(old)}\b"), new)
    for old, new in (
        ("a . m .", "a.m."),
        ("a . m", "a.m"),
        ("p . m .", "p.m."),
        ("p . m", "p.m"),
        ("' s", "'s"),
        ("u . s .", "u.s."),
        ("u . s", "u.s"),
    )
]


def clean_answer(text: str) -> str:
    """Return a SQuAD answer without the blanks that WordPiece puts around dashes, abbreviations and numbers."""
    text = replace_all(text, [(" - ", "-"), (" – ", "–")])
    for pattern, replacement in _ABBREVIATIONS:
        text = pattern.sub(replacement, text)
    tokens, index = text.split(), 0
    kept: list[str] = []
    while index < len(tokens):
        token = tokens[index]
        following = tokens[index + 1] if index + 1 < len(tokens) else ""
        in_number = token in (",", ".", ":") and bool(kept) and kept[-1][-1].isdigit() and following[:1].isdigit()
        if in_number and not (token == "," and len(following) > 3):
            kept[-1] += token + following
            index += 2
        else:
            kept.append(token)
            index += 1
    return " ".join(kept)


def fix_tokenization(text: str, *, family: str, task: str) -> str:
    """Return a prediction or reference in the form that ROUGE is computed on.

    Args:
        text: the text, or one of its sentences.
        family: of the tokenizer; ``bert`` (lower-case pieces with blanks around punctuation) needs all rules.
        task: ``gigaword`` has its ``[UNK]`` written as in its files.
    """
    if family == "bert":
        return _PennTreebank(text.split()).join()
    if task == "gigaword":
        return text.replace("[UNK]", "UNK")
    return text


def _joins_number(last: str | None, token: str, following: str | None) -> bool:
    """Tell whether ``token`` is the comma or point inside a number."""
    if last is None or following is None:
        return False
    if token == ",":
        return all(character.isdigit() or character == "," for character in last + following)
    return token == "." and last.isdigit() and following.isdigit()


class _PennTreebank:
    """One pass over tokens that joins what the Penn Treebank writes together; the first rule that fits wins."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._output: list[str] = []
        self._double_open = False  # a double quote has been opened
        self._single_open = False
        self._after_dash = False  # the previous token was glued to a dash

    def join(self) -> str:
        """Return the joined tokens."""
        index = 0
        while index < len(self._tokens):
            after_dash, self._after_dash = self._after_dash, False
            index += self._step(index, after_dash=after_dash)
        return " ".join(self._output)

    def _at(self, index: int) -> str | None:
        return self._tokens[index] if index < len(self._tokens) else None

    def _step(self, index: int, *, after_dash: bool) -> int:
        """Put out the token at ``index``; return how many were consumed."""
        token, following, output = self._tokens[index], self._at(index + 1), self._output
        last = output[-1] if output else None
        if token == '"':
            output.append("''" if self._double_open else "``")
            self._double_open = not self._double_open
        elif token == "'":
            return self._apostrophe(last, following)
        elif token == "." and self._tokens[index : index + 3] == [".", ".", "."]:
            output.append("...")
            return 3
        elif _joins_number(last, token, following):
            output[-1] += token + (following or "")
            return 2
        elif token == "." and self._starts_abbreviation(index, last):
            return self._abbreviation(index)
        elif token == "-":
            return self._dash(index, last, following)
        elif after_dash and token[0] not in punctuation:
            output[-1] += token
        else:
            output.append(token)
        return 1

    def _apostrophe(self, last: str | None, following: str | None) -> int:
        output = self._output
        if last is not None and last.endswith("n") and following == "t":
            output[-1] = last[:-1]
            output.append("n't")
            return 2
        if following in ("s", "d", "ll"):
            output.append(f"'{following}")
            return 2
        output.append("'" if self._single_open else "`")
        self._single_open = not self._single_open
        return 1

    def _starts_abbreviation(self, index: int, last: str | None) -> bool:
        following = self._at(index + 1)
        letters = all(part is not None and len(part) == 1 and part.isalpha() for part in (last, following))
        return letters and self._at(index + 2) == "."

    def _abbreviation(self, index: int) -> int:
        """Glue ``. s .`` to the letter before. As in the original the look-ahead is one token off: it may run on."""
        end = index + 3
        while (letter := self._at(end + 1)) and len(letter) == 1 and letter.isalpha() and self._at(end + 2) == ".":
            end += 2
        self._output[-1] += "".join(self._tokens[index:end])
        return end - index

    def _dash(self, index: int, last: str | None, following: str | None) -> int:
        if following == "-":
            self._output.append("--")
            return 2
        if last is None or following is None or last in punctuation or following[0] in punctuation:
            self._output.append("-")
            return 1
        self._output[-1] += "-"
        self._after_dash = True
        return 1
