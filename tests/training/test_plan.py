"""The plan of a run: counted bytes are those of real models, estimates are near what autograd and the disk hold."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import pretrain_glm
from model.config import GLMConfig
from model.modeling_glm import GLMModel, count_parameters
from model.released import RELEASED_MODELS
from mpu.initialize import ParallelTopology, initialize_model_parallel
from mpu.kernels.prepacked import has_bf16_instructions
from tests.helpers import REPOSITORY
from tests.helpers.distributed import run
from tests.helpers.logs import logged_lines
from tests.helpers.small_corpus import SmallCorpus, make_corpus
from tests.helpers.training_data import build, take
from training.arguments import parse_settings
from training.build import wrap_model
from training.engine import Engine
from training.plan import (
    CARDS,
    GB,
    Arithmetic,
    Plan,
    about,
    activations,
    checkpoint_bytes,
    choose_recomputation,
    deepspeed_states,
    make_plan,
    memory_table,
    padded_vocabulary,
    shard_of_rank,
    torch_states,
)
from training.settings import (
    OptimizerSettings,
    PrecisionSettings,
    PretrainingSettings,
    ScheduleSettings,
    Settings,
)

BASE = ["--block-lm", "--train-data", "absent.jsonl"]
SHAPE = {"batch_size": 4, "width": 100}  # no activation has the shape of a weight
ESTIMATE = 0.05  # relative, of activations: LayerNorm's statistics and indices are not counted
DISK = 0.1  # relative, of a checkpoint: names, random states, the archive's own bytes
DOCUMENT = REPOSITORY / "docs" / "scaling.md"


def configure(*words: str, world_size: int = 1) -> PretrainingSettings:
    environment = {"GLM_PLAN_WORLD_SIZE": str(world_size)}
    return parse_settings(PretrainingSettings, [*BASE, *words, "--dry-run"], environment=environment)


def plan(*words: str, world_size: int = 1, content: dict | None = None, vocab_size: int | None = 1024) -> Plan:
    configuration = configure(*words, world_size=world_size)
    if content is not None:
        configuration = replace(configuration, deepspeed_content=content)
    return make_plan(configuration, vocab_size=vocab_size)


def small_config(**changes: object) -> GLMConfig:
    return GLMConfig(**{**asdict(GLMConfig(3, 128, 4, 512, max_position_embeddings=128)), **changes})


def small_shape() -> dict[str, int]:
    return {**SHAPE, "num_targets": 4 * 20}


# Parameters


@pytest.mark.parametrize("size", [1, 2, 4])
def test_parameter_bytes_are_those_of_the_real_shards(size: int):
    config = small_config()
    for rank in range(size):
        topology = replace(
            ParallelTopology.single(), rank=rank, world_size=size, model_parallel_size=size, model_parallel_rank=rank
        )
        real = GLMModel(config, topology=topology)
        expected = sum(parameter.numel() * parameter.element_size() for parameter in real.parameters())
        shard = shard_of_rank(config, tensor_parallel_size=size, rank=rank)
        assert torch_states(shard, optimizer="adam", precision="fp32").parameters == expected


def test_data_ranks_share_what_is_spread():
    words = ("--num-layers", "6", "--hidden-size", "128", "--num-attention-heads", "4", "--device", "cpu")
    alone, shared = plan(*words, world_size=4), plan(*words, "--fsdp", world_size=4)
    for part in ("parameters", "gradients", "optimizer"):
        assert getattr(shared.states, part) == pytest.approx(getattr(alone.states, part) / 4, rel=1e-3)
    assert shared.checkpoint_bytes == alone.checkpoint_bytes and "FSDP2" in shared.engine


@pytest.mark.parametrize("name", sorted(RELEASED_MODELS))
def test_released_models_are_planned_with_their_parameters(name: str):
    config = RELEASED_MODELS[name].config
    sizes = {"--num-layers": config.num_layers, "--hidden-size": config.hidden_size,
             "--num-attention-heads": config.num_attention_heads,
             "--max-position-embeddings": config.max_position_embeddings}  # fmt: skip
    words = [str(word) for pair in sizes.items() for word in pair]
    assert plan(*words, vocab_size=config.vocab_size).num_parameters == count_parameters(config)


@pytest.mark.parametrize("name", ["adam", "adafactor"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_torch_engine_holds_what_is_planned(name: str, precision: str, tmp_path: Path):
    config = small_config()
    engine = make_engine(GLMModel(config), None, precision, name=name)
    take_step(engine)
    shard = shard_of_rank(config, tensor_parallel_size=1)
    states = torch_states(shard, optimizer=name, precision=precision)
    moments = [t for state in engine.optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    assert states.optimizer == sum(t.numel() * t.element_size() for t in moments if t.dim() > 0)
    assert states.gradients == sum(p.numel() * p.element_size() for p in engine.model.parameters())
    planned = checkpoint_bytes(shard, states, optimizer=name, stage=0, size=4)
    assert saved_bytes(engine, tmp_path) == pytest.approx(planned, rel=DISK)


def make_engine(model: GLMModel, stage: int | None, precision: str, *, name: str = "adam", **zero: object) -> Engine:
    settings = Settings(
        optimizer=OptimizerSettings(name, 1e-3, 0.1, 0.9, 0.98, 1e-6, 1.0),
        schedule=ScheduleSettings(warmup=0.1),
        precision=PrecisionSettings(fp16=precision == "fp16", bf16=precision == "bf16"),
        deepspeed_content=None if stage is None else {"zero_optimization": {"stage": stage, **zero}},
    )
    return wrap_model(model, settings, schedule_length=10, topology=model.topology, device=torch.device("cpu"))


def take_step(engine: Engine) -> None:
    from tests.helpers.engines import make_batch

    engine.train_step([make_batch(1)])


def saved_bytes(engine: Engine, root: Path) -> int:
    from tests.helpers.deepspeed_engines import checkpoint_settings

    folder = engine.save(checkpoint_settings(root), iteration=1, data_state={})
    return sum(file.stat().st_size for file in folder.iterdir())


def zero_measurements(cases: list[tuple[int, str, dict]], root: Path) -> list[dict[str, int]]:
    """Return what a rank's DeepSpeed engine holds after a step, and the size of its checkpoint."""
    topology, measured = initialize_model_parallel(1), []
    for number, (stage, precision, zero) in enumerate(cases):
        engine = make_engine(GLMModel(small_config(), topology=topology), stage, precision, **zero)
        take_step(engine)
        optimizer = engine.deepspeed.optimizer
        masters = optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
        moments = [
            t for state in optimizer.optimizer.state.values() for t in state.values() if torch.is_tensor(t) and t.dim()
        ]
        held = [getattr(p, "ds_tensor", p) for p in engine.model.parameters()]
        measured.append(
            {
                "parameters": sum(p.numel() * p.element_size() for p in held),
                "optimizer": sum(t.numel() * t.element_size() for t in [*masters, *moments]),
                "disk": saved_bytes(engine, root / str(number)),
            }
        )
    return measured


