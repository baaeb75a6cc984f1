"""Masked diffusion with a BERT of transformers (MDLM: Sahoo et al., 2024, with the schedule alpha(t) = 1 - t).

In training a share t of the tokens of a sample is masked, t spread evenly over a batch; the loss is the cross entropy
of the masked tokens over t, per token of the sample: a bound of its negative log-likelihood. An answer of a given
length starts as that many masks; in at most ``PASSES`` passes the most certain predictions are drawn and kept. **Its
length has to be guessed**: one pass for every length of ``LENGTHS`` gives the mean log-probability of the most probable
token at its masks, and the length with the greatest one is filled.

b samples, s tokens
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

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
)
from data_utils.objective.packing import Sample
from data_utils.tokenizers.tokenizer import Tokenizer

LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 22, 27, 33, LONGEST)
PASSES = 10  # that fill an answer
LEAST = 0.02  # of t: smaller ones mask nothing in a short sample


class DiffusionRival(TransformersRival):
    """A BERT of GLM's size."""

    title = "masked diffusion"
    note = "guessed by certainty"

    def build(self, tokenizer: Tokenizer) -> nn.Module:
        from transformers import BertConfig, BertForMaskedLM

        experiment = self.experiment
        config = BertConfig(
            vocab_size=rows_for(tokenizer), hidden_size=experiment.hidden, num_hidden_layers=experiment.layers,
            num_attention_heads=max(1, experiment.hidden // 64), intermediate_size=4 * experiment.hidden,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            max_position_embeddings=experiment.seq_length, pad_token_id=tokenizer.special.pad,
        )  # fmt: skip
        return BertForMaskedLM(config)

    def collate(self, samples: Sequence[Sample], generator: random.Random, tokenizer: Tokenizer) -> dict[str, Tensor]:
        """Return ids, attention mask, labels with -100 where no mask is, and weights 1/t [b]."""
        special, offset, count = tokenizer.special, generator.random(), len(samples)
        rows, labels, weights = [], [], []
        for number, sample in enumerate(samples):
            share = LEAST + (1.0 - LEAST) * ((number + offset) / count)
            row = sample.tokens.tolist()
            hidden = [token != special.cls and generator.random() < share for token in row]
            rows.append([special.mask if hide else token for token, hide in zip(row, hidden)])
            labels.append([token if hide else -100 for token, hide in zip(row, hidden)])
            weights.append(1.0 / share)
        return inputs_of(rows, tokenizer) | {"labels": padded(labels, -100), "weights": torch.tensor(weights)}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        masked = batch["labels"] != -100
        losses = nn.functional.cross_entropy(
            masked_logits(model, batch["input_ids"], batch["attention_mask"], masked).float(),
            batch["labels"][masked],
            reduction="none",
        )
        weights = batch["weights"].unsqueeze(1).expand_as(masked)[masked]
        return (losses * weights).sum() / batch["attention_mask"].sum()

    def answers(self, model: nn.Module, tokenizer: Tokenizer) -> Answers:
        return DiffusionAnswers(model, tokenizer, self.experiment)


def masked_logits(model: Any, input_ids: Tensor, attention_mask: Tensor, places: Tensor) -> Tensor:
    """Return logits [n,v] of the n chosen ``places``, bool [b,s]; the others are not projected on the vocabulary."""
    return model.cls(model.bert(input_ids, attention_mask=attention_mask).last_hidden_state[places])


class DiffusionAnswers(TransformersAnswers):
    """A trained masked diffusion model."""

    def __init__(self, model: Any, tokenizer: Tokenizer, experiment: Experiment, *, known_length: bool = False) -> None:
        """``known_length``: answers get the length of what was there."""
        super().__init__(model, tokenizer, experiment)
        self.known_length = known_length
        self._lengths: dict[Blank, int] = {}  # guessed so far; no seed changes them

    def variants(self) -> dict[str, Answers]:
        """Return the same model that is told the length of every blank."""
        return {"given": DiffusionAnswers(self.model, self.tokenizer, self.experiment, known_length=True)}

    def _logits(self, blanks: Sequence[Blank], pieces: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the logits [masks of a piece, v] of every piece in its blank."""
        special = self.tokenizer.special
        rows = [[special.cls, *blank.before, *piece, *blank.after] for blank, piece in zip(blanks, pieces)]
        inputs = inputs_of(rows, self.tokenizer)
        logits = masked_logits(self.model, **inputs, places=inputs["input_ids"] == special.mask)
        logits[:, special.mask] = -torch.inf  # the process never ends in a mask
        return list(logits.split([list(piece).count(special.mask) for piece in pieces]))

    def length_of(self, blank: Blank) -> int:
        """Return the length that the model is most certain to fill, or what it is told."""
        if self.known_length:
            return len(blank.truth)
        if blank in self._lengths:
            return self._lengths[blank]
        pieces = [[self.tokenizer.special.mask] * length for length in LENGTHS]
        scores = [logits.log_softmax(-1).amax(-1).mean() for logits in self._logits([blank] * len(pieces), pieces)]
        self._lengths[blank] = LENGTHS[int(torch.stack(scores).argmax())]
        return self._lengths[blank]

    @torch.inference_mode()
    def answer(self, blanks: Sequence[Blank], *, seed: int) -> list[list[int]]:
        generator, mask = torch.Generator().manual_seed(seed), self.tokenizer.special.mask
        answers: list[list[int]] = []
        for batch in batches_of(blanks):
            pieces = [[mask] * self.length_of(blank) for blank in batch]
            for left in range(PASSES, 0, -1):
                open_ones = [number for number, piece in enumerate(pieces) if mask in piece]
                if not open_ones:
                    break
                found = self._logits([batch[n] for n in open_ones], [pieces[n] for n in open_ones])
                for number, logits in zip(open_ones, found):
                    masked = [place for place, token in enumerate(pieces[number]) if token == mask]
                    certain = logits.log_softmax(-1).amax(-1).topk(math.ceil(len(masked) / left)).indices
                    best = (logits[certain] / self.experiment.temperature).topk(self.experiment.top_k)
                    drawn = torch.multinomial(best.values.softmax(-1), 1, generator=generator)
                    for place, token in zip(certain.tolist(), best.indices.gather(1, drawn)[:, 0].tolist()):
                        pieces[number][masked[place]] = token
            answers += pieces
        return answers

    def losses(self, blanks: Sequence[Blank]) -> list[float] | None:
        """Return None: a bound for a known length is not comparable with a likelihood that includes the end."""
        return None
