"""Run a GLM on samples that share rows, and find the hidden states of each again (spec: platform 6).

b samples, s positions of a padded sample, r shared rows, w their width, h hidden
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.modeling_glm import GLMModel


@dataclass(frozen=True)
class SharedRows:
    """Where samples stand in rows that several of them share.

    Attributes:
        sources: int64 [r,w], the position among all b*s of the samples that stands there; -1 for padding.
        attention_mask: int64 [r,2,w], see ``PrefixMask.from_attention_mask``.
    """

    sources: Tensor
    attention_mask: Tensor

    @classmethod
    def of(cls, sources: Tensor, separators: Tensor, *, width: int) -> SharedRows:
        """Lay out samples of ``width`` positions, of which those before ``separators`` [b] are visible to all."""
        owners = sources.div(width, rounding_mode="floor")  # [r,w], -1 for padding
        visible = (sources >= 0) & (sources - owners * width < separators[owners])
        return cls(sources, torch.stack([owners + 1, visible], dim=1))

    def gather(self, values: Tensor) -> Tensor:
        """Return [r,w] of values [b,s], or [r,2,w] of values [b,2,s]; 0 stands in the padding."""
        lines = values.unsqueeze(1) if values.dim() == 2 else values
        flat = F.pad(lines.transpose(0, 1).flatten(1), (0, 1))  # [1 or 2,b*s+1]: -1 is the 0 at the end
        return flat[:, self.sources].transpose(0, 1).view(len(self.sources), *values.shape[1:-1], -1)

    def places(self, shape: tuple[int, int]) -> Tensor:
        """Return for every position of the samples [b,s] its place among r*w; 0 for those that are in no row."""
        size = shape[0] * shape[1]
        found = self.sources.new_zeros(size + 1)  # padding is put behind the end
        numbers = torch.arange(self.sources.numel(), device=found.device)
        return found.scatter(0, self.sources.flatten() % (size + 1), numbers)[:size].view(shape)


class HiddenStates(NamedTuple):
    """The hidden states of a batch, by row and column of its padded form."""

    states: Tensor  # [b,s,h], or [r,w,h] of shared rows
    places: Tensor | None  # [b,s], see ``SharedRows.places``; None where every sample has its own row

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return [n,h] at ``rows`` and ``columns`` [n] of the padded form."""
        if self.places is None:
            return self.states[rows, columns]
        return self.states.flatten(0, 1)[self.places[rows, columns]]


def hidden_states(
    model: GLMModel,
    input_ids: Tensor,
    position_ids: Tensor | None,
    attention_mask: Tensor,
    *,
    prompt_positions: Tensor | None = None,
    shared_rows: Tensor | None = None,
) -> HiddenStates:
    """Run ``model`` on samples [b,s], padded or, with ``shared_rows`` (``SharedRows.sources``), in rows they share.

    Raises:
        ValueError: shared rows with what cannot have them: prompt vectors, relative positions, a mask of its own.
    """
    if shared_rows is None:
        states = model(input_ids, position_ids, attention_mask, prompt_positions=prompt_positions, output="hidden")
        return HiddenStates(states, None)
    if prompt_positions is not None:
        raise ValueError("samples with prompt_positions cannot share rows; leave shared_rows out")
    if model.config.relative_encoding or position_ids is None:
        raise ValueError("a model with relative positions cannot share rows among samples; leave shared_rows out")
    if attention_mask.numel() != len(input_ids):
        raise ValueError(
            f"samples that share rows need separators [{len(input_ids)}], the attention_mask has shape "
            f"{list(attention_mask.shape)}; leave shared_rows out"
        )
    rows = SharedRows.of(shared_rows, attention_mask.flatten(), width=input_ids.size(1))
    states = model(rows.gather(input_ids), rows.gather(position_ids), rows.attention_mask, output="hidden")
    return HiddenStates(states, rows.places((input_ids.size(0), input_ids.size(1))))
