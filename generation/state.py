"""Rows being decoded: their key/value cache, and which of its columns each row sees.

b rows, s tokens fed at once, k columns in the cache, v vocabulary, h hidden
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from generation.inputs import PromptInputs
from model.modeling_glm import GLMModel
from mpu.cache import KeyValueCache

CACHE_GROWTH = 256  # positions by which a full cache grows at least


class DecodingState:
    """Contexts of different lengths in one batch, padded on the right; the padding is hidden by the mask.

    Only the last position of a call is projected on the vocabulary, and the rows of the embedding table beyond the
    tokenizer's ``num_tokens``, which no training ever touched, get minus infinity.
    """

    def __init__(self, model: GLMModel, inputs: Sequence[PromptInputs], *, num_tokens: int, pad_id: int) -> None:
        """Run the model over the contexts, each fully bidirectional, and keep keys and values."""
        self.model = model
        self.num_tokens = num_tokens
        self.pad_id = pad_id
        self.device = model.word_embeddings.weight.device
        width = max(len(row) for row in inputs)
        self.cache = self._allocate(len(inputs), width + CACHE_GROWTH)
        self.visible = torch.empty((len(inputs), 0), dtype=torch.bool, device=self.device)  # [b,k]
        self.all_visible = True
        self._run([row.input_ids for row in inputs], [[(p, 0) for p in row.positions] for row in inputs], causal=False)

    @property
    def length(self) -> int:
        """Return the number of columns k."""
        return self.cache.length

    def feed(self, tokens: Sequence[int], positions: Sequence[tuple[int, int]]) -> Tensor:
        """Feed one token per row at (position, block position); return the next-token logits [b,v] in fp32."""
        hidden = self._run([[token] for token in tokens], [[position] for position in positions])
        logits = self.model.project(hidden[:, -1]).float()
        if self.num_tokens < logits.size(-1):
            logits[:, self.num_tokens :] = -math.inf
        return logits

    def append(self, tokens: Sequence[Sequence[int]], positions: Sequence[Sequence[tuple[int, int]]]) -> None:
        """Feed a piece per row, of different lengths, in one causal call."""
        self._run(tokens, positions)

    def reorder(self, rows: Sequence[int], *, shared: int = 0) -> None:
        """Make row i the present row ``rows[i]``; their number may change.

        The first ``shared`` columns of row i and of row ``rows[i]`` have to be equal (beams of one context).
        """
        if list(rows) == list(range(len(self.visible))):
            return
        indices = torch.tensor(rows, device=self.device)
        self.cache.reorder(indices, shared=shared)
        self.visible = self.visible[indices]

    def crop(self, length: int) -> None:
        """Forget the columns from ``length`` on."""
        self.cache.crop(length)
        self.visible = self.visible[:, :length]

    def _run(
        self,
        token_rows: Sequence[Sequence[int]],
        position_rows: Sequence[Sequence[tuple[int, int]]],
        *,
        causal: bool = True,
    ) -> Tensor:
        """Feed rows of tokens, padded to equal length; return the hidden states [b,s,h]."""
        lengths = [len(row) for row in token_rows]
        width = max(lengths)
        padding = [width - length for length in lengths]
        ids = [[*row, *[self.pad_id] * pad] for row, pad in zip(token_rows, padding)]
        positions = [[*row, *[(0, 0)] * pad] for row, pad in zip(position_rows, padding)]
        input_ids = torch.tensor(ids, device=self.device)  # [b,s]
        position_ids = torch.tensor(positions, device=self.device).transpose(1, 2)  # [b,2,s]
        self._reserve(width)
        real = torch.arange(width, device=self.device) < torch.tensor(lengths, device=self.device).unsqueeze(1)  # [b,s]
        self.all_visible = self.all_visible and not any(padding)
        self.visible = torch.cat([self.visible, real], dim=1)
        mask = self._mask(width, causal=causal)
        return self.model(input_ids, position_ids, mask, cache=self.cache, output="hidden")

    def _mask(self, width: int, *, causal: bool) -> Tensor:
        """Return a prefix_length when nothing is hidden, else the mask [b,1,s or 1,k]."""
        if self.all_visible:
            return torch.tensor(0 if causal else width)
        mask = self.visible[:, None, None, :]
        if width == 1 or not causal:
            return mask
        columns = torch.arange(self.visible.size(1), device=self.device)
        last = self.length + torch.arange(width, device=self.device).unsqueeze(1)  # [s,1]: a token's own column
        return mask & (columns <= last)

    def _reserve(self, num_positions: int) -> None:
        """Make room in the cache for ``num_positions`` more."""
        old = self.cache
        needed = old.length + num_positions
        if needed <= old.capacity:
            return
        self.cache = self._allocate(old.batch_size, needed + max(CACHE_GROWTH, old.capacity // 2))
        for new_tensors, old_tensors in ((self.cache.keys, old.keys), (self.cache.values, old.values)):
            for new, past in zip(new_tensors, old_tensors):
                new[:, :, : old.length] = past[:, :, : old.length]
        self.cache.length = old.length

    def _allocate(self, num_rows: int, capacity: int) -> KeyValueCache:
        """Return an empty cache for ``capacity`` columns of ``num_rows`` rows."""
        return self.model.new_cache(num_rows, capacity)
