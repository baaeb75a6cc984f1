"""Weights of 8 bits: how far off they are, both ways of multiplying with them, a whole model."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from generation.api import load_weights, prepack_for_inference
from generation.infill import BlankFiller
from generation.sampling import DecodingSettings
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.kernels import int8
from mpu.kernels.int8 import FEW_ROWS, LARGEST, Int8Linear, has_int8_kernel, quantise
from mpu.layers import ColumnParallelLinear, RowParallelLinear
from tests.helpers.small_models import TINY_COMMAND_IDS, WordTokenizer

ROUNDING = 2.0**-8  # the largest relative error of rounding to the 8 significant bits of bf16


def draw(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def restored(weight: Tensor) -> Tensor:
    """Return the weight that the quantised one stands for, in fp64."""
    whole, scales = quantise(weight)
    return whole.double() * scales.double().unsqueeze(1)


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 70),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-6, 0.02, 1.0, 300.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=60, deadline=None)
def test_a_weight_is_off_by_half_a_step(rows: int, columns: int, seed: int, scale: float, dtype: torch.dtype) -> None:
    weight = draw(rows, columns, seed=seed, scale=scale).to(dtype)
    whole, scales = quantise(weight)
    assert whole.dtype == torch.int8 and int(whole.abs().max()) <= LARGEST
    steps = scales.double().unsqueeze(1)
    largest = weight.double().abs().amax(dim=1, keepdim=True)
    assert (steps <= largest / LARGEST * (1 + ROUNDING)).all()
    assert ((restored(weight) - weight.double()).abs() <= 0.5 * steps * (1 + 1e-5)).all()


def test_rows_have_scales_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = draw(7, 32, seed=1) * torch.tensor([1e-4, 1.0, 50.0, 0.0, 3.0, 1e3, 1e-2]).unsqueeze(1)
    expected = quantise(weight)
    assert expected[1][3] == 1.0 and not expected[0][3].any()  # a row of zeros
    monkeypatch.setattr(int8, "ROWS_AT_ONCE", 3)
    assert all(torch.equal(one, other) for one, other in zip(quantise(weight), expected))


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "cast"])
@pytest.mark.parametrize("rows", [1, 3, FEW_ROWS, FEW_ROWS + 1, 40])
@pytest.mark.parametrize(("outputs", "columns"), [(48, 64), (33, 96), (5, 40), (1, 7)])  # the last two fit no kernel
def test_a_product_is_as_far_off_as_its_weights(
    outputs: int, columns: int, rows: int, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.setattr(int8, "has_int8_kernel", lambda: False)
    weight, bias = draw(outputs, columns, seed=2, scale=0.02).bfloat16(), draw(outputs, seed=3).bfloat16()
    inputs = draw(2, rows, columns, seed=4).bfloat16()[:1]
    found = Int8Linear(weight, bias)(inputs)
    assert found.shape == (1, rows, outputs) and found.dtype == torch.bfloat16
    product = inputs.double() @ restored(weight).T
    # The product, the scaled product (one of the two ways) and its sum with the bias are rounded.
    alone = Int8Linear(weight, None)(inputs)
    rounding = 2.01 * ROUNDING * product.abs() + 1e-6
    assert ((alone.double() - product).abs() <= rounding).all()
    rounding = rounding + 1.01 * ROUNDING * (product + bias.double()).abs()
    assert ((found.double() - product - bias.double()).abs() <= rounding).all()
    # Every weight is off by half a step at most.
    off = 0.5 * quantise(weight)[1].double() * inputs.double().abs().sum(dim=-1, keepdim=True)
    exact = inputs.double() @ weight.double().T + bias.double()
    assert ((found.double() - exact).abs() <= rounding + off).all()


def test_other_types_and_no_rows() -> None:
    weight, inputs = draw(6, 64, seed=5), draw(3, 64, seed=6)
    linear = Int8Linear(weight, None)
    torch.testing.assert_close(linear(inputs).double(), inputs.double() @ restored(weight).T, atol=1e-5, rtol=1e-5)
    assert linear(torch.empty(2, 0, 64, dtype=torch.bfloat16)).shape == (2, 0, 6)
    transposed = draw(64, 3, seed=7).bfloat16().T  # not contiguous
    assert torch.equal(linear(transposed), linear(transposed.contiguous()))


def test_the_kernel_is_there() -> None:
    """With the versions of requirements.txt on an x86 processor it is; else products are cast, and slower."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("another kind of processor")
    assert has_int8_kernel()


