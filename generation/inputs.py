"""From texts to what the model is given: prompts with blanks, questions to score; and from answers back to text.

s positions
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from data_utils.rows import infilling_row
from data_utils.tokenizers.tokenizer import Tokenizer
from files.reading import described
from generation.scoring import Question

MASK_COMMANDS = ("MASK", "sMASK", "gMASK")
MASK_ENDING = "MASK]"  # a prompt that contains it is taken to have a blank, as in the original
GENERATION_MASK_TEXT = "[gMASK]"  # a prompt that ends with it gets no end token
LIKE_A_MASK = re.compile(r"[\[［]\s*[sg]?mask\s*[\]］]", re.IGNORECASE)


@dataclass(frozen=True)
class Blank:
    """One blank: where its mask is in the ids, and the position that its <|startofpiece|> gets."""

    index: int
    start: int

    def position_of(self, step: int, *, block_positions: bool = True) -> tuple[int, int]:
        """Return (position, block position) of the token fed at ``step``, the start token being step 0.

        With block positions all tokens of a piece share the mask's position and count in the second row. Without, they
        count in the first row and the second is 1.
        """
        return (self.start, step + 1) if block_positions else (self.start + step, 1)


@dataclass(frozen=True)
class PromptInputs:
    """A prompt as the model sees it: ``input_ids`` and ``positions`` of equal length; block positions are all 0."""

    text: str
    input_ids: tuple[int, ...]
    positions: tuple[int, ...]
    blanks: tuple[Blank, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


def texts_of(value: Any, what: str) -> list[str]:
    """Return the texts that an argument holds: one text is a list of one.

    Raises ValueError, which names the argument as ``what``, for anything but a text and a list of texts.
    """
    if isinstance(value, str):
        value = [value]
    if isinstance(value, bytes | Mapping | Set) or not isinstance(value, Iterable):
        raise ValueError(f"{what}: {described(value)}; a text or a list of texts is needed")
    texts = list(value)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{what}: number {number} is {described(text)}; a text is needed")
        check_text(text, place=f"{what}: number {number}")
    return texts


def check_text(text: str, *, place: str = "the text") -> None:
    """Raise ValueError for a text with bytes that were no UTF-8, or with halves of surrogate pairs."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ValueError(f"{place} has {half} at character {error.start}, which is no character of UTF-8") from None


def masks_taken_as_text(text: str, tokenizer: Tokenizer) -> list[str]:
    """Return what looks like a mask in ``text`` and is none to this tokenizer: [mask], fullwidth brackets, [sMASK]."""
    known = {f"[{name}]" for name in MASK_COMMANDS if tokenizer.has_command(name)}
    return [found for found in dict.fromkeys(LIKE_A_MASK.findall(text)) if found not in known]


def complete_prompt(text: str, *, tokenizer: Tokenizer) -> str:
    """Return ``text``, with a mask at its end if it has none: [gMASK] where the tokenizer knows it, else [MASK]."""
    if MASK_ENDING in text:
        return text
    return f"{text} {'[MASK]' if tokenizer.special.gmask is None else GENERATION_MASK_TEXT}"


def encode_prompt(
    text: str, *, tokenizer: Tokenizer, max_length: int = 0, block_positions: bool = True, fill: str = "append"
) -> PromptInputs:
    """Turn ``text`` into ids, positions and blanks.

    The ids are [ENC], the text, and the end token unless the text ends with [gMASK], or with any mask where pieces
    replace their masks (a test of the text, before tokenisation). Without ``block_positions`` the positions after each
    mask leave room for ``max_length`` tokens.
    """
    special = tokenizer.special
    ids = [special.cls, *tokenizer.encode(text)]
    if not text.endswith(GENERATION_MASK_TEXT if fill == "append" else MASK_ENDING):
        ids.append(special.eos)
    positions: list[int] = []
    blanks: list[Blank] = []
    shift = 0
    for index, token in enumerate(ids):
        positions.append(index + shift)
        if token in special.masks:
            blanks.append(Blank(index, index + shift))
            shift += 0 if block_positions else max_length
    return PromptInputs(text, tuple(ids), tuple(positions), tuple(blanks))


