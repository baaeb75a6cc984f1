"""One update of the torch engine: accumulation, clipping, skipped updates, arithmetic, resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_utils.batches import Batch
from model.checkpoints.reading import master_of
from model.modeling_glm import evaluating
from mpu.initialize import initialize_model_parallel
from tests.helpers.distributed import run
from tests.helpers.engines import make_batch, make_engine
from training.engine import TorchEngine
from training.metrics import OBJECTIVE_INDEX, IntervalMetrics
from training.settings import CheckpointSettings


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def halves(batch: Batch) -> list[Batch]:
    fields = ("input_ids", "target_ids", "loss_mask", "position_ids", "attention_mask")
    return [
        Batch(**{name: getattr(batch, name)[part] for name in fields}, objective=batch.objective)
        for part in (slice(0, 1), slice(1, None))
    ]


def parameters(engine: TorchEngine) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in engine.model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_accumulated_micro_batches_are_one_batch_even_when_uneven():
    batch = make_batch(0)
    whole, parts = make_engine(), make_engine()
    for step in range(3):
        batch = make_batch(step)
        one = whole.train_step([batch])
        two = parts.train_step(halves(batch))
        torch.testing.assert_close(one.loss, two.loss)
        torch.testing.assert_close(one.grad_norm, two.grad_norm, rtol=1e-4, atol=1e-6)
        assert one.size.tokens == two.size.tokens == batch.input_ids.size
    for name, value in parameters(whole).items():
        torch.testing.assert_close(value, parameters(parts)[name], rtol=1e-3, atol=2e-5)


def test_the_loss_is_normalised_by_all_target_weights():
    few, many = make_batch(1, targets=2), make_batch(2, targets=8, mode="gpt")
    engine = make_engine()
    sums = [engine.batch_loss(batch) for batch in (few, many)]
    result = engine.train_step([few, many])
    expected = sum(s.loss_sum for s in sums) / sum(s.weight_sum for s in sums)
    torch.testing.assert_close(result.loss, expected.detach())
    for mode, total in zip(("bert", "gpt"), sums, strict=True):
        torch.testing.assert_close(
            result.objective_sums[OBJECTIVE_INDEX[mode]], torch.stack([total.loss_sum, total.weight_sum]).detach()
        )


def test_the_first_update_has_learning_rate_zero_and_the_schedule_goes_on():
    engine = make_engine()
    before = parameters(engine)
    rates = [engine.train_step([make_batch(0)]).learning_rate]
    assert same(before, parameters(engine))
    rates += [engine.train_step([make_batch(step)]).learning_rate for step in (1, 2)]
    assert rates == pytest.approx([0.0, 0.005, 0.01])


def test_clipping_limits_the_global_norm_once():
    loose, tight = make_engine(name="sgd", clip_grad=0.0), make_engine(name="sgd", clip_grad=1e-3)
    for engine in (loose, tight):
        engine.optimizer.param_groups[0]["lr"] = 1.0  # instead of the warm-up's 0
    before = parameters(tight)
    norms = [engine.train_step(halves(make_batch(0))).grad_norm for engine in (loose, tight)]
    torch.testing.assert_close(norms[0], norms[1])
    moved = torch.stack([(parameters(tight)[n] - before[n]).norm() for n in before]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("name", ["adam", "adafactor"])
def test_an_update_that_is_not_finite_changes_nothing(name: str):
    engine = make_engine(name=name)
    for step in range(3):
        engine.train_step([make_batch(step)])
    weight = engine.model.transformer.final_layernorm.weight
    good = weight.detach().clone()
    with torch.no_grad():
        weight[0] = float("nan")
    before = parameters(engine)
    result = engine.train_step([make_batch(3)])
    assert result.skipped.item() == 1.0
    after = parameters(engine)
    assert all(torch.equal(before[n].nan_to_num(7.0), after[n].nan_to_num(7.0)) for n in before)
    with torch.no_grad():
        weight.copy_(good)
    assert engine.train_step([make_batch(4)]).skipped.item() == 0.0
    assert all(torch.isfinite(value).all() for value in parameters(engine).values())


def test_fp16_overflow_lowers_the_scale_and_holds_the_schedule():
    engine = make_engine(precision="fp16")
    first = engine.train_step([make_batch(0)])
    assert first.skipped.item() == 1.0 and first.loss_scale == 2.0**32
    assert engine.optimizer.param_groups[0]["lr"] == first.learning_rate
    results = [engine.train_step([make_batch(step)]) for step in range(1, 40)]
    assert results[-1].skipped.item() == 0.0
    assert results[-1].loss_scale < 2.0**32 and results[-1].learning_rate > 0.0
    reference = make_engine().batch_loss(make_batch(0)).mean
    torch.testing.assert_close(first.loss, reference.detach(), rtol=2e-2, atol=2e-2)


def test_bf16_keeps_parameters_in_fp32_and_learns():
    engine = make_engine(precision="bf16")
    losses = [engine.train_step([make_batch(0)]).loss.item() for _ in range(15)]
    assert losses[-1] < losses[0] - 0.1
    assert {value.dtype for value in engine.model.parameters()} == {torch.float32}


def test_bf16_parameters_with_masters_learn_as_fp32_does():
    """Losses, norms and clipping of a run in fp32, to the precision of bf16; parameters are their masters, rounded."""
    plain, half = make_engine(clip_grad=0.5), make_engine(clip_grad=0.5, precision="bf16", bf16_params=True)
    for step in range(8):
        expected, actual = (engine.train_step(halves(make_batch(step))) for engine in (plain, half))
        torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(actual.grad_norm, expected.grad_norm, rtol=5e-2, atol=1e-3)
    for parameter in half.model.parameters():
        master = master_of(parameter)
        assert (parameter.dtype, master.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(parameter, master.to(torch.bfloat16)) and parameter.grad is master.grad is None
    assert any(not torch.equal(p.float(), master_of(p)) for p in half.model.parameters())


def test_small_updates_of_bf16_parameters_add_up():
    """A step of a thousandth is lost on a bf16 weight of 1, and not on its master."""
    engine = make_engine(precision="bf16", bf16_params=True)
    weight = engine.model.transformer.final_layernorm.weight
    for group in engine.optimizer.param_groups:
        group["weight_decay"] = 0.0
    for _ in range(12):
        for group in engine.optimizer.param_groups:
            group["lr"] = 1e-3
        engine.train_step([make_batch(0)])
    moved = (master_of(weight) - 1.0).abs().max()
    assert moved > 5e-3 and (weight.float() - 1.0).abs().max() > 3e-3


def test_checkpoints_of_bf16_parameters_are_their_masters(tmp_path: Path):
    """Any engine goes on from them, and exports are made of them."""
    engine = make_engine(precision="bf16", bf16_params=True)
    for step in range(3):
        engine.train_step([make_batch(step)])
    engine.save(settings(tmp_path), iteration=3, data_state={})
    masters = {name: master_of(value).detach() for name, value in engine.model.state_dict(keep_vars=True).items()}
    other = make_engine(seed=9)
    other.load(tmp_path, settings(tmp_path))
    assert same(parameters(other), masters)
    back = make_engine(seed=8, precision="bf16", bf16_params=True)
    back.load_weights(tmp_path)
    assert same(parameters(back), parameters(engine))
    losses = [one.train_step([make_batch(3)]).loss for one in (other, engine)]
    torch.testing.assert_close(*losses, rtol=1e-2, atol=1e-2)


def test_activation_checkpointing_takes_the_same_steps():
    plain = make_engine(dropout=0.3)
    checkpointed = make_engine(dropout=0.3, checkpoint_activations=True)
    for engine in (plain, checkpointed):
        torch.manual_seed(5)
        for step in range(3):
            engine.train_step([make_batch(step)])
    for name, value in parameters(plain).items():
        torch.testing.assert_close(value, parameters(checkpointed)[name], rtol=1e-4, atol=1e-5)


def test_an_evaluation_leaves_every_part_in_its_mode():
    engine = make_engine(dropout=0.5)
    frozen = engine.model.transformer.layers[0]
    frozen.eval()
    modes = [module.training for module in engine.model.modules()]
    assert len(set(modes)) == 2
    first, second = (engine.evaluate([make_batch(0)]).loss for _ in range(2))
    assert first == second, "no dropout"
    with pytest.raises(KeyError), evaluating(engine.model):
        assert not any(module.training for module in engine.model.modules())
        raise KeyError
    assert [module.training for module in engine.model.modules()] == modes


def settings(folder: Path, **changes: object) -> CheckpointSettings:
    return CheckpointSettings(**{"save": folder, "save_interval": 1, **changes})


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "bf16 parameters"])
def test_saved_and_loaded_goes_on_bit_for_bit(tmp_path: Path, precision: str):
    precision, _, half = precision.partition(" ")
    engine = make_engine(dropout=0.2, precision=precision, bf16_params=bool(half))
    for step in range(4):
        engine.train_step([make_batch(step)])
    engine.save(settings(tmp_path), iteration=4, data_state={"samples": 16})
    expected = [engine.train_step(halves(make_batch(step))) for step in range(4, 8)]
    resumed = make_engine(dropout=0.2, precision=precision, seed=9, bf16_params=bool(half))
    state = resumed.load(tmp_path, settings(tmp_path))
    assert (state.iteration, state.data_state["samples"]) == (4, 16)
    actual = [resumed.train_step(halves(make_batch(step))) for step in range(4, 8)]
    for left, right in zip(expected, actual, strict=True):
        assert torch.equal(left.loss, right.loss) and left.learning_rate == right.learning_rate
        assert torch.equal(left.grad_norm.nan_to_num(), right.grad_norm.nan_to_num())
        assert left.loss_scale == right.loss_scale
    assert same(parameters(engine), parameters(resumed))


def test_finetune_takes_the_weights_only(tmp_path: Path):
    engine = make_engine()
    for step in range(3):
        engine.train_step([make_batch(step)])
    engine.save(settings(tmp_path), iteration=3, data_state={})
    other = make_engine(seed=9)
    state = other.load(tmp_path, settings(tmp_path, finetune=True))
    assert state.iteration == 0
    assert same(parameters(engine), parameters(other))
    assert other.train_step([make_batch(0)]).learning_rate == 0.0


def data_parallel_worker(folder: str) -> dict:
    """Take three updates on this rank's batches, one rank having twice the targets; save, resume, take one more."""
    topology = initialize_model_parallel(1)
    rank = topology.data_parallel_rank
    engine = make_engine(topology=topology)
    metrics = IntervalMetrics(engine.device, topology=topology)
    for step in range(3):
        metrics.add(engine.train_step(rank_batches(rank, step)))
    report = metrics.report(3)
    engine.save(settings(Path(folder)), iteration=3, data_state={})
    resumed = make_engine(topology=topology, seed=9)
    resumed.load(Path(folder), settings(Path(folder)))
    after = [one.train_step(rank_batches(rank, 3)).loss for one in (engine, resumed)]
    return {
        "loss": report.loss, "objectives": dict(report.objective_losses), "tokens": report.num_tokens,
        "parameters": parameters(engine),
        "equal": torch.equal(*after) and same(parameters(engine), parameters(resumed)),
    }  # fmt: skip


def rank_batches(rank: int, step: int) -> list[Batch]:
    mode = "gpt" if rank else "bert"
    return [make_batch(10 * step + 2 * rank + part, targets=3 + 3 * rank, mode=mode) for part in range(2)]


def test_two_data_ranks_are_one_rank_with_all_the_batches(tmp_path: Path):
    ranks = run(data_parallel_worker, 2, str(tmp_path))
    engine = make_engine()
    metrics = IntervalMetrics(engine.device, topology=engine.topology)
    for step in range(3):
        metrics.add(engine.train_step(rank_batches(0, step) + rank_batches(1, step)))
    report = metrics.report(3)
    engine.train_step(rank_batches(0, 3) + rank_batches(1, 3))
    for result in ranks:
        assert result["loss"] == pytest.approx(report.loss, rel=1e-5)
        assert result["objectives"] == pytest.approx(report.objective_losses, rel=1e-5)
        assert result["tokens"] == report.num_tokens
        assert result["equal"]
        for name, value in parameters(engine).items():
            torch.testing.assert_close(result["parameters"][name], value, rtol=1e-3, atol=2e-5)