def make_model(hidden_size: int = 64) -> GLMModel:
    config = GLMConfig(3, hidden_size, 4, 96, max_position_embeddings=64, initializer_std=0.05)
    return GLMModel(config, generator=torch.Generator().manual_seed(5)).eval().requires_grad_(False)


def parallel_linears(model: GLMModel) -> list[ColumnParallelLinear | RowParallelLinear]:
    return [layer for layer in model.modules() if isinstance(layer, (ColumnParallelLinear, RowParallelLinear))]


@pytest.mark.parametrize("length", [1, 4, 30])
def test_logits_are_as_far_off_as_the_weights(length: int) -> None:
    """Independent errors of the matrices that a token goes through add up as squares."""
    model = make_model()
    ids = torch.randint(0, 96, (1, length), generator=torch.Generator().manual_seed(6))
    positions = torch.arange(length).expand(1, 2, length)
    exact = model.double()(ids, positions, torch.tensor(length))
    weights = [layer.weight for layer in parallel_linears(model)] + [model.word_embeddings.weight]
    relative = [float((restored(weight) - weight).norm() / weight.norm()) for weight in weights]
    half = make_model().bfloat16()
    rounding = float((half(ids, positions, torch.tensor(length)).double() - exact).norm() / exact.norm())
    prepack_for_inference(half, int8=True)
    found = half(ids, positions, torch.tensor(length))
    assert found.dtype == torch.bfloat16
    error = float((found.double() - exact).norm() / exact.norm())
    assert 1e-4 < error < 2 * (math.hypot(*relative) + rounding)


def test_the_memory_of_weights_halves() -> None:
    model = make_model().bfloat16()
    before = sum(layer.weight.nbytes for layer in parallel_linears(model))
    prepack_for_inference(model, int8=True)
    linears = [layer.inference_linear for layer in parallel_linears(model)]
    assert all(layer.weight is None for layer in parallel_linears(model))
    after = sum(linear.whole.nbytes + linear.scales.nbytes for linear in linears)
    assert before / 2 < after < 0.52 * before  # a scale for every 64 weights or more
    assert model.inference_head.whole.nbytes == model.word_embeddings.weight.nbytes / 2
    with pytest.raises(ValueError, match="reordered for inference"):
        model.state_dict()


def test_text_from_a_file(tmp_path) -> None:
    """The way of generate_samples.py --int8."""
    model = make_model()
    torch.save({"module": model.state_dict()}, tmp_path / "mp_rank_00_model_states.pt")
    found, _ = load_weights(model.config, tmp_path, int8=True)
    assert found.word_embeddings.weight.dtype == torch.bfloat16
    assert all(isinstance(layer.inference_linear, Int8Linear) for layer in parallel_linears(found))
    assert isinstance(found.inference_head, Int8Linear)
    tokenizer = WordTokenizer(TINY_COMMAND_IDS, num_tokens=58)
    settings = DecodingSettings(max_length=8, top_k=1)
    prompts = ["w1 w2 [MASK] w3", "w9 [sMASK] w8 [MASK] w7"]
    results = BlankFiller(found, tokenizer).fill(prompts, settings=settings)
    assert [len(result.pieces) for result in results] == [1, 2]
    assert BlankFiller(found, tokenizer, static=True).fill(prompts, settings=settings) == results


@pytest.mark.parametrize(("device", "dtype"), [("meta", None), ("cpu", torch.float32), ("cpu", torch.float16)])
def test_where_it_does_not_work(device: str, dtype: torch.dtype | None, tmp_path) -> None:
    with pytest.raises(ValueError, match="weights of 8 bits are for the CPU"):
        load_weights(make_model().config, tmp_path, dtype=dtype, device=device, int8=True)
