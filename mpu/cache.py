"""Keys and values of earlier positions, kept between calls in place of hidden states.

b batch, n attention heads of this rank, d head dim, c capacity, m positions held so far, s new positions
"""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """Hold the keys and values [b,n,m,d] of every layer.

    Without gradients new entries are written in place into preallocated buffers. With gradients they are concatenated,
    because autograd needs the earlier values unchanged; the kept copy is detached, unless the cache is
    ``differentiable``: then gradients flow through what earlier calls stored.
    """

    def __init__(
        self, keys: list[Tensor], values: list[Tensor], *, window: int | None = None, differentiable: bool = False
    ) -> None:
        self.keys = keys  # one [b,n,c,d] per layer
        self.values = values
        self.window = window
        self.differentiable = differentiable
        self.length = 0

    @classmethod
    def allocate(
        cls,
        *,
        num_layers: int,
        batch_size: int,
        max_length: int,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        window: int | None = None,
        differentiable: bool = False,
    ) -> KeyValueCache:
        """Reserve room for ``max_length`` positions of every layer.

        ``num_heads`` counts the heads of this rank. After each call of the model only the last ``window`` positions
        are kept (None: all of them); with a window ``max_length`` must hold the window and the longest call. On the CPU
        entries of 16 bits are kept in fp32, where attention to them takes a third of the time (docs/performance.md).
        """
        shape = (batch_size, num_heads, 0 if differentiable else max_length, head_dim)
        if torch.device(device or "cpu").type == "cpu" and not differentiable and dtype.itemsize < 4:
            dtype = torch.float32
        keys, values = ([torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)] for _ in range(2))
        return cls(keys, values, window=window, differentiable=differentiable)

    # Every call has the same shapes and addresses, so that layers with it can be compiled (``StepCache``).
    is_static = False

    def of_layer(self, layer: int) -> KeyValueCache:
        """Return what layer number ``layer`` appends to."""
        return self

    @property
    def batch_size(self) -> int:
        return self.keys[0].size(0)

    @property
    def capacity(self) -> int | None:
        """Return how many positions fit, or None when the cache grows by itself."""
        return None if self.differentiable else self.keys[0].size(2)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new ``key`` and ``value`` [b,n,s,d] of one layer; return all m + s of them.

        ``advance`` has to be called once after the last layer; without gradients the result is a view that is valid
        until then. Raises ValueError when the cache is full.
        """
        if key.size(0) != self.batch_size:
            raise ValueError(
                f"a batch of {key.size(0)} rows meets a cache of {self.batch_size}; reorder the cache first"
            )
        if self.differentiable:
            self.keys[layer] = torch.cat([self.keys[layer], key], dim=2)
            self.values[layer] = torch.cat([self.values[layer], value], dim=2)
            return self.keys[layer], self.values[layer]
        end = self.length + key.size(2)
        key_buffer, value_buffer = self.keys[layer], self.values[layer]  # [b,n,c,d]
        if end > (capacity := key_buffer.size(2)):
            raise ValueError(
                f"{end} positions do not fit a key/value cache for {capacity}; allocate it for the whole sequence"
            )
        if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
            past_key, past_value = key_buffer[:, :, : self.length], value_buffer[:, :, : self.length]
            full_key = torch.cat([past_key.to(key.dtype), key], dim=2)
            full_value = torch.cat([past_value.to(value.dtype), value], dim=2)
            key_buffer[:, :, self.length : end] = key.detach()
            value_buffer[:, :, self.length : end] = value.detach()
            return full_key, full_value
        key_buffer[:, :, self.length : end] = key
        value_buffer[:, :, self.length : end] = value
        return key_buffer[:, :, :end], value_buffer[:, :, :end]

    def advance(self, num_positions: int) -> None:
        """Count the positions that every layer has just appended, and forget those before the window."""
        self.length += num_positions
        if self.window is not None and self.length > self.window:
            self.keep_last(self.window)

    def keep_last(self, num_positions: int) -> None:
        """Keep only the last ``num_positions`` positions, moved to the front."""
        drop = max(0, self.length - num_positions)
        self.length -= drop
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                if self.differentiable:
                    tensors[layer] = tensor[:, :, drop:]
                elif drop:
                    tensor[:, :, : self.length] = tensor[:, :, drop : drop + self.length].clone()

    def crop(self, length: int) -> None:
        """Forget every position from ``length`` on."""
        self.length = min(self.length, length)
        if self.differentiable:
            self.keys = [key[:, :, : self.length] for key in self.keys]
            self.values = [value[:, :, : self.length] for value in self.values]

    def reorder(self, row_indices: Tensor, *, shared: int = 0) -> None:
        """Make row i the present row ``row_indices[i]``; the number of rows may change (beams, choices).

        The caller promises that the first ``shared`` positions of row i and of row ``row_indices[i]`` are equal: while
        the number of rows stays the same, they are not moved.
        """
        same_rows = row_indices.numel() == self.batch_size
        first = shared if same_rows and not self.differentiable else 0
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                moved = tensor[:, :, first : self.length].index_select(0, row_indices)  # [new b,n,m - first,d]
                if self.differentiable:
                    tensors[layer] = moved
                    continue
                if not same_rows:
                    tensors[layer] = tensor.new_empty((row_indices.numel(), *tensor.shape[1:]))
                tensors[layer][:, :, first : self.length] = moved
