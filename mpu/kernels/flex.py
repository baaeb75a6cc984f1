"""Attention that skips blocks of the mask in which nothing is visible: torch's FlexAttention.

It gains where samples share rows or rows are long, and has no attention dropout. On a GPU it runs forward and backward,
on a CPU forward alone.

b batch, s sequence, n heads of this rank, d head dim
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mpu.masks import PrefixMask

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

KERNELS = ("auto", "sdpa", "flex")
BLOCK = 128  # side of the blocks that are skipped


def prefers_blocks(kernel: str, mask: PrefixMask, *, device: torch.device, dropout_probability: float) -> bool:
    """Tell whether a step computes attention by blocks.

    ``flex`` asks for it, ``auto`` takes it on a GPU where samples share rows; neither can with dropout, or with a mask
    that is given as a matrix.
    """
    if kernel == "sdpa" or dropout_probability > 0.0 or mask.visible is not None:
        return False
    return kernel == "flex" or (device.type == "cuda" and mask.segment_ids is not None)


def make_block_mask(mask: PrefixMask, *, batch_size: int, length: int, device: torch.device | str) -> BlockMask:
    """Find the blocks of a step in which some query sees some key; every layer of the step uses them.

    ``mask`` is that of prefix lengths, or of samples that share rows. The host does not wait for the device.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def on_device(numbers: Tensor) -> Tensor:
        return numbers.to(device, non_blocking=True)

    if mask.segment_ids is not None and mask.in_prefix is not None:
        shape = (batch_size, length)
        segment_ids = on_device(mask.segment_ids).expand(shape).contiguous()  # [b,s]
        visible = _same_sample(segment_ids, on_device(mask.in_prefix).expand(shape).contiguous() != 0)
    else:
        assert mask.prefix_lengths is not None, "a matrix has no blocks"
        visible = _in_prefix(on_device(mask.prefix_lengths).reshape(-1).expand(batch_size).contiguous())  # [b]
    return create_block_mask(visible, batch_size, None, length, length, device=device, BLOCK_SIZE=BLOCK)


def attend_blocks(query: Tensor, key: Tensor, value: Tensor, blocks: BlockMask) -> Tensor:
    """Return softmax(query key^T / sqrt(d)) value of [b,n,s,d] each, over the visible keys of ``blocks``."""
    from torch.nn.attention.flex_attention import flex_attention

    kernel: Any = flex_attention if torch.compiler.is_compiling() else _compiled()
    return kernel(query, key, value, block_mask=blocks)


@cache
def _compiled() -> Callable[..., Tensor]:
    """Return the kernel, which exists in compiled form only; uncompiled it would keep all scores.

    Compiled layers compile it themselves.
    """
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _in_prefix(prefix_lengths: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) | (key < prefix_lengths[row])

    return visible


def _same_sample(segment_ids: Tensor, in_prefix: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (segment_ids[row, query] == segment_ids[row, key]) & ((key <= query) | in_prefix[row, key])

    return visible
