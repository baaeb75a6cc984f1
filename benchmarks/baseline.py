"""The original's way of computing, written out plainly: what the benchmarks compare with.

Scores are kept and multiplied by the mask, every position is projected on the vocabulary, layers keep hidden states and
project them again for every new token, the optimizer walks over the parameters. The weights are those of our model, so
that results can be compared.

b batch, s new positions, m remembered positions, k = m + s keys, h hidden, n heads, d head dim, v vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generation.beam_search import BeamSearch
from model.config import GLMConfig

HIDDEN_SCORE = 65504.0  # subtracted where the mask is 0


def gelu(x: Tensor) -> Tensor:
    """Return the tanh form of GELU, operation by operation."""
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * x * (1.0 + 0.044715 * x * x)))


class BaselineGLM(nn.Module):
    """A GLM with 2-D positions that shares its weights by name with ``model.modeling_glm.GLMModel``."""

    def __init__(self, config: GLMConfig, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        self.weights = nn.ParameterDict(
            {name.replace(".", "/"): nn.Parameter(tensor.clone()) for name, tensor in weights.items()}
        )

    def weight(self, name: str) -> Tensor:
        """Return a parameter by its name in the checkpoint."""
        return self.weights[name.replace(".", "/")]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), 1e-5)

    def mask(self, prefix_lengths: Tensor, length: int, num_memory: int) -> Tensor:
        """Return the mask [b,1,s,k] of ones and zeros: a causal triangle, the prefix filled in, memory visible."""
        mask = torch.ones(length, length).tril().expand(len(prefix_lengths), -1, -1).clone()
        for row, prefix_length in enumerate(prefix_lengths.tolist()):
            mask[row, :, :prefix_length] = 1
        memory = torch.ones(len(prefix_lengths), length, num_memory)
        return torch.cat([memory, mask], dim=2).unsqueeze(1)

    def attention(self, name: str, hidden: Tensor, mask: Tensor, memory: Tensor | None) -> Tensor:
        """Return the attention output [b,s,h]; ``memory`` [b,m,h] is projected anew."""
        batch, length, size = hidden.shape
        source = hidden if memory is None else torch.cat([memory, hidden], dim=1)  # [b,k,h]
        mixed = self._linear(f"{name}.query_key_value", source)
        query, key, value = mixed.chunk(3, dim=-1)
        query = query[:, -length:]
        heads = self.config.num_attention_heads

        def split(x: Tensor) -> Tensor:
            return x.view(batch, x.size(1), heads, size // heads).permute(0, 2, 1, 3)

        query, key, value = split(query), split(key), split(value)
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(size // heads)  # [b,n,s,k]
        scores = torch.mul(scores, mask) + (-HIDDEN_SCORE * (1.0 - mask))
        probabilities = F.dropout(torch.softmax(scores, dim=-1), self.config.attention_dropout, self.training)
        context = torch.matmul(probabilities, value).permute(0, 2, 1, 3).contiguous().view(batch, length, size)
        return F.dropout(self._linear(f"{name}.dense", context), self.config.output_dropout, self.training)

    def hidden(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        prefix_lengths: Tensor,
        memories: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the final hidden states [b,s,h] and, for every layer, what it has read so far [b,m+s,h]."""
        hidden = F.embedding(input_ids, self.weight("word_embeddings.weight"))
        hidden = hidden + F.embedding(position_ids[:, 0], self.weight("transformer.position_embeddings.weight"))
        hidden = hidden + F.embedding(position_ids[:, 1], self.weight("transformer.block_position_embeddings.weight"))
        hidden = F.dropout(hidden, self.config.embedding_dropout, self.training)
        mask = self.mask(prefix_lengths, input_ids.size(1), memories[0].size(1) if memories else 0)
        kept = []
        for layer in range(self.config.num_layers):
            name = f"transformer.layers.{layer}"
            kept.append(torch.cat([memories[layer], hidden], dim=1).detach() if memories else hidden.detach())
            norm = f"{name}.input_layernorm"
            memory = self._norm(norm, memories[layer]) if memories else None
            hidden = hidden + self.attention(f"{name}.attention", self._norm(norm, hidden), mask, memory)
            inner = gelu(
                self._linear(f"{name}.mlp.dense_h_to_4h", self._norm(f"{name}.post_attention_layernorm", hidden))
            )
            output = self._linear(f"{name}.mlp.dense_4h_to_h", inner)
            hidden = hidden + F.dropout(output, self.config.output_dropout, self.training)
        return self._norm("transformer.final_layernorm", hidden), kept

    def forward(self, input_ids: Tensor, position_ids: Tensor, prefix_lengths: Tensor) -> Tensor:
        """Return the logits [b,s,v] of every position."""
        hidden, _ = self.hidden(input_ids, position_ids, prefix_lengths)
        return F.linear(hidden, self.weight("word_embeddings.weight"))

    def loss(
        self, input_ids: Tensor, position_ids: Tensor, prefix_lengths: Tensor, labels: Tensor, loss_mask: Tensor
    ) -> Tensor:
        """Return the mean loss over the positions of ``loss_mask``, computed at all of them."""
        logits = self(input_ids, position_ids, prefix_lengths).float()
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return (losses * loss_mask.flatten()).sum() / loss_mask.sum()


