"""Decoding by steps of fixed shapes: the same logits and tokens as the ordinary way."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters

from generation.infill import BlankFiller
from generation.inputs import PromptInputs, encode_prompt
from generation.sampling import DecodingSettings
from generation.state import DecodingState, StaticDecoder
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.cache import KeyValueCache
from mpu.kernels.static_attention import attend_in_parts, parts_of_keys
from mpu.kernels.static_cache import StaticKeyValueCache, static_cache
from tests.helpers.small_models import DECODING, PROMPTS, TINY_COMMAND_IDS, WORDS, WordTokenizer, random_model

PAD = TINY_COMMAND_IDS["pad"]


@pytest.fixture(scope="module")
def model() -> GLMModel:
    return random_model()


@pytest.fixture(params=[256, 8])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let caches be large enough from the start, or grow again and again."""
    if request.param == 8:
        monkeypatch.setattr("generation.state.CACHE_GROWTH", 1)
    monkeypatch.setattr("generation.state.CAPACITY_BUCKET", request.param)
    return request.param


@pytest.mark.parametrize("settings", DECODING.values(), ids=DECODING)
def test_the_same_tokens(model: GLMModel, settings, bucket: int):
    expected = BlankFiller(model, WORDS, static=False).fill(PROMPTS, settings=settings)
    filler = BlankFiller(model, WORDS, static=True)
    for batch_size in (1, 3, 6):
        assert filler.fill(PROMPTS, settings=settings, batch_size=batch_size) == expected, batch_size


def contexts() -> list[PromptInputs]:
    return [encode_prompt(prompt, tokenizer=WORDS) for prompt in PROMPTS[:3]]


def drive(state: DecodingState) -> list[Tensor]:
    """Take every kind of step that sampling and beam search take; return the logits of all."""
    logits = []

    def feed(*tokens: int) -> None:
        logits.append(state.feed(tokens, [(3 + i, 1 + len(logits)) for i in range(len(tokens))]))

    feed(1, 2, 3)
    feed(4, 5, 6)
    state.reorder([0, 1, 2])
    state.append([[7, 8], [9], [10, 11, 12]], [[(1, 1), (1, 2)], [(2, 1)], [(3, 1), (3, 2), (3, 3)]])
    feed(13, 14, 15)
    length = state.length
    state.reorder([0, 0, 1, 1, 2, 2])  # more rows than before
    feed(16, 17, 18, 19, 20, 21)
    state.reorder([1, 0, 3, 3, 5, 2])
    feed(22, 23, 24, 25, 26, 27)
    state.reorder([0, 2, 4])
    state.crop(length)
    feed(28, 29, 30)
    feed(31, 32, 33)
    state.crop(length)
    feed(34, 35, 36)
    state.reorder([2])
    for token in range(30, 40):
        feed(token)
    state.reorder([0, 0])  # rows come back
    feed(40, 41)
    return logits


@torch.inference_mode()
def test_the_same_logits(model: GLMModel, bucket: int):
    expected = drive(DecodingState(model, contexts(), num_tokens=58, pad_id=PAD))
    decoder = StaticDecoder(model, num_tokens=58)
    for _ in range(2):  # in new steps, and in used ones
        found = drive(decoder.state(contexts(), pad_id=PAD))
        assert [one.shape for one in found] == [one.shape for one in expected]
        for one, other in zip(found, expected):
            assert one.dtype == torch.float32
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_static_step_equals_the_full_pass(model: GLMModel):
    """Cached = uncached: no step differs from the forward pass over everything so far."""
    [context] = [encode_prompt(PROMPTS[0], tokenizer=WORDS)]
    state = StaticDecoder(model, num_tokens=64).state([context], pad_id=PAD)
    ids, positions = list(context.input_ids), [(p, 0) for p in context.positions]
    for step, token in enumerate([55, 3, 9, 9, 20]):
        ids.append(token)
        positions.append((3, step + 1))
        position_ids = torch.tensor(positions).T.unsqueeze(0)
        expected = model(torch.tensor([ids]), position_ids, torch.tensor(len(context)), output="last_logits")
        torch.testing.assert_close(state.feed([token], [positions[-1]]), expected, atol=2e-5, rtol=1e-5)


