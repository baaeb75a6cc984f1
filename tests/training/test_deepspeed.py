"""The DeepSpeed engine in real processes: equal to plain torch at every ZeRO stage, resumed at any size."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.checkpoints.reading import read_whole_weights, resolve_checkpoint
from mpu.kernels.prepacked import has_bf16_instructions
from tests.helpers import deepspeed_engines as engines
from tests.helpers import launching
from tests.helpers.distributed import run
from tests.helpers.small_corpus import make_corpus
from training.deepspeed.checkpoints import ZeroShape, fp32_weights, zero_shape
from training.deepspeed.config import deepspeed_plan
from training.settings import BatchSettings, OptimizerSettings, PrecisionSettings, Settings

pytest.importorskip("deepspeed", reason="DeepSpeed is an extra")

FP32_TOLERANCE = 1e-5  # relative; another order of summation
HALF_TOLERANCE = 2e-3
STEPS = 6
SAVED = 3


@pytest.fixture(scope="module")
def straight() -> list[tuple[float, float]]:
    """Losses and gradient norms of one process of plain torch."""
    return engines.train_and_save(1, None, "fp32", None, (0, 0, STEPS))


def assert_equal(measured, expected, tolerance: float = FP32_TOLERANCE) -> None:
    assert len(measured) == len(expected)
    torch.testing.assert_close(torch.tensor(measured), torch.tensor(expected), rtol=tolerance, atol=0.0)


def test_zero_0_to_3_over_two_data_ranks(straight) -> None:
    cases = [(stage, "fp32", {}) for stage in range(4)]
    cases += [(2, "fp32", {"offload_optimizer": {"device": "cpu"}}), (3, "fp32", {"offload_param": {"device": "cpu"}})]
    for case, measured in zip(cases, run(engines.curves, 2, 1, cases, STEPS)[0], strict=True):
        assert_equal(measured, straight), case


def test_zero_0_to_3_over_two_tensor_parallel_ranks(straight) -> None:
    for measured in run(engines.curves, 2, 2, [(stage, "fp32", {}) for stage in range(4)], STEPS)[1]:
        assert_equal(measured, straight)


def test_zero_2_over_a_grid_of_two_by_two(straight) -> None:
    for measured in run(engines.curves, 4, 2, [(2, "fp32", {})], STEPS)[3]:
        assert_equal(measured, straight)


def test_bfloat16_follows_fp32(straight) -> None:
    for measured in run(engines.curves, 2, 1, [(stage, "bf16", {}) for stage in (0, 1, 2, 3)], STEPS)[0]:
        losses = [loss for loss, _ in measured]
        torch.testing.assert_close(losses, [loss for loss, _ in straight], rtol=HALF_TOLERANCE, atol=0.0)


def resume(tmp_path: Path, first: tuple, second: tuple, **settings):
    """Save under ``first`` and continue under ``second``, each (processes, tensor-parallel size, stage, precision)."""
    root = tmp_path / "run"
    processes, size, stage, kind = first
    run(engines.train_and_save, processes, size, stage, kind, root, (0, SAVED, SAVED))
    processes, size, stage, kind = second
    iteration, data_state, measured = run(engines.load_and_train, processes, size, stage, kind, root, STEPS, settings)[
        0
    ]
    assert iteration == SAVED
    assert data_state == {"samples": 16 * SAVED}
    assert not list(root.glob(".tmp-*")), "the universal form is not left behind"
    return measured


@pytest.mark.parametrize("stage", range(4))
def test_the_same_size_goes_on(stage: int, straight, tmp_path: Path) -> None:
    measured = resume(tmp_path, (2, 1, stage, "fp32"), (2, 1, stage, "fp32"))
    assert_equal(measured, straight[SAVED:])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((4, 1, 1, "fp32"), (2, 1, 1, "fp32")),  # ZeRO-1: 4 data ranks -> 2
        ((2, 1, 2, "fp32"), (1, 1, 2, "fp32")),  # ZeRO-2: 2 data ranks -> 1
        ((2, 1, 3, "fp32"), (1, 1, 3, "fp32")),
        ((2, 2, 1, "fp32"), (1, 1, 1, "fp32")),  # 2 tensor-parallel ranks -> 1
        ((1, 1, 1, "fp32"), (4, 2, 2, "fp32")),  # 1 rank -> 2 x 2, another stage
    ],
    ids=["zero1-dp4-dp2", "zero2-dp2-dp1", "zero3-dp2-dp1", "zero1-tp2-tp1", "zero1-1-zero2-2x2"],
)
def test_another_size_goes_on_with_universal_checkpoint(first, second, straight, tmp_path: Path) -> None:
    assert_equal(resume(tmp_path, first, second, universal_checkpoint=True), straight[SAVED:])


def test_stage_0_and_the_torch_engine_share_checkpoints(straight, tmp_path: Path) -> None:
    assert_equal(resume(tmp_path / "a", (2, 1, 0, "fp32"), (1, 1, None, "fp32")), straight[SAVED:])
    assert_equal(resume(tmp_path / "b", (1, 1, None, "fp32"), (2, 1, 0, "fp32")), straight[SAVED:])


@pytest.mark.parametrize(
    ("first", "second", "hint"),
    [
        ((2, 1, 1, "fp32"), (1, 1, 1, "fp32"), "add --universal-checkpoint"),
        ((1, 1, 1, "fp32"), (1, 1, 0, "fp32"), "--no-load-optim"),
        ((1, 1, None, "fp32"), (1, 1, 1, "fp32"), "--no-load-optim"),
    ],
    ids=["other-size", "zero-to-none", "torch-to-zero"],
)
def test_a_state_that_cannot_be_had_names_the_way_out(first, second, hint: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=rf"ValueError: \S+ was (not )?written .*{hint}"):
        resume(tmp_path, first, second)


def test_weights_alone_need_no_fitting_optimizer(tmp_path: Path) -> None:
    """The first loss after the resume is that of the saved weights."""
    root = tmp_path / "run"
    run(engines.train_and_save, 2, 1, 3, "fp32", root, (0, SAVED, SAVED))
    expected = run(engines.load_and_train, 2, 1, 3, "fp32", root, SAVED + 1, {})[0][2]
    settings = {"no_load_optim": True, "no_load_lr_scheduler": True}
    for stage in (None, 1):
        measured = run(engines.load_and_train, 1, 1, stage, "fp32", root, SAVED + 1, settings)[0][2]
        assert_equal(measured, expected)


@pytest.mark.slow
def test_deepspeed_tools_and_exports_find_the_fp32_weights(tmp_path: Path) -> None:
    """Of stage 2 with tensor parallelism as well, where DeepSpeed's zero_to_fp32 gives up."""
    exported = {}
    for stage, size in ((2, 2), (3, 1)):
        root, folder = tmp_path / str(stage), tmp_path / str(stage) / str(SAVED)
        run(engines.train_and_save, 2, size, stage, "bf16", root, (0, SAVED, SAVED))
        out = tmp_path / f"exported-{stage}"
        words = ["--output", str(out), "--num-attention-heads", "4", "--no-tokenizer", "--verify"]
        printed = launching.run("scripts/convert_glm_checkpoint_to_transformers.py", str(root), *words, cwd=tmp_path)
        assert "weights are taken in fp32 from the optimizer's files" in printed
        exported[stage] = read_whole_weights(out)
        assert exported[stage].dtype == torch.float32
        rounded = read_whole_weights(root)
        for name in rounded.pieces:
            precise = exported[stage].read(name)
            assert torch.equal(precise.bfloat16(), rounded.read(name)), name
            assert not torch.equal(precise, rounded.read(name).float()), name
        tool = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", folder]
        subprocess.run([*tool, "--output_folder", tmp_path / "universal"], check=True, capture_output=True)
        parts = tmp_path / "universal" / "zero"
        for name in exported[stage].pieces:
            whole = torch.load(parts / name / "fp32.pt", weights_only=False)
            whole = whole["param"] if isinstance(whole, dict) else whole
            assert torch.equal(whole.view(exported[stage].shape(name)), exported[stage].read(name)), name
        shutil.rmtree(tmp_path / "universal")
    assert (folder / "mp_rank_00_weights.pt").is_file() and not (folder / "mp_rank_00_model_states.pt").exists()
    one_file = tmp_path / "fp32"
    tool = [sys.executable, "-m", "deepspeed.utils.zero_to_fp32", str(root), str(one_file)]
    subprocess.run(tool, check=True, capture_output=True)
    made = torch.load(one_file / "pytorch_model.bin", weights_only=True)
    assert made.keys() == exported[3].pieces.keys()
    assert all(torch.equal(made[name], exported[3].read(name)) for name in made)
    new, old = folder / "mp_rank_00_weights.pt", folder / "mp_rank_00_model_states.pt"  # its name in earlier versions
    torch.save({**torch.load(new, weights_only=False), "file_name": old.name}, old)
    new.unlink()
    (folder / "SHA256SUMS").unlink()
    assert zero_shape(folder) == ZeroShape(2, 1, 3) and resolve_checkpoint(root).shard_files() == [old]
    assert all(torch.equal(made[name], parts[0]) for name, parts in fp32_weights(folder).items())