def test_zero_holds_what_is_planned(tmp_path: Path):
    pytest.importorskip("deepspeed", reason="DeepSpeed is an extra")
    precisions = ("fp32", "bf16") if has_bf16_instructions() else ("fp32",)
    cases = [(stage, precision, {}) for stage in (1, 2, 3) for precision in precisions]
    cases.append((2, precisions[-1], {"offload_optimizer": {"device": "cpu"}}))
    shard = shard_of_rank(small_config(), tensor_parallel_size=1)
    for case, measured in zip(cases, run(zero_measurements, 2, cases, tmp_path)[0], strict=True):
        stage, precision, zero = case
        states = deepspeed_states(
            shard, optimizer="adam", precision=precision, zero={"stage": stage, **zero}, data_parallel_size=2
        )
        size = 4 if precision == "fp32" else 2
        disk = checkpoint_bytes(shard, states, optimizer="adam", stage=stage, size=size)
        gradients = 4 * shard.num_parameters() // 2 if states.offloaded else 0
        planned = {"parameters": states.parameters, "optimizer": states.optimizer + states.offloaded - gradients}
        assert measured["parameters"] == pytest.approx(planned["parameters"], rel=0.01), case
        assert measured["optimizer"] == pytest.approx(planned["optimizer"], rel=0.01), case
        assert measured["disk"] == pytest.approx(disk, rel=DISK), case


# Activations