@torch.inference_mode()
def test_shapes_and_addresses_stay(model: GLMModel, monkeypatch: pytest.MonkeyPatch):
    """What a CUDA graph needs: between calls of one step no tensor moves, whichever rows are in use."""
    monkeypatch.setattr("generation.state.CAPACITY_BUCKET", 64)
    seen = set()
    decoder = StaticDecoder(model, num_tokens=58)
    state = decoder.state(contexts(), pad_id=PAD)
    for rows in ([0, 1, 2], [2, 0, 1], [1, 2], [1]):
        state.reorder(rows)
        state.feed([1] * len(rows), [(0, 1)] * len(rows))
        step = state.step
        buffers = [step.inputs, step.bias, step.logits, *step.cache.key_buffers, *step.cache.value_buffers]
        seen.add((id(step), *((one.data_ptr(), one.shape) for one in buffers)))
        assert all(view.data_ptr() == own.data_ptr() for view, own in zip(state.cache.keys, step.cache.key_buffers))
    assert len(seen) == 1
    assert step.num_calls == 4


@torch.inference_mode()
def test_steps_are_kept_for_later_states_but_never_shared(model: GLMModel):
    decoder = StaticDecoder(model, num_tokens=58)
    first = decoder.state(contexts(), pad_id=PAD)
    second = decoder.state(contexts(), pad_id=PAD)
    assert first.step is not second.step
    expected = first.feed([1, 2, 3], [(0, 1)] * 3)
    assert torch.equal(second.feed([1, 2, 3], [(0, 1)] * 3), expected)
    kept = {id(first.step), id(second.step)}
    del first, second
    gc.collect()
    again = decoder.state(contexts(), pad_id=PAD)
    assert id(again.step) in kept
    assert torch.equal(again.feed([1, 2, 3], [(0, 1)] * 3), expected)


@torch.inference_mode()
def test_free_steps_do_not_pile_up(model: GLMModel):
    decoder = StaticDecoder(model, num_tokens=58)
    [context] = contexts()[:1]
    for num_rows in (1, 2, 4, 8, 16):
        decoder.state([context] * num_rows, pad_id=PAD)
        gc.collect()
    assert [step.num_rows for step in decoder.steps] == [8, 16]


def test_what_an_earlier_row_left_behind_does_no_harm(model: GLMModel):
    """Masked columns are multiplied by 0: numbers that are none have to go before a step is used again."""
    filler = BlankFiller(model, WORDS, static=True)
    expected = filler.fill(PROMPTS, settings=DECODING["greedy"])
    for step in filler.decoder.steps:
        for buffer in (*step.cache.key_buffers, *step.cache.value_buffers):
            buffer.fill_(float("nan"))
    assert filler.fill(PROMPTS, settings=DECODING["greedy"]) == expected


def test_numbers_that_are_none_are_refused():
    model = random_model()
    with torch.no_grad():
        model.transformer.layers[1].mlp.dense_4h_to_h.bias[3] = float("nan")
    for name in ("greedy", "sampling"):
        with pytest.raises(ValueError, match="NaN or infinite"):
            BlankFiller(model, WORDS, static=True).fill(PROMPTS, settings=DECODING[name])


def test_a_row_draws_no_more_than_it_needs(model: GLMModel, monkeypatch: pytest.MonkeyPatch):
    """However many tokens are chosen between two looks at them."""
    settings = DecodingSettings(max_length=40, temperature=2.0, min_length=2)
    expected = BlankFiller(model, WORDS, static=False).fill(PROMPTS, settings=settings)
    for count in (1, 3, 64):
        for module in ("state", "infill"):
            monkeypatch.setattr(f"generation.{module}.TOKENS_AT_ONCE", count)
        assert BlankFiller(model, WORDS, static=True).fill(PROMPTS, settings=settings) == expected, count


