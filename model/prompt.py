"""Continuous prompts: trained vectors in place of word embeddings (P-tuning), or before the keys of every layer.

T prompt length, h hidden, v vocabulary, l layers
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Ordinary words used to start from are drawn among the first rows of the vocabulary.
NUM_COMMON_WORDS = 5000


class PromptEncoder(nn.Module):
    """Produce T prompt vectors from a table, through an LSTM, an MLP or as they are."""

    lstm_head: nn.LSTM
    mlp_head: nn.Sequential

    def __init__(
        self,
        prompt_length: int,
        hidden_size: int,
        *,
        function: str = "lstm",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.spell_embeddings = nn.Embedding(prompt_length, hidden_size, **factory)
        _add_heads(self, function, hidden_size, factory)
        self.function = function

    def forward(self) -> Tensor:
        """Return the prompt vectors [1,T,h]."""
        return _through_heads(self, self.spell_embeddings.weight.unsqueeze(0))

    @torch.no_grad()
    def initialize_from_words(
        self, word_rows: Tensor, *, task_token_ids: Sequence[int] = (), generator: random.Random
    ) -> None:
        """Start the table from word embeddings (``--prompt-init``).

        Each row becomes the row of a random common word or, with ``task_token_ids`` (the verbalizer words), a random
        mixture of it and of one of those. ``word_rows`` [v,h] is the whole table, gathered over the model-parallel
        ranks; ``generator`` has to be in the same state on all of them. The order of draws is the original's.
        """
        common = min(NUM_COMMON_WORDS, word_rows.size(0))
        weight = self.spell_embeddings.weight
        for position in range(weight.size(0)):
            row = word_rows[generator.randrange(common)]
            if task_token_ids:
                task_row = word_rows[generator.choice(task_token_ids)]
                share = generator.random()
                row = share * row + (1.0 - share) * task_row
            weight[position] = row.to(weight)


class PrefixEncoder(nn.Module):
    """Produce T vectors for each layer (P-tuning v2), from a table, through an LSTM or an MLP that all layers share."""

    lstm_head: nn.LSTM
    mlp_head: nn.Sequential

    def __init__(
        self,
        length: int,
        num_layers: int,
        hidden_size: int,
        *,
        function: str = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(length, num_layers * hidden_size, **factory)
        _add_heads(self, function, hidden_size, factory)
        self.function, self.num_layers = function, num_layers

    def forward(self) -> Tensor:
        """Return the vectors of all layers [l,T,h]."""
        table = self.embedding.weight  # [T,l*h]
        return _through_heads(self, table.view(table.size(0), self.num_layers, -1).transpose(0, 1))


def _add_heads(module: PromptEncoder | PrefixEncoder, function: str, hidden_size: int, factory: dict) -> None:
    """Give ``module`` the layers that compute its vectors from its table."""
    if function == "lstm":
        module.lstm_head = nn.LSTM(
            hidden_size, hidden_size, num_layers=2, bidirectional=True, batch_first=True, **factory
        )
        module.mlp_head = _two_layers(2 * hidden_size, hidden_size, factory)
    elif function == "mlp":
        module.mlp_head = _two_layers(hidden_size, hidden_size, factory)
    elif function != "none":
        raise ValueError(f"prompt function {function!r} is unknown; choose one of lstm, mlp, none")


def _through_heads(module: PromptEncoder | PrefixEncoder, vectors: Tensor) -> Tensor:
    """Return what the layers make of ``vectors`` [b,T,h]."""
    if module.function == "lstm":
        vectors, _ = module.lstm_head(vectors)  # [b,T,2h]
    return vectors if module.function == "none" else module.mlp_head(vectors)


def _two_layers(in_features: int, hidden_size: int, factory: dict) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_features, hidden_size, **factory), nn.ReLU(), nn.Linear(hidden_size, hidden_size, **factory)
    )


def replace_embeddings(embeddings: Tensor, prompts: Tensor, prompt_positions: Tensor) -> Tensor:
    """Return ``embeddings`` [b,s,h] with the rows at ``prompt_positions`` [b,T] replaced by ``prompts`` [1,T,h]."""
    rows = torch.arange(embeddings.size(0), device=embeddings.device).unsqueeze(1)  # [b,1]
    values = prompts.to(embeddings.dtype).expand(embeddings.size(0), -1, -1)
    return embeddings.index_put((rows, prompt_positions), values)
