"""Programs for GPUs: the utilisation in pre-training (mfu) and fine-tuning (record), the bandwidth in decoding.

Three numbers are printed. Real tokens a second: of the input, without padding. MFU by a fixed formula: what n tokens of
a sample need, n x (6 x matmul parameters + 12 x layers x hidden x n), over time and peak; the output layer counts at
all of them although it is computed at targets only, the tables of positions, biases and norms do not count, nor does
what is computed again. Utilisation: the products that are really computed, padding included, the last layer and the
output layer where they are asked for, counted in some of the measured updates by torch (``FlopCounterMode``; causal
attention counts in full), over time and peak. On a CPU there is no peak, so that rates alone are printed. Under
torchrun all ranks count.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.decoding import CONTEXT, NEW, make_contexts, number_tokenizer
from benchmarks.harness import MODELS, VOCABULARY, RandomDocuments, Row, random_vocabulary, seconds_of, summarize, table
from data_utils import rows as token_rows
from data_utils.batches import Batch, row_lengths
from generation.api import prepack_for_inference
from generation.infill import BlankFiller, prompt_generator
from generation.sampling import DecodingSettings
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from mpu.transformer import Transformer
from tasks.settings import FinetuningSettings
from tasks.superglue.batches import WIDTH_MULTIPLE, TaskBatch, collate
from tasks.superglue.objective import TaskCriterion
from tasks.superglue.run import add_head
from tasks.superglue.samples import TaskSample
from training.arguments import parse_settings
from training.build import build_engine, seed_model, wrap_model
from training.data import batch_loader, build_pretraining_data, build_run_tokenizer
from training.distributed import faults_in_one_line, finish_distributed, seed_everything, start_distributed
from training.engine import Engine
from training.metrics import PEAK_FLOPS
from training.plan import make_plan
from training.settings import PretrainingSettings

RANDOM_DOCUMENTS, LONGEST_DOCUMENT = 2000, 1000
PROFILED_STEPS, PROFILED_ROWS = 5, 40
COUNTED_STEPS = 4  # of the measured updates, whose operations are counted
LONGEST_CANDIDATE = 6
FIRST_ID = 10  # ids below are commands
REPEATS = 5
COPIED = {"cpu": 2**28, "cuda": 2**30}  # bytes of the buffer, many times any cache of the processor


@dataclass(frozen=True)
class Utilisation:
    """What was measured.

    Attributes:
        model: its name.
        matmul_parameters: numbers in the matrices that every token is multiplied with.
        width: mean columns of a batch.
        steps: measured updates.
        tokens, real_tokens: input tokens of all data ranks in these updates, with padding and without.
        flops: of the real tokens by the formula, forward and backward.
        operations: that were really computed in these updates, FLOP; None where they could not be counted.
        seconds: they took.
        peak_flops: FLOP/s of all devices together; None where it is not known.
        loss: of the last update.
        memory_gb: peak memory in use, 1e9 bytes; ``planned_memory_gb``: what the plan says, with the CUDA context and
            fragmentation (``pretrain_glm.py --dry-run``).
    """

    model: str
    matmul_parameters: int
    width: float
    steps: int
    tokens: int
    real_tokens: int
    flops: float
    seconds: float
    peak_flops: float | None
    loss: float
    memory_gb: float
    operations: float | None = None
    planned_memory_gb: float | None = None

    @property
    def real_tokens_per_second(self) -> float:
        """Return the rate, without padding."""
        return self.real_tokens / self.seconds

    @property
    def flops_per_second(self) -> float:
        """Return the rate of useful arithmetic."""
        return self.flops / self.seconds

    @property
    def operations_per_second(self) -> float | None:
        """Return the rate of the arithmetic that was really computed; None where it was not counted."""
        return None if self.operations is None else self.operations / self.seconds

    @property
    def mfu(self) -> float | None:
        """Return the share of the peak by the formula, None where the peak is not known."""
        return None if self.peak_flops is None else self.flops_per_second / self.peak_flops

    @property
    def utilisation(self) -> float | None:
        """Return the share of the peak that was really computed, None where one of the two is not known."""
        rate = self.operations_per_second
        return None if rate is None or self.peak_flops is None else rate / self.peak_flops

    def row(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        names = ("real_tokens_per_second", "flops_per_second", "operations_per_second", "mfu", "utilisation")
        return {**asdict(self), **{name: getattr(self, name) for name in names}}


def matmul_parameters(config: GLMConfig) -> int:
    """Count the numbers in the matrices of the layers (12 h^2 each) and of the output layer."""
    return 12 * config.num_layers * config.hidden_size**2 + config.vocab_size * config.hidden_size


def flops_per_token(config: GLMConfig, length: float) -> float:
    """Return the arithmetic of one token in a sample of ``length``, forward and backward."""
    return 6.0 * matmul_parameters(config) + 12.0 * config.num_layers * config.hidden_size * length


def real_size(batch: Batch | TaskBatch) -> tuple[int, float]:
    """Return the real tokens of a batch, and the mean length of the sample that one of them is in."""
    if isinstance(batch, Batch) and batch.layout == "packed":
        owners = batch.attention_mask[:, 0]  # [b,s], from 1 on; a sample is in one row
        lengths = np.bincount(owners[owners > 0])
    else:
        lengths = row_lengths(batch.position_ids, batch.input_ids.shape)
    return batch.num_real_tokens, float((lengths**2).sum() / lengths.sum())


def peak_flops(device: torch.device, *, given_tflops: float | None, num_devices: int) -> float | None:
    """Return the peak of all devices, FLOP/s: the given one of each, else that of a known GPU, else None."""
    if given_tflops is not None:
        return given_tflops * 1e12 * num_devices
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)
    return None if known is None else known * num_devices


def measure(
    engine: Engine,
    batches: Iterator[Any],
    options: argparse.Namespace,
    *,
    config: GLMConfig,
    accumulation_steps: int,
) -> tuple[list[list[Any]], Utilisation]:
    """Make ``options.warmup`` updates, then ``options.steps`` whose time counts: loader, updates and device.

    Returns the micro batches of some of them, too, for ``count_operations``.
    """
    wait = torch.cuda.synchronize if engine.device.type == "cuda" else lambda: None
    tokens, real_tokens, flops, columns, count, result, start = 0, 0, 0.0, 0, 0, None, 0.0
    some: list[list[Any]] = []
    for step in range(options.warmup + options.steps):
        if step == options.warmup:
            wait()
            start = time.perf_counter()
        micro_batches = list(itertools.islice(batches, accumulation_steps))
        result = engine.train_step(micro_batches)
        if step >= options.warmup:
            if (step - options.warmup) % -(-options.steps // COUNTED_STEPS) == 0:
                some.append(micro_batches)
            for batch in micro_batches:
                shared = getattr(batch, "shared_rows", None)
                columns, count = columns + (batch.input_ids if shared is None else shared).shape[-1], count + 1
                num_tokens, length = real_size(batch)
                tokens, real_tokens = tokens + engine.criterion.size(batch).tokens, real_tokens + num_tokens
                flops += num_tokens * flops_per_token(config, length)
    wait()
    seconds = time.perf_counter() - start
    topology = engine.topology
    return some, Utilisation(
        model=options.model,
        matmul_parameters=matmul_parameters(config),
        width=columns / count,
        steps=options.steps,
        tokens=tokens * topology.data_parallel_size,
        real_tokens=real_tokens * topology.data_parallel_size,
        flops=flops * topology.data_parallel_size,
        seconds=seconds,
        peak_flops=peak_flops(engine.device, given_tflops=options.peak_tflops, num_devices=topology.world_size),
        loss=float(result.loss) if result is not None else float("nan"),
        memory_gb=(engine.memory_bytes() or 0) / 1e9,
    )


def count_operations(engine: Engine, updates: Sequence[Sequence[Any]], result: Utilisation) -> Utilisation:
    """Return ``result`` with the operations of its updates, found by making some of them again, not compiled.

    A GPU that has no room for that leaves them unknown.
    """
    for module in engine.model.modules():
        if isinstance(module, Transformer):
            module.choose_kernels(attention=module.attention_kernel)
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    formulas = {
        on_cpu: _sdpa_operations,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
    }
    total, real_tokens = 0, 0
    try:
        for micro_batches in updates:
            with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
                engine.train_step(micro_batches)
            total += counter.get_total_flops()
            real_tokens += sum(batch.num_real_tokens for batch in micro_batches)
    except torch.OutOfMemoryError:
        return result
    sharing = engine.topology.model_parallel_size  # tensor-parallel ranks compute a share each
    return replace(result, operations=total * sharing / real_tokens * result.real_tokens)


def _sdpa_operations(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def profile(engine: Engine, batches: Iterator[Batch], *, accumulation_steps: int) -> str:
    """Return the table of the operations that take the most time in a few more updates."""
    on_gpu = engine.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if on_gpu else []
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(PROFILED_STEPS):
            engine.train_step(list(itertools.islice(batches, accumulation_steps)))
        if on_gpu:
            torch.cuda.synchronize()
    key = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=key, row_limit=PROFILED_ROWS)


def report(result: Utilisation) -> list[str]:
    """Return the lines of a result."""
    lines = [
        f"{result.model}: {result.matmul_parameters / 1e6:,.1f} M matmul parameters, width {result.width:.0f}, "
        f"{result.steps} updates in {result.seconds:.2f} s, loss {result.loss:.3f}, {result.memory_gb:.2f} GB"
        + ("" if result.planned_memory_gb is None else f" (planned: {result.planned_memory_gb:.2f})"),
        f"{result.real_tokens_per_second:,.0f} real tokens/s ({1 - result.real_tokens / result.tokens:.1%} of the "
        "input is padding, and counts nowhere but in the third number)",
    ]
    computed = result.operations_per_second
    really = f"{'?' if computed is None else f'{computed / 1e12:,.3f}'} TFLOP/s really computed"
    by_formula = f"{result.flops_per_second / 1e12:,.3f} TFLOP/s by the formula"
    if result.mfu is None or result.peak_flops is None:
        lines += [f"MFU unknown, as the peak of this device is (--peak-tflops gives it): {by_formula}"]
        return [*lines, f"utilisation unknown: {really}"]
    share = "unknown" if result.utilisation is None else f"{100 * result.utilisation:.1f} %"
    lines += [f"MFU {100 * result.mfu:.1f} % of {result.peak_flops / 1e12:,.2f} TFLOP/s: {by_formula}"]
    return [*lines, f"utilisation {share}: {really}"]


def get_parser(program: Callable[..., int], **numbers: tuple[int, str]) -> argparse.ArgumentParser:
    """Build the parser of a program's own flags; ``numbers`` gives defaults and texts."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {program.__name__}", description=inspect.getdoc(program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--model", choices=sorted(MODELS), default="large")
    parser.add_argument("--precision", choices=("bf16", "fp16", "fp32"), default="bf16")
    numbers = {"steps": (100, "measured updates"), "warmup": (20, "updates before"), **numbers}
    for name, (default, text) in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=text)
    parser.add_argument("--peak-tflops", type=float, help="dense peak of one device (default: that of a known GPU)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def model_words(options: argparse.Namespace, **flags: Any) -> list[str]:
    """Return the flags of a program that describe the measured model and run; None leaves one out."""
    config = MODELS[options.model].config
    flags = {
        "num_layers": config.num_layers, "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads, "max_position_embeddings": config.max_position_embeddings,
        **flags,
    }  # fmt: skip
    words = ["--block-lm", *([] if options.precision == "fp32" else [f"--{options.precision}"])]
    for name, value in flags.items():
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    return words


def show(result: Utilisation, options: argparse.Namespace, *, samples: int | None = None, unit: str = "") -> None:
    """Print a result, with the rate of ``samples`` if there are any, as text or as one JSON object."""
    row, lines = result.row(), report(result)
    if samples is not None:
        row["samples_per_second"] = samples / result.seconds
        lines.append(f"{samples / result.seconds:,.1f} {unit}")
    print(json.dumps(row) if options.json else "\n".join(lines), flush=True)


def mfu(argv: Sequence[str]) -> int:
    """Utilisation in pre-training: the engine, loader, optimizer and dropout of a real run.

    Any flag of pretrain_glm.py may follow (--compile, --attention ...). Without ``--data`` documents are random.
    """
    options, rest = pretraining_parser(mfu).parse_known_args(argv)
    if options.steps < 1 or options.warmup < 0:
        raise ValueError(f"--steps {options.steps} --warmup {options.warmup}: at least 1 and 0 are needed")
    configuration = pretraining_settings(options, rest)
    with faults_in_one_line(batch_size=configuration.batch.batch_size, checkpoints=None):
        engine, batches = pretraining(configuration, options)
        config, accumulation_steps = engine.model.config, configuration.batch.gradient_accumulation_steps
        assert isinstance(config, GLMConfig)
        some, result = measure(engine, batches, options, config=config, accumulation_steps=accumulation_steps)
        rank = engine.topology.rank
        if options.profile is not None:
            text = profile(engine, batches, accumulation_steps=accumulation_steps)
            if rank == 0:
                options.profile.write_text(text, encoding="utf-8")
        planned = make_plan(configuration, vocab_size=MODELS[options.model].config.vocab_size).memory
        result = replace(count_operations(engine, some, result), planned_memory_gb=planned / 1e9)
        if rank == 0:
            show(result, options)
        return finish_distributed(0)


def pretraining_parser(program: Callable[..., int]) -> argparse.ArgumentParser:
    """Build the parser of a program that pre-trains."""
    parser = get_parser(
        program, batch_size=(16, "of each data rank"), seq_length=(512, "tokens of a sample before its blanks are made")
    )  # fmt: skip
    parser.add_argument("--data", nargs="+", help="a corpus; it is tokenized by the model's tokenizer")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write what takes the time to FILE")
    return parser


def pretraining_settings(options: argparse.Namespace, rest: Sequence[str]) -> PretrainingSettings:
    """Return the settings of a run of the chosen model; ``rest`` are further flags of it."""
    released = MODELS[options.model]
    words = model_words(
        options,
        seq_length=options.seq_length,
        batch_size=options.batch_size,
        tokenizer_type=released.tokenizer_type,
        tokenizer_model_type=released.tokenizer_model_type,
        train_iters=options.warmup + options.steps + PROFILED_STEPS,
        bert_prob=0.5 if released.task_mask else 1.0,
        gap_sentence_prob=0.3 if released.task_mask else 0.0,
    )
    words += ["--train-data", *(options.data or ["random"])]
    for name in ("task_mask", "fix_command_token"):
        words += [f"--{name.replace('_', '-')}"] if getattr(released, name) else []
    return parse_settings(PretrainingSettings, [*words, *rest])


def pretraining(configuration: PretrainingSettings, options: argparse.Namespace) -> tuple[Engine, Iterator[Batch]]:
    """Return the engine of a run, in training mode, and its micro batches."""
    topology, device = start_distributed(configuration.device)
    if options.json:
        logging.getLogger("glm").setLevel(logging.CRITICAL)
    seed_everything(configuration.run.seed)
    batches, vocab_size = training_batches(
        configuration,
        real=options.data is not None,
        vocab_size=MODELS[options.model].config.vocab_size,
        topology=topology,
    )
    engine = build_engine(configuration, vocab_size=vocab_size, topology=topology, device=device)
    engine.model.train()
    return engine, batches


def training_batches(
    configuration: PretrainingSettings,
    *,
    real: bool,
    vocab_size: int,
    topology: ParallelTopology,
) -> tuple[Iterator[Batch], int]:
    """Return the batches of a run, and the size of the vocabulary (``vocab_size`` for random documents)."""
    if real:
        tokenizer = build_run_tokenizer(configuration)
        data = build_pretraining_data(configuration, tokenizer=tokenizer, topology=topology)
        return iter(data.train(0)), tokenizer.padded_size(configuration.tokenizer.make_vocab_size_divisible_by)
    batch = configuration.batch
    loader = batch_loader(
        RandomDocuments(RANDOM_DOCUMENTS, longest=LONGEST_DOCUMENT),
        configuration=configuration,
        tokenizer=random_vocabulary(),
        topology=topology,
        seq_length=batch.seq_length,
        batch_size=batch.batch_size,
        num_batches=configuration.run.train_iters * batch.gradient_accumulation_steps,
        num_workers=batch.num_workers,
    )
    return loader.batches(), vocab_size


def record(argv: Sequence[str]) -> int:
    """Fine-tuning as on ReCoRD: questions on a passage with up to ten candidates of a few tokens each; samples/s.

    Any flag of finetune_glm.py may follow (--compile, --pack-samples ...). A sample is a question with all its
    candidates, each in a row of its own behind the passage, or with ``--pack-samples`` in rows they share. Samples are
    random; collation, the engine, the optimizer and dropout 0.1 are those of a real run.
    """
    options, rest = get_parser(
        record, questions=(8, "in a batch"), candidates=(10, "of a question"), shortest=(150, "tokens of a question"),
        longest=(350, "tokens of a question"),
    ).parse_known_args(argv)  # fmt: skip
    if not 1 <= options.shortest <= options.longest or min(options.steps, options.questions, options.candidates) < 1:
        raise ValueError(
            "--steps, --questions, --candidates and --shortest are at least 1, --longest no less than that"
        )
    sizes = MODELS[options.model].config
    words = model_words(options, seq_length=sizes.max_position_embeddings, batch_size=options.questions)
    words += ["--task", "record", "--cloze-eval", "--epochs", "1", "--data-dir", "none"]
    configuration = parse_settings(FinetuningSettings, [*words, *rest])
    with faults_in_one_line(batch_size=options.questions, checkpoints=None):
        topology, device = start_distributed(configuration.device)
        if options.json:
            logging.getLogger("glm").setLevel(logging.CRITICAL)
        seed_everything(configuration.run.seed)
        model = GLMModel(configuration.model.config(vocab_size=sizes.vocab_size), topology=topology)
        seed_model(model, configuration.run.seed, topology=topology)
        engine = wrap_model(
            add_head(model, "multi_token").train(),
            configuration,
            criterion=TaskCriterion(),
            schedule_length=options.warmup + options.steps,
            topology=topology,
            device=device,
        )
        batches = question_batches(options, share_rows=configuration.batch.pack_samples)
        accumulation_steps = configuration.batch.gradient_accumulation_steps
        some, result = measure(engine, batches, options, config=model.config, accumulation_steps=accumulation_steps)
        result = count_operations(engine, some, result)
        if topology.rank == 0:
            samples = options.questions * accumulation_steps * options.steps * topology.data_parallel_size
            show(result, options, samples=samples, unit=f"samples/s of {options.candidates} candidates")
        return finish_distributed(0)


def make_sample(generator: np.random.Generator, number: int, *, candidates: int, length: int) -> TaskSample:
    """Return a question of ``length`` tokens and its candidates of one to six, the first of which is right."""
    passage = generator.integers(FIRST_ID, VOCABULARY, length)
    rows = []
    for answer in generator.integers(1, LONGEST_CANDIDATE + 1, candidates):
        tokens = generator.integers(FIRST_ID, VOCABULARY, answer)
        values = np.zeros((5, length + answer), dtype=np.int32)
        values[0, :length], values[0, length + 1 :] = passage, tokens[:-1]
        values[1, length:], values[2, length:] = tokens, 1
        values[3, :length], values[3, length:] = np.arange(length), length // 2  # where the gap is
        values[4, length:] = np.arange(1, answer + 1)
        rows.append(token_rows.Row(values, length))
    return TaskSample("multi_token", number, 0, tuple(rows), choices=True)


def question_batches(options: argparse.Namespace, *, share_rows: bool) -> Iterator[TaskBatch]:
    """Yield batches without end; collation is part of the measured time, drawing the samples hardly counts."""
    generator = np.random.default_rng(6)
    number = 0
    while True:
        samples = []
        for _ in range(options.questions):
            length = int(generator.integers(options.shortest, options.longest + 1))
            samples.append(make_sample(generator, number, candidates=options.candidates, length=length))
            number += 1
        yield collate(samples, pad_id=0, multiple_of=WIDTH_MULTIPLE, share_rows=share_rows)


def decode_bandwidth(argv: Sequence[str]) -> int:
    """Decoding one row: the share of the device's memory bandwidth that it reaches.

    A token that is decoded alone has to read every weight and the cache once. The bound is those bytes over the
    bandwidth of copying a large buffer (bytes read and written), measured in turn with the decoding; the ratio is the
    bound over the time of a token, the prompt's share included: 128 tokens of context, 256 new ones, greedy, random
    weights. On a GPU: bf16, by CUDA graphs and by launching every kernel. On the CPU: bf16, and weights of 8 bits.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks decode_bandwidth", description=decode_bandwidth.__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), help="default: 2b on a GPU, small elsewhere")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    values = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = decode_rows(values.model or ("2b" if device == "cuda" else "small"), torch.device(device))
    print(json.dumps([asdict(row) for row in rows]) if values.json else "\n".join(table(rows)))
    return 0


def decode_rows(name: str, device: torch.device, *, new: int = NEW, repeats: int = REPEATS) -> list[Row]:
    """Return a row for each way of decoding ``new`` tokens that the device has."""
    config = MODELS[name].config
    ways: dict[str, tuple[Callable[[], None], float]] = {}
    if device.type == "cuda":
        model = random_model(config, device)
        for label, static in (("CUDA graphs", True), ("kernel by kernel", False)):
            ways[f"bf16, {label}"] = decoding(BlankFiller(model, number_tokenizer(), static=static), new), 2
    else:
        for label, int8 in (("bf16", False), ("int8", True)):
            model = random_model(config, device)
            prepack_for_inference(model, int8=int8)
            ways[label] = decoding(BlankFiller(model, number_tokenizer()), new), 1 if int8 else 2
    copy, moved = copying(device)

    def seconds(work: Callable[[], object], times: int = 1) -> float:
        def run() -> None:
            for _ in range(times):
                work()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return seconds_of(run) / times

    for work in (copy, *(decode for decode, _ in ways.values())):
        seconds(work)
    times: dict[str, list[float]] = {label: [] for label in ways}  # of a token
    bounds: dict[str, list[float]] = {label: [] for label in ways}
    for _ in range(repeats):
        for label, (decode, weight_bytes) in ways.items():
            bandwidth = moved / seconds(copy, times=3)
            cache_bytes = 2 if device.type == "cuda" else 4
            size = bytes_of_a_token(config, new, weight_bytes=weight_bytes, cache_bytes=cache_bytes)
            times[label].append(seconds(decode) / new)
            bounds[label].append(size / bandwidth)
    return [
        summarize(f"decode {name}, batch 1, {label}", times[label], bounds[label], amount=1, unit="tokens/s", goal=0.5)
        for label in ways
    ]


def random_model(config: GLMConfig, device: torch.device) -> GLMModel:
    """Return a model with random weights in bf16, made where it runs."""
    model = GLMModel(config, device="meta", dtype=torch.bfloat16).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(1)
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.02, generator=generator)
    return model


def bytes_of_a_token(config: GLMConfig, new: int, *, weight_bytes: float, cache_bytes: int) -> float:
    """Return what the mean of ``new`` tokens has to read: matrices, vocabulary, the cache of positions before it."""
    hidden, layers = config.hidden_size, config.num_layers
    weights = (12 * layers * hidden**2 + config.vocab_size * hidden) * weight_bytes
    vectors = (13 * layers + 2) * hidden * 2  # biases and LayerNorms, in bf16
    cache = 2 * layers * hidden * (CONTEXT + new / 2) * cache_bytes
    return weights + vectors + cache


def decoding(filler: BlankFiller, new: int) -> Callable[[], None]:
    """Return a function that fills the blank of one context with ``new`` tokens."""
    [inputs] = make_contexts(1)
    settings = DecodingSettings(max_length=new, min_length=new, top_k=1)

    def decode() -> None:
        [filled] = filler.fill_inputs([inputs], settings=settings, generators=[prompt_generator(1, 0)])
        assert len(filled.pieces[0]) == new

    return decode


def copying(device: torch.device) -> tuple[Callable[[], object], int]:
    """Return a function that copies a buffer, and the bytes it moves."""
    source = torch.zeros(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * source.numel()
