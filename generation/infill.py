"""Fill the blanks of prompts, left to right, many prompts at once.

The way: text, ``inputs.py`` (ids, positions, blanks), ``state.py`` (cache), ``sampling.py`` or
``beam_search.py``, text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

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
from generation.sampling import DecodingSettings, check_undamaged, choose_tokens, draw_uniform
from generation.state import (
    TOKENS_AT_ONCE,
    DecodingState,
    StaticDecoder,
    StaticDecodingState,
    can_decode_statically,
)
from model.modeling_glm import GLMModel
from mpu.kernels.host_memory import send

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


def with_piece(inputs: PromptInputs, piece: Sequence[int]) -> PromptInputs:
    """Return the inputs with ``piece`` in place of their first mask; a mask that the model wrote is no blank."""
    index, ids, shift = inputs.blanks[0].index, inputs.input_ids, len(piece) - 1
    ids = (*ids[:index], *piece, *ids[index + 1 :])
    later = [blank.index + shift for blank in inputs.blanks[1:]]
    return replace(
        inputs, input_ids=ids, positions=tuple(range(len(ids))), blanks=tuple(Blank(place, place) for place in later)
    )


@dataclass(frozen=True)
class Token:
    """A token that was chosen, and what the model itself says of it: before temperature, filters and bans.

    Attributes:
        id: of the token.
        log_probability: its own.
        alternatives: ids and log-probabilities of the most probable tokens in its place, the best first.
    """

    id: int
    log_probability: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Candidate:
    """One of several answers to a blank.

    Attributes:
        ids: of its tokens, without the end token.
        tokens: the same with what the model says of them; those of a given prefix are not among them.
        log_probability: of all tokens after the prefix together, the end token included where it ``ended``.
        ended: the model ended it; otherwise it reached the greatest length, or was stopped.
    """

    ids: tuple[int, ...]
    tokens: tuple[Token, ...]
    log_probability: float
    ended: bool


class Row:
    """A prompt whose blanks are filled token by token.

    Attributes:
        pieces: the tokens of each blank so far; the last one is being written.
        done: nothing is left to fill.
        opened: the last token closed a blank, and another one is open.
        number: which of the samples of its blank it is. Number 0 goes on to the next blank.
    """

    def __init__(
        self,
        inputs: PromptInputs,
        generator: Generator,
        *,
        settings: DecodingSettings,
        special: SpecialTokens,
        given: Sequence[Sequence[int]] = (),
        prefix: Sequence[int] = (),
        number: int = 0,
    ) -> None:
        """Take a prompt; ``given`` fills its first blanks and the next one begins with ``prefix``."""
        self.inputs, self.generator, self.settings, self.special = inputs, generator, settings, special
        self.pieces = [list(piece) for piece in given]
        self.number = number
        self.done = self.opened = False
        self._open_next()
        self.pieces[-1] += prefix
        self.next_token = prefix[-1] if prefix else self.special.sop

    def _open_next(self) -> None:
        """Go on to the next blank, or be done."""
        if len(self.pieces) == len(self.inputs.blanks):
            self.done = True
            return
        self.pieces.append([])
        self.next_token = self.special.sop
        self.opened = True

    def follower(self, generator: Generator, *, number: int) -> Row:
        """Return a row that writes another sample of the same blank, from where this row is."""
        *given, prefix = self.pieces
        return Row(self.inputs, generator, settings=self.settings, special=self.special, given=given, prefix=prefix,
                    number=number)  # fmt: skip

    @property
    def blank(self) -> Blank:
        return self.inputs.blanks[len(self.pieces) - 1]

    @property
    def left(self) -> int:
        """Return how many tokens the open piece may still get."""
        return self.settings.max_length - len(self.pieces[-1])

    def accept(self, token: int) -> None:
        """Take the chosen token: an end token or the last allowed one closes the blank and is never fed."""
        piece = self.pieces[-1]
        self.opened = False
        if token not in self.special.ends:
            piece.append(token)
            self.next_token = token
            if self.left:
                return
        if self.number:
            self.done = True
        else:
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
                found = self._search_blank(self.context(first), blanks, settings, chosen)
            for number, candidates in zip(active, found):
                best = self.that_fits(candidates[0] if candidates else (), rows[number])
                pieces[number].append(list(best))
                last[number] = [best, *candidates[1:]]
                rows[number] = with_piece(rows[number], best)
        return [self._replaced(*row) for row in zip(inputs, rows, pieces, last)]

    def that_fits(self, piece: Sequence[int], inputs: PromptInputs) -> tuple[int, ...]:
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

    def context(
        self,
        inputs: Sequence[PromptInputs],
        pieces: Sequence[Sequence[Sequence[int]]] = (),
        *,
        settings: Sequence[DecodingSettings] = (),
    ) -> DecodingState:
        """Run the model over prompts; return the state that pieces are fed to.

        ``pieces`` [b] are those that a row has already, all but the last complete; the last token of the open one is
        not fed yet. A complete one has as many tokens as the ``settings`` of its row allow; the last of so many is
        never fed.
        """
        if self.decoder is not None:
            state: DecodingState = self.decoder.state(inputs, pad_id=self.special.pad)
        else:
            state = DecodingState(self.model, inputs, num_tokens=self.tokenizer.num_tokens, pad_id=self.special.pad)
        tokens: list[list[int]] = [[] for _ in inputs]
        positions: list[list[tuple[int, int]]] = [[] for _ in inputs]
        for number, row_pieces in enumerate(pieces):
            *complete, last = row_pieces
            fed = [[self.special.sop, *piece[: settings[number].max_length - 1]] for piece in complete]
            if last:
                fed.append([self.special.sop, *last[:-1]])
            for blank, piece in zip(inputs[number].blanks, fed):
                tokens[number] += piece
                positions[number] += self._positions(blank, len(piece))
        if any(tokens):
            state.append(tokens, positions)
        return state

    def _sample(
        self, inputs: Sequence[PromptInputs], *, settings: DecodingSettings, generators: Sequence[Generator]
    ) -> list[list[list[int]]]:
        """Fill every row at its own pace; rows that are done leave the batch."""
        rows = [
            Row(row, generator, settings=settings, special=self.special) for row, generator in zip(inputs, generators)
        ]
        batch = SampledRows(self)
        batch.join(rows)
        while batch.rows:
            batch.write()
        return [row.pieces for row in rows]

    def _beam_search(
        self, inputs: Sequence[PromptInputs], *, settings: DecodingSettings, generators: Sequence[Generator]
    ) -> list[list[list[int]]]:
        """Search blank after blank, all rows together; the winner of a blank is context of the next."""
        pieces: list[list[list[int]]] = [[] for _ in inputs]
        active, state = list(range(len(inputs))), self.context(inputs)
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
        length = state.length
        search = SearchedBlanks(self, state, blanks, settings=settings, generators=generators)
        while not search.finished:
            search.step()
        state.reorder(range(0, len(blanks) * settings.num_beams, settings.num_beams))
        state.crop(length)
        return [[candidate.ids for candidate in search.results(number)] for number in range(len(blanks))]

    def _positions(self, blank: Blank, length: int) -> list[tuple[int, int]]:
        return [blank.position_of(step, block_positions=self.block_positions) for step in range(length)]


def _told(logits: Tensor, rows: Sequence[int], tokens: Sequence[int], *, count: int) -> list[Token]:
    """Return what the model says of ``tokens``, each of one of the ``rows`` of ``logits`` [b,v], with one wait for it.

    ``count`` is how many of the most probable tokens in the place of each are told of.
    """
    log_probabilities = logits.log_softmax(dim=-1)
    places = send(torch.tensor([list(rows), list(tokens)]), logits.device)
    values, ids = log_probabilities.topk(min(count, logits.size(-1)), dim=-1)
    own = log_probabilities[places[0], places[1]].unsqueeze(1)
    # exact in double precision
    numbers = torch.cat([part.double() for part in (own, values[places[0]], ids[places[0]])], dim=1).tolist()
    width = values.size(1)
    return [
        Token(token, row[0], tuple(zip(map(int, row[width + 1 :]), row[1 : width + 1])))
        for token, row in zip(tokens, numbers)
    ]


class SampledRows:
    """Rows that get a token each with every call of the model, at their own pace; rows come and leave between calls.

    What a row draws does not depend on the others: prompts, settings and lengths of one batch may differ.
    """

    def __init__(
        self,
        filler: BlankFiller,
        *,
        num_alternatives: int = 0,
        followers: Callable[[Row], Sequence[Row]] = lambda row: (),
    ) -> None:
        """Start without rows.

        ``num_alternatives`` is how many tokens ``step`` tells of beside each one that it chose. ``followers`` returns
        the rows that join one that has opened a blank, from where it is.
        """
        self.filler = filler
        self.num_alternatives = num_alternatives
        self.followers = followers
        self.rows: list[Row] = []
        self.state: DecodingState | None = None

    def join(self, rows: Sequence[Row]) -> None:
        """Run the model over the prompts of new rows, and what is given of their pieces, and take them in."""
        state = self.filler.context(
            [row.inputs for row in rows], [row.pieces for row in rows], settings=[row.settings for row in rows]
        )
        if self.rows:
            assert self.state is not None, "made with the first rows"
            self.state.join(state)
        else:
            self.state = state
        self.rows = [*self.rows, *rows]
        self._go_on(opened=rows)

    def step(self) -> list[Token]:
        """Choose a token for every row; return what the model says of each, where alternatives are asked for.

        Rows that are done leave the batch afterwards.
        """
        rows, state = self.rows, self.state
        assert state is not None, "made with the first rows"
        block_positions = self.filler.block_positions
        logits = state.feed(
            [row.next_token for row in rows],
            [row.blank.position_of(len(row.pieces[-1]), block_positions=block_positions) for row in rows],
        )
        tokens = [0] * len(rows)
        for settings in dict.fromkeys(row.settings for row in rows):
            numbers = [number for number, row in enumerate(rows) if row.settings == settings]
            chosen = choose_tokens(
                logits
                if len(numbers) == len(rows)
                else logits.index_select(0, send(torch.tensor(numbers), logits.device)),
                [rows[number].pieces[-1] for number in numbers],
                settings=settings,
                end_ids=self.filler.special.ends,
                generators=[rows[number].generator for number in numbers],
            )
            for number, token in zip(numbers, chosen):
                tokens[number] = token
        told = []
        if self.num_alternatives:
            told = _told(logits, range(len(rows)), tokens, count=self.num_alternatives)
        for row, token in zip(rows, tokens):
            row.accept(token)
        self._go_on(opened=[row for row in rows if row.opened])
        return told

    def write(self) -> None:
        """Choose several tokens for every row where steps of fixed shapes do it by themselves; otherwise one."""
        rows, state, settings = self.rows, self.state, self.rows[0].settings
        alike = all(row.settings == settings for row in rows) and not self.num_alternatives
        if not (isinstance(state, StaticDecodingState) and alike and settings.no_repeat_ngram_size == 0):
            self.step()
            return
        block_positions, left = self.filler.block_positions, [row.left for row in rows]
        count = min(TOKENS_AT_ONCE, max(left))
        before = [row.generator.get_state() for row in rows]
        written = state.write(
            [row.next_token for row in rows],
            [row.blank.position_of(len(row.pieces[-1]), block_positions=block_positions) for row in rows],
            left=left,
            settings=settings,
            end_ids=self.filler.special.ends,
            block_positions=block_positions,
            uniform=None if settings.top_k == 1 else draw_uniform([row.generator for row in rows], count),
        )
        for row, generator_state, tokens in zip(rows, before, written):
            check_undamaged(tokens)
            if len(tokens) < count and settings.top_k != 1:  # it has drawn no more than it needed
                row.generator.set_state(generator_state)
                draw_uniform([row.generator], len(tokens))
            for token in tokens:
                row.accept(token)
        self._go_on(opened=[row for row in rows if row.opened])

    def drop(self, rows: Collection[Row]) -> None:
        """Go on without some rows."""
        for row in rows:
            row.done = True
        self._go_on(opened=())

    def _go_on(self, *, opened: Collection[Row]) -> None:
        """Let rows that are done leave, and the followers of those that have ``opened`` a blank come."""
        kept: list[Row] = []
        sources: list[int] = []
        for number, row in enumerate(self.rows):
            family = [] if row.done else [row, *(self.followers(row) if row in opened else ())]
            kept += family
            sources += [number] * len(family)
        self.rows = kept
        if kept:
            assert self.state is not None, "made with the first rows"
            self.state.reorder(sources)
        else:
            self.state = None


class SearchedBlanks:
    """A beam search for one blank of each of several prompts, a call of the model at a time."""

    def __init__(
        self,
        filler: BlankFiller,
        state: DecodingState,
        blanks: Sequence[Blank],
        *,
        settings: DecodingSettings,
        generators: Sequence[Generator] = (),
        prefixes: Sequence[Sequence[int]] = (),
        num_alternatives: int = 0,
    ) -> None:
        """Start with a row of ``state`` per blank, which has seen its prefix but for the last token of it.

        All ``prefixes``, with which the pieces begin, have one length. ``num_alternatives`` is as for ``SampledRows``.
        """
        self.filler, self.state, self.settings = filler, state, settings
        self.num_alternatives = num_alternatives
        self.length = state.length
        self.search = BeamSearch(
            len(blanks),
            settings=replace(settings, top_k=0, top_p=0.0),  # the interactive original has no filters here
            end_ids=filler.special.ends,
            pad_id=filler.special.pad,
            start_length=1,  # it counts the start token
            generators=generators if settings.draw_candidates else (),
            prefixes=prefixes,
        )
        num_beams, step = settings.num_beams, self.search.num_steps
        self.rows = [blank for blank in blanks for _ in range(num_beams)]
        self.numbers = list(range(len(blanks)))  # of the blanks that are still searched
        self.traces: list[dict[tuple[int, ...], tuple[Token, ...]]] = [
            {example.beams[0]: ()} for example in self.search.examples
        ]
        first = state.feed(
            [prefix[-1] for prefix in prefixes] if step else [filler.special.sop] * len(blanks),
            [blank.position_of(step, block_positions=filler.block_positions) for blank in blanks],
        )
        self.logits = first.repeat_interleave(num_beams, dim=0)
        state.reorder([row for row in range(len(blanks)) for _ in range(num_beams)])

    @property
    def finished(self) -> bool:
        """Tell whether nothing is left to search."""
        return self.search.finished

    def step(self) -> None:
        """Extend all beams by a token and run the model over them, unless that was the last one."""
        search = self.search
        before = [example.beams for example in search.active]
        tokens, sources = search.step(self.logits)
        if self.num_alternatives:
            self._trace(before, tokens, sources)
        if search.finished:
            return
        self.state.reorder(sources, shared=self.length)
        step, block_positions = search.num_steps, self.filler.block_positions
        positions = [blank.position_of(step, block_positions=block_positions) for blank in self.rows]
        self.logits = self.state.feed(tokens, positions)

    def _trace(self, before: Sequence[list[tuple[int, ...]]], tokens: Sequence[int], sources: Sequence[int]) -> None:
        """Remember what the model says of the token that each new beam ends with."""
        told = _told(self.logits, sources, tokens, count=self.num_alternatives)
        width = self.settings.num_beams
        for row, (token, source) in enumerate(zip(tokens, sources)):
            number, beam = divmod(row, width)
            example, traces = self.search.active[number], self.traces[self.numbers[number]]
            parent = before[number][source % width]
            if example.beams[beam] == (*parent, token):
                traces[example.beams[beam]] = (*traces[parent], told[row])

    def ahead(self, number: int) -> tuple[int, ...]:
        """Return the tokens of the best live beam of blank ``number``."""
        return self.search.examples[number].beams[0]

    def is_over(self, number: int) -> bool:
        """Tell whether nothing is left to search for blank ``number``."""
        return self.finished or self.search.examples[number].done

    def drop(self, numbers: Collection[int]) -> None:
        """Search no more for the blanks of these numbers."""
        for number in numbers:
            self.search.examples[number].done = True
        self.numbers = [number for number in self.numbers if number not in numbers]
        if numbers and self.numbers:
            kept = self.search.drop_done()
            self.rows = [self.rows[row] for row in kept]
            self.state.reorder(kept)
            self.logits = self.logits.index_select(0, send(torch.tensor(kept), self.logits.device))

    def results(self, number: int) -> list[Candidate]:
        """Return what is found for blank ``number``, the best first; tokens only with ``num_alternatives``."""
        power, traces = self.settings.length_penalty, self.traces[number]
        return [
            Candidate(
                ids=one.tokens,
                tokens=traces.get(one.tokens, ()),
                log_probability=one.score * (1 + len(one.tokens)) ** power,
                ended=len(one.tokens) < self.settings.max_length,
            )
            for one in self.search.result(number)
        ]
