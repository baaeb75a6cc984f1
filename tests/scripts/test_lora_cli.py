"""finetune_glm.py with adapters as a user runs it: trained, resumed, evaluated, merged; over ranks, with DeepSpeed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.checkpoints.safe_loading import read_checkpoint_file
from tests.helpers.launching import losses, run
from tests.helpers.small_corpus import SmallCorpus, make_corpus, task_flags, write_entailment_split

LORA = ("--load-pretrained", "base", "--lora-rank", "4", "--lora-target", "query_key_value", "dense_h_to_4h")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def folder(corpus: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a task, a pretrained model in ``base`` and a finished run with adapters, ``s``."""
    root = tmp_path_factory.mktemp("task")
    (root / "data").mkdir()
    for name, count in (("train", 18), ("val", 7), ("test", 5)):
        write_entailment_split(root / "data", name, count)
    words = corpus.words()
    words[words.index("--max-position-embeddings") + 1] = "64"
    run("pretrain_glm.py", *words, "--train-iters", "4", "--save", "p", "--experiment-name", "p", "--auto-resume",
        cwd=root)  # fmt: skip
    (root / "p" / "p").rename(root / "base")
    run("finetune_glm.py", *adapted(corpus, "s"), cwd=root)
    return root


def adapted(corpus: SmallCorpus, name: str, *more: str, epochs: int = 4) -> list[str]:
    """Return the command line of a run with adapters."""
    given = task_flags(corpus, *LORA, "--epochs", str(epochs), "--save", "c", "--experiment-name", name, *more)
    given[given.index("--lr") + 1] = "1e-2"
    return given


def results(folder: Path, name: str) -> dict:
    return json.loads((folder / "runs" / name / "test_results.json").read_text(encoding="utf-8"))


def deepspeed(folder: Path, stage: int) -> tuple[str, ...]:
    """Write a DeepSpeed file and return the flags that name it."""
    content = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "Adam", "params": {"lr": 1e-2, "weight_decay": 0.01}},
    }
    (folder / f"ds{stage}.json").write_text(json.dumps(content), encoding="utf-8")
    return "--deepspeed", "--deepspeed_config", f"ds{stage}.json"


def size_of(folder: Path) -> int:
    """Return the bytes of the files of weights."""
    return sum(file.stat().st_size for file in folder.rglob("*.pt"))


def test_loss_falls_and_the_adapter_is_written(folder: Path) -> None:
    curve = losses(folder, "s")
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5]), curve
    adapter = folder / "c" / "s" / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8, "base")
    assert config["target_modules"] == ["attention.query_key_value", "mlp.dense_h_to_4h"]
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
    layer = "base_model.model.glm.transformer.layers.1.mlp.dense_h_to_4h"
    assert shapes[f"{layer}.lora_A.weight"] == (4, 32) and shapes[f"{layer}.lora_B.weight"] == (128, 4)
    assert len(shapes) == 2 * 2 * 2


def test_checkpoints_hold_the_adapter_alone(folder: Path) -> None:
    best = folder / "c" / "s" / "best" / "mp_rank_00_model_states.pt"
    weights = torch.load(best, weights_only=True)["module"]
    assert len(weights) == 8 and all(".lora_" in name for name in weights)
    assert size_of(best.parent) < size_of(folder / "base") / 5


def test_the_adapter_is_evaluated_and_merged(corpus: SmallCorpus, folder: Path) -> None:
    expected = results(folder, "s")
    given = task_flags(corpus, "--epochs", "0", "--experiment-name", "e", "--load-pretrained", "base")
    output = run("finetune_glm.py", *given, "--lora-adapter", "c/s/adapter", cwd=folder)
    assert "LoRA: rank 4, alpha 8 on query_key_value, dense_h_to_4h" in output
    assert results(folder, "e") == expected
    output = run("scripts/merge_lora.py", "base", "c/s/adapter", "merged", cwd=folder)
    assert "4 weights changed" in output
    given = task_flags(corpus, "--epochs", "0", "--experiment-name", "m", "--load-pretrained", "merged")
    assert "LoRA" not in run("finetune_glm.py", *given, cwd=folder)
    assert results(folder, "m") == expected


