"""Attention of a prefix mask without a mask: two calls of FlashAttention on samples that lie one behind the other.

The kernel takes no mask. What a blank-infilling sample needs is two cases that it has: the queries of the prefix see
all keys of the prefix, and every later query sees the prefix and, causally, what follows it. It exists on GPUs, in 16
bits, has dropout, and no scores and no mask are ever in memory.

b batch, s sequence, n heads of this rank, d head dim
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mpu.masks import TwoCalls

LARGEST_HEAD_DIM, HEAD_DIM_MULTIPLE = 256, 8
DEVICE_TYPE, FIRST_GENERATION = "cuda", (8, 0)  # of devices that have the kernel: GPUs from Ampere on

Kernel = Callable[..., Tensor]


def can_run_flash(*, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Tell whether the kernel takes queries of ``dtype`` and ``head_dim`` on ``device``."""
    if device.type != DEVICE_TYPE or dtype not in (torch.float16, torch.bfloat16):
        return False
    if head_dim > LARGEST_HEAD_DIM or head_dim % HEAD_DIM_MULTIPLE:
        return False
    return torch.get_device_module(device).get_device_capability(device) >= FIRST_GENERATION


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    *,
    longest: int,
    causal: bool,
    dropout_probability: float,
) -> Tensor:
    """Return the attention of samples one behind the other, [queries,n,d].

    ``query`` [queries,n,d], ``key`` and ``value`` [keys,n,d]; sample i has those from ``starts[i]`` to ``starts[i+1]``
    (int32), at most ``longest`` of either. ``causal`` counts from the end: the last query sees all keys.
    """
    return torch.ops.aten._flash_attention_forward(
        query, key, value, query_starts, key_starts, longest, longest, dropout_probability, causal, False
    )[0]


def attend_in_two_calls(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    calls: TwoCalls,
    *,
    dropout_probability: float = 0.0,
    kernel: Kernel = flash_attention,
) -> Tensor:
    """Return softmax(query key^T / sqrt(d)) value of [b,n,s,d] each, where ``calls`` says which keys a query sees."""
    batch_size, num_heads, length, head_dim = query.shape
    query, key, value = (part.transpose(1, 2).reshape(-1, num_heads, head_dim) for part in (query, key, value))
    later = kernel(
        query.index_select(0, calls.later_rows),
        key,
        value,
        calls.later_starts,
        calls.sample_starts,
        longest=length,
        causal=True,
        dropout_probability=dropout_probability,
    )
    if calls.prefix_rows.numel():
        prefix = kernel(
            *(part.index_select(0, calls.prefix_rows) for part in (query, key, value)),
            calls.prefix_starts,
            calls.prefix_starts,
            longest=length,
            causal=False,
            dropout_probability=dropout_probability,
        )
        later = torch.cat([prefix, later])
    return later.index_select(0, calls.order).view(batch_size, length, num_heads, head_dim).transpose(1, 2)