def kept_for_backward(config: GLMConfig, *, autocast: bool, size: int = 1) -> int:
    """Return the bytes that autograd keeps of one forward pass, weights and their casts left out."""
    torch.manual_seed(1)
    model = GLMModel(config, topology=initialize_model_parallel(size))
    rows, width, targets = SHAPE["batch_size"], SHAPE["width"], 20
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    shapes = {tuple(parameter.shape) for parameter in model.parameters() if parameter.dim() == 2}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        cast = autocast and (tuple(tensor.shape) in shapes or tuple(tensor.shape[::-1]) in shapes)
        if tensor.untyped_storage().data_ptr() not in weights and not cast:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    token_ids = torch.randint(config.vocab_size, (rows, width))
    positions = torch.stack([torch.arange(width), torch.zeros(width, dtype=torch.long)]).expand(rows, 2, width)
    loss_mask = (torch.arange(width) >= width - targets).float().expand(rows, width)
    inputs = (token_ids, positions, torch.full((rows,), width - targets))
    arithmetic = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), arithmetic:
        model(*inputs, labels=token_ids, loss_mask=loss_mask)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [1, 2])
def test_estimated_activations_are_near_what_autograd_keeps(dropout: float, autocast: bool, size: int):
    config = small_config(embedding_dropout=dropout, attention_dropout=dropout, output_dropout=dropout)
    arithmetic = Arithmetic(4, 2 if autocast else 4, on_gpu=False)
    amounts = activations(config, arithmetic, **small_shape(), tensor_parallel_size=size)
    (measured, *_) = run(measure, size, config, autocast, size)
    assert measured == pytest.approx(amounts.plain, rel=ESTIMATE)


def measure(config: GLMConfig, autocast: bool, size: int) -> int:
    return kept_for_backward(config, autocast=autocast, size=size)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 2])
def test_checkpointing_keeps_the_inputs_of_chunks(dropout: float, chunk: int):
    config = small_config(embedding_dropout=dropout, attention_dropout=dropout, output_dropout=dropout)
    arithmetic = Arithmetic(4, 4, on_gpu=False)
    estimate = activations(replace(config, checkpoint_num_layers=chunk), arithmetic, **small_shape())
    # What is recomputed is not kept: it is what two more layers add without checkpointing.
    longer = activations(replace(config, num_layers=3 + chunk), arithmetic, **small_shape())
    recomputed = longer.plain - estimate.plain
    chunked = replace(config, checkpoint_activations=True, checkpoint_num_layers=chunk)
    measured = kept_for_backward(chunked, autocast=False)
    assert measured == pytest.approx(estimate.checkpointed - recomputed, rel=ESTIMATE)
    assert estimate.checkpointed < estimate.plain


def test_a_gpu_keeps_no_attention_scores():
    config, long = small_config(), {"batch_size": 1, "num_targets": 1}
    for size in (1, 2):
        for bytes_per_score, compute in ((1, 2), (1 + 4, 4)):  # a mask of [b,1,s,s], and in fp32 its additive form
            short, wide = (
                activations(config, Arithmetic(4, compute), **long, width=width, tensor_parallel_size=size).plain
                for width in (4096, 8192)
            )
            # Once a step, whatever the number of heads and layers.
            assert wide - 2 * short == pytest.approx(bytes_per_score * (8192**2 - 2 * 4096**2), rel=0.01)


def test_bf16_parameters_are_counted_and_take_fewer_activations():
    count = plan().num_parameters
    autocast, half = plan("--bf16", world_size=2), plan("--bf16-params", world_size=2)
    assert half.states.parameters == 6 * count and half.states.gradients == 2 * count
    assert half.states.optimizer == 8 * count and half.states.casts == 0
    assert half.activations.plain < autocast.activations.plain and half.memory < autocast.memory
    assert half.checkpoint_bytes == autocast.checkpoint_bytes
    assert "bf16 parameters with fp32 masters" in half.report()


class Gpu(NamedTuple):
    total_memory: int