def check_prompt_fits(
    inputs: PromptInputs, *, max_length: int, max_position_embeddings: int, block_positions: bool = True
) -> None:
    """Raise ValueError when the context or its pieces need positions that the model does not have.

    The tables have ``max_position_embeddings + 1`` rows. Nothing is ever cut off silently.
    """
    if max_length > max_position_embeddings:
        raise ValueError(
            f"up to {max_length} tokens per blank are asked for, the model has positions for "
            f"{max_position_embeddings}; lower --out-seq-length"
        )
    last = max(inputs.positions)
    if not block_positions and inputs.blanks:
        last = max(last, inputs.blanks[-1].start + max_length - 1)
    if last > max_position_embeddings:
        raise ValueError(
            f"the prompt has {len(inputs)} tokens and needs {last + 1} positions, the model has "
            f"{max_position_embeddings + 1}; shorten the prompt"
        )


def require_blank(inputs: PromptInputs, *, tokenizer: Tokenizer) -> None:
    """Raise ValueError when the prompt has no blank to fill."""
    if not inputs.blanks:
        names = ", ".join(f"[{name}]" for name in MASK_COMMANDS if tokenizer.has_command(name))
        excerpt = inputs.text if len(inputs.text) <= 60 else f"{inputs.text[:57]}..."
        raise ValueError(f"no blank to fill in the prompt {excerpt!r}: mark it with {names}")


