"""Model FLOP utilisation (MFU) of pre-training: the engine, loader, optimizer and dropout of a real run.

    python -m benchmarks.mfu --model large|2b|base|tiny|... [--compile] [--attention KERNEL] [--steps 100] [--warmup 20]
        [--data FILE ...] [--batch-size 16] [--seq-length 512] [--precision bf16] [--peak-tflops 989] [--profile FILE]
        [--json] [any flag of pretrain_glm.py]

The formula is fixed: (6 x matmul parameters + 12 x layers x hidden x width) x tokens/s / peak. The output layer counts
at all tokens although it is computed at targets only; the tables of positions, biases and norms do not count. Tokens
are those of the input, padding included; raw tokens/s stand beside. Without ``--data`` documents are random. On a CPU
there is no peak, so tokens/s and FLOP/s alone are printed. Under torchrun all ranks count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.corpus import RandomDocuments, random_vocabulary
from benchmarks.models import MODELS
from data_utils.batches import Batch
from data_utils.errors import run_main
from model.config import GLMConfig
from mpu.initialize import ParallelTopology
from training.arguments import parse_settings
from training.build import build_engine
from training.data import batch_loader, build_pretraining_data, build_run_tokenizer
from training.distributed import faults_in_one_line, finish_distributed, seed_everything, start_distributed
from training.engine import Engine
from training.metrics import PEAK_FLOPS
from training.settings import PretrainingSettings

logger = logging.getLogger("glm")

RANDOM_DOCUMENTS, LONGEST_DOCUMENT = 2000, 1000
PROFILED_STEPS, PROFILED_ROWS = 5, 40


@dataclass(frozen=True)
class Utilisation:
    """What was measured.

    Attributes:
        model: its name.
        matmul_parameters: numbers in the matrices that every token is multiplied with.
        width: mean columns of a batch.
        steps: measured updates.
        tokens: input tokens of all data ranks in these updates, padding included.
        flops: of these tokens by the formula, forward and backward.
        seconds: they took.
        peak_flops: FLOP/s of all devices together; None where it is not known.
        loss: of the last update.
        memory_gb: peak memory in use, 1e9 bytes.
    """

    model: str
    matmul_parameters: int
    width: float
    steps: int
    tokens: int
    flops: float
    seconds: float
    peak_flops: float | None
    loss: float
    memory_gb: float

    @property
    def tokens_per_second(self) -> float:
        """Return the rate."""
        return self.tokens / self.seconds

    @property
    def flops_per_second(self) -> float:
        """Return the rate of useful arithmetic."""
        return self.flops / self.seconds

    @property
    def mfu(self) -> float | None:
        """Return the used share of the peak, None where that is not known."""
        return None if self.peak_flops is None else self.flops_per_second / self.peak_flops


def matmul_parameters(config: GLMConfig) -> int:
    """Count the numbers in the matrices of the layers (12 h^2 each) and of the output layer."""
    return 12 * config.num_layers * config.hidden_size**2 + config.vocab_size * config.hidden_size


def flops_per_token(config: GLMConfig, width: float) -> float:
    """Return the arithmetic of one token in rows of ``width``, forward and backward."""
    return 6.0 * matmul_parameters(config) + 12.0 * config.num_layers * config.hidden_size * width


def peak_flops(device: torch.device, *, given_tflops: float | None, num_devices: int) -> float | None:
    """Return the peak of all devices, FLOP/s: the given one of each, else that of a known GPU, else None."""
    if given_tflops is not None:
        return given_tflops * 1e12 * num_devices
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)
    return None if known is None else known * num_devices


def training_flags(options: argparse.Namespace) -> list[str]:
    """Return the flags of ``pretrain_glm.py`` that describe the measured run."""
    released = MODELS[options.model]
    config = released.config
    flags = {
        "num-layers": config.num_layers, "hidden-size": config.hidden_size,
        "num-attention-heads": config.num_attention_heads, "max-position-embeddings": config.max_position_embeddings,
        "seq-length": options.seq_length, "batch-size": options.batch_size,
        "tokenizer-type": released.tokenizer_type, "tokenizer-model-type": released.tokenizer_model_type,
        "train-iters": options.warmup + options.steps + PROFILED_STEPS,
        "bert-prob": 0.5 if released.task_mask else 1.0, "gap-sentence-prob": 0.3 if released.task_mask else 0.0,
    }  # fmt: skip
    words = ["--block-lm", "--train-data", *(options.data or ["random"])]
    for name, value in flags.items():
        words += [] if value is None else [f"--{name}", str(value)]
    for name in ("task_mask", "fix_command_token"):
        words += [f"--{name.replace('_', '-')}"] if getattr(released, name) else []
    return words + ([] if options.precision == "fp32" else [f"--{options.precision}"])


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


def measure(
    engine: Engine,
    batches: Iterator[Any],
    *,
    config: GLMConfig,
    name: str,
    warmup: int,
    steps: int,
    accumulation_steps: int,
    given_tflops: float | None = None,
) -> Utilisation:
    """Make ``warmup`` updates, then ``steps`` whose time counts: that of the loader, the updates and the device."""
    wait = torch.cuda.synchronize if engine.device.type == "cuda" else lambda: None
    tokens, flops, columns, count, result, start = 0, 0.0, 0, 0, None, 0.0
    for step in range(warmup + steps):
        if step == warmup:
            wait()
            start = time.perf_counter()
        micro_batches = list(itertools.islice(batches, accumulation_steps))
        result = engine.train_step(micro_batches)
        if step >= warmup:
            for batch in micro_batches:
                shared = getattr(batch, "shared_rows", None)
                width = (batch.input_ids if shared is None else shared).shape[-1]
                num_tokens = engine.criterion.num_tokens(batch)
                tokens += num_tokens
                flops += num_tokens * flops_per_token(config, width)
                columns, count = columns + width, count + 1
    wait()
    seconds = time.perf_counter() - start
    topology = engine.topology
    return Utilisation(
        model=name,
        matmul_parameters=matmul_parameters(config),
        width=columns / count,
        steps=steps,
        tokens=tokens * topology.data_parallel_size,
        flops=flops * topology.data_parallel_size,
        seconds=seconds,
        peak_flops=peak_flops(engine.device, given_tflops=given_tflops, num_devices=topology.world_size),
        loss=float(result.loss) if result is not None else float("nan"),
        memory_gb=(engine.memory_bytes() or 0) / 1e9,
    )


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


def report(found: Utilisation) -> list[str]:
    """Return the lines of a result."""
    lines = [
        f"{found.model}: {found.matmul_parameters / 1e6:,.1f} M matmul parameters, width {found.width:.0f}, "
        f"{found.steps} updates in {found.seconds:.2f} s, loss {found.loss:.3f}, {found.memory_gb:.2f} GB",
        f"{found.tokens_per_second:,.0f} tokens/s, {found.flops_per_second / 1e12:,.3f} TFLOP/s",
    ]
    if found.mfu is not None and found.peak_flops is not None:
        lines.append(f"MFU {100 * found.mfu:.1f} % of {found.peak_flops / 1e12:,.0f} TFLOP/s")
    else:
        lines.append("no MFU: the peak of this device is not known (--peak-tflops gives it)")
    return lines


def get_parser() -> argparse.ArgumentParser:
    """Build the parser of the benchmark's own options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="large")
    parser.add_argument("--steps", type=int, default=100, help="measured updates")
    parser.add_argument("--warmup", type=int, default=20, help="updates before")
    parser.add_argument("--batch-size", type=int, default=16, help="of each data rank")
    parser.add_argument("--seq-length", type=int, default=512, help="tokens of a sample before its blanks are made")
    parser.add_argument("--precision", choices=("bf16", "fp16", "fp32"), default="bf16")
    parser.add_argument("--data", nargs="+", help="a corpus; it is tokenized by the model's tokenizer")
    parser.add_argument("--peak-tflops", type=float, help="dense peak of one device (default: that of a known GPU)")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write what takes the time to FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options, rest = get_parser().parse_known_args(argv)
    if options.steps < 1 or options.warmup < 0:
        raise ValueError(f"--steps {options.steps} --warmup {options.warmup}: at least 1 and 0 are needed")
    configuration = parse_settings(PretrainingSettings, [*training_flags(options), *rest])
    with faults_in_one_line(batch_size=configuration.batch.batch_size, checkpoints=None):
        return run(configuration, options)