def test_auto_recomputes_where_a_gpu_is_too_small(monkeypatch: pytest.MonkeyPatch):
    words = ("--bf16", "--batch-size", "16", "--checkpoint-activations", "auto")
    kept, recomputed = (plan(*words[:3], *more) for more in ((), ("--checkpoint-activations",)))
    made = plan(*words)
    assert made.memory == recomputed.memory and made.fitting_cards == recomputed.fitting_cards
    assert f"auto keeps them on GPUs with {kept.memory / GB:.2f} GB" in made.report()
    assert "recomputing costs 33% more time" in kept.report()
    single = ParallelTopology.single()
    for size, chosen in ((kept.memory + 1, False), (kept.memory - 1, True)):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, size=size: Gpu(size))
        with logged_lines() as lines:
            settings = choose_recomputation(
                configure(*words), vocab_size=made.config.vocab_size, topology=single, device=torch.device("cuda")
            )
        assert settings.model.checkpoint_activations is chosen
        assert len(lines) == 1 and ("recomputed" if chosen else "kept") in lines[0]
    with logged_lines() as lines:
        settings = choose_recomputation(
            configure(*words), vocab_size=made.config.vocab_size, topology=single, device=torch.device("cpu")
        )
    assert settings.model.checkpoint_activations is False and "CPU" in lines[0]
    given = configure(*words[:3])
    device = torch.device("cpu")
    assert choose_recomputation(given, vocab_size=1, topology=single, device=device) is given


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("objective", [("1.0", "0"), ("0", "1.0"), ("0", "0")], ids=["words", "sentences", "documents"])
def test_batches_are_hardly_larger_than_planned(objective: tuple[str, str], corpus: SmallCorpus):
    flags = ["--bert-prob", objective[0], "--gap-sentence-prob", objective[1], "--seq-length", "200"]
    flags += ["--max-position-embeddings", "256"]
    batches = take(build(corpus, *flags), 30)
    words = [*corpus.words(), *flags]
    planned = make_plan(parse_settings(PretrainingSettings, words, environment={}))
    assert max(batch.input_ids.shape[1] for batch in batches) <= 1.1 * planned.width
    assert max(int(batch.loss_mask.sum()) for batch in batches) <= 1.5 * planned.num_targets
    assert max(int(batch.loss_mask.sum()) for batch in batches) >= 0.5 * planned.num_targets


# The plan


def test_tokens_and_layout():
    made = plan("--batch-size", "3", "--gradient-accumulation-steps", "5", "--seq-length", "128", "--train-iters", "7",
                "--model-parallel-size", "2", world_size=8)  # fmt: skip
    assert made.tokens_per_update == 3 * 5 * 4 * 128
    assert made.data_parallel_size == 4
    text = made.report()
    assert "8 ranks = 2 tensor-parallel x 4 data-parallel" in text
    assert f"7 updates, {7 * made.tokens_per_update:,} tokens" in text


def test_the_time_follows_from_the_arithmetic():
    made = plan(world_size=8)
    per_token = 6 * made.num_parameters + 12 * 24 * 1024 * 512
    assert made.flops_per_token == pytest.approx(per_token)
    flops = per_token * made.tokens_per_update * 1000
    assert made.seconds(1000, gpu="A100") == pytest.approx(flops / (312e12 * 0.4 * 8))
    assert "FLOPs per update; 7 updates: a second on A100" in plan("--train-iters", "7").report()
    times = {0.1: "a second", 119: "119 seconds", 150: "2.5 minutes", 86400: "24 hours", 90 * 86400: "90 days"}
    assert {seconds: about(seconds) for seconds in times} == times


def test_what_cannot_be_cut_is_one_line():
    with pytest.raises(ValueError, match="6 processes cannot be cut into model-parallel groups of 4"):
        plan("--model-parallel-size", "4", world_size=6)
    with pytest.raises(
        ValueError, match="the vocabulary size is 1024, which the model-parallel size 3 does not divide"
    ):
        plan("--model-parallel-size", "3", "--hidden-size", "48", "--num-attention-heads", "6", world_size=3)


