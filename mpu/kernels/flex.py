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
# What a BlockMask knows of its blocks.
BLOCK_TENSORS = (
    "kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices",
    "q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices",
)  # fmt: skip


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


def tensors_of(blocks: BlockMask) -> list[Tensor]:
    """Return all tensors that ``blocks`` hold: those of the blocks, and those by which single keys are told apart."""
    listed = [part for name in BLOCK_TENSORS if (part := getattr(blocks, name)) is not None]
    cells = getattr(blocks.mask_mod, "__closure__", None) or ()
    return listed + [cell.cell_contents for cell in cells if isinstance(cell.cell_contents, Tensor)]


def attend_blocks(query: Tensor, key: Tensor, value: Tensor, blocks: BlockMask) -> Tensor:
    """Return softmax(query key^T / sqrt(d)) value of [b,n,s,d] each, over the visible keys of ``blocks``."""
    from torch.nn.attention.flex_attention import flex_attention

    if not torch.compiler.is_compiling():
        return _compiled()(query, key, value, block_mask=blocks)
    lengths = (query.size(2), key.size(2))  # of this graph: those in ``blocks`` are numbers, which would fix its sizes
    tensors = {name: getattr(blocks, name) for name in BLOCK_TENSORS}
    sized = type(blocks)(seq_lengths=lengths, BLOCK_SIZE=blocks.BLOCK_SIZE, mask_mod=blocks.mask_mod, **tensors)
    kernel: Any = flex_attention
    return kernel(query, key, value, block_mask=sized)


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
