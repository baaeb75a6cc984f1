"""Attention of one query per row to a long cache of fixed size: its keys are split into parts, computed side by side.

The fused kernels give every row and head to one multiprocessor, which walks through all keys; with few rows most of a
GPU is idle then. Not measured on a GPU.

b rows, n attention heads of this rank, d head dim, c columns, p parts, w columns of a part
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LONG_CACHE = 1024  # columns from which on keys are split: the fused kernel is one launch, this one several
COLUMNS_OF_A_PART = 256
MULTIPROCESSORS = 132  # of an H100; with as many rows and heads all are at work anyway


def parts_of_keys(*, num_rows: int, num_heads: int, num_columns: int, device: torch.device) -> int:
    """Return into how many parts of equal size the keys of a step are split; 1 for none."""
    if device.type == "cpu" or num_columns < LONG_CACHE or num_rows * num_heads >= MULTIPROCESSORS:
        return 1
    return num_columns // COLUMNS_OF_A_PART if num_columns % COLUMNS_OF_A_PART == 0 else 1


def attend_in_parts(query: Tensor, key: Tensor, value: Tensor, additive: Tensor, *, parts: int) -> Tensor:
    """Return softmax(query key^T / sqrt(d) + additive) value, [b,n,1,d].

    ``query`` [b,n,1,d]; ``key`` and ``value`` [b,n,c,d]; ``additive`` [b,1,1,c], 0 or minus infinity.
    """
    batch_size, num_heads, _, head_dim = query.shape
    shape = (batch_size, num_heads, parts, -1, head_dim)
    column = query.unsqueeze(2).transpose(-1, -2) / math.sqrt(head_dim)  # [b,n,1,d,1]
    scores = torch.matmul(key.reshape(shape), column).flatten(2) + additive.flatten(1).unsqueeze(1)  # [b,n,c]
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    weights = weights.view(batch_size, num_heads, parts, 1, -1)  # [b,n,p,1,w]
    return torch.matmul(weights, value.reshape(shape)).sum(dim=2, dtype=torch.float32).to(query.dtype)