def test_engines_and_their_bytes():
    count = plan().num_parameters
    fp32, bf16 = plan(world_size=2), plan("--bf16", world_size=2)
    states = fp32.states
    assert (states.parameters, states.gradients, states.optimizer, states.casts) == (4 * count, 4 * count, 8 * count, 0)
    assert 0 < bf16.states.casts <= 2 * count
    assert bf16.kept_activations < fp32.kept_activations
    for stage, gradients, parameters in ((1, 2.0, 2.0), (2, 0.5, 2.0), (3, 0.5, 0.5)):
        made = plan("--deepspeed", "--bf16", world_size=4, content={"zero_optimization": {"stage": stage}})
        states = made.states
        assert states.optimizer == pytest.approx(12 * count / 4, rel=1e-6)
        assert states.gradients == pytest.approx(gradients * count, rel=1e-6)
        assert states.parameters == pytest.approx(parameters * count, rel=1e-6)
        assert f"ZeRO stage {stage}, bf16" in made.report()
        assert made.memory >= 4 * count, "the model starts in fp32"
    content = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    offloaded = plan("--deepspeed", "--bf16", world_size=4, content=content)
    assert offloaded.states.optimizer == 0
    assert offloaded.states.offloaded == pytest.approx((12 + 4) * count / 4, rel=1e-6)
    assert plan("--deepspeed", "--bf16", content={}).zero_stage == 1, "half precision runs with ZeRO"


def test_checkpointing_and_batches_change_what_is_needed():
    small, large = plan("--batch-size", "4"), plan("--batch-size", "8")
    assert large.activations.plain == pytest.approx(2 * small.activations.plain, rel=1e-6)
    recomputed = plan("--batch-size", "4", "--checkpoint-activations")
    assert recomputed.memory < small.memory
    assert recomputed.kept_activations == small.activations.checkpointed


def test_cards_that_it_fits_on():
    small, huge = plan(), plan("--num-layers", "96", "--hidden-size", "8192", "--num-attention-heads", "64")
    assert small.fitting_cards == tuple(card for card in CARDS if small.memory <= card * GB)
    assert huge.fitting_cards == () and "fits no GPU of up to 141 GB" in huge.report()
    assert "fits GPUs of" in small.report() and "CUDA" not in plan("--device", "cpu").report()


def test_what_will_not_start_is_said():
    assert "--loader-scatter 3 does not divide its 4 data ranks" in plan("--loader-scatter", "3", world_size=4).report()
    assert plan("--loader-scatter", "2", world_size=4).notices == ()


def test_vocabularies(vocab_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for words in (
        ("--tokenizer-type", "BertWordPieceTokenizer"),
        ("--tokenizer-type", "GPT2BPETokenizer", "--task-mask"),
        ("--tokenizer-type", "ChineseSPTokenizer", "--task-mask"),
    ):
        size, origin = padded_vocabulary(configure(*words, "--vocab-dir", str(vocab_dir)), fallback=1)
        assert "padded" in origin
        monkeypatch.delenv("GLM_VOCAB_DIR", raising=False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        guessed, note = padded_vocabulary(configure(*words, "--cache-dir", str(tmp_path)), fallback=1)
        assert guessed == size and "no vocabulary files here" in note
        assert os.environ["HF_HUB_OFFLINE"] == "0" and not list(tmp_path.iterdir())
    own = configure("--tokenizer-type", "SentencePieceTokenizer")
    assert padded_vocabulary(own, fallback=1000)[0] == 1024


# The command line and the document


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLM_PLAN_WORLD_SIZE", "8")
    words = [*BASE, "--model-parallel-size", "4", "--save", "c", "--train-iters", "5", "--dry-run"]
    assert pretrain_glm.main(words) == 0
    assert "8 ranks = 4 tensor-parallel x 2 data-parallel" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("RANK", "1")
    assert pretrain_glm.main(words) == 0
    assert capsys.readouterr().out == ""
    assert parse_settings(PretrainingSettings, BASE, environment={"GLM_PLAN_WORLD_SIZE": "8"}).device.world_size == 1


def test_the_document_holds_the_table():
    assert memory_table() in DOCUMENT.read_text(encoding="utf-8"), "run: python -m training.plan --table"


def documented_commands() -> list[str]:
    text = DOCUMENT.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(r"^(?:[A-Z_]+=\S+ )*bash scripts/ds_pretrain_nvidia\.sh .+$", text, flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("command", documented_commands())
def test_documented_commands_have_a_plan_that_starts(command: str, tmp_path: Path):
    (tmp_path / "hosts").write_text("".join(f"worker-{n} slots=8\n" for n in range(32)), encoding="utf-8")
    command = command.replace("HOST_FILE_PATH=hosts", f"HOST_FILE_PATH={tmp_path / 'hosts'}")
    environment = {**os.environ, "DRY_RUN": "1", "MASTER_PORT": "29500"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "plan of" in done.stdout and "will not start" not in done.stdout, done.stdout
