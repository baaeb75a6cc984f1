"""From texts to questions to score: contexts with a blank, windows of documents.

s positions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from generation.inputs import BlankTokens, PromptTokenizer, shorten
from generation.scoring import Continuation, Question


@dataclass
class QuestionEncoder:
    """Lay out texts and what may follow them.

    Attributes:
        tokenizer: of the model.
        max_length: a context, its two command tokens and the longest continuation have at most that many tokens.
        block_positions: count the tokens of a continuation in the second row of positions.
        num_shortened: how many texts were cut so far.
    """

    tokenizer: PromptTokenizer
    max_length: int
    block_positions: bool = True
    num_shortened: int = 0

    def __post_init__(self) -> None:
        """Collect the command ids."""
        self.tokens = BlankTokens.of(self.tokenizer)
        self.enc, self.eos = self.tokenizer.command_id("ENC"), self.tokenizer.command_id("eos")

    def mask_id(self, name: str | None) -> int:
        """Return the id of the mask that is added: ``MASK``, ``sMASK`` or ``gMASK``; None is the one for long texts."""
        if name is None:
            name = "gMASK" if self.tokenizer.has_command("gMASK") else "MASK"
        if name not in ("MASK", "sMASK", "gMASK") or not self.tokenizer.has_command(name):
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
        ``unidirectional`` it is [ENC] [gMASK] <sop> context continuation. A context that is too long loses its
        beginning, or keeps the surroundings of its mask. Raises ValueError, naming ``place``, without continuations,
        for an empty one and for one that leaves no room for the context.
        """
        if not continuations:
            raise ValueError(f"{place}: no choices; give at least one")
        answers = [self.tokenizer.encode(text) for text in continuations]
        if not all(answers):
            number = [bool(ids) for ids in answers].index(False)
            raise ValueError(f"{place}: choice {number}, {continuations[number]!r}, has no tokens")
        longest = max(map(len, answers))
        room = self.max_length - longest - 2
        if room < 1:
            raise ValueError(
                f"{place}: a choice of {longest} tokens leaves no room for the context in {self.max_length}; shorten it"
            )
        ids = self.tokenizer.encode(context)
        if unidirectional:
            ids = self._shorten(ids, room, mask_id=None)
            return self._question([self.enc, self.mask_id("gMASK")], ids, answers, mask_index=1)
        masks = [index for index in ids if index in self.tokens.masks]
        chosen = masks[-1] if masks else self.mask_id(mask)
        ids = self._shorten(ids if masks else [*ids, chosen], room, mask_id=chosen)
        last = len(ids) - ids[::-1].index(chosen)  # counted from [ENC]
        return self._question([self.enc, *ids, self.eos], [], answers, mask_index=last)

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
            context = [self.enc, *window[:shown], mask]
            questions.append(self._question(context, window[shown:known], [predicted], mask_index=shown + 1))
        return questions

    def _shorten(self, ids: Sequence[int], room: int, *, mask_id: int | None) -> list[int]:
        self.num_shortened += len(ids) > room
        return shorten(ids, room, mask_id=mask_id)

    def _question(
        self, context: Sequence[int], given: Sequence[int], answers: Sequence[Sequence[int]], *, mask_index: int
    ) -> Question:
        """Return the question after ``context``, seen in both directions, and the ``given`` start of the piece."""
        num_given = len(given) + 1  # with the start token
        positions = self._positions(mask_index, 0, num_given)
        length = len(context)
        own = np.stack([np.arange(length), np.zeros(length, dtype=np.int64)])  # [2,s]
        return Question(
            input_ids=np.array([*context, self.tokens.start, *given], dtype=np.int64),
            position_ids=np.concatenate([own, positions], axis=1),
            prefix_length=length,
            continuations=tuple(
                Continuation(
                    input_ids=np.array(ids[:-1], dtype=np.int64),
                    position_ids=self._positions(mask_index, num_given, len(ids) - 1),
                    target_ids=np.array(ids, dtype=np.int64),
                )
                for ids in answers
            ),
        )

    def _positions(self, mask_index: int, first: int, count: int) -> np.ndarray:
        """Return the positions of tokens of a piece from number ``first`` on, int [2,count]."""
        blocks = np.arange(first + 1, first + count + 1) if self.block_positions else np.ones(count, dtype=np.int64)
        return np.stack([np.full(count, mask_index), blocks])
