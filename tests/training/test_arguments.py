"""The command line: prefixes, DeepSpeed file, derived values, warnings, refusals."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

from mpu.initialize import ParallelTopology
from tasks.settings import FinetuningSettings
from training.arguments import get_parser, groups_of, options_of, parse_settings, value_type
from training.build import claim_name
from training.data import tokenizer_keywords
from training.deepspeed.config import deepspeed_plan
from training.engine import supported_precision
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


def test_the_help_begins_with_what_is_used_most_and_ends_with_what_has_no_effect():
    shown = get_parser(PretrainingSettings).format_help()
    corpus, model, last = (shown.index(title) for title in ("Corpus of", "Model:", "Without effect in pre-training"))
    assert corpus < model < last
    assert last < min(shown.index(f"  {flag} ") for flag in ("--epochs", "--deep-init", "--loose-json"))
    assert shown.index("  --train-iters ") < last and "(default: 0.0001)" in shown


def test_flags_without_effect_give_one_warning_line():
    notices = configure("--deep-init", "--text-key", "body", "--epochs", "3", "--lazy-loader").notices
    assert len(notices) == 1
    assert all(name in notices[0] for name in ("--deep-init", "--text-key", "--epochs"))
    assert "--lazy-loader" not in notices[0], "it asks for what is done anyway"
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
    with pytest.raises(ValueError, match="an object is needed in JSON"):
        configure(*deepspeed_file(tmp_path, [1]))


DEEPSPEED = {
    "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0,
    "zero_optimization": {
        "stage": 1, "reduce_bucket_size": 5e8, "overlap_comm": True, "offload_optimizer": {"device": "cpu"},
    },
    "fp16": {"enabled": True, "loss_scale": 0, "loss_scale_window": 100, "hysteresis": 2, "min_loss_scale": 1},
    "bf16": {"enabled": False}, "checkpoint": {},
    "optimizer": {"type": "Adam", "params": {"lr": 0.003, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.05}},
}  # fmt: skip
PLACES = [
    ("train_micro_batch_size_per_gpu",), ("gradient_accumulation_steps",), ("gradient_clipping",), ("checkpoint",),
    ("zero_optimization",), ("fp16",), ("bf16",), ("optimizer",), ("optimizer", "type"), ("optimizer", "params"),
    *(("zero_optimization", name) for name in ("stage", "reduce_bucket_size", "overlap_comm", "offload_optimizer")),
    ("zero_optimization", "offload_optimizer", "device"), ("bf16", "enabled"),
    *(("fp16", name) for name in ("enabled", "loss_scale", "loss_scale_window", "hysteresis", "min_loss_scale")),
    *(("optimizer", "params", name) for name in ("lr", "betas", "eps", "weight_decay")),
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_values_of_a_deepspeed_file_have_their_types_or_are_named(place: tuple[str, ...], tmp_path: Path) -> None:
    for value in (None, "auto", "x", "", -1, 0, 2.5, 10**400, True, [], [1], [0.9, "x"], {}, {"x": {}}):
        content = copy.deepcopy(DEEPSPEED)
        block: Any = content
        for name in place[:-1]:
            block = block[name]
        block[place[-1]] = value
        try:
            settings = configure(*deepspeed_file(tmp_path, content))
            plan = deepspeed_plan(settings, device=torch.device("cuda"))
        except ValueError as error:
            assert "\n" not in str(error) and re.search(f"{place[-1]}|DeepSpeed file", str(error)), value
        else:
            assert plan.stage in (0, 1, 2, 3) and settings.batch.batch_size >= 1


def test_a_deepspeed_file_s_bounds_are_those_of_the_flags(tmp_path: Path) -> None:
    words = deepspeed_file(tmp_path, {"optimizer": {"params": {"betas": [0.9, 1.0]}}})
    message = r"--deepspeed_config .*ds.json, optimizer, params: betas\[1\] is 1.0; at least 0 and below 1 is needed"
    with pytest.raises(ValueError, match=message):
        configure(*words)


def test_every_number_has_bounds() -> None:
    without = {"length_penalty"}
    for kind in groups_of(FinetuningSettings).values():
        hints = get_type_hints(kind)
        for one, flag in options_of(kind):
            if value_type(hints[one.name]) in (int, float) and one.name not in without:
                assert one.metadata["bounds"].keys() & {"at_least", "above"}, flag


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "100000000000000"], "--seed is 100000000000000; at least -4294967295 and at most 4294967295"),
        (["--avg-block-length", "0"], "--avg-block-length is 0; at least 1"),
        (["--gpt-min-ratio", "2"], "--gpt-min-ratio is 2.0; at least 0 and at most 1"),
        (["--clip-grad", "nan"], "--clip-grad is nan; a finite number"),
        (["--lr", "inf"], "--lr is inf; a finite number"),
        (["--train-iters", "99999999999"], "--train-iters is 99999999999; at most 2147483647"),
        (["--hidden-dropout", "1"], "--hidden-dropout is 1.0; at least 0 and below 1"),
    ],
)
def test_numbers_out_of_bounds_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure(*words)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "x"}, "RANK is 'x'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "²"}, "WORLD_SIZE is '²'"),
        ({"LOCAL_RANK": "1.5"}, "LOCAL_RANK is '1.5'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "rank 2 of 2"),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "two"}, "LOCAL_SIZE is 'two'"),
    ],
)
def test_what_launchers_set_has_to_be_numbers(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure(environment=environment)


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


def test_all_ranks_have_the_name_of_the_first(tmp_path: Path):
    """Also where a name is that of a folder in a folder, as grids have it."""
    for name in ("run", "grid/rte-1"):
        own = configure("--save", str(tmp_path), "--experiment-name", name)
        assert own.named(own.run.experiment_name) == own
        first = own.named(f"{name}-of-the-first")
        assert first.run.experiment_name == f"{name}-of-the-first"
        assert first.checkpoint.save == tmp_path / f"{name}-of-the-first"


def test_experiment_name_and_folders(tmp_path: Path):
    new = configure("--save", str(tmp_path), "--experiment-name", "run")
    assert new.run.experiment_name == "run-01-02-03-04"
    assert new.checkpoint.save == tmp_path / "run-01-02-03-04"
    resumed = configure("--save", str(tmp_path), "--load", str(tmp_path / "older"))
    assert resumed.checkpoint.save == resumed.checkpoint.load == tmp_path / "older"
    fresh = configure("--save", str(tmp_path), "--load", str(tmp_path / "older"), "--new-save-directory")
    assert fresh.checkpoint.save == tmp_path / "glm-01-02-03-04"
    again = configure("--save", str(tmp_path), "--experiment-name", "run", "--auto-resume")
    assert again.checkpoint.save == tmp_path / "run"


def test_runs_that_begin_in_one_minute_have_folders_of_their_own(tmp_path: Path):
    words = ("--save", f"{tmp_path}/c", "--summary-dir", f"{tmp_path}", "--experiment-name", "run")
    names = [claim_name(configure(*words), topology=ParallelTopology.single()).run.experiment_name for _ in range(2)]
    (tmp_path / "c" / "run-01-02-03-04-3").mkdir(parents=True)  # of a run with another --summary-dir
    names.append(claim_name(configure(*words), topology=ParallelTopology.single()).run.experiment_name)
    assert names == [f"run-01-02-03-04{number}" for number in ("", "-2", "-4")]
    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == set(names)
    for more in (("--auto-resume",), ("--load", f"{tmp_path}/c/run-01-02-03-04")):
        goes_on = configure(*words, *more)
        assert claim_name(goes_on, topology=ParallelTopology.single()) == goes_on


def test_the_last_precision_counts_and_fp32_forces(tmp_path: Path):
    file = tmp_path / "ds.json"
    file.write_text('{"fp16": {"enabled": true}}', encoding="utf-8")
    deepspeed = ("--deepspeed", "--deepspeed_config", str(file))
    for words, kind in (
        (("--fp16", "--bf16"), "bf16"),
        (("--bf16", "--fp16"), "fp16"),
        (("--fp16", "--fp32"), "fp32"),
        (("--fp32", "--bf16"), "bf16"),
        (deepspeed, "fp16"),
        ((*deepspeed, "--fp32"), "fp32"),
        (("--bf16-params",), "bf16"),
    ):
        assert configure(*words).precision.kind == kind, words


def test_training_on_a_cpu_without_bf16_is_in_fp32_and_says_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    cpu = torch.device("cpu")
    for flag in ("--bf16", "--fp16"):
        precision = configure(flag).precision
        kind, reason = supported_precision(precision, device=cpu)
        assert kind == "fp32" and reason is not None and f"fp32 instead of {flag[2:]}" in reason
        assert supported_precision(precision, device=cpu, training=False)[0] == "bf16", "generation"
        assert supported_precision(precision, device=torch.device("cuda")) == (flag[2:], None)
    for words in ((), ("--bf16", "--fp32")):
        assert supported_precision(configure(*words).precision, device=cpu) == ("fp32", None)


def test_activations_are_recomputed_by_a_switch_or_a_word():
    for words, value in (
        ((), False), (("--checkpoint-activations",), True), (("--checkpoint-activations", "on"), True),
        (("--checkpoint-activations", "--fp16"), True), (("--checkpoint-activations", "auto"), "auto"),
        (("--checkpoint-activations", "auto", "--checkpoint-activations", "off"), False),
    ):  # fmt: skip
        settings = configure(*words)
        assert settings.model.checkpoint_activations == value, words
        assert settings.network(vocab_size=8).checkpoint_activations == (value is True)


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
        (["--initialization", "neighbours", "--load-pretrained", "b"], "--initialization neighbours draws random"),
        (["--bert-ratio", "0.6"], "--bert-ratio is 0.6"),
        (["--auto-resume"], "needs --save"),
        (["--checkpoint-activations", "maybe"], "--checkpoint-activations is 'maybe'; choose one of on, off, auto"),
        (["--bf16-params", "--fp16"], "--bf16-params does not go with --fp16"),
        (["--bf16-params", "--deepspeed"], "--bf16-params is for the torch engine"),
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
    with pytest.raises(ValueError, match="--fp16, --bf16 and --fp32 exclude each other"):
        configure("--bf16", "--deepspeed", "--deepspeed_config", str(tmp_path / "ds.json"))


def test_missing_train_data_is_refused():
    with pytest.raises(ValueError, match="no --train-data"):
        parse_settings(PretrainingSettings, ["--block-lm"], environment={})


def test_help_needs_no_torch(repository: Path):
    check = "import sys; from training.arguments import get_parser; get_parser().format_help(); "
    check += "import pretrain_glm, finetune_glm, generate_samples; "
    check += "sys.exit(sorted(m for m in ('torch', 'numpy') if m in sys.modules) != [])"
    assert subprocess.run([sys.executable, "-c", check], cwd=repository, check=False).returncode == 0
