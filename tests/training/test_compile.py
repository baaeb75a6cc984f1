"""Compiled layers: the same updates as uncompiled ones, one graph for all layers, the same names in checkpoints."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import lookup_backend
from torch._dynamo.utils import counters

from data_utils.batches import Batch
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology, initialize_model_parallel
from mpu.masks import PrefixMask, TwoCalls
from mpu.transformer import Transformer
from tests.helpers.distributed import run
from tests.helpers.engines import VOCABULARY, make_batch, make_engine
from tests.helpers.launching import run as launch
from tests.helpers.logs import logged_lines
from tests.helpers.small_corpus import SmallCorpus, make_corpus, task_flags, write_entailment_split
from training.build import choose_kernels, wrap_model
from training.distributed import faults_in_one_line
from training.engine import TorchEngine
from training.settings import KernelSettings, OptimizerSettings, ScheduleSettings, Settings

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler, which torch.compile needs")


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Forget what other tests compiled; too many graphs raise."""
    torch.compiler.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch.compiler.reset()


class CountingBackend:
    """The backend aot_eager, which counts the graphs it is given, those cut by DistributedDataParallel too."""

    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.num_graphs += 1
        return lookup_backend("aot_eager")(graph, inputs)


def engines(*, backend: str = "aot_eager", **options) -> tuple[TorchEngine, TorchEngine]:
    """Return an engine whose layers run as they are, and one whose layers are compiled.

    The backend aot_eager makes the same graphs as the default one, and runs them without a C++ compiler.
    """
    plain, compiled = (make_engine(**options) for _ in range(2))
    compiled.model.transformer.choose_kernels(compiled=True, backend=backend)
    return plain, compiled


def assert_same_updates(plain: TorchEngine, compiled: TorchEngine, batches: list[Batch], *, rtol: float = 1e-5) -> None:
    for batch in batches:
        expected, actual = plain.train_step([batch]), compiled.train_step([batch])
        torch.testing.assert_close(actual.loss, expected.loss, rtol=rtol, atol=1e-6)
        torch.testing.assert_close(actual.grad_norm, expected.grad_norm, rtol=10 * rtol, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "rtol"),
    [({}, 1e-5), ({"checkpoint_activations": True}, 1e-5), ({"precision": "bf16"}, 2e-2), ({"relative": True}, 1e-5)],
    ids=["fp32", "recomputed", "bf16", "relative"],
)
def test_updates_are_those_of_uncompiled_layers(options: dict, rtol: float) -> None:
    if options.pop("relative", False):
        options |= {"relative_encoding": True, "block_position_encoding": False}
    plain, compiled = engines(**options)
    assert_same_updates(plain, compiled, [make_batch(1), make_batch(2, targets=7), make_batch(3)], rtol=rtol)
    assert counters["stats"]["unique_graphs"] > 0
    names = [list(engine.model.state_dict()) for engine in (plain, compiled)]
    assert names[0] == names[1]


@needs_compiler
@pytest.mark.slow
def test_gradients_are_those_of_uncompiled_layers() -> None:
    """With the default backend."""
    plain, compiled = engines(backend="inductor", name="sgd", clip_grad=0.0)
    assert_same_updates(plain, compiled, [make_batch(1)])
    for one, other in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)  # moved by the gradient itself


def model_of(num_layers: int, *, positions: int = 32) -> GLMModel:
    config = GLMConfig(
        num_layers, 16, 2, VOCABULARY, max_position_embeddings=positions,
        embedding_dropout=0.0, attention_dropout=0.0, output_dropout=0.0,
    )  # fmt: skip
    return GLMModel(config, generator=torch.Generator().manual_seed(1)).train()


def loss_of(model: GLMModel, batch: Batch) -> torch.Tensor:
    names = ("input_ids", "position_ids", "attention_mask", "target_ids", "loss_mask")
    ids, positions, mask, labels, targets = (torch.from_numpy(getattr(batch, name)) for name in names)
    return model(ids, positions, mask, labels=labels, loss_mask=targets).mean


