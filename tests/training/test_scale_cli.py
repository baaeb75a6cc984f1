"""pretrain_glm.py and generate_samples.py over several processes: the same numbers at every size."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from tests.helpers.launching import run, start
from tests.helpers.scaled_runs import MICRO_BATCHES, TOLERANCE, curve, words
from tests.helpers.small_corpus import SmallCorpus, make_corpus

STEPS = 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def straight(corpus: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    run("pretrain_glm.py", *words(corpus, size=1, ranks=1, steps=STEPS), cwd=folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "size"), [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4)])
def test_losses_do_not_depend_on_the_number_of_ranks(
    ranks: int, size: int, corpus: SmallCorpus, straight: Path, tmp_path: Path
) -> None:
    run("pretrain_glm.py", *words(corpus, size=size, ranks=ranks, steps=STEPS), cwd=tmp_path, ranks=ranks)
    assert len(curve(tmp_path)) == STEPS
    torch.testing.assert_close(curve(tmp_path), curve(straight), rtol=TOLERANCE, atol=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(4))
def test_losses_are_the_same_under_deepspeed(stage: int, corpus: SmallCorpus, straight: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is an extra")
    content = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": MICRO_BATCHES // 2,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage},
    }
    (tmp_path / "ds.json").write_text(json.dumps(content), encoding="utf-8")
    given = [*words(corpus, size=1, ranks=2, steps=STEPS), "--deepspeed", "--deepspeed_config", "ds.json"]
    output = run("pretrain_glm.py", *given, cwd=tmp_path, ranks=2)
    assert output.count("ds.json sets batch_size = 2") == 1, "what the file overrides is said once"
    torch.testing.assert_close(curve(tmp_path), curve(straight), rtol=TOLERANCE, atol=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--num-beams", "3"), ("--top-k", "5")], ids=["beams", "sampling"])
def test_generation_does_not_depend_on_the_number_of_ranks(
    flags: tuple[str, str], corpus: SmallCorpus, straight: Path, tmp_path: Path
) -> None:
    prompts = ["The [MASK] walks to the river. Then [MASK] sleeps.", "A bird sings. [sMASK] It rains.", "So [gMASK]"]
    lines = [json.dumps({"text": prompt}) for prompt in prompts]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    model = words(corpus, size=1, ranks=1, steps=STEPS)
    model = [*model[: model.index("--train-data")], "--load-pretrained", str(straight / "c" / "r")]
    answers = []
    for ranks, size in ((1, 1), (2, 2), (4, 2), (4, 4)):
        output = tmp_path / f"{ranks}-{size}.jsonl"
        given = [*model, *flags, "--input", "prompts.jsonl", "--output", str(output), "--out-seq-length", "12"]
        given += ["--model-parallel-size", str(size)]
        printed = run("generate_samples.py", *given, cwd=tmp_path, ranks=ranks)
        assert printed.count("Prompt: The [MASK] walks") == 1, "one rank speaks"
        answers.append([json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()])
    assert len(answers[0]) == len(prompts)
    assert all(other == answers[0] for other in answers)


@pytest.mark.slow
def test_typed_prompts_reach_all_tensor_parallel_ranks(corpus: SmallCorpus, straight: Path, tmp_path: Path) -> None:
    model = words(corpus, size=2, ranks=2, steps=STEPS)
    model = [*model[: model.index("--train-data")], "--load-pretrained", str(straight / "c" / "r"), "--top-k", "1"]
    model += ["--model-parallel-size", "2", "--out-seq-length", "8"]
    process = start("generate_samples.py", *model, cwd=tmp_path, ranks=2, stdin=subprocess.PIPE)
    output, _ = process.communicate("A [MASK] sings.\nstop\n", timeout=120)
    assert process.returncode == 0, output
    assert output.count("GLM: ") == 1 and output.count("Context: ") == 1, output