def test_a_cut_off_file_falls_back_loudly(straight, tmp_path: Path) -> None:
    root = tmp_path / "run"
    for saved in (SAVED, SAVED + 1):
        run(engines.train_and_save, 1, 1, 1, "fp32", root, (0, saved, saved))
    victim = root / str(SAVED + 1) / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    victim.write_bytes(victim.read_bytes()[:-2000])
    iteration, _, measured = run(engines.load_and_train, 1, 1, 1, "fp32", root, STEPS, {})[0]
    assert iteration == SAVED
    assert_equal(measured, straight[SAVED:])


def plan_for(content: dict, kind: str = "fp32"):
    settings = Settings(
        batch=BatchSettings(batch_size=3, gradient_accumulation_steps=2),
        optimizer=OptimizerSettings("adam", 1e-3, 0.1, 0.9, 0.98, 1e-6, 0.7),
        precision=PrecisionSettings(kind == "fp16", kind == "bf16", loss_scale_window=500, hysteresis=3, min_scale=1.0),
        deepspeed_content=content,
    )
    return deepspeed_plan(settings, device=torch.device("cpu"))


def test_the_plan_holds_the_values_of_the_run() -> None:
    content = json.loads(
        '{"train_micro_batch_size_per_gpu": 16, "zero_optimization": {"stage": 2, "overlap_comm": true}}'
    )
    plan = plan_for(content)
    assert (plan.stage, plan.precision, plan.notices) == (2, "fp32", ())
    assert plan.config["train_micro_batch_size_per_gpu"] == 3
    assert plan.config["gradient_accumulation_steps"] == 2
    assert plan.config["gradient_clipping"] == 0.7
    assert plan.config["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert content["train_micro_batch_size_per_gpu"] == 16, "the caller's content is left alone"


def test_half_precision_runs_with_a_stage_and_bfloat16_on_a_cpu() -> None:
    plan = plan_for({"fp16": {"enabled": True, "loss_scale": 0}}, "fp16")
    bf16 = has_bf16_instructions()
    assert (plan.stage, plan.precision) == ((1, "bf16") if bf16 else (0, "fp32"))
    assert len(plan.notices) == 1 + bf16
    assert "fp16" not in plan.config


@pytest.mark.parametrize(
    "content", [{"optimizer": {"type": "Lamb"}}, {"zero_optimization": {"stage": 4}}], ids=["optimizer", "stage"]
)
def test_what_is_not_provided_is_refused(content: dict) -> None:
    with pytest.raises(ValueError, match="DeepSpeed file asks for"):
        plan_for(content)


@pytest.mark.slow
def test_what_deepspeed_cannot_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"aio": 5}', encoding="utf-8")
    given = [*make_corpus(tmp_path).words(), "--train-iters", "1", "--deepspeed", "--deepspeed_config", "ds.json"]
    output = launching.run("pretrain_glm.py", *given, cwd=tmp_path, code=2)
    assert output.splitlines()[-1].startswith("error: DeepSpeed cannot read its file (--deepspeed_config): "), output