def test_one_graph_serves_all_layers_and_batches() -> None:
    """Two of them, in truth: the last layer has queries at its targets alone. Evaluation has its own two."""
    model = model_of(6)
    compiled = copy.deepcopy(model)
    compiled.transformer.choose_kernels(compiled=True, backend="aot_eager")
    for seed, (rows, targets) in enumerate(((4, 5), (4, 7), (2, 3), (5, 2))):
        batch = make_batch(seed, rows=rows, targets=targets)
        loss, expected = loss_of(compiled, batch), loss_of(model, batch)
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert counters["stats"]["unique_graphs"] == 2
    compiled.eval()
    for rows in (4, 3, 6):
        with torch.no_grad():
            loss_of(compiled, make_batch(1, rows=rows))
        assert counters["stats"]["unique_graphs"] == 4
    assert not counters["graph_break"]


def test_widths_grow_to_a_multiple_of_64_and_back() -> None:
    model = model_of(3)
    model.transformer.choose_kernels(compiled=True, backend="aot_eager")
    logits = []
    ids = torch.arange(30).expand(4, 30)
    positions = torch.stack([torch.arange(30), torch.zeros(30, dtype=torch.long)]).expand(4, 2, 30)
    for width in (12, 20, 30):
        whole = model(ids[:, :width], positions[..., :width], torch.full((4,), 5))
        assert whole.shape == (4, width, VOCABULARY)
        logits.append(whole)
    torch.testing.assert_close(logits[0], logits[2][:, :12], atol=1e-5, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


def test_dropout_repeats_itself_where_activations_are_recomputed() -> None:
    results = []
    for recomputed in (False, True):
        engine = make_engine(dropout=0.3, checkpoint_activations=recomputed)
        engine.model.transformer.choose_kernels(compiled=True, backend="aot_eager")
        torch.manual_seed(5)
        results.append(engine.train_step([make_batch(1)]))
    assert results[0].loss == results[1].loss
    torch.testing.assert_close(results[1].grad_norm, results[0].grad_norm)


def test_a_cache_runs_uncompiled() -> None:
    model = model_of(2).eval()
    compiled = copy.deepcopy(model)
    compiled.transformer.choose_kernels(compiled=True, backend="aot_eager")
    ids, positions = torch.arange(6)[None], torch.stack([torch.arange(6), torch.zeros(6, dtype=torch.long)])[None]
    found = []
    with torch.no_grad():
        for each in (model, compiled):
            cache = each.new_cache(1, 6)
            parts = [slice(0, 3), slice(3, 4), slice(4, 6)]
            found.append([each(ids[:, p], positions[..., p], torch.tensor([3]), cache=cache) for p in parts])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert not counters["stats"]


def test_shared_rows_and_matrices_as_masks() -> None:
    model = model_of(2)
    compiled = copy.deepcopy(model)
    compiled.transformer.choose_kernels(compiled=True, backend="aot_eager")
    batch = make_batch(1, rows=2)
    rows = torch.zeros(2, 2, 12, dtype=torch.long)
    rows[:, 0, :5], rows[:, 0, 5:10], rows[0, 1, :3], rows[1, 1, 5:8] = 1, 2, 1, 1
    matrix = torch.ones(12, 12).tril().expand(2, 1, 12, 12)
    ids, positions = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.position_ids)
    for mask in (rows, matrix):
        expected, actual = (each(ids, positions, mask) for each in (model, compiled))
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def packed_mask(rows: int, width: int) -> PrefixMask:
    """Return the mask of rows of two samples each."""
    segment_ids = (torch.arange(width) >= width // 2).long().expand(rows, width) + 1
    return PrefixMask.packed(segment_ids, (torch.arange(width) % (width // 2) < 3).long().expand(rows, width))


def logits_of(model: GLMModel, mask: PrefixMask, rows: int, width: int) -> Tensor:
    ids = torch.arange(width).expand(rows, width)
    return model(ids % VOCABULARY, torch.stack([ids, ids * 0], dim=1), mask)


def test_shared_rows_have_one_graph_for_training_and_one_for_evaluation() -> None:
    model = model_of(3)
    model.transformer.choose_kernels(compiled=True, backend=(backend := CountingBackend()))
    for rows, width in ((4, 20), (2, 30), (5, 12)):
        logits_of(model, packed_mask(rows, width), rows, width).sum().backward()
    assert backend.num_graphs == 1
    model.eval()
    for rows, width in ((3, 20), (7, 24)):
        with torch.no_grad():
            logits_of(model, packed_mask(rows, width), rows, width)
    assert backend.num_graphs == 2


@pytest.mark.parametrize("packed", [False, True])
def test_masks_by_blocks_of_any_size_have_few_graphs(packed: bool) -> None:
    """Evaluation: one graph for rows of one block, one for longer ones; each size had its own."""
    model = model_of(2, positions=400).eval()
    model.transformer.choose_kernels(attention="flex", compiled=True, backend=(backend := CountingBackend()))
    with torch.no_grad():
        for rows, width in ((4, 20), (2, 100), (5, 150), (3, 300)):
            mask = packed_mask(rows, width) if packed else PrefixMask.prefix(torch.arange(rows))
            logits_of(model, mask, rows, width)
    assert backend.num_graphs == 2


def test_two_calls_of_a_kernel_have_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device without values, which takes the kernel's shapes and derivative; the form is taken by hand."""
    meta = torch.device("meta")

    def two_calls(self: Transformer, mask: PrefixMask, states: Tensor) -> TwoCalls | None:
        assert mask.known is not None
        calls = mask.known.two_calls(batch_size=states.size(0), length=states.size(1))
        return None if calls is None else calls.to(meta)

    monkeypatch.setattr(Transformer, "_two_calls", two_calls)
    model = make_engine(dropout=0.1).model.to(device=meta, dtype=torch.bfloat16)
    model.transformer.choose_kernels(compiled=True, backend=(backend := CountingBackend()))
    for training in (True, False):
        model.train(training)
        for rows, prefix in ((4, 5), (2, 7), (3, 0)):
            ids = torch.zeros(rows, 20, dtype=torch.long, device=meta)
            mask = PrefixMask.prefix(torch.arange(prefix, prefix + rows)).to(meta)
            output = model(ids, torch.stack([ids, ids], dim=1), mask)
            if training:
                output.sum().backward()
        assert backend.num_graphs == (1 if training else 2)


def parallel_graphs(kind: str) -> tuple[list[int], list[list[float]]]:
    """Return the graphs after training and after evaluation, and the losses and norms of several engines."""
    topology = initialize_model_parallel(2 if kind == "tensor" else 1)
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    backend, numbers = CountingBackend(), []
    options: list[dict] = [{"dropout": 0.1}]
    if kind == "tensor":
        options = [{"dropout": 0.0}, *options, {"dropout": 0.1, "checkpoint_activations": True}]
    for number, given in enumerate(options):
        engine = make_engine(topology=topology, hidden_size=192 if kind == "data" else 16, **given)
        if number > 0 or kind == "data":
            engine.model.transformer.choose_kernels(compiled=True, backend=backend)
        engine.model.random_state.seed(3)
        torch.manual_seed(5 + topology.data_parallel_rank)
        results = [engine.train_step([make_batch(seed, rows=seed + 3)]) for seed in range(2)]
        numbers.append([float(value) for result in results for value in (result.loss, result.grad_norm)])
    trained = backend.num_graphs
    engine.evaluate([make_batch(3, rows=2)])
    return [trained, backend.num_graphs], numbers


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["data", "tensor"])
def test_ranks_have_the_graphs_of_one_process(kind: str) -> None:
    """Two for training and two for evaluation; dropout also repeats itself where activations are recomputed."""
    found = run(parallel_graphs, 2, kind, timeout=600.0)
    for graphs, numbers in found:
        assert graphs == [2, 4]
        if kind == "tensor":
            plain, dropped, recomputed = numbers
            assert recomputed == pytest.approx(dropped, rel=1e-5)
            assert dropped != pytest.approx(plain, rel=1e-5)
            assert numbers == found[0][1], "ranks of one model have one loss"


def parallel_losses() -> list[tuple[float, float]]:
    topology = initialize_model_parallel(2)
    found = []
    for engine in engines(topology=topology):
        results = [engine.train_step([make_batch(seed)]) for seed in range(2)]
        found += [(result.loss.item(), result.grad_norm.item()) for result in results]
    return found


@pytest.mark.slow
def test_tensor_parallel_layers() -> None:
    for found in run(parallel_losses, 2):
        assert found[2:] == [pytest.approx(pair, rel=1e-4) for pair in found[:2]]


def wrapped(kernels: KernelSettings, *, device: torch.device = CPU, deepspeed: dict | None = None) -> list[str]:
    settings = Settings(
        optimizer=OptimizerSettings("adam", 1e-3, 0.0, 0.9, 0.98, 1e-6, 1.0),
        schedule=ScheduleSettings(lr_decay_style="constant", warmup=0.0),
        deepspeed_content=deepspeed,
        kernels=kernels,
    )
    model = model_of(1)
    with logged_lines() as lines:
        wrap_model(model, settings, schedule_length=10, topology=ParallelTopology.single(), device=device)
    assert (model.transformer._compiled_layer is not None) == kernels.compile
    assert model.transformer.attention_kernel == kernels.attention
    return lines


def test_settings_reach_the_model() -> None:
    assert wrapped(KernelSettings()) == []
    assert "compiled" in " ".join(wrapped(KernelSettings(compile=True)))
    assert wrapped(KernelSettings(attention="sdpa")) == []


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="--attention flex is for GPUs"):
        wrapped(KernelSettings(attention="flex"))
    pytest.importorskip("deepspeed")
    with pytest.raises(ValueError, match="--compile does not go with ZeRO stage 3"):
        wrapped(KernelSettings(compile=True), deepspeed={"zero_optimization": {"stage": 3}})


def test_flex_attention_with_dropout_says_that_it_waits_for_evaluation() -> None:
    model = make_engine(dropout=0.1).model
    with logged_lines() as lines:
        choose_kernels(model, KernelSettings("flex"), device=torch.device("cuda"))
    assert len(lines) == 1 and "--attention-dropout 0" in lines[0]


def test_a_missing_compiler_is_one_line(monkeypatch, tmp_path) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing is compiled already
    _, compiled = engines(backend="inductor")
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ValueError, match=r"need a C\+\+ compiler.*leave --compile out") as caught,
        faults_in_one_line(batch_size=4, checkpoints=None),
    ):
        compiled.train_step([make_batch(1)])
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.slow
@pytest.mark.parametrize("program", ["pretrain_glm.py", "finetune_glm.py"])
def test_programs_compile_and_say_in_one_line_that_there_is_no_compiler(
    program: str, corpus: SmallCorpus, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # nothing is compiled already
    (tmp_path / "data").mkdir()
    for split in ("train", "val"):
        write_entailment_split(tmp_path / "data", split, 8)
    words = [*corpus.words(), "--train-iters", "2"]
    if program == "finetune_glm.py":
        words = task_flags(corpus, "--epochs", "1", "--experiment-name", "s")
    output = launch(program, *words, "--compile", cwd=tmp_path, code=2)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "leave --compile out" in errors[0], output
    assert "layers are compiled at the first update" in output and "Traceback" not in output
