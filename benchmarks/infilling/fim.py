"""Filling in the middle with a causal model: a GPT-2 of transformers (Bavarian et al., 2022).

Nine of ten samples are cut at two random places and rearranged as prefix, suffix, middle; everything is predicted, as
in the paper. An answer is what follows the middle's start token, up to the end token.

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

RATE = 0.9
ADDED = 3  # tokens of a rearranged sample: before the suffix, before the middle, at the end


def question(before: Sequence[int], after: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return a prompt: [CLS] prefix [SEP] suffix <sop>; the middle ends with <eop>."""
    special = tokenizer.special
    return [special.cls, *before, special.sep, *after, special.sop]


class FimRival(TransformersRival):
    """A GPT-2 of GLM's size."""

    title = "causal, fill in the middle"
    note = "ends with a token"

    def build(self, tokenizer: Tokenizer) -> nn.Module:
        from transformers import GPT2Config, GPT2LMHeadModel

        experiment, special = self.experiment, tokenizer.special
        config = GPT2Config(
            vocab_size=rows_for(tokenizer), n_positions=experiment.seq_length + ADDED, n_embd=experiment.hidden,
            n_layer=experiment.layers, n_head=max(1, experiment.hidden // 64), resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=special.cls, eos_token_id=special.eop, pad_token_id=special.pad,
        )  # fmt: skip
        return GPT2LMHeadModel(config)

    def collate(self, samples: Sequence[Sample], generator: random.Random, tokenizer: Tokenizer) -> dict[str, Tensor]:
        rows = []
        for sample in samples:
            row = sample.tokens.tolist()
            if generator.random() < RATE:
                first, second = sorted(generator.randint(1, len(row)) for _ in range(2))
                prompt = question(row[1:first], row[second:], tokenizer)
                row = [*prompt, *row[first:second], tokenizer.special.eop]
            rows.append(row)
        return inputs_of(rows, tokenizer) | {"labels": padded(rows, -100)}

    def answers(self, model: nn.Module, tokenizer: Tokenizer) -> Answers:
        return FimAnswers(model, tokenizer, self.experiment)


class FimAnswers(TransformersAnswers):
    """A trained GPT-2."""

    def _prompt(self, blank: Blank) -> list[int]:
        return question(blank.before, blank.after, self.tokenizer)

    @torch.inference_mode()
    def answer(self, blanks: Sequence[Blank], *, seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        special, answers = self.tokenizer.special, []
        for batch in batches_of(blanks):
            inputs = inputs_of([self._prompt(blank) for blank in batch], self.tokenizer, left=True)
            written = self.model.generate(
                **inputs, max_new_tokens=LONGEST, do_sample=True, temperature=self.experiment.temperature,
                top_k=self.experiment.top_k, eos_token_id=special.eop, pad_token_id=special.pad,
            )  # fmt: skip
            width = inputs["input_ids"].size(1)
            answers += [until(row[width:], special.ends) for row in written.tolist()]
        return answers

    @torch.inference_mode()
    def losses(self, blanks: Sequence[Blank]) -> list[float] | None:
        sums = []
        for batch in batches_of(blanks):
            prompts = [self._prompt(blank) for blank in batch]
            pieces = [[*blank.truth, self.tokenizer.special.eop] for blank in batch]
            inputs = inputs_of([[*p, *piece] for p, piece in zip(prompts, pieces)], self.tokenizer)
            labels = padded([[-100] * len(p) + piece for p, piece in zip(prompts, pieces)], -100)
            sums += token_losses(self.model(**inputs).logits[:, :-1], labels[:, 1:])
        return sums