def shorten(ids: Sequence[int], room: int, *, mask_id: int | None = None) -> list[int]:
    """Return at most ``room`` neighbours of ``ids``: the last ones, unless the last ``mask_id`` is not among them.

    It then stands in the middle of what is kept, or as near to it as the beginning of ``ids`` allows.
    """
    ids = list(ids)
    start = max(0, len(ids) - room)
    if mask_id is not None and mask_id in ids[:start] and mask_id not in ids[start:]:
        last = start - 1 - ids[:start][::-1].index(mask_id)
        start = max(0, last - room // 2)
    return ids[start : start + room]


def split_at_masks(text: str, *, tokenizer: Tokenizer) -> list[str]:
    """Return what stands before, between and after the masks of ``text``, at odd places the masks themselves."""
    masks = tokenizer.special.masks
    texts = sorted({token.text for token in tokenizer.command_tokens if token.id in masks}, key=len, reverse=True)
    return re.split(f"({'|'.join(map(re.escape, texts))})", text)


def insert_answers(text: str, answers: Sequence[str], *, tokenizer: Tokenizer) -> str:
    """Return ``text`` with its masks replaced by ``answers`` in order.

    The user's blanks are kept; where an answer brings its own leading blank, as byte-level tokenizers' do, it is not
    doubled.
    """
    pieces = split_at_masks(text, tokenizer=tokenizer)[::2]
    assert len(pieces) == len(answers) + 1, (len(pieces), len(answers))
    filled = pieces[0]
    for answer, following in zip(answers, pieces[1:]):
        after_blank = not filled or filled[-1].isspace()
        filled += answer.lstrip() if after_blank else answer
        filled += following[1:] if not answer and after_blank and following[:1].isspace() else following
    return filled


@dataclass
class QuestionEncoder:
    """Lay out texts and what may follow them.

    Attributes:
        tokenizer: of the model.
        max_length: a context, its two command tokens and the longest continuation have at most that many tokens.
        block_positions: count the tokens of a continuation in the second row of positions.
        num_shortened: how many texts were cut so far.
    """

    tokenizer: Tokenizer
    max_length: int
    block_positions: bool = True
    num_shortened: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for a tokenizer without the tokens of blank infilling."""
        self.special = self.tokenizer.special

    def mask_id(self, name: str | None) -> int:
        """Return the id of the mask that is added: ``MASK``, ``sMASK`` or ``gMASK``; None is the one for long texts."""
        if name is None:
            return self.special.long_mask
        if name not in MASK_COMMANDS or not self.tokenizer.has_command(name):
            raise ValueError(f"mask {name!r}: this tokenizer has no such mask; sMASK and gMASK need the task masks")
        return self.tokenizer.command_id(name)

    def question(
        self,
        context: str,
        continuations: Sequence[str],
        *,
        mask: str | None = "MASK",
        unidirectional: bool = False,
        place: str = "the question",
    ) -> Question:
        """Return the question of what stands at the context's last mask, or after a context without one.

        In both directions it is [ENC] context [eos] <sop> continuation, with ``mask`` added to a context without one;
        ``unidirectional`` it is [ENC] [gMASK] <sop> context continuation. Blanks and line ends at the end of a context
        without a mask belong to what follows it, as in lm-evaluation-harness: " blue" is one token of a byte-level
        vocabulary, and a blank of its own is another. A context that is too long loses its beginning, or keeps the
        surroundings of its mask. Raises ValueError, naming ``place``, without continuations, for an empty one and for
        one that leaves no room for the context.
        """
        if not continuations:
            raise ValueError(f"{place}: no choices; give at least one")
        ids = self.tokenizer.encode(context)
        masks = [index for index in ids if index in self.special.masks]
        moved = ""
        if not masks and context != (kept := context.rstrip()):
            moved = context[len(kept) :]
            ids = self.tokenizer.encode(kept)
        answers = [self.tokenizer.encode(moved + text) if text else [] for text in continuations]
        if not all(answers):
            number = [bool(ids) for ids in answers].index(False)
            raise ValueError(f"{place}: choice {number}, {continuations[number]!r}, has no tokens")
        longest = max(map(len, answers))
        room = self.max_length - longest - 2
        if room < 1:
            raise ValueError(
                f"{place}: a choice of {longest} tokens leaves no room for the context in {self.max_length}; shorten it"
            )
        if unidirectional:
            ids = self._fit(ids, room, mask_id=None)
            return self._question([self.special.cls, self.mask_id("gMASK")], ids, answers, mask_index=1)
        mask_id = masks[-1] if masks else self.mask_id(mask)
        ids = self._fit(ids if masks else [*ids, mask_id], room, mask_id=mask_id)
        last = len(ids) - ids[::-1].index(mask_id)  # counted from [ENC]
        return self._question([self.special.cls, *ids, self.special.eos], [], answers, mask_index=last)

    def windows(
        self, text: str, *, overlap: int, unidirectional: bool = False, skip_first: bool = False
    ) -> list[Question]:
        """Return windows of ``max_length`` - 1 tokens in which every token of a document is scored once.

        The first window predicts its tokens from [ENC] and a mask. A later one starts ``overlap`` tokens further and
        predicts the ``overlap`` tokens at its end: those before them are its context, or are predicted again without
        being counted when it is ``unidirectional``. ``skip_first`` has the document's first token as context.
        """
        ids, width = self.tokenizer.encode(text), self.max_length - 1
        if not 1 <= overlap < width:
            raise ValueError(
                f"overlap {overlap}: with windows of {width} tokens it has to lie between 1 and {width - 1}"
            )
        mask = self.mask_id(None)
        questions = []
        for start in range(0, max(len(ids) - width, 0) + overlap, overlap):
            window = ids[start : start + width]
            known = width - overlap if start else int(skip_first)
            predicted = window[known:]
            if not predicted:
                continue
            shown = int(skip_first or start > 0) if unidirectional else known
            context = [self.special.cls, *window[:shown], mask]
            questions.append(self._question(context, window[shown:known], [predicted], mask_index=shown + 1))
        return questions

    def _fit(self, ids: Sequence[int], room: int, *, mask_id: int | None) -> list[int]:
        self.num_shortened += len(ids) > room
        return shorten(ids, room, mask_id=mask_id)

    def _question(
        self, context: Sequence[int], given: Sequence[int], answers: Sequence[Sequence[int]], *, mask_index: int
    ) -> Question:
        """Return the question after ``context``, seen in both directions, and the ``given`` start of the piece."""
        rows = [
            infilling_row(
                context,
                [*given, *ids],
                special=self.special,
                block_positions=self.block_positions,
                answer_position=mask_index,
                mask_id=context[mask_index],
                num_given=len(given),
            )
            for ids in answers
        ]
        question = Question.of_rows(rows)
        assert question is not None, "rows of one context"
        return question
