"""Properties of the network: the cache, padding, gathered loss, precision, prompts, bad input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import GLMConfig
from model.heads import MultiTokenCloze, MultiTokenClozeFast, SequenceClassification, SingleTokenCloze
from model.modeling_glm import GLMModel

CONFIG = GLMConfig(2, 32, num_attention_heads=4, vocab_size=96, max_position_embeddings=32)


def _model(**changes: object) -> GLMModel:
    model = GLMModel(replace(CONFIG, **changes), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # larger weights than a fresh model's: attention has to matter
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6.0)
    return model.eval()


def _batch(batch_size: int, length: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, CONFIG.vocab_size, (batch_size, length), generator=generator)
    positions = torch.randint(0, CONFIG.max_position_embeddings, (batch_size, 2, length), generator=generator)
    return ids, positions


def _token_losses(model: GLMModel, inputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """Return the loss [b,s] of every position, from all logits."""
    return F.cross_entropy(model(*inputs).transpose(1, 2), labels, reduction="none")


@given(
    context=st.integers(1, 8),
    steps=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    variant=st.sampled_from(["block", "plain", "relative"]),
    matrix=st.booleans(),
    gradients=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_cached_steps_equal_one_forward(
    context: int, steps: list[int], variant: str, matrix: bool, gradients: bool
) -> None:
    model = _model(block_position_encoding=variant == "block", relative_encoding=variant == "relative")
    length = context + sum(steps)
    ids, positions = _batch(2, length)
    positions = positions if variant == "block" else positions[:, 0]
    prefix_length = torch.tensor([context, max(0, context - 2)])
    with torch.set_grad_enabled(gradients):
        rows, columns = torch.arange(length).unsqueeze(1), torch.arange(length)
        mask = ((columns <= rows) | (columns < prefix_length.view(-1, 1, 1, 1))).long()  # [2,1,length,length]
        full = model(ids, positions, mask if matrix else prefix_length)
        if variant == "relative":
            # Entries beyond the diagonal depend on the number of queries there: only causal parts are comparable.
            full = model(ids, positions, torch.tensor(0))
            prefix_length = torch.zeros(2, dtype=torch.long)
            mask = mask.tril()
        cache = model.new_cache(2, length)
        pieces, start = [], 0
        for size in [context, *steps]:
            end = start + size
            given_mask = mask[:, :, start:end, :end] if matrix else (prefix_length if start == 0 else torch.tensor(0))
            pieces.append(model(ids[:, start:end], positions[..., start:end], given_mask, cache=cache))
            start = end
    torch.testing.assert_close(torch.cat(pieces, dim=1), full, atol=1e-4, rtol=1e-4)


@given(padding=st.integers(1, 5), prefix_length=st.integers(0, 7))
@settings(max_examples=20, deadline=None)
@torch.no_grad()
def test_padding_behind_changes_nothing(padding: int, prefix_length: int) -> None:
    model = _model()
    ids, positions = _batch(2, 7)
    longer_ids, longer_positions = _batch(2, 7 + padding, seed=1)
    longer_ids[:, :7], longer_positions[..., :7] = ids, positions
    mask = torch.tensor([prefix_length, 3])
    short, long = model(ids, positions, mask), model(longer_ids, longer_positions, mask)[:, :7]
    torch.testing.assert_close(long, short, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_outputs_fit_together() -> None:
    model = _model()
    ids, positions = _batch(3, 6)
    inputs = ids, positions, torch.tensor([2, 4, 6])
    logits = model(*inputs)
    torch.testing.assert_close(model(*inputs, output="last_logits"), logits[:, -1])
    assert torch.equal(model(*inputs, output="sharded_logits"), logits)
    assert torch.equal(model.project(model(*inputs, output="hidden")), logits)
    with pytest.raises(ValueError, match="output 'scores' is unknown"):
        model(*inputs, output="scores")


@pytest.mark.parametrize("weights", ["binary", "fractions", "none", "default"])
def test_loss_is_gathered_without_changing_it(weights: str) -> None:
    model = _model()
    ids, positions = _batch(3, 6)
    labels = ids.roll(1, dims=1)
    inputs = ids, positions, torch.tensor([2, 4, 6])
    mask = torch.rand(3, 6, generator=torch.Generator().manual_seed(2)) * (torch.arange(6) % 2)
    mask = {"binary": mask.ceil(), "fractions": mask, "none": mask * 0, "default": None}[weights]
    loss = model(*inputs, labels=labels, loss_mask=mask)
    token_losses = _token_losses(model, inputs, labels)
    mask = torch.ones(3, 6) if mask is None else mask
    torch.testing.assert_close(loss.loss_sum, (token_losses * mask).sum())
    torch.testing.assert_close(loss.weight_sum, mask.sum())
    assert loss.loss_sum.dtype == torch.float32
    assert loss.loss_sum.requires_grad
    assert torch.isfinite(loss.mean)


@given(
    seed=st.integers(0, 2**31),
    query_positions=st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=2, max_size=2),
    variant=st.sampled_from(["block", "plain", "relative"]),
    mask_form=st.sampled_from(["prefix_lengths", "matrix", "segment_ids"]),
    cached=st.booleans(),
    checkpointed=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_wanted_positions_are_rows_of_all(
    seed: int, query_positions: list[list[int]], variant: str, mask_form: str, cached: bool, checkpointed: bool
) -> None:
    options = {"block_position_encoding": variant == "block", "relative_encoding": variant == "relative"}
    model = _model(**options, checkpoint_activations=checkpointed)
    ids, positions = _batch(2, 7, seed=seed)
    positions = positions if variant == "block" else positions[:, 0]
    generator = torch.Generator().manual_seed(seed)
    mask = {
        "prefix_lengths": torch.tensor([3, 0]),
        "matrix": torch.rand(2, 1, 7, 7, generator=generator) < 0.3,  # some rows see nothing
        "segment_ids": torch.randint(0, 2, (2, 2, 7), generator=generator),
    }[mask_form]
    results = []
    for chosen in (None, torch.tensor(query_positions)):
        model.zero_grad()
        cache = model.new_cache(2, 7) if cached else None
        hidden = model(ids, positions, mask, cache=cache, output="hidden", query_positions=chosen)  # [2,7 or 3,h]
        rows = hidden[torch.arange(2).unsqueeze(1), torch.tensor(query_positions)] if chosen is None else hidden
        (rows * torch.linspace(-1.0, 2.0, rows.numel()).view(rows.shape)).sum().backward()
        gradients = [torch.zeros(()) if p.grad is None else p.grad for p in model.parameters()]
        results.append([rows, *gradients, *([] if cache is None else [*cache.keys, *cache.values])])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", ["block", "relative"])
def test_last_layer_at_target_positions_leaves_the_gradients_alone(variant: str) -> None:
    model = _model(relative_encoding=variant == "relative")
    ids, positions = _batch(3, 6)
    inputs = ids, positions, torch.tensor([2, 4, 6])
    mask = torch.tensor([[0, 0, 1, 0, 0.5, 0], [0, 0, 0, 0, 0, 0], [2, 0, 1, 1, 0, 0]])  # rows of 2, 0 and 3 targets
    gradients = []
    for loss in (
        model(*inputs, labels=ids, loss_mask=mask).loss_sum,
        (_token_losses(model, inputs, ids) * mask).sum(),
    ):
        model.zero_grad()
        loss.backward()
        gradients.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)


def test_bfloat16_stays_close() -> None:
    ids, positions = _batch(3, 20)
    inputs = ids, positions, torch.tensor([2, 14, 6])
    model = GLMModel(CONFIG, generator=torch.Generator().manual_seed(0)).eval()
    expected = model(*inputs, labels=ids).mean
    with torch.autocast("cpu", torch.bfloat16):
        autocast = model(*inputs, labels=ids).mean
    assert autocast.dtype == torch.float32
    torch.testing.assert_close(autocast, expected, atol=0.02, rtol=0.01)
    autocast.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    half = GLMModel(CONFIG, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16).eval()
    torch.testing.assert_close(half(*inputs, labels=ids).mean, expected, atol=0.05, rtol=0.02)


@torch.no_grad()
def test_rows_that_see_nothing_stay_finite() -> None:
    ids, positions = _batch(2, 5)
    mask = torch.ones(2, 1, 5, 5).tril()
    mask[0, 0, 3] = 0
    for options in ({}, {"relative_encoding": True}):
        for dtype in (torch.float32, torch.bfloat16):
            assert torch.isfinite(_model(**options).to(dtype)(ids, positions, mask)).all()


def test_differentiable_cache_has_the_gradients_of_one_forward() -> None:
    ids, positions = _batch(2, 9)
    gradients = []
    for cached in (False, True):
        model = _model()
        if cached:
            cache = model.new_cache(2, 9, differentiable=True)
            model(ids[:, :5], positions[..., :5], torch.tensor([5, 3]), cache=cache, output="hidden")
            loss = model(ids[:, 5:], positions[..., 5:], torch.tensor(0), labels=ids[:, 5:], cache=cache)
        else:
            target = torch.zeros(2, 9)
            target[:, 5:] = 1.0
            loss = model(ids, positions, torch.tensor([5, 3]), labels=ids, loss_mask=target)
        loss.mean.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for expected, actual in zip(*gradients):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_beams_share_a_context_by_reordering() -> None:
    model = _model()
    ids, positions = _batch(2, 6)
    cache = model.new_cache(2, 8)
    model(ids, positions, torch.tensor([6, 4]), cache=cache, output="hidden")
    rows = torch.tensor([0, 0, 1])
    cache.reorder(rows)
    new_ids, new_positions = _batch(3, 2, seed=5)
    logits = model(new_ids, new_positions, torch.tensor(0), cache=cache)
    full_ids, full_positions = torch.cat([ids[rows], new_ids], 1), torch.cat([positions[rows], new_positions], 2)
    full = model(full_ids, full_positions, torch.tensor([6, 4])[rows])
    torch.testing.assert_close(logits, full[:, 6:], atol=1e-4, rtol=1e-4)


def test_freezing() -> None:
    model = _model(prompt_length=3)
    model.freeze_transformer(tune_prefix_layers=1)
    trainable = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {"transformer", "prompt_spell"}
    ids, positions = _batch(2, 6)
    prompt_positions = torch.tensor([[1, 2, 3], [0, 4, 5]])
    model(ids, positions, torch.tensor(3), labels=ids, prompt_positions=prompt_positions).mean.backward()
    for name, parameter in model.named_parameters():
        expected = name.startswith(("prompt_spell.", "transformer.layers.0."))
        assert parameter.requires_grad == expected, name
        assert (parameter.grad is not None) == expected, name


def test_prompts_replace_words() -> None:
    model = _model(prompt_length=2, prompt_function="none")
    ids, positions = _batch(2, 6)
    prompt_positions = torch.tensor([[1, 3], [5, 0]])
    with torch.no_grad():
        model.prompt_spell.spell_embeddings.weight.copy_(model.word_embeddings.weight[[7, 8]])
        expected_ids = ids.scatter(1, prompt_positions, torch.tensor([[7, 8], [7, 8]]))
        replaced = model(ids, positions, torch.tensor(3), prompt_positions=prompt_positions)
        assert torch.equal(replaced, model(expected_ids, positions, torch.tensor(3)))
        with pytest.raises(ValueError, match="without a prompt"):
            _model()(ids, positions, torch.tensor(3), prompt_positions=prompt_positions)


def test_initialisation_follows_the_generator() -> None:
    config = replace(CONFIG, prompt_length=2)
    torch.manual_seed(1)
    first = GLMModel(config, generator=torch.Generator().manual_seed(9))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = GLMModel(config, generator=torch.Generator().manual_seed(9))
    assert torch.equal(torch.get_rng_state(), before), "the default generator was touched"
    for (name, expected), actual in zip(first.state_dict().items(), second.state_dict().values()):
        assert torch.equal(actual, expected), name


def test_bad_inputs() -> None:
    model = _model()
    ids, positions = _batch(2, 4)
    with pytest.raises(ValueError, match=r"position_ids are given as shape \[2, 4\]; this model needs \[b,2,s\]"):
        model(ids, positions[:, 0], torch.tensor(2))
    with pytest.raises(ValueError, match="position_ids are given as none"):
        model(ids, None, torch.tensor(2))
    with pytest.raises(ValueError, match="attention_mask is for 3 rows, the batch has 2"):
        model(ids, positions, torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="--pool-token is 'last'"):
        SequenceClassification(model, 2, pool_token="last")
    with pytest.raises(ValueError, match="reads positions from prefix_lengths"):
        SingleTokenCloze(model)(ids, positions, torch.ones(2, 1, 4, 4), torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="need one class, the head has 2"):
        SequenceClassification(model, 2)(ids.unsqueeze(1), positions.unsqueeze(1), torch.tensor([[1], [2]]))


@pytest.mark.parametrize("training", [False, True])
def test_fast_and_plain_cloze_agree(training: bool) -> None:
    """The context is encoded once or with every choice: same scores, same gradients."""
    gradients, scores = [], []
    context, answers, choices = 5, 3, 2
    ids, positions = _batch(2, context)
    answer_ids, answer_positions = (tensor.view(2, choices, *tensor.shape[1:]) for tensor in _batch(4, answers, seed=3))
    prefix_lengths = torch.tensor([context, context])
    loss_mask = torch.tensor([1, 1, 0]).expand(2, choices, answers)
    targets = answer_ids.roll(1, dims=-1)
    for fast in (False, True):
        model = _model()
        with torch.set_grad_enabled(training):
            if fast:
                result = MultiTokenClozeFast(model)(
                    ids,
                    positions,
                    prefix_lengths,
                    answer_ids=answer_ids,
                    answer_position_ids=answer_positions,
                    answer_prefix_lengths=prefix_lengths.unsqueeze(1).expand(-1, choices),
                    target_ids=targets,
                    loss_mask=loss_mask,
                )
            else:
                repeated = ids.unsqueeze(1).expand(-1, choices, -1)
                filler = torch.zeros_like(repeated)
                result = MultiTokenCloze(model)(
                    torch.cat([repeated, answer_ids], dim=-1),
                    torch.cat([positions.unsqueeze(1).expand(-1, choices, -1, -1), answer_positions], dim=-1),
                    prefix_lengths.unsqueeze(1).expand(-1, choices),
                    torch.cat([filler, targets], dim=-1),
                    torch.cat([filler, loss_mask], dim=-1),
                )
        scores.append(result.detach())
        if training:
            result.square().sum().backward()
            gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)
    for expected, actual in zip(*gradients) if training else ():
        torch.testing.assert_close(actual, expected, atol=2e-3, rtol=1e-3)