@pytest.mark.parametrize("settings", [DECODING["greedy"], DECODING["beams"]], ids=["greedy", "beams"])
def test_compiled_layers(settings: DecodingSettings):
    """One graph serves all layers and steps of a size."""
    torch.compiler.reset()
    counters.clear()
    model = random_model(num_layers=4)
    expected = BlankFiller(model, WORDS, static=True).fill(PROMPTS[:2], settings=settings)
    model.transformer.choose_kernels(compiled=True, backend="aot_eager")
    assert BlankFiller(model, WORDS, static=True).fill(PROMPTS[:2], settings=settings) == expected
    sizes = 1 if settings.num_beams == 1 else 2  # the start tokens, and the beams
    assert 0 < counters["stats"]["unique_graphs"] <= sizes
    assert not counters["graph_break"]
    torch.compiler.reset()


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_split_keys(parts: int):
    generator = torch.Generator().manual_seed(parts)
    query = torch.randn(3, 4, 1, 16, generator=generator)
    key, value = (torch.randn(3, 4, 64, 16, generator=generator) for _ in range(2))
    visible = torch.rand(3, 1, 1, 64, generator=generator) < 0.3
    visible[..., 5] = True
    additive = torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    found = attend_in_parts(query, key, value, additive, parts=parts)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_where_keys_are_split():
    def parts(rows: int, columns: int, device: str = "cuda") -> int:
        return parts_of_keys(num_rows=rows, num_heads=16, num_columns=columns, device=torch.device(device))

    assert [parts(1, 512), parts(1, 1024), parts(2, 2048), parts(64, 2048), parts(1, 2048, "cpu")] == [1, 4, 8, 1, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recorded_graphs():
    """On a GPU steps are recorded and replayed, by default: the same logits as launching every kernel."""
    model = random_model().cuda()
    with torch.inference_mode():
        expected = drive(DecodingState(model, contexts(), num_tokens=58, pad_id=PAD))
        decoder = StaticDecoder(model, num_tokens=58)
        for _ in range(2):
            for one, other in zip(drive(decoder.state(contexts(), pad_id=PAD)), expected, strict=True):
                torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    assert all(graph is not None for step in decoder.steps for graph in step.graphs.values())
    plain = BlankFiller(model, WORDS, static=False)
    for settings in (DECODING["greedy"], DECODING["beams"]):
        filled = BlankFiller(model, WORDS).fill(PROMPTS, settings=settings)
        assert filled == plain.fill(PROMPTS, settings=settings)


def test_half_precision():
    """Explicit scores on the CPU take the same mask."""
    model = random_model().to(torch.bfloat16)
    with torch.inference_mode():
        expected = drive(DecodingState(model, contexts(), num_tokens=58, pad_id=PAD))
        found = drive(StaticDecoder(model, num_tokens=58).state(contexts(), pad_id=PAD))
    for one, other in zip(found, expected):
        torch.testing.assert_close(one[:, :58], other[:, :58], atol=0.25, rtol=0.05)


def test_who_decodes_statically(model: GLMModel):
    assert BlankFiller(model, WORDS).decoder is None  # on the CPU only where it is asked for
    limited = GLMModel(GLMConfig(1, 32, 4, 64, max_position_embeddings=64, max_memory_length=5))
    with pytest.raises(ValueError, match="without a limit of its memory"):
        BlankFiller(limited, WordTokenizer(TINY_COMMAND_IDS, num_tokens=58), static=True)


def test_rows_of_a_static_cache():
    cache = static_cache(KeyValueCache.allocate(num_layers=2, batch_size=3, max_length=6, num_heads=1, head_dim=2))
    assert isinstance(cache, StaticKeyValueCache)
    new = torch.randn(3, 1, 4, 2)
    for layer in range(2):
        cache.append(layer, new, -new)
    cache.advance(4)
    address = cache.keys[0].data_ptr()
    for rows in ([2, 0, 1], [1, 1], [0], [0, 0, 0]):
        new = new[rows]
        cache.reorder(torch.tensor(rows))
        assert (cache.batch_size, cache.length, cache.capacity) == (len(rows), 4, 6)
        for layer in range(2):
            assert torch.equal(cache.keys[layer][:, :, :4], new)
            assert torch.equal(cache.values[layer][:, :, :4], -new)
        assert cache.keys[0].data_ptr() == address
    view = cache.step(torch.tensor([4]))
    assert view.length + 1 == 6
    one = torch.ones(3, 1, 1, 2)
    keys, values = view.of_layer(1).append(1, one, -one)
    assert torch.equal(keys[:, :, :4], new) and torch.equal(keys[:, :, 4:5], one)
    assert torch.equal(values[:, :, 4:5], -one)
    assert not keys[:, :, 5:].any()