class BaselineDecoding:
    """Contexts of one length being continued: hidden states of all layers are remembered and projected again."""

    def __init__(self, model: BaselineGLM, context_ids: Tensor) -> None:
        """Run the contexts [b,s], each fully bidirectional."""
        self.model = model
        batch, length = context_ids.shape
        places = torch.arange(length)
        positions = torch.stack([places, torch.zeros_like(places)]).expand(batch, 2, length)
        _, self.memories = model.hidden(context_ids, positions, torch.full((batch,), length))

    def feed(self, tokens: Sequence[int], *, position: int, step: int) -> Tensor:
        """Feed one token per row, ``step`` counting from 1; return the next-token logits [b,v]."""
        positions = torch.tensor([[position], [step]]).expand(len(tokens), 2, 1)
        prefix_lengths = torch.zeros(len(tokens), dtype=torch.long)
        ids = torch.tensor(tokens).unsqueeze(1)
        hidden, self.memories = self.model.hidden(ids, positions, prefix_lengths, self.memories)
        return F.linear(hidden, self.model.weight("word_embeddings.weight"))[:, -1]

    def reorder(self, rows: Sequence[int]) -> None:
        """Make row i the present row ``rows[i]``."""
        self.memories = [memory[torch.tensor(rows)] for memory in self.memories]


@torch.no_grad()
def generate(
    model: BaselineGLM,
    context_ids: Tensor,
    *,
    start_id: int,
    position: int,
    num_tokens: int,
    banned_ids: Sequence[int],
) -> list[list[int]]:
    """Return ``num_tokens`` greedy tokens for each context [b,s], none of them of ``banned_ids``."""
    state = BaselineDecoding(model, context_ids)
    tokens = [start_id] * len(context_ids)
    continuations: list[list[int]] = [[] for _ in tokens]
    for step in range(1, num_tokens + 1):
        logits = state.feed(tokens, position=position, step=step)
        logits[:, list(banned_ids)] = -math.inf
        tokens = logits.argmax(dim=-1).tolist()
        for row, token in zip(continuations, tokens, strict=True):
            row.append(token)
    return continuations


@torch.no_grad()
def beam_search(
    model: BaselineGLM, context_ids: Tensor, *, start_id: int, position: int, search: BeamSearch
) -> list[tuple[int, ...]]:
    """Return the best continuation of each context [b,s]; ``search``, not begun yet, chooses among candidates."""
    num_beams = search.settings.num_beams
    state = BaselineDecoding(model, context_ids.repeat_interleave(num_beams, dim=0))
    tokens = [start_id] * (len(context_ids) * num_beams)
    while True:
        logits = state.feed(tokens, position=position, step=search.num_steps + 1)
        tokens, rows = search.step(logits)
        if search.finished:
            return [hypotheses[0].tokens for hypotheses in search.results()]
        state.reorder(rows)


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Clip by the global norm, one parameter after the other, and read the norm on the host."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = sum((float(gradient.norm()) ** 2 for gradient in gradients), 0.0) ** 0.5
    factor = max_norm / (total + 1e-6)
    if factor < 1:
        for gradient in gradients:
            gradient.mul_(factor)
    return total


def build_optimizer(model: nn.Module, *, lr: float) -> torch.optim.Optimizer:
    """Return AdamW that updates one tensor after the other."""
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, foreach=False, fused=False)
