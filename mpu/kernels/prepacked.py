"""Weights of linear layers in the order in which the CPU's matrix kernels read them fastest; for inference only.

The ordinary product of few rows with a weight matrix reads the matrix at less than half of the memory's speed. oneDNN
reorders it once, blocked for the vector unit, and then reads it at nearly full speed: decoding takes half the time
(docs/performance.md). On a processor without instructions for bf16 such products are emulated, and many rows are
faster in fp32.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpu.layers import ColumnParallelLinear, RowParallelLinear

ROWS = 64  # the layout for this many rows is a good one for 1 and for 1024
EMULATED_ROWS = 32  # more rows in bf16, emulated, take longer than widening the weights for them, measured


class PrepackedLinear:
    """Map [...,in] to x W^T + b, [...,out], with a reordered copy of W."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take ``weight`` [out,in] on the CPU and ``bias`` [out]; ``can_prepack`` has to hold for the type."""
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        self.bias = None if bias is None else bias.detach()
        self.out_features = weight.size(0)
        self.emulated = weight.dtype == torch.bfloat16 and not has_bf16_instructions()

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the product; there are no gradients."""
        if inputs.numel() == 0:
            return inputs.new_empty((*inputs.shape[:-1], self.out_features))
        if self.emulated and inputs.numel() > EMULATED_ROWS * inputs.size(-1):
            bias = None if self.bias is None else self.bias.float()
            return F.linear(inputs.float(), self.packed.to_dense().float(), bias).to(inputs.dtype)
        return torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")


def has_bf16_instructions() -> bool:
    """Tell whether this CPU multiplies bf16 matrices by itself, and torch's library for that (oneDNN) may use it."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    if not any(word in limit for word in ("BF16", "FP16", "AMX", "AVX10", "ALL", "DEFAULT")):
        return False
    try:
        features = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(features.split())


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
