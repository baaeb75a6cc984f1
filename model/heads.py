"""Heads that score answers or classify with a GLM.

b batch, c choices, s sequence, r positions of an answer, h hidden, v vocabulary

Inputs may carry a choice dimension after the batch: [b,c,...]. It is folded into the batch, and the scores come back
as [b,c]. With ``shared_rows`` the model runs on rows that several samples (or choices) share; the scores are the same
(``model/shared_rows.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.modeling_glm import GLMModel
from model.shared_rows import states_at
from mpu.kernels.host_memory import send
from mpu.masks import PrefixMask
from mpu.random import Dropout

POOL_TOKENS = ("start", "pad", "cls")
MODEL_PREFIX = "model."


class _TransparentHead(nn.Module):
    """A head without weights: its state dict is that of the language model inside, without a prefix.

    State dicts whose language-model keys carry the prefix ``model.`` load as well.
    """

    def __init__(self, model: GLMModel) -> None:
        super().__init__()
        self.model = model
        self.register_state_dict_post_hook(_drop_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)


def _drop_prefix(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict) -> None:
    for name in [name for name in state_dict if name.startswith(prefix + MODEL_PREFIX)]:
        state_dict[prefix + name.removeprefix(prefix + MODEL_PREFIX)] = state_dict.pop(name)


def _add_prefix(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in [name for name in state_dict if name.startswith(prefix)]:
        if not name.startswith(prefix + MODEL_PREFIX):
            state_dict[prefix + MODEL_PREFIX + name.removeprefix(prefix)] = state_dict.pop(name)


class _MultiTokenHead(_TransparentHead):
    """A head that scores answers of several tokens by their log-probability."""

    def __init__(self, model: GLMModel, *, length_penalty: float = 0.0, take_softmax: bool = True) -> None:
        super().__init__(model)
        self.length_penalty = length_penalty
        self.take_softmax = take_softmax

    def score(self, states: Tensor, targets: tuple[Tensor, ...], target_ids: Tensor, loss_mask: Tensor) -> Tensor:
        """Return the weighted sum [b] of the targets' (log-softmax) logits, divided by length ** penalty.

        ``targets`` are the rows and columns where ``loss_mask`` [b,s] is not 0, ``states`` [targets,h] those that stand
        there; ``target_ids`` [b,s]. A mask on the host spares a wait for the device.
        """
        rows, columns = (send(places, target_ids.device) for places in targets)
        logits = self.model.project(states).float()
        token_scores = logits.gather(1, target_ids[rows, columns].unsqueeze(1)).squeeze(1)
        if self.take_softmax:
            token_scores = token_scores - logits.logsumexp(dim=-1)
        weights = send(loss_mask[targets].to(token_scores.dtype), rows.device)
        scores = token_scores.new_zeros(len(loss_mask)).index_add(0, rows, token_scores * weights)
        if self.length_penalty > 0.0:
            lengths = send(loss_mask.sum(dim=-1).to(scores.dtype), scores.device)
            scores = scores / lengths**self.length_penalty
        return scores


class MultiTokenCloze(_MultiTokenHead):
    """Score answers of several tokens, each in a row of its own."""

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor,
        target_ids: Tensor | None = None,
        loss_mask: Tensor | None = None,
        *,
        prompt_positions: Tensor | None = None,
        shared_rows: Tensor | None = None,
        shared_starts: Tensor | None = None,
    ) -> Tensor:
        """Return the scores [b] or [b,c] of ``target_ids`` [...,s], which stand at their own positions (no shift).

        ``loss_mask`` [...,s] weights the positions. Without targets the result is the model's logits [b,s,v], or
        [b*c,s,v] with choices.
        """
        leading = input_ids.shape[:-1]
        input_ids, position_ids, attention_mask, prompt_positions = _fold_choices(
            input_ids, position_ids, attention_mask, prompt_positions
        )
        if target_ids is None:
            return self.model(input_ids, position_ids, attention_mask, prompt_positions=prompt_positions)
        assert loss_mask is not None, "targets need a loss_mask"
        target_ids, loss_mask = target_ids.flatten(0, -2), loss_mask.flatten(0, -2)  # [b*c,s]
        targets = loss_mask.nonzero(as_tuple=True)
        states = states_at(
            self.model,
            input_ids,
            position_ids,
            attention_mask,
            rows=targets[0],
            columns=targets[1],
            prompt_positions=prompt_positions,
            shared_rows=shared_rows,
            shared_starts=shared_starts,
        )
        return self.score(states, targets, target_ids, loss_mask).view(leading)


class MultiTokenClozeFast(_MultiTokenHead):
    """Score several answers to one context, which is encoded once."""

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        *,
        answer_ids: Tensor,
        answer_position_ids: Tensor,
        answer_prefix_lengths: Tensor,
        target_ids: Tensor,
        loss_mask: Tensor,
    ) -> Tensor:
        """Return the scores [b,c].

        The context: ``input_ids`` [b,s], ``position_ids`` [b,2,s], ``attention_mask`` [b] of prefix lengths. The
        answers: ``answer_ids`` [b,c,r], ``answer_position_ids`` [b,c,2,r], ``answer_prefix_lengths`` [b,c] (columns of
        the context below it are visible), ``target_ids`` and ``loss_mask`` [b,c,r].
        """
        batch_size, num_choices, answer_length = answer_ids.shape
        context_length = input_ids.size(1)
        cache = self.model.new_cache(
            batch_size, context_length + answer_length, window=0, differentiable=torch.is_grad_enabled()
        )
        # The last layer has to store its keys and values, so that one query is enough.
        one = input_ids.new_zeros(batch_size, 1)
        self.model(input_ids, position_ids, attention_mask, cache=cache, output="hidden", query_positions=one)
        rows = torch.arange(batch_size, device=input_ids.device).repeat_interleave(num_choices)
        cache.reorder(rows)  # every choice gets its context
        columns = torch.arange(context_length, device=input_ids.device)
        context = columns < answer_prefix_lengths.reshape(-1, 1, 1, 1)  # [b*c,1,1,s]
        causal = columns.new_ones(answer_length, answer_length).tril().bool()
        mask = torch.cat(
            [
                context.expand(-1, -1, answer_length, -1),
                causal.expand(context.size(0), 1, -1, -1),
            ],
            dim=-1,
        )
        hidden = self.model(
            answer_ids.flatten(0, 1),
            answer_position_ids.flatten(0, 1),
            PrefixMask.matrix(mask),
            cache=cache,
            output="hidden",
        )
        loss_mask = loss_mask.flatten(0, 1)
        targets = loss_mask.nonzero(as_tuple=True)
        states = hidden[tuple(send(places, hidden.device) for places in targets)]
        return self.score(states, targets, target_ids.flatten(0, 1), loss_mask).view(batch_size, num_choices)


class SingleTokenCloze(_TransparentHead):
    """Score answers of one token at the first position of the answer part."""

    def __init__(self, model: GLMModel, *, take_softmax: bool = False) -> None:
        super().__init__(model)
        self.take_softmax = take_softmax

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor,
        target_ids: Tensor | None = None,
        *,
        prompt_positions: Tensor | None = None,
        shared_rows: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the scores [b,c] of ``target_ids`` [b,c] and the raw logits [b,v] they are taken from.

        ``attention_mask`` [b] are prefix lengths: the logits are read at that position. Without targets the result is
        the model's logits [b,s,v].
        """
        if target_ids is None:
            return self.model(input_ids, position_ids, attention_mask, prompt_positions=prompt_positions)
        prefix_lengths = _prefix_lengths_of(attention_mask, len(input_ids))
        states = states_at(
            self.model,
            input_ids,
            position_ids,
            attention_mask,
            rows=None,
            columns=prefix_lengths,
            prompt_positions=prompt_positions,
            shared_rows=shared_rows,
        )
        logits = self.model.project(states)  # [b,v]
        scores = torch.log_softmax(logits.float(), dim=-1) if self.take_softmax else logits
        return scores.gather(1, target_ids), logits


