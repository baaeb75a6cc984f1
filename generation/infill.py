"""Fill the blanks of prompts, left to right, many prompts at once.

The way: text, ``inputs.py`` (ids, positions, blanks), ``state.py`` (cache), ``sampling.py`` or
``beam_search.py``, text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Generator

from data_utils.tokenizers.command_tokens import SpecialTokens
from data_utils.tokenizers.tokenizer import Tokenizer
from files.reading import value_of
from generation.beam_search import BeamSearch
from generation.inputs import (
    Blank,
    PromptInputs,
    check_prompt_fits,
    encode_prompt,
    insert_answers,
    require_blank,
    texts_of,
)
from generation.sampling import DecodingSettings, choose_tokens
from generation.state import DecodingState, StaticDecoder, can_decode_statically
from model.modeling_glm import GLMModel

logger = logging.getLogger("glm")


@dataclass(frozen=True)
class FilledPrompt:
    """A prompt with its blanks filled.

    Attributes:
        inputs: what the model was given.
        pieces: the generated ids of each blank, without start and end tokens.
        answers: their texts.
        output_ids: start token and ids of all pieces, one after the other.
        output_text: the text of ``output_ids``, which the interactive program prints.
        text: the prompt with each mask replaced by its answer.
        alternatives: this text with every finished beam of the last blank, the best first; empty without beams.
    """

    inputs: PromptInputs
    pieces: tuple[tuple[int, ...], ...]
    answers: tuple[str, ...]
    output_ids: tuple[int, ...]
    output_text: str
    text: str
    alternatives: tuple[str, ...] = ()


def prompt_generator(seed: int, number: int) -> Generator:
    """Return the random generator of prompt ``number`` of a run: it does not depend on how prompts are batched."""
    state = np.random.SeedSequence([max(0, seed), number]).generate_state(1, np.uint64)[0]
    return Generator().manual_seed(int(state) >> 1)


def _with_piece(inputs: PromptInputs, piece: Sequence[int]) -> PromptInputs:
    """Return the inputs with ``piece`` in place of their first mask; a mask that the model wrote is no blank."""
    index, ids, shift = inputs.blanks[0].index, inputs.input_ids, len(piece) - 1
    ids = (*ids[:index], *piece, *ids[index + 1 :])
    later = [blank.index + shift for blank in inputs.blanks[1:]]
    return replace(
        inputs, input_ids=ids, positions=tuple(range(len(ids))), blanks=tuple(Blank(place, place) for place in later)
    )


class _Row:
    """A prompt whose blanks are filled token by token."""

    def __init__(self, inputs: PromptInputs, generator: Generator, *, special: SpecialTokens) -> None:
        self.inputs = inputs
        self.generator = generator
        self.special = special
        self.pieces: list[list[int]] = []
        self.done = False
        self._open_next()

    def _open_next(self) -> None:
        """Go on to the next blank, or be done."""
        if len(self.pieces) == len(self.inputs.blanks):
            self.done = True
            return
        self.pieces.append([])
        self.next_token = self.special.sop

    @property
    def blank(self) -> Blank:
        return self.inputs.blanks[len(self.pieces) - 1]

    def accept(self, token: int, *, max_length: int) -> None:
        """Take the chosen token: an end token or the last allowed one closes the blank and is never fed."""
        piece = self.pieces[-1]
        if token not in self.special.ends:
            piece.append(token)
            self.next_token = token
            if len(piece) < max_length:
                return
        self._open_next()


class BlankFiller:
    """Fill blanks with a model and its tokenizer.

    ``block_positions`` False is the ablation that counts the tokens of a piece in the first position row.
    ``static`` decodes by steps of fixed shapes (``state.py``): CUDA graphs on a GPU. None: on a GPU, where the
    model has such steps.
    """

    def __init__(
        self,
        model: GLMModel,
        tokenizer: Tokenizer,
        *,
        block_positions: bool = True,
        static: bool | None = None,
    ) -> None:
        """Take a model in evaluation mode. Raises ValueError when model and tokenizer cannot fill blanks together."""
        config = model.config
        if not config.block_position_encoding or config.relative_encoding:
            raise ValueError("filling blanks needs a model with 2-D positions: give --block-lm, not --transformer-xl")
        if tokenizer.num_tokens > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.num_tokens} tokens, the model a vocabulary of {config.vocab_size}; "
                "choose the tokenizer the model was trained with"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.block_positions = block_positions
        self.special = tokenizer.special
        if static is None:
            static = model.word_embeddings.weight.is_cuda and can_decode_statically(model)
        self.decoder = StaticDecoder(model, num_tokens=tokenizer.num_tokens) if static else None

    def encode(self, text: str, *, settings: DecodingSettings) -> PromptInputs:
        """Return the inputs for ``text``; raise ValueError when they do not fit the model's positions."""
        inputs = encode_prompt(
            text,
            tokenizer=self.tokenizer,
            max_length=settings.max_length if settings.fill == "append" else 0,
            block_positions=self.block_positions,
            fill=settings.fill,
        )
        check_prompt_fits(
            inputs,
            max_length=settings.max_length,
            max_position_embeddings=self.model.config.max_position_embeddings,
            block_positions=self.block_positions,
        )
        return inputs

    def fill(
        self,
        prompts: str | Sequence[str],
        *,
        settings: DecodingSettings,
        seed: int = 1234,
        batch_size: int = 8,
        numbers: Sequence[int] | None = None,
    ) -> list[FilledPrompt]:
        """Fill the blanks of every prompt (of one, for a text alone); prompts of similar length share a batch.

        ``numbers`` are those of the prompts in the whole run, which their random generators depend on (default: 0, 1,
        2 ...). Raises ValueError for a prompt without a blank or too long for the model, before anything is computed.
        """
        inputs = [self.encode(text, settings=settings) for text in texts_of(prompts, "prompts")]
        for row in inputs:
            require_blank(row, tokenizer=self.tokenizer)
        return self.fill_all(inputs, settings=settings, seed=seed, batch_size=batch_size, numbers=numbers)

    def fill_all(
        self,
        inputs: Sequence[PromptInputs],
        *,
        settings: DecodingSettings,
        seed: int,
        batch_size: int,
        numbers: Sequence[int] | None = None,
    ) -> list[FilledPrompt]:
        """Fill prompts that are encoded; see ``fill``."""
        options: dict[str, Any] = {"settings": settings, "seed": seed, "batch_size": batch_size, "numbers": numbers}
        results: dict[int, FilledPrompt] = {}
        for batch, filled in self.fill_batches(inputs, **options):
            results.update(zip(batch, filled))
        return [results[number] for number in range(len(inputs))]

    def fill_batches(
        self,
        inputs: Sequence[PromptInputs],
        *,
        settings: DecodingSettings,
        seed: int,
        batch_size: int,
        numbers: Sequence[int] | None = None,
    ) -> Iterator[tuple[list[int], list[FilledPrompt]]]:
        """Fill prompts that are encoded, in batches of similar length; give the numbers of each and what came of them.

        Raises ValueError for a seed or a batch size that is none.
        """
        value_of({"seed": seed}, "seed", int, place="filling")
        value_of({"batch_size": batch_size}, "batch_size", int, place="filling", at_least=1)
        order = sorted(range(len(inputs)), key=lambda number: len(inputs[number]))
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            generators = [prompt_generator(seed, numbers[n] if numbers else n) for n in batch]
            yield batch, self.fill_inputs([inputs[n] for n in batch], settings=settings, generators=generators)

    @torch.inference_mode()
    def fill_inputs(
        self, inputs: Sequence[PromptInputs], *, settings: DecodingSettings, generators: Sequence[Generator]
    ) -> list[FilledPrompt]:
        """Fill one batch, with a random generator per prompt. A prompt without a blank comes back as it is."""
        if settings.fill == "replace":
            return self._replace_blanks(inputs, settings=settings, generators=generators)
        pieces: list[list[list[int]]] = [[] for _ in inputs]
        with_blanks = [number for number, row in enumerate(inputs) if row.blanks]
        if with_blanks:
            search = self._sample if settings.num_beams == 1 else self._beam_search
            rows = [inputs[number] for number in with_blanks]
            filled = search(rows, settings=settings, generators=[generators[number] for number in with_blanks])
            for number, row_pieces in zip(with_blanks, filled):
                pieces[number] = row_pieces
        return [self._result(row, row_pieces) for row, row_pieces in zip(inputs, pieces)]

    def _replace_blanks(
        self, inputs: Sequence[PromptInputs], *, settings: DecodingSettings, generators: Sequence[Generator]
    ) -> list[FilledPrompt]:
        """Fill the first blank of every row, put the piece in its place, and so on: each sees what stands before it."""
        rows = list(inputs)
        pieces: list[list[list[int]]] = [[] for _ in rows]
        last: list[list[tuple[int, ...]]] = [[] for _ in rows]  # of the last blank, the best first
        while active := [number for number, row in enumerate(rows) if row.blanks]:
            first = [replace(rows[number], blanks=rows[number].blanks[:1]) for number in active]
            chosen = [generators[number] for number in active]
            if settings.num_beams == 1:
                found = [[tuple(piece)] for [piece] in self._sample(first, settings=settings, generators=chosen)]
            else:
                blanks = [row.blanks[0] for row in first]
                found = self._search_blank(self._context(first), blanks, settings, chosen)
            for number, candidates in zip(active, found):
                best = self._that_fits(candidates[0] if candidates else (), rows[number])
                pieces[number].append(list(best))
                last[number] = [best, *candidates[1:]]
                rows[number] = _with_piece(rows[number], best)
        return [self._replaced(*row) for row in zip(inputs, rows, pieces, last)]

    def _that_fits(self, piece: Sequence[int], inputs: PromptInputs) -> tuple[int, ...]:
        """Return as much of a piece as there are positions for where its mask is; a warning tells what is cut."""
        room = self.model.config.position_rows - len(inputs) + 1
        if len(piece) > room:
            logger.warning(f"the filled text is as long as the model's positions: {len(piece) - room} tokens are cut")
        return tuple(piece[:room])

    def _replaced(
        self,
        inputs: PromptInputs,
        filled: PromptInputs,
        pieces: list[list[int]],
        last: Sequence[tuple[int, ...]],
    ) -> FilledPrompt:
        answers = [self.tokenizer.decode(piece) for piece in pieces]
        texts = [
            insert_answers(inputs.text, [*answers[:-1], self.tokenizer.decode(piece)], tokenizer=self.tokenizer)
            for piece in last
        ]
        text = texts[0] if texts else inputs.text
        kept = tuple(map(tuple, pieces))
        return FilledPrompt(inputs, kept, tuple(answers), filled.input_ids, text, text, tuple(texts))

    def _result(self, inputs: PromptInputs, pieces: list[list[int]]) -> FilledPrompt:
        output_ids = [token for piece in pieces for token in (self.special.sop, *piece)]
        answers = [self.tokenizer.decode(piece) for piece in pieces]
        return FilledPrompt(
            inputs=inputs,
            pieces=tuple(map(tuple, pieces)),
            answers=tuple(answers),
            output_ids=tuple(output_ids),
            output_text=self.tokenizer.decode(output_ids),
            text=insert_answers(inputs.text, answers, tokenizer=self.tokenizer),
        )

    def _context(self, inputs: Sequence[PromptInputs]) -> DecodingState:
        if self.decoder is not None:
            return self.decoder.state(inputs, pad_id=self.special.pad)
        return DecodingState(self.model, inputs, num_tokens=self.tokenizer.num_tokens, pad_id=self.special.pad)

    def _sample(
        self, inputs: Sequence[PromptInputs], *, settings: DecodingSettings, generators: Sequence[Generator]
    ) -> list[list[list[int]]]:
        """Fill every row at its own pace, one token per row and call; rows that are done leave the batch."""
        rows = [_Row(row, generator, special=self.special) for row, generator in zip(inputs, generators)]
        active, state = rows, self._context(inputs)
        while active:
            logits = state.feed(
                [row.next_token for row in active],
                [row.blank.position_of(len(row.pieces[-1]), block_positions=self.block_positions) for row in active],
            )
            tokens = choose_tokens(
                logits,
                [row.pieces[-1] for row in active],
                settings=settings,
                end_ids=self.special.ends,
                generators=[row.generator for row in active],
            )
            for row, token in zip(active, tokens):
                row.accept(token, max_length=settings.max_length)
            kept = [number for number, row in enumerate(active) if not row.done]
            if kept:
                state.reorder(kept)
            active = [active[number] for number in kept]
        return [row.pieces for row in rows]

    def _beam_search(
        self, inputs: Sequence[PromptInputs], *, settings: DecodingSettings, generators: Sequence[Generator]
    ) -> list[list[list[int]]]:
        """Search blank after blank, all rows together; the winner of a blank is context of the next."""
        pieces: list[list[list[int]]] = [[] for _ in inputs]
        active, state = list(range(len(inputs))), self._context(inputs)
        while True:
            blanks = [inputs[number].blanks[len(pieces[number])] for number in active]
            found = self._search_blank(state, blanks, settings, [generators[number] for number in active])
            winners = [candidates[0] if candidates else () for candidates in found]
            for number, winner in zip(active, winners):
                pieces[number].append(list(winner))
            kept = [i for i, number in enumerate(active) if len(pieces[number]) < len(inputs[number].blanks)]
            if not kept:
                return pieces
            state.reorder(kept)
            active = [active[i] for i in kept]
            fed = [[self.special.sop, *winners[i][: settings.max_length - 1]] for i in kept]
            state.append(fed, [self._positions(blanks[i], len(row)) for i, row in zip(kept, fed)])

    def _search_blank(
        self,
        state: DecodingState,
        blanks: Sequence[Blank],
        settings: DecodingSettings,
        generators: Sequence[Generator],
    ) -> list[list[tuple[int, ...]]]:
        """Return the pieces found for one blank of each row, the best first; leave ``state`` as it was."""
        search = BeamSearch(
            len(blanks),
            settings=replace(settings, top_k=0, top_p=0.0),  # the interactive original has no filters here
            end_ids=self.special.ends,
            pad_id=self.special.pad,
            start_length=1,  # it counts the start token
            generators=generators if settings.draw_candidates else (),
        )
        length, num_beams = state.length, settings.num_beams
        rows = [row for row in range(len(blanks)) for _ in range(num_beams)]
        logits = state.feed(
            [self.special.sop] * len(blanks),
            [blank.position_of(0, block_positions=self.block_positions) for blank in blanks],
        ).repeat_interleave(num_beams, dim=0)
        state.reorder(rows)
        while True:
            tokens, source_rows = search.step(logits)
            if search.finished:
                break
            state.reorder(source_rows, shared=length)
            step = search.num_steps
            logits = state.feed(
                tokens, [blanks[row].position_of(step, block_positions=self.block_positions) for row in rows]
            )
        state.reorder(range(0, len(rows), num_beams))
        state.crop(length)
        return [[hypothesis.tokens for hypothesis in hypotheses] for hypotheses in search.results()]

    def _positions(self, blank: Blank, length: int) -> list[tuple[int, int]]:
        return [blank.position_of(step, block_positions=self.block_positions) for step in range(length)]
