"""Write targets by beam search and fill blanks greedily, many texts at once, with a cache.

The context of a text is run once, however many beams or blanks there are. Texts of different lengths share a batch:
padding is hidden, so that a text's result does not depend on the others. With ``visible_padding`` the source is padded
to its full length and everything sees it, as in the original.

b texts, n beams, v vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Generator

from data_utils.tokenizers.command_tokens import SpecialTokens
from data_utils.tokenizers.tokenizer import Tokenizer
from generation.beam_search import BeamSearch, Hypothesis
from generation.inputs import PromptInputs
from generation.sampling import DecodingSettings, process_scores
from generation.state import DecodingState
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from mpu.mappings import run_shared
from tasks.seq2seq.samples import Seq2SeqSample

Result = TypeVar("Result")


class FilledText(NamedTuple):
    """A source with its blanks filled, without padding, and what fills each of them."""

    ids: list[int]
    pieces: list[list[int]]


class TargetDecoder:
    """Write targets, or fill blanks, with a model in evaluation mode.

    ``settings.max_length`` is that of a target, or of all blanks of a text together. Without ``block_positions`` the
    second position of every token of a target is 1.
    """

    def __init__(
        self,
        model: GLMModel,
        tokenizer: Tokenizer,
        *,
        settings: DecodingSettings,
        block_positions: bool = True,
        visible_padding: bool = False,
    ) -> None:
        positions = model.config.max_position_embeddings
        assert settings.max_length <= positions or not block_positions, (settings.max_length, positions)
        self.model = model
        self.tokenizer = tokenizer
        self.special = tokenizer.special
        self.settings = settings
        self.block_positions = block_positions
        self.visible_padding = visible_padding

    def search(
        self, samples: Sequence[Seq2SeqSample], *, generators: Sequence[Generator] = ()
    ) -> list[list[Hypothesis]]:
        """Return the hypotheses for every sample, best first.

        ``generators`` (CPU, one per sample) are needed only to draw candidates.
        """
        settings, special = self.settings, self.special
        search = BeamSearch(
            len(samples), settings=settings, end_ids=(special.eop,), pad_id=special.pad, generators=generators
        )
        masks = [int(sample.position_ids[0, sample.prefix_length]) for sample in samples]
        state = self._context(samples)
        source_length = state.length
        logits = state.feed([special.sop] * len(samples), [(mask, 1) for mask in masks])
        rows = [row for row in range(len(samples)) for _ in range(settings.num_beams)]
        logits = logits.repeat_interleave(settings.num_beams, dim=0)  # [b*n,v]
        state.reorder(rows)
        while True:
            next_tokens, source_rows = search.step(logits)
            if search.finished:
                return search.results()
            kept = search.drop_done()
            rows = [rows[row] for row in kept]
            state.reorder([source_rows[row] for row in kept], shared=source_length)
            block = search.num_steps + 1 if self.block_positions else 1
            logits = state.feed([next_tokens[row] for row in kept], [(masks[row], block) for row in rows])

    def fill_blanks(self, samples: Sequence[Seq2SeqSample]) -> list[FilledText]:
        """Fill the blanks of every source greedily, left to right.

        All blanks of a text share ``max_length`` steps; one that gets none stays empty. Minimum length and n-grams
        count over everything generated for a text, start tokens of later blanks included.
        """
        settings, special = self.settings, self.special
        texts = [_BlankText(sample, special=special) for sample in samples]
        active = [text for text in texts if text.blanks]
        if active:
            state = self._context([text.sample for text in active])
        for _ in range(settings.max_length):
            if not active:
                break
            positions = [(text.blanks[text.current], text.block if self.block_positions else 1) for text in active]
            scores = process_scores(
                state.feed([text.next_token for text in active], positions),
                [text.generated for text in active],
                end_ids=(special.eop,),
                min_length=settings.min_length,
                no_repeat_ngram_size=settings.no_repeat_ngram_size,
            )
            for text, token in zip(active, scores.argmax(dim=-1).tolist(), strict=True):
                text.accept(token)
            kept = [number for number, text in enumerate(active) if not text.done]
            if kept:
                state.reorder(kept)
            active = [active[number] for number in kept]
        return [text.filled() for text in texts]

    def _context(self, samples: Sequence[Seq2SeqSample]) -> DecodingState:
        """Run the sources, each of which sees all of itself."""
        inputs = []
        for sample in samples:
            length = sample.prefix_length if self.visible_padding else sample.context_length
            positions = sample.position_ids[0, :length].tolist()
            inputs.append(PromptInputs("", tuple(sample.input_ids[:length].tolist()), tuple(positions), ()))
        return DecodingState(self.model, inputs, num_tokens=self.tokenizer.num_tokens, pad_id=self.special.pad)


class _BlankText:
    """A text whose blanks are filled token by token."""

    def __init__(self, sample: Seq2SeqSample, *, special: SpecialTokens) -> None:
        self.sample = sample
        self.special = special
        self.blanks = sample.mask_positions
        self.pieces: list[list[int]] = [[]]
        self.generated: list[int] = []
        self.next_token = special.sop
        self.block = 1  # block position of the next token
        self.done = False

    @property
    def current(self) -> int:
        """Return the number of the blank that is being filled."""
        return len(self.pieces) - 1

    def accept(self, token: int) -> None:
        """Take the chosen token; an end token goes on to the next blank, whose start token takes its place."""
        if token != self.special.eop:
            self.pieces[-1].append(token)
            self.block += 1
        elif len(self.pieces) < len(self.blanks):
            self.pieces.append([])
            token, self.block = self.special.sop, 1
        else:
            self.done = True
        self.generated.append(token)
        self.next_token = token

    def filled(self) -> FilledText:
        """Return the source with each blank replaced by its piece; a blank without a piece vanishes."""
        pieces = self.pieces[: len(self.blanks)] + [[]] * (len(self.blanks) - len(self.pieces))
        by_index = dict(zip(self.blanks, pieces, strict=True))
        ids: list[int] = []
        for index, token in enumerate(self.sample.input_ids[: self.sample.context_length].tolist()):
            ids += by_index.get(index, [token])
        return FilledText([token for token in ids if token != self.special.pad], pieces)


def decode_shared(
    lengths: Sequence[int],
    decode: Callable[[Sequence[int]], Sequence[Result]],
    *,
    batch_size: int,
    topology: ParallelTopology,
) -> list[Result]:
    """Return what ``decode`` makes of every text, in their order, on every rank.

    ``decode`` is given the numbers of at most ``batch_size`` texts of similar length, of which the data ranks share the
    batches. Every rank has to call it.
    """
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    with torch.inference_mode():
        return run_shared(batches, decode, topology=topology)