def test_a_checkpoint_of_adapters_is_not_taken_for_a_model(corpus: SmallCorpus, folder: Path) -> None:
    given = task_flags(corpus, "--epochs", "0", "--experiment-name", "x", "--load-pretrained", "c/s")
    assert "holds adapters (LoRA), the model has none" in run("finetune_glm.py", *given, cwd=folder, code=2)
    converting = ("c/s/best", "--load-pretrained", "base", "--output", "out", "--num-attention-heads", "2")
    program = "scripts/convert_glm_checkpoint_to_transformers.py"
    output = run(program, *converting, "--no-tokenizer", cwd=folder, code=2)
    assert "scripts/merge_lora.py" in output and "Traceback" not in output


@pytest.mark.slow
def test_an_adapter_on_the_exported_model_equals_the_merged_export(corpus: SmallCorpus, folder: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is an extra")
    from transformers import AutoModelForSeq2SeqLM

    if not (folder / "merged").exists():
        run("scripts/merge_lora.py", "base", "c/s/adapter", "merged", cwd=folder)
    models = []
    for name in ("base", "merged"):
        words = (name, "--output", f"hub-{name}", "--num-attention-heads", "2", "--no-tokenizer", "--verify")
        run("scripts/convert_glm_checkpoint_to_transformers.py", *words, cwd=folder)
        models.append(AutoModelForSeq2SeqLM.from_pretrained(folder / f"hub-{name}", trust_remote_code=True).eval())
    plain, merged = models
    ids = torch.arange(24).view(2, 12)
    inputs = {"input_ids": ids, "attention_mask": torch.tensor([5, 7])}
    with torch.no_grad():
        before, expected = plain(**inputs).logits, merged(**inputs).logits
        found = peft.PeftModel.from_pretrained(plain, folder / "c" / "s" / "adapter")(**inputs).logits
    assert (before - expected).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_exactly(corpus: SmallCorpus, folder: Path) -> None:
    run("finetune_glm.py", *adapted(corpus, "k", "--auto-resume", "--lora-dropout", "0.1", epochs=4), cwd=folder)
    straight = losses(folder, "k")
    more = ("--auto-resume", "--lora-dropout", "0.1", "--patience", "1", "--validation-metric", "accuracy")
    run("finetune_glm.py", *adapted(corpus, "i", *more), cwd=folder)
    stopped = len(losses(folder, "i"))
    assert 0 < stopped < len(straight)
    output = run("finetune_glm.py", *adapted(corpus, "i", *more[:3]), cwd=folder)
    assert f"and {stopped} updates" in output
    assert losses(folder, "i") == straight


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2], ids=["data ranks", "tensor-parallel ranks"])
def test_two_ranks_train_as_one(size: int, corpus: SmallCorpus, folder: Path) -> None:
    name = f"two-{size}"
    given = adapted(corpus, name, "--model-parallel-size", str(size), epochs=1)
    given[given.index("--batch-size") + 1] = str(2 * size)
    run("finetune_glm.py", *given, cwd=folder, ranks=2)
    assert losses(folder, name)[0] == pytest.approx(losses(folder, "s")[0], rel=1e-5)
    one, two = (load_file(folder / "c" / n / "adapter" / "adapter_model.safetensors") for n in ("s", name))
    assert {n: t.shape for n, t in one.items()} == {n: t.shape for n, t in two.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "half", "tolerance"), [(0, (), 1e-3), (1, ("--bf16",), 0.1), (2, (), 1e-3)])
def test_deepspeed_trains_the_same_and_resumes_exactly(
    stage: int, half: tuple[str, ...], tolerance: float, corpus: SmallCorpus, folder: Path
) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is an extra")
    options = (*deepspeed(folder, stage), *half, "--auto-resume")
    run("finetune_glm.py", *adapted(corpus, f"z{stage}", *options), cwd=folder)
    assert losses(folder, f"z{stage}") == pytest.approx(losses(folder, "s"), rel=tolerance)
    assert size_of(folder / "c" / f"z{stage}" / "best") < size_of(folder / "base") / 5
    newest = folder / "c" / f"z{stage}" / "20" / "mp_rank_00_model_states.pt"
    assert all(".lora_" in name for name in read_checkpoint_file(newest)["module"])
    stopping = ("--patience", "1", "--validation-metric", "accuracy")
    run("finetune_glm.py", *adapted(corpus, f"r{stage}", *options, *stopping), cwd=folder)
    assert len(losses(folder, f"r{stage}")) < len(losses(folder, "s"))
    output = run("finetune_glm.py", *adapted(corpus, f"r{stage}", *options), cwd=folder)
    assert "continuing after" in output
    assert losses(folder, f"r{stage}") == losses(folder, f"z{stage}")


