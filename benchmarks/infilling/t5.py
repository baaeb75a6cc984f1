"""Span corruption with a T5 of transformers (Raffel et al., 2020, sections 3.1.4 and 3.3).

15 % of the tokens in spans of 3 on average are replaced by numbered sentinels; the decoder writes every sentinel and
what it stands for, and the sentinel behind the last one. An answer ends with the next sentinel.

b samples, s tokens
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.infilling.blanks import LONGEST, Blank
from benchmarks.infilling.training import (
    Answers,
    Experiment,
    TransformersAnswers,
    TransformersRival,
    batches_of,
    inputs_of,
    padded,
    rows_for,
    token_losses,
    until,
)
from data_utils.objective.packing import Sample
from data_utils.tokenizers.tokenizer import Tokenizer

NOISE, SPAN = 0.15, 3.0


def random_parts(total: int, count: int, generator: random.Random) -> list[int]:
    """Cut ``total`` into ``count`` parts of at least 1, every way being as likely as any other."""
    cuts = sorted(generator.sample(range(1, total), count - 1))
    return [end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True)]


def number_of_spans(length: int) -> tuple[int, int]:
    """Return how many tokens of a sample are removed, and in how many spans."""
    removed = min(max(round(length * NOISE), 1), length - 1)
    return removed, max(1, min(round(removed / SPAN), length - removed))


def corrupt(tokens: Sequence[int], generator: random.Random, *, first_sentinel: int) -> tuple[list[int], list[int]]:
    """Return what the encoder reads and what the decoder writes."""
    removed, count = number_of_spans(len(tokens))
    kept = random_parts(len(tokens) - removed, count, generator)
    gone = random_parts(removed, count, generator)
    source: list[int] = []
    target: list[int] = []
    place = 0
    for number, (before, length) in enumerate(zip(kept, gone, strict=True)):
        source += [*tokens[place : place + before], first_sentinel + number]
        target += [first_sentinel + number, *tokens[place + before : place + before + length]]
        place += before + length
    return source, [*target, first_sentinel + count]


class T5Rival(TransformersRival):
    """An encoder and a decoder of half as many layers each, 3 x hidden wide: as many parameters as GLM."""

    title = "T5 span corruption"
    note = "ends with the next sentinel"

    def __init__(self, experiment: Experiment) -> None:
        """Raise ValueError for an odd number of layers."""
        super().__init__(experiment)
        if experiment.layers % 2:
            raise ValueError(
                f"--layers {experiment.layers}: encoder and decoder of T5 get half of them each; give an even number"
            )

    def build(self, tokenizer: Tokenizer) -> nn.Module:
        from transformers import T5Config, T5ForConditionalGeneration

        hidden, special = self.experiment.hidden, tokenizer.special
        sentinels = number_of_spans(self.experiment.seq_length)[1] + 1
        config = T5Config(
            vocab_size=rows_for(tokenizer, sentinels), d_model=hidden, d_kv=64, num_heads=max(1, hidden // 64),
            d_ff=3 * hidden, num_layers=self.experiment.layers // 2, dropout_rate=0.0,
            pad_token_id=special.pad, eos_token_id=special.eop, decoder_start_token_id=special.sop,
        )  # fmt: skip
        return T5ForConditionalGeneration(config)

    def collate(self, samples: Sequence[Sample], generator: random.Random, tokenizer: Tokenizer) -> dict[str, Tensor]:
        rows = [corrupt(s.tokens.tolist(), generator, first_sentinel=tokenizer.num_tokens) for s in samples]
        return inputs_of([source for source, _ in rows], tokenizer) | {"labels": padded([t for _, t in rows], -100)}

    def answers(self, model: nn.Module, tokenizer: Tokenizer) -> Answers:
        return T5Answers(model, tokenizer, self.experiment)


class T5Answers(TransformersAnswers):
    """A trained T5."""

    @property
    def first(self) -> int:
        """Return the sentinel of the blank."""
        return self.tokenizer.num_tokens

    def _inputs(self, blanks: Sequence[Blank]) -> dict[str, Tensor]:
        return inputs_of(
            [[self.tokenizer.special.cls, *b.before, self.first, *b.after] for b in blanks], self.tokenizer
        )

    @torch.inference_mode()
    def answer(self, blanks: Sequence[Blank], *, seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        special, answers = self.tokenizer.special, []
        for batch in batches_of(blanks):
            start = torch.tensor([[special.sop, self.first]] * len(batch))
            written = self.model.generate(
                **self._inputs(batch), decoder_input_ids=start, max_new_tokens=LONGEST, do_sample=True,
                temperature=self.experiment.temperature, top_k=self.experiment.top_k, eos_token_id=self.first + 1,
                pad_token_id=special.pad,
            )  # fmt: skip
            answers += [until(row[2:], (self.first + 1, special.pad)) for row in written.tolist()]
        return answers

    @torch.inference_mode()
    def losses(self, blanks: Sequence[Blank]) -> list[float] | None:
        sums = []
        for batch in batches_of(blanks):
            labels = padded([[self.first, *blank.truth, self.first + 1] for blank in batch], -100)
            logits = self.model(**self._inputs(batch), labels=labels).logits
            labels[:, 0] = -100  # the sentinel of the blank is given
            sums += token_losses(logits, labels)
        return sums
