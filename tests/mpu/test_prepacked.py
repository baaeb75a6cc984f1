"""Weights reordered for inference give the same results, whatever the number of rows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from generation.api import prepack_for_inference
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology, initialize_model_parallel
from mpu.kernels.prepacked import PrepackedLinear, can_prepack
from mpu.layers import ColumnParallelLinear
from tests.helpers.distributed import run
from tests.helpers.small_models import random_model

FLOATS = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 40), (3, 5, 40), (200, 40), (0, 40), (2, 0, 40)])
def test_products_are_equal(dtype: torch.dtype, with_bias: bool, shape: tuple[int, ...]):
    if not can_prepack(dtype):
        pytest.skip(f"this processor or build of torch has no reordered weights in {dtype}")
    generator = torch.Generator().manual_seed(1)
    weight, inputs = torch.randn(56, 40, generator=generator), torch.randn(shape, generator=generator)
    bias = torch.randn(56, generator=generator).to(dtype) if with_bias else None
    expected = F.linear(inputs.to(dtype), weight.to(dtype), bias)
    found = PrepackedLinear(weight.to(dtype), bias)(inputs.to(dtype))
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(found, expected, **tolerance)


EMULATED = """
import torch
from mpu.kernels.prepacked import PrepackedLinear, can_prepack, has_bf16_instructions
assert not has_bf16_instructions()
weight, bias = torch.randn(56, 40).bfloat16(), torch.randn(56).bfloat16()
for rows in (1, 200) if can_prepack(torch.bfloat16) else ():
    inputs = torch.randn(rows, 40).bfloat16()
    expected = torch.nn.functional.linear(inputs.float(), weight.float(), bias.float()).bfloat16()
    torch.testing.assert_close(PrepackedLinear(weight, bias)(inputs), expected, rtol=2e-2, atol=2e-2)
"""


def test_products_are_equal_where_bf16_is_emulated():
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
    subprocess.run([sys.executable, "-c", EMULATED], env=environment, check=True)


def test_inputs_that_are_not_contiguous():
    weight, inputs = torch.randn(24, 16), torch.randn(16, 5, 3).permute(2, 1, 0)
    if not can_prepack(torch.float32):
        pytest.skip("this build of torch has no reordered weights")
    torch.testing.assert_close(PrepackedLinear(weight, None)(inputs), F.linear(inputs, weight))


def test_types_that_have_no_such_form():
    assert not can_prepack(torch.float64)
    assert not can_prepack(torch.int8)


def test_a_model_computes_the_same_and_keeps_no_second_weights():
    model = random_model(vocab_size=64, positions=32).eval()
    ids = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(2))
    positions = torch.stack([torch.arange(9), torch.zeros(9, dtype=torch.long)]).expand(2, 2, 9)
    arguments = (ids, positions, torch.tensor([4, 9]))
    with torch.no_grad():
        expected = model(*arguments)
        prepack_for_inference(model)
        torch.testing.assert_close(model(*arguments), expected, rtol=1e-4, atol=1e-5)
    if not can_prepack(torch.float32):
        return
    layers = [layer for layer in model.modules() if isinstance(layer, ColumnParallelLinear)]
    assert layers
    assert all(layer.weight is None for layer in layers)
    with pytest.raises(ValueError, match="prepack=False"):
        model.state_dict()


def _logits(topology: ParallelTopology, *, prepack: bool) -> torch.Tensor:
    config = GLMConfig(2, 32, 4, 64, max_position_embeddings=32)
    model = GLMModel(config, topology=topology, generator=torch.Generator().manual_seed(3)).eval()
    if prepack:
        prepack_for_inference(model)
    positions = torch.stack([torch.arange(6), torch.zeros(6, dtype=torch.long)]).unsqueeze(0)
    with torch.no_grad():
        return model(torch.arange(6).unsqueeze(0), positions, torch.tensor([3]))


def _prepacked_on_two_ranks() -> torch.Tensor:
    return _logits(initialize_model_parallel(2), prepack=True)


def test_two_ranks():
    expected = _logits(ParallelTopology.single(), prepack=False)
    for found in run(_prepacked_on_two_ranks, 2):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
