"""The command line: prefixes, DeepSpeed file, derived values, warnings, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from training.arguments import get_parser, groups_of, options_of, parse_settings
from training.data import tokenizer_keywords
from training.settings import WITHOUT_EFFECT, PretrainingSettings, Settings

BASE = ["--block-lm", "--train-data", "x.jsonl"]


def configure(*words: str, environment: dict[str, str] | None = None) -> PretrainingSettings:
    environment = {"GLM_DATE": "01-02-03-04", **(environment or {})}
    return parse_settings(PretrainingSettings, [*BASE, *words], environment=environment)


def deepspeed_file(folder: Path, content: object) -> list[str]:
    path = folder / "ds.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return ["--deepspeed", "--deepspeed_config", str(path)]


def test_prefixes_of_the_original_are_not_ambiguous():
    values = get_parser().parse_args(["--vocab", "7", "--save-int", "3", "--exp", "run"])
    assert (values.vocab_size, values.save_interval, values.experiment_name) == (7, 3, "run")


def test_an_unknown_flag_is_one_line():
    with pytest.raises(ValueError, match="unrecognized arguments: --no-such-flag"):
        configure("--no-such-flag")
    with pytest.raises(ValueError, match="--lr: invalid float value: 'fast'"):
        configure("--lr", "fast")
    with pytest.raises(ValueError, match="did you mean --num-layers"):
        configure("--num-layer-s", "2")


def test_every_flag_is_described_once():
    options = [option for group in groups_of(Settings).values() for option in options_of(group)]
    names = [flag for _, flag in options] + [flag for flag, *_ in WITHOUT_EFFECT]
    assert len(names) == len(set(names))
    assert all(option.metadata["help"] for option, _ in options)
    text = get_parser().format_help()
    assert all(name in text for name in names)
    assert "peak learning rate; overridden by the DeepSpeed file (default: 0.0001)" in " ".join(text.split())


def test_flags_without_effect_give_one_warning_line():
    notices = configure("--deep-init", "--text-key", "body", "--lazy-loader").notices
    assert len(notices) == 1
    assert all(name in notices[0] for name in ("--deep-init", "--text-key", "--lazy-loader"))
    assert configure().notices == ()


def test_deepspeed_file_wins_over_flags(tmp_path: Path):
    words = deepspeed_file(
        tmp_path,
        {
            "train_micro_batch_size_per_gpu": 16,
            "gradient_accumulation_steps": 2,
            "gradient_clipping": 0.5,
            "fp16": {"enabled": True, "loss_scale": 0, "loss_scale_window": 500, "hysteresis": 3, "min_loss_scale": 2},
            "optimizer": {
                "type": "Adam",
                "params": {"lr": 4e-4, "weight_decay": 0.1, "betas": [0.9, 0.98], "eps": 1e-6},
            },
        },
    )
    configuration = configure("--batch-size", "3", "--lr", "1", *words)
    assert (configuration.batch.batch_size, configuration.batch.gradient_accumulation_steps) == (16, 2)
    optimizer = configuration.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.adam_eps) == (4e-4, 0.1, 1e-6)
    assert (optimizer.adam_beta1, optimizer.adam_beta2) == (0.9, 0.98)
    assert optimizer.clip_grad == 0.5
    precision = configuration.precision
    assert (precision.kind, precision.loss_scale, precision.loss_scale_window) == ("fp16", None, 500)
    assert (precision.hysteresis, precision.min_scale) == (3, 2)
    notice = configure(*words).notices[-1]
    assert "lr = 0.0004" in notice and "batch_size = 16" in notice


def test_a_silent_deepspeed_file_leaves_the_flags_but_resets_the_accumulation(tmp_path: Path):
    words = deepspeed_file(tmp_path, {"optimizer": {"params": {"lr": "auto"}}})
    configuration = configure("--batch-size", "3", "--lr", "0.5", "--gradient-accumulation-steps", "8", *words)
    assert configuration.batch.batch_size == 3
    assert configuration.optimizer.lr == 0.5
    assert configuration.batch.gradient_accumulation_steps == 1


def test_bad_deepspeed_files_are_one_line(tmp_path: Path):
    with pytest.raises(ValueError, match="no such file"):
        configure("--deepspeed", "--deepspeed_config", str(tmp_path / "absent.json"))
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="not valid JSON"):
        configure("--deepspeed", "--deepspeed_config", str(tmp_path / "bad.json"))
    with pytest.raises(ValueError, match="a JSON object is needed"):
        configure(*deepspeed_file(tmp_path, [1]))


@pytest.mark.parametrize(
    ("environment", "rank", "world_size"),
    [
        ({}, 0, 1),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, 3, 4),
        (
            {
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
                "SLURM_NODEID": "2",
                "SLURM_JOB_NUM_NODES": "3",
            },
            5,
            6,
        ),
    ],
)
def test_world_comes_from_the_launcher(environment: dict[str, str], rank: int, world_size: int):
    device = configure("--model-parallel-size", "2", environment=environment).device
    assert (device.rank, device.world_size) == (rank, world_size)
    assert device.model_parallel_size == min(2, world_size)


def test_the_launchers_local_rank_is_taken_in_both_spellings():
    for name in ("--local_rank", "--local-rank"):
        assert configure(f"{name}=3").device.local_rank == 3


def test_experiment_name_and_folders(tmp_path: Path):
    new = configure("--save", str(tmp_path), "--experiment-name", "run")
    assert new.run.experiment_name == "run01-02-03-04"
    assert new.checkpoint.save == tmp_path / "run01-02-03-04"
    resumed = configure("--save", str(tmp_path), "--load", str(tmp_path / "older"))
    assert resumed.checkpoint.save == resumed.checkpoint.load == tmp_path / "older"
    fresh = configure("--save", str(tmp_path), "--load", str(tmp_path / "older"), "--new-save-directory")
    assert fresh.checkpoint.save == tmp_path / "glm01-02-03-04"
    again = configure("--save", str(tmp_path), "--experiment-name", "run", "--auto-resume")
    assert again.checkpoint.save == tmp_path / "run"


def test_derived_settings():
    configuration = configure(
        "--fp16", "--sentinel-token", "--max-position-embeddings", "64", "--seq-length", "64",
        "--block-mask-prob", "0.1", "--mem-length", "9", "--finetune", "--train-iters", "100",
        "--gradient-accumulation-steps", "4",
    )  # fmt: skip
    assert configuration.precision.kind == "fp16" and configuration.precision.loss_scale is None
    assert tokenizer_keywords(configuration)["num_sentinels"] == 64
    assert tokenizer_keywords(configuration)["decoder_mask"]
    assert configuration.model.config(vocab_size=8).max_memory_length == 0
    assert configuration.schedule_length == 25
    assert configuration.batch.evaluation_batch_size == configuration.batch.batch_size


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seq-length", "600"], "--seq-length 600 does not fit --max-position-embeddings 512"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--lr", "-1"], "--lr is -1.0"),
        (["--warmup", "0.6"], "--warmup is 0.6"),
        (["--encoder-decoder"], "--encoder-decoder"),
        (["--multi-task-ratio", "0.1"], "--multi-task-data"),
        (["--transformer-xl"], "--transformer-xl"),
        (["--load", "a", "--load-pretrained", "b"], "give one of them"),
        (["--auto-resume"], "needs --save"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(words: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        configure(*words)


@pytest.mark.parametrize(
    ("words", "kind"),
    [(["--fp16", "--bf16"], "bf16"), (["--bf16", "--fp16"], "fp16"), (["--bf16"], "bf16"), ([], "fp32")],
)
def test_of_two_half_precisions_the_later_counts(words: list[str], kind: str):
    """Scripts of the original give --fp16; a --bf16 that is typed after it takes its place."""
    assert configure(*words).precision.kind == kind


def test_a_deepspeed_file_and_a_flag_that_want_different_precisions(tmp_path: Path):
    (tmp_path / "ds.json").write_text('{"fp16": {"enabled": true}}', encoding="utf-8")
    with pytest.raises(ValueError, match="--fp16 and --bf16 exclude each other"):
        configure("--bf16", "--deepspeed", "--deepspeed_config", str(tmp_path / "ds.json"))


def test_missing_train_data_is_refused():
    with pytest.raises(ValueError, match="no --train-data"):
        parse_settings(PretrainingSettings, ["--block-lm"], environment={})


def test_help_needs_no_torch(repository: Path):
    check = "import sys; from training.arguments import get_parser; get_parser().format_help(); "
    check += "import pretrain_glm, finetune_glm, generate_samples; "
    check += "sys.exit(sorted(m for m in ('torch', 'numpy') if m in sys.modules) != [])"
    assert subprocess.run([sys.executable, "-c", check], cwd=repository, check=False).returncode == 0