class SequenceClassification(nn.Module):
    """Classify a sequence, or score choices, from one hidden state."""

    def __init__(
        self, model: GLMModel, num_class: int, *, pool_token: str = "cls", dropout_probability: float = 0.1
    ) -> None:
        """Add a pooling and an output layer to ``model``; raise ValueError for an unknown ``pool_token``."""
        super().__init__()
        if pool_token not in POOL_TOKENS:
            raise ValueError(f"--pool-token is {pool_token!r}; choose one of {', '.join(POOL_TOKENS)}")
        self.pool_token = pool_token
        self.model = model
        weight = model.word_embeddings.weight
        hidden_size = model.config.hidden_size
        factory: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        self.pool_layer = nn.Linear(hidden_size, hidden_size, **factory)
        self.multichoice_dropout = Dropout(dropout_probability, fast=model.config.fast_dropout)
        self.multichoice_head = nn.Linear(hidden_size, num_class, **factory)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor,
        *,
        prompt_positions: Tensor | None = None,
        shared_rows: Tensor | None = None,
    ) -> Tensor:
        """Return the logits [b,classes], or [b,c] for inputs with a choice dimension (then there is one class).

        ``attention_mask`` holds prefix_lengths; the pooled state is the one at the prefix_length (``start``), before it
        (``pad``) or at position 0 (``cls``).
        """
        leading = input_ids.shape[:-1]
        input_ids, position_ids, attention_mask, prompt_positions = _fold_choices(
            input_ids, position_ids, attention_mask, prompt_positions
        )
        batch_size = len(input_ids)  # b*c
        if self.pool_token == "cls":
            positions = torch.zeros(batch_size, dtype=torch.long, device=input_ids.device)
        else:
            prefix_lengths = _prefix_lengths_of(attention_mask, batch_size)
            positions = prefix_lengths if self.pool_token == "start" else prefix_lengths - 1
        states = states_at(
            self.model,
            input_ids,
            position_ids,
            attention_mask,
            rows=None,
            columns=positions,
            prompt_positions=prompt_positions,
            shared_rows=shared_rows,
        )
        if not torch.is_autocast_enabled(states.device.type):
            states = states.to(self.pool_layer.weight.dtype)
        pooled = torch.tanh(self.pool_layer(states))
        logits = self.multichoice_head(self.multichoice_dropout(pooled))
        if len(leading) == 1:
            return logits
        if logits.size(-1) != 1:
            raise ValueError(f"inputs with a choice dimension need one class, the head has {logits.size(-1)}")
        return logits.view(leading)


def _fold_choices(
    input_ids: Tensor, position_ids: Tensor | None, attention_mask: Tensor, prompt_positions: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Fold the choice dimension of [b,c,...], where there is one, into the batch: [b*c,...]."""
    if input_ids.dim() == 2:
        return input_ids, position_ids, attention_mask, prompt_positions
    assert input_ids.dim() == 3, input_ids.shape
    return (
        input_ids.flatten(0, 1),
        None if position_ids is None else position_ids.flatten(0, 1),
        attention_mask.flatten(0, 1),  # prefix lengths [b,c] and matrices [b,c,1,s,k] alike
        None if prompt_positions is None else prompt_positions.flatten(0, 1),
    )


def _prefix_lengths_of(attention_mask: Tensor, batch_size: int) -> Tensor:
    """Return one prefix_length per row, int64 [b]; raise ValueError for a mask that holds none."""
    if attention_mask.dim() > 2 or attention_mask.numel() != batch_size:
        raise ValueError(
            f"this head reads positions from prefix_lengths [b], but attention_mask has shape "
            f"{list(attention_mask.shape)}"
        )
    return attention_mask.reshape(-1).long()
