"""Weights of linear layers as whole numbers of 8 bits, for decoding on the CPU; inputs and outputs stay bf16.

A token that is decoded reads every weight once, so that half the bytes are nearly half the time. Every row of a matrix
has one scale: w = scale * q, q in -127 ... 127, which is off by at most half a scale.

n rows (outputs), k columns (inputs), m rows of the inputs
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from mpu.kernels.prepacked import has_bf16_instructions

LARGEST = 127
ROWS_AT_ONCE = 1024  # of a matrix that is quantised: limits the fp32 copy
# Above this many input rows the kernel for few of them is slower than a product with weights cast to bf16, measured.
FEW_ROWS = 8
COLUMNS_MULTIPLE = 32  # the kernel reads beyond the end of rows of another length


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``weight`` [n,k] as int8 [n,k] and the bf16 scale of each row, [n]."""
    whole = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(weight.size(0), dtype=torch.bfloat16, device=weight.device)
    for first in range(0, weight.size(0), ROWS_AT_ONCE):
        rows = weight[first : first + ROWS_AT_ONCE].float()
        largest = rows.abs().amax(dim=1)  # [n]
        scale = torch.where(largest > 0, largest / LARGEST, 1.0).to(torch.bfloat16)  # rounded first: q makes up for it
        scales[first : first + ROWS_AT_ONCE] = scale
        scaled = rows / scale.float().unsqueeze(1)
        whole[first : first + ROWS_AT_ONCE] = scaled.round().clamp(-LARGEST, LARGEST).to(torch.int8)
    return whole, scales


class Int8Linear:
    """Map [...,k] to x W^T + b, [...,n], with W quantised; there are no gradients."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take ``weight`` [n,k] and ``bias`` [n]."""
        self.whole, self.scales = quantise(weight.detach())
        self.bias = None if bias is None else bias.detach()
        self.native = has_bf16_instructions()

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the product in the type of ``inputs``."""
        flat = inputs.reshape(-1, inputs.size(-1))  # [m,k]
        few = flat.dtype == torch.bfloat16 and 0 < len(flat) <= FEW_ROWS
        if few and flat.size(1) % COLUMNS_MULTIPLE == 0 and has_int8_kernel():
            outputs = torch._weight_int8pack_mm(flat.contiguous(), self.whole, self.scales)
        else:
            wide = flat.float() if flat.dtype == torch.bfloat16 and not self.native else flat
            outputs = F.linear(wide, self.whole.to(wide.dtype)).to(flat.dtype)  # q is exact in bf16
            outputs = outputs.mul_(self.scales.to(flat.dtype))
        if self.bias is not None:
            outputs = outputs.add_(self.bias)
        return outputs.view(*inputs.shape[:-1], len(self.scales))


@functools.cache
def has_int8_kernel() -> bool:
    """Tell whether this build of torch multiplies few bf16 rows with int8 weights, and rightly."""
    whole = (torch.arange(4 * COLUMNS_MULTIPLE) % 7 - 3).to(torch.int8).view(4, COLUMNS_MULTIPLE)
    inputs = (torch.arange(COLUMNS_MULTIPLE) % 5 - 2).to(torch.bfloat16).unsqueeze(0)
    try:
        product = torch._weight_int8pack_mm(inputs, whole, torch.ones(4, dtype=torch.bfloat16))
    except (AttributeError, RuntimeError):  # the operator is not part of torch's promised interface
        return False
    return torch.equal(product, F.linear(inputs.float(), whole.float()).to(torch.bfloat16))  # small whole numbers
