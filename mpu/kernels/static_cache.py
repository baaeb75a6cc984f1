"""A key/value cache whose buffers stay where they are, so that a decoding step can be recorded once and replayed.

b rows in use, r rows of the buffers, n attention heads of this rank, d head dim, c capacity, m positions held so far
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpu.cache import KeyValueCache


class StaticKeyValueCache(KeyValueCache):
    """Use the first b rows of buffers [r,n,c,d]; rows may leave and come back without new memory.

    Calls of several positions go the ordinary way. ``step`` is the view of a call of one position whose shapes and
    addresses are always the same. For inference only.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        """Take buffers [r,n,c,d], one per layer; they are zeroed, because masked columns are still multiplied by 0."""
        super().__init__(keys, values)
        self.key_buffers, self.value_buffers = list(keys), list(values)
        self.clear(self.num_rows)

    @property
    def num_rows(self) -> int:
        return self.key_buffers[0].size(0)

    def clear(self, batch_size: int) -> None:
        """Forget everything and use ``batch_size`` rows."""
        for buffer in (*self.key_buffers, *self.value_buffers):
            buffer.zero_()
        self.length = 0
        self._use(batch_size)

    def copy_rows(self, source: KeyValueCache, row_indices: Tensor) -> None:
        """Hold what ``source`` (another cache or this one) has in ``row_indices`` [b]."""
        length = source.length
        pairs = [(self.key_buffers, source.keys), (self.value_buffers, source.values)]
        for buffers, tensors in pairs:
            for buffer, tensor in zip(buffers, tensors, strict=True):
                moved = tensor[:, :, :length].index_select(0, row_indices)  # [b,n,m,d], a copy
                buffer[: row_indices.numel(), :, :length] = moved
        self.length = length
        self._use(row_indices.numel())

    def reorder(self, row_indices: Tensor, *, shared: int = 0) -> None:
        """Make row i the present row ``row_indices[i]``; their number may change up to the rows of the buffers."""
        if row_indices.numel() == self.batch_size:
            super().reorder(row_indices, shared=shared)
        else:
            self.copy_rows(self, row_indices)

    def step(self, slot: Tensor) -> StepCache:
        """Return the view of a call of one position, which is written to the column ``slot`` (int64 [1])."""
        return StepCache(self.key_buffers, self.value_buffers, slot=slot)

    def _use(self, batch_size: int) -> None:
        assert batch_size <= self.num_rows, (batch_size, self.num_rows)
        self.keys = [buffer[:batch_size] for buffer in self.key_buffers]
        self.values = [buffer[:batch_size] for buffer in self.value_buffers]


class StepCache(KeyValueCache):
    """The buffers as a call of one position sees them: all r rows and all c columns, the new one among them.

    Which columns count is up to the mask [r,1,1,c]; ``advance`` belongs to the cache behind it.
    """

    is_static = True

    def __init__(self, keys: list[Tensor], values: list[Tensor], *, slot: Tensor) -> None:
        super().__init__(keys, values)
        self.slot = slot
        self.length = keys[0].size(2) - 1

    def of_layer(self, layer: int) -> StepCache:
        """Return the buffers of one layer alone: whatever its number, layers that use it are compiled once."""
        return StepCache([self.keys[layer]], [self.values[layer]], slot=self.slot)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write ``key`` and ``value`` [r,n,1,d] of the layer to the column ``slot``; return its buffers [r,n,c,d]."""
        [keys], [values] = self.keys, self.values  # ``of_layer`` has chosen them
        keys.index_copy_(2, self.slot, key.to(keys.dtype))
        values.index_copy_(2, self.slot, value.to(values.dtype))
        return keys, values

    def advance(self, num_positions: int) -> None:
        """Stay: the number of columns is always the capacity."""
        assert num_positions == 1, num_positions


def static_cache(cache: KeyValueCache) -> StaticKeyValueCache:
    """Return a static cache with the buffers of ``cache``, which is not to be used any more."""
    assert not cache.differentiable and cache.window is None
    with torch.no_grad():
        return StaticKeyValueCache(cache.keys, cache.values)