@pytest.mark.slow
def test_zero_over_two_tensor_parallel_ranks_goes_on_exactly(corpus: SmallCorpus, folder: Path) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is an extra")
    options = (*deepspeed(folder, 1), "--auto-resume", "--model-parallel-size", "2")
    run("finetune_glm.py", *adapted(corpus, "g", *options), cwd=folder, ranks=2)
    assert losses(folder, "g") == pytest.approx(losses(folder, "s"), rel=1e-3)
    stopping = ("--patience", "1", "--validation-metric", "accuracy")
    run("finetune_glm.py", *adapted(corpus, "gr", *options, *stopping), cwd=folder, ranks=2)
    assert len(losses(folder, "gr")) < len(losses(folder, "g"))
    run("finetune_glm.py", *adapted(corpus, "gr", *options), cwd=folder, ranks=2)
    assert losses(folder, "gr") == losses(folder, "g")


@pytest.mark.slow
def test_a_run_goes_on_over_more_tensor_parallel_ranks(corpus: SmallCorpus, folder: Path) -> None:
    stopping = ("--auto-resume", "--patience", "1", "--validation-metric", "accuracy")
    run("finetune_glm.py", *adapted(corpus, "w", *stopping), cwd=folder)
    stopped = len(losses(folder, "w"))
    run("finetune_glm.py", *adapted(corpus, "w", "--auto-resume", "--model-parallel-size", "2"), cwd=folder, ranks=2)
    assert stopped < len(losses(folder, "w")) == len(losses(folder, "s"))
    assert losses(folder, "w") == pytest.approx(losses(folder, "s"), rel=1e-3)


def test_zero_stage_3_is_refused(corpus: SmallCorpus, folder: Path) -> None:
    output = run("finetune_glm.py", *adapted(corpus, "z3", *deepspeed(folder, 3)), cwd=folder, code=2)
    assert "do not go with ZeRO stage 3; choose stage 0, 1 or 2" in output and "Traceback" not in output


@pytest.mark.slow
def test_classification_heads_are_trained_beside_adapters(corpus: SmallCorpus, folder: Path) -> None:
    given = [word for word in adapted(corpus, "h", epochs=2) if word not in ("--cloze-eval", "--multi-token")]
    run("finetune_glm.py", *given, cwd=folder)
    head = load_file(folder / "c" / "h" / "adapter" / "head_model.safetensors")
    assert set(head) == {f"{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("weight", "bias")}
    evaluate = [word for word in task_flags(corpus, "--epochs", "0") if word not in ("--cloze-eval", "--multi-token")]
    evaluate += ["--experiment-name", "hm", "--load-pretrained", "merged-head"]
    run("scripts/merge_lora.py", "base", "c/h/adapter", "merged-head", cwd=folder)
    run("finetune_glm.py", *evaluate, cwd=folder)
    assert results(folder, "hm") == results(folder, "h")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora-rank", "4"], "--lora-rank needs --load-pretrained"),
        (["--lora-rank", "0", "--load-pretrained", "base"], "--lora-rank is 0; at least 1"),
        (["--lora-alpha", "4"], "--lora-alpha is for adapters: give --lora-rank"),
        (["--lora-rank", "4", "--lora-adapter", "c/s/adapter", "--load-pretrained", "base"], "leave --lora-rank out"),
        (["--lora-rank", "4", "--load-pretrained", "base", "--freeze-transformer", "--tune-prefix-layers", "1"],
         "does not go with --freeze-transformer"),
        (["--lora-adapter", "data", "--load-pretrained", "base"], "data holds no adapter_config.json"),
        (["--lora-rank", "4", "--lora-dropout", "1.5", "--load-pretrained", "base"], "--lora-dropout is 1.5"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line(words: list[str], message: str, corpus: SmallCorpus, folder: Path) -> None:
    output = run("finetune_glm.py", *task_flags(corpus, "--epochs", "1", *words), cwd=folder, code=2)
    assert message in output and "Traceback" not in output