def run(configuration: PretrainingSettings, options: argparse.Namespace) -> int:
    """Build the run, measure it and print the result on the first rank."""
    topology, device = start_distributed(configuration.device)
    if options.json:
        logging.getLogger("glm").setLevel(logging.CRITICAL)
    first = topology.rank == 0

    seed_everything(configuration.run.seed)
    batches, vocab_size = training_batches(
        configuration,
        real=options.data is not None,
        vocab_size=MODELS[options.model].config.vocab_size,
        topology=topology,
    )
    engine = build_engine(configuration, vocab_size=vocab_size, topology=topology, device=device)
    engine.model.train()
    accumulation = {"accumulation_steps": configuration.batch.gradient_accumulation_steps}
    found = measure(
        engine,
        batches,
        config=engine.model.config,
        name=options.model,
        warmup=options.warmup,
        steps=options.steps,
        given_tflops=options.peak_tflops,
        **accumulation,
    )
    if first and options.json:
        print(json.dumps(as_json(found)))
    elif first:
        print("\n".join(report(found)), flush=True)
    if options.profile is not None:
        table = profile(engine, batches, **accumulation)
        if first:
            options.profile.write_text(table, encoding="utf-8")
    return finish_distributed(0)


def as_json(found: Utilisation) -> dict[str, Any]:
    """Return the result with its rates."""
    rates = {"tokens_per_second": found.tokens_per_second, "flops_per_second": found.flops_per_second}
    return {**asdict(found), **rates, "mfu": found.mfu}


if __name__ == "__main__":
    run_main(main)
