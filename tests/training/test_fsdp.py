"""Parameters spread over the data ranks (--fsdp): the same training as with all of them on every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from model.modeling_glm import GLMModel
from mpu.fsdp import own_rows, spread_parameters
from mpu.initialize import ParallelTopology, initialize_model_parallel
from mpu.transformer import Transformer
from tasks.settings import FinetuningSettings
from tests.helpers import distributed
from tests.helpers.engines import VOCABULARY, make_batch
from tests.helpers.logs import logged_lines
from training.arguments import parse_settings
from training.build import seed_model, wrap_model
from training.engine import Engine, TorchEngine
from training.optimizer import build_optimizer
from training.settings import PretrainingSettings, Settings

# 17 rows of positions: the last rank has fewer of them.
WORDS = ("--num-layers", "2", "--hidden-size", "16", "--num-attention-heads", "2", "--max-position-embeddings", "16",
         "--seq-length", "12", "--lr", "0.01", "--clip-grad", "0.05", "--train-iters", "20", "--weight-decay", "0.1",
         "--hidden-dropout", "0", "--attention-dropout", "0", "--fp32")  # fmt: skip


def settings(*words: str) -> PretrainingSettings:
    flags = ["--block-lm", "--train-data", "x", "--device", "cpu", *WORDS, *words]
    return parse_settings(PretrainingSettings, flags, environment={})


def make(topology: ParallelTopology, *words: str, backend: str | None = None) -> Engine:
    configuration = settings(*words)
    torch.manual_seed(4)
    model = GLMModel(configuration.network(vocab_size=VOCABULARY), topology=topology)
    seed_model(model, 7, topology=topology)
    engine = wrap_model(model, configuration, schedule_length=20, topology=topology, device=torch.device("cpu"))
    if backend is not None:
        for module in model.modules():
            if isinstance(module, Transformer):
                module.choose_kernels(compiled=True, backend=backend)
    return engine


def train(engine: Engine, updates: int, *, first: int = 0) -> list[tuple[float, float]]:
    """Make updates of two micro batches of this rank each; return their losses and gradient norms over all ranks."""
    figures = []
    rank, size = engine.topology.data_parallel_rank, engine.topology.data_parallel_size
    for update in range(first, first + updates):
        batches = [make_batch(100 * update + 10 * rank + part, targets=3 + rank) for part in range(2)]
        result = engine.train_step(batches)
        loss = result.loss.clone()
        dist.all_reduce(loss, group=engine.topology.data_parallel_group)
        figures.append((loss.item(), result.grad_norm.item()))
    assert size > 1
    return figures


@pytest.mark.parametrize(
    ("program", "words", "said"),
    [
        (PretrainingSettings, ("--optimizer", "adafactor"), "--fsdp does not go with --optimizer adafactor"),
        (PretrainingSettings, ("--deepspeed",), "--fsdp does not go with --deepspeed"),
        (FinetuningSettings, ("--task", "rte", "--data-dir", "x"), "--fsdp is for pre-training only"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line(program: type[Settings], words: tuple[str, ...], said: str):
    flags = ["--block-lm", "--device", "cpu", "--fsdp", *words]
    flags += ["--train-data", "x"] if program is PretrainingSettings else []
    with pytest.raises(ValueError, match=said):
        parse_settings(program, flags, environment={})


def test_one_rank_alone_says_that_there_is_nobody_to_share_with():
    with logged_lines() as lines:
        engine = make(ParallelTopology.single(), "--fsdp")
    assert any("nobody to share" in line for line in lines) and engine.description == "torch"


def _compare(model_parallel_size: int, root: Path) -> dict[str, Any]:
    """Train with all parameters and with spread ones, with what goes with them; resume either from the other."""
    topology = initialize_model_parallel(model_parallel_size)
    found: dict[str, Any] = {}
    engines = {kind: make(topology, *words) for kind, words in (("ddp", ()), ("fsdp", ("--fsdp",)))}
    for kind, engine in engines.items():
        checkpoint = settings("--save", str(root / kind), "--experiment-name", "r").checkpoint
        found[kind] = train(engine, 3)
        found[f"evaluation of {kind}"] = engine.evaluate([make_batch(5)]).loss
        folder = engine.save(checkpoint, iteration=3, data_state={})
        found[kind] += train(engine, 3, first=3)
        found[f"parameters of {kind}"] = sum(own_rows(p).numel() for p in engine.model.parameters())
        other = {"ddp": ("--fsdp",), "fsdp": ()}[kind]
        resumed = make(topology, *other, "--seed", "9")
        assert resumed.load(folder.parent, checkpoint).iteration == 3
        found[f"from {kind}"] = train(resumed, 3, first=3)
    if topology.world_size == 2:
        engine = make(topology, "--fsdp", "--checkpoint-activations", backend="aot_eager")
        found["compiled, recomputed"] = train(engine, 4)
    return found


def _compare_in_half_precision() -> dict[str, Any]:
    topology, found = initialize_model_parallel(), {}
    for kind in ("ddp", "fsdp"):
        engine = make(topology)  # for its settings; a CPU without instructions for it would train in fp32
        model = GLMModel(engine.model.config, generator=torch.Generator().manual_seed(1))
        layers, types = list(model.transformer.layers), []
        if kind == "fsdp":
            spread_parameters(model, layers, topology=topology, device=torch.device("cpu"), dtype=torch.bfloat16)
        optimizer = build_optimizer(model, settings().optimizer)
        layers[0].mlp.register_forward_hook(lambda mlp, *_, types=types: types.append(mlp.dense_h_to_4h.weight.dtype))
        common = {"scheduler": engine.scheduler, "precision": "bf16", "topology": topology}
        found[kind] = train(TorchEngine(model, optimizer=optimizer, **common), 3)
        found[f"types of {kind}"] = set(types)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    return found


@pytest.mark.slow
def test_layers_are_brought_together_in_half_precision():
    for found in distributed.run(_compare_in_half_precision, 2):
        assert found["types of ddp"] == {torch.float32} and found["types of fsdp"] == {torch.bfloat16}
        for ours, theirs in zip(found["fsdp"], found["ddp"], strict=True):
            assert ours == pytest.approx(theirs, rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "model_parallel_size"), [(2, 1), (4, 1), (4, 2)])
def test_spread_parameters_train_as_whole_ones(world_size: int, model_parallel_size: int, tmp_path: Path):
    for found in distributed.run(_compare, world_size, model_parallel_size, tmp_path, timeout=300.0):
        for name in ("fsdp", "compiled, recomputed"):
            for ours, theirs in zip(found.get(name, ()), found["ddp"], strict=False):
                assert ours == pytest.approx(theirs, rel=2e-5), name
        assert found["evaluation of fsdp"] == pytest.approx(found["evaluation of ddp"], rel=2e-5)
        for name in ("from ddp", "from fsdp"):
            for ours, theirs in zip(found[name], found["ddp"][3:], strict=True):
                assert ours == pytest.approx(theirs, rel=2e-5), name
        assert found["parameters of fsdp"] < 0.6 * found["parameters of ddp"]
