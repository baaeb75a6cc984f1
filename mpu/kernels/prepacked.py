"""Weights of linear layers in the order in which the CPU's matrix kernels read them fastest; for inference only.

The ordinary product of few rows with a weight matrix reads the matrix at less than half of the memory's speed. oneDNN
reorders it once, blocked for the vector unit, and then reads it at nearly full speed: decoding takes half the time
(docs/performance.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpu.layers import ColumnParallelLinear, RowParallelLinear

ROWS = 64  # the layout for this many rows is a good one for 1 and for 1024


class PrepackedLinear:
    """Map [...,in] to x W^T + b, [...,out], with a reordered copy of W."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take ``weight`` [out,in] on the CPU and ``bias`` [out]; ``can_prepack`` has to hold for the type."""
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        self.bias = None if bias is None else bias.detach()
        self.out_features = weight.size(0)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the product; there are no gradients."""
        if inputs.numel() == 0:
            return inputs.new_empty((*inputs.shape[:-1], self.out_features))
        return torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")


@functools.cache
def can_prepack(dtype: torch.dtype) -> bool:
    """Tell whether this build of torch, on this CPU, multiplies reordered weights of ``dtype``, and rightly."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    weight = torch.arange(-6.0, 6.0).view(4, 3).to(dtype)
    inputs, bias = torch.tensor([[[1.0, -2.0, 3.0]]], dtype=dtype), torch.ones(4, dtype=dtype)
    try:
        product = PrepackedLinear(weight, bias)(inputs)
    except (AttributeError, RuntimeError):  # the operators are not part of torch's promised interface
        return False
    return torch.equal(product, F.linear(inputs, weight, bias))  # small whole numbers: exact


def replace_weights(
    module: nn.Module,
    make: Callable[[Tensor, Tensor | None], Callable[[Tensor], Tensor]],
    *,
    release: Callable[[Tensor], None],
) -> None:
    """Let the parallel linear layers in ``module`` multiply with what ``make`` gets out of weight and local bias.

    The module can be neither trained nor saved anymore. ``release`` gets each replaced weight at once, so that the two
    forms of the whole model never meet in memory.
    """
    for layer in module.modules():
        if isinstance(layer, (ColumnParallelLinear, RowParallelLinear)):
            layer.inference_linear = make(layer.weight, layer.local_bias)
            release(layer.weight.detach())
            layer.register_parameter("weight", None)
