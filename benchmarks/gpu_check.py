"""What a first run on a GPU has to find out, in under eight minutes (``scripts/gpu_check.sh``, docs/performance.md).

Every part runs in a process of its own with a time limit: one that fails, or takes too long, is a line of the table
with its error, and the others go on. The results are a table and, with everything in it, a JSON file; what the parts
print goes to a file beside that.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import math
import multiprocessing
import os
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import utilisation
from benchmarks.harness import REPOSITORY, machine
from benchmarks.pages import markdown_table
from data_utils.batches import Batch
from files.writing import check_can_write, write_whole
from mpu.kernels.flash import attend_in_two_calls, can_run_flash
from mpu.masks import PrefixMask
from training.engine import Engine
from training.metrics import IntervalMetrics

ALL_SECONDS = 470.0  # of all parts; what has not begun by then is left out
NAMES_SHOWN = 8  # kernels of a path
REPEATS = 20  # of a kernel that is timed
ROWS, HEADS, LENGTH, HEAD_DIM = 16, 16, 576, 64  # of attention in GLM-Large: a micro batch with its parts B
FLEX = ["--pack-samples", "--attention", "flex", "--attention-dropout", "0"]
TINY = ["--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "2", "--num-workers", "0"]


@dataclass(frozen=True)
class Place:
    """Where and at which size the parts run: ``tiny`` takes the smallest models and a few updates."""

    device: torch.device
    tiny: bool

    def words(self, model: str, **numbers: int) -> list[str]:
        """Return the flags of a program of ``benchmarks/utilisation.py`` for ``model``, with ``numbers`` of its own."""
        more: list[str] = []
        if self.tiny:
            model, more = "tiny", [*TINY, "--precision", "fp32"]
            numbers = {name: TINY_NUMBERS.get(name, number) for name, number in numbers.items()}
        flags = [word for name, number in numbers.items() for word in (f"--{name.replace('_', '-')}", str(number))]
        return ["--model", model, *flags, "--device", self.device.type, *more]


# What is told of the programs that measure utilisation.
KEPT = (
    "real_tokens_per_second", "mfu", "utilisation", "flops_per_second", "operations_per_second", "samples_per_second",
    "memory_gb", "planned_memory_gb", "width", "steps", "seconds",
)  # fmt: skip
TINY_NUMBERS = {
    "steps": 2, "warmup": 1, "batch_size": 2, "seq_length": 32,
    "questions": 2, "candidates": 3, "shortest": 10, "longest": 20,
}  # fmt: skip
Found = dict[str, Any]  # what a part finds: names and plain values


class OnlyOnGPUError(Exception):
    """A part that makes no sense on a CPU; the text says why."""


def on_gpu(place: Place, reason: str) -> None:
    if place.device.type != "cuda":
        raise OnlyOnGPUError(f"only on a GPU: {reason}")


def device(place: Place) -> Found:
    """Name what is measured."""
    found: Found = {"torch": torch.__version__, "machine": machine()}
    if place.device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        capability = f"{properties.major}.{properties.minor}"
        found |= {"gpu": properties.name, "capability": capability, "memory_gb": properties.total_memory / 1e9}
        found |= {"gpus": torch.cuda.device_count(), "cuda": torch.version.cuda}
    return found


def prepared(place: Place, *rest: str) -> tuple[Engine, Iterator[Batch], int]:
    """Return GLM-Large as it is pre-trained, its batches, and how many of them are an update."""
    words = place.words("large", steps=10, warmup=3, batch_size=16, seq_length=512)
    options, more = utilisation.pretraining_parser(utilisation.mfu).parse_known_args([*words, *rest])
    configuration = utilisation.pretraining_settings(options, more)
    engine, batches = utilisation.pretraining(configuration, options)
    return engine, batches, configuration.batch.gradient_accumulation_steps


def kernels(place: Place, *words: str) -> Found:
    """Name the kernels that take the most time in an update of GLM-Large and in an evaluation."""
    if "flex" in words:
        on_gpu(place, "FlexAttention has no backward pass on a CPU")
    engine, batches, steps = prepared(place, *words)
    micro_batches = list(itertools.islice(batches, steps))
    return {
        "update": kernel_names(place, partial(engine.train_step, micro_batches)),
        "evaluation": kernel_names(place, partial(engine.evaluate, micro_batches)),
    }


def kernel_names(place: Place, work: Callable[[], object]) -> list[str]:
    """Return the kernels (on a CPU: operations) that take the most time of ``work``, and those of attention."""
    work()
    on_device = place.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if on_device else []
    with torch.profiler.profile(activities=activities) as profiler:
        work()
        if on_device:
            torch.cuda.synchronize()
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        if on_device and event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        times[event.key] = event.self_device_time_total if on_device else event.self_cpu_time_total
    ordered = sorted(times, key=lambda key: -times[key])
    attention = [
        key for key in ordered if any(word in key.lower() for word in ("flash", "fmha", "attention", "softmax"))
    ]
    kept = dict.fromkeys([*ordered[:NAMES_SHOWN], *attention[:NAMES_SHOWN]])
    return [f"{key[:120]} {times[key] / 1000:.3f} ms" for key in kept]


def sync(place: Place) -> Found:
    """Make updates in which every wait of the host for the GPU raises."""
    on_gpu(place, "nothing is computed while the host goes on")
    found: Found = {}
    for name, words in {"rows of their own": [], "rows shared": ["--pack-samples"]}.items():
        engine, batches, steps = prepared(place, *words)
        metrics = IntervalMetrics(engine.device, topology=engine.topology)
        for step in range(4):
            micro_batches = list(itertools.islice(batches, steps))
            torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
            try:
                metrics.add(engine.train_step(micro_batches), seconds=1.0)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found[name] = "no wait"
    return found


def flash(place: Place) -> Found:
    """Compare two calls of FlashAttention with the memory-efficient kernel and its mask, and both with fp32."""
    on_gpu(place, "neither kernel exists on a CPU")
    found: Found = {}
    query, key, value = (
        torch.randn(ROWS, HEADS, LENGTH, HEAD_DIM, device=place.device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    if not can_run_flash(device=place.device, dtype=query.dtype, head_dim=HEAD_DIM):
        raise OnlyOnGPUError("this GPU is older than the kernel (compute capability 8.0)")
    mask = PrefixMask.prefix(torch.arange(ROWS) * 5 + LENGTH // 2)
    calls = mask.two_calls(batch_size=ROWS, length=LENGTH)
    assert calls is not None
    calls = calls.to(place.device)
    keys = mask.to(place.device).visible_keys(query_length=LENGTH, key_length=LENGTH, device=place.device)
    keys.make_additive(query.dtype)

    def in_two_calls(probability: float = 0.0) -> Tensor:
        return attend_in_two_calls(query, key, value, calls, dropout_probability=probability)

    def efficient(probability: float = 0.0) -> Tensor:
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
            return F.scaled_dot_product_attention(query, key, value, attn_mask=keys.additive, dropout_p=probability)

    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        exact = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=keys.visible)
    results = {}
    for name, attend in (("two flash calls", in_two_calls), ("memory-efficient", efficient)):
        output = attend()
        results[name] = output.detach()
        found[f"{name}, difference from fp32"] = (output.float() - exact).abs().max().item()
        for probability in (0.0, 0.1):
            forward = milliseconds(partial(attend, probability))
            both = milliseconds(partial(_backward, attend, probability))
            found[f"{name}, dropout {probability:g}, forward / with backward, ms"] = [forward, both]
    one, other = results.values()
    found["difference of the two"] = (one - other).abs().max().item()
    return found


def _backward(attend: Callable[[float], Tensor], probability: float) -> None:
    attend(probability).sum().backward()


def milliseconds(work: Callable[[], object]) -> float:
    """Return the median time of ``work`` on the GPU."""
    for _ in range(3):
        work()
    times = []
    for _ in range(REPEATS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        work()
        ended.record()
        torch.cuda.synchronize()
        times.append(began.elapsed_time(ended))
    return statistics.median(times)


def pretrain(place: Place, model: str, *rest: str) -> Found:
    """Measure the utilisation in pre-training."""
    if "--compile" in rest:
        on_gpu(place, "compiling takes a minute and gains nothing on a CPU")
    return printed(utilisation.mfu, [*place.words(model, steps=12, warmup=4, batch_size=16, seq_length=512), *rest])


def record(place: Place) -> Found:
    """Measure fine-tuning as on ReCoRD."""
    numbers = {"steps": 12, "warmup": 4, "questions": 8, "candidates": 10, "shortest": 150, "longest": 350}
    return printed(utilisation.record, [*place.words("large", **numbers), "--pack-samples"])


def printed(program: Callable[[Sequence[str]], int], words: Sequence[str]) -> Found:
    """Run a program and return the JSON object that it prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        program([*words, "--json"])
    row = json.loads(text.getvalue().splitlines()[-1])
    found = {name: row[name] for name in KEPT if row.get(name) is not None}
    return found | {"padding_share": 1 - row["real_tokens"] / row["tokens"]}


def decoding(place: Place) -> Found:
    """Measure decoding one prompt: the share of the memory's bandwidth that it reaches."""
    sizes = {"new": 8, "repeats": 1} if place.tiny else {"repeats": 2}
    rows = utilisation.decode_rows("tiny" if place.tiny else "2b", place.device, **sizes)
    return {row.work: {"tokens_per_second": row.rate, "share_of_bandwidth": row.ratio} for row in rows}


@dataclass(frozen=True)
class Part:
    """A part of the check: its name, its seconds at most, its function."""

    name: str
    seconds: float
    work: Callable[[Place], Found]


# What would be missed most comes first: the time may not be enough for all.
PARTS = (
    Part("device", 30, device),
    Part("waits for the GPU", 40, sync),
    Part("flash", 30, flash),
    Part("kernels", 30, kernels),
    Part("kernels, no flash", 30, lambda place: kernels(place, "--attention", "sdpa")),
    Part("kernels, rows shared", 30, lambda place: kernels(place, "--pack-samples")),
    Part("mfu large", 50, lambda place: pretrain(place, "large")),
    Part("mfu large, compiled", 100, lambda place: pretrain(place, "large", "--compile")),
    Part("record", 50, record),
    Part("decoding", 60, decoding),
    Part("kernels, flex", 60, lambda place: kernels(place, *FLEX)),
    Part("mfu 2b", 60, lambda place: pretrain(place, "2b")),
    Part("mfu 2b, compiled", 120, lambda place: pretrain(place, "2b", "--compile")),
)


@dataclass(frozen=True)
class Outcome:
    """What came of a part: what it found, or why there is nothing (``error``; ``skipped``: it makes no sense here)."""

    part: str
    seconds: float
    found: Found
    error: str | None = None
    skipped: str | None = None


def run_part(part: Part, place: Place, *, seconds: float, log: Path) -> Outcome:
    """Run a part in a process of its own for ``seconds`` at most, with what it prints at the end of ``log``.

    Nothing of the GPU may have been used in this process: the other one is a copy of it.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(part, place, sender, log))
    began = time.perf_counter()
    process.start()
    sender.close()
    answer: dict[str, Any]
    try:
        answer = receiver.recv() if receiver.poll(seconds) else {"error": f"not done in {seconds:.0f} seconds"}
    except EOFError:
        process.join()
        answer = {"error": f"the process ended with code {process.exitcode} (see {log})"}
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what it has started itself
    process.join()
    return Outcome(part.name, time.perf_counter() - began, **{"found": {}, **answer})


def _answer(part: Part, place: Place, sender: Connection, log: Path) -> None:
    os.setsid()
    with log.open("a", encoding="utf-8") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.stdout = sys.stderr = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    print(f"== {part.name}", flush=True)
    answer: dict[str, Any]
    try:
        answer = {"found": part.work(place)}
    except OnlyOnGPUError as reason:
        answer = {"skipped": str(reason)}
    except BaseException as error:  # whatever it is, it is one line of the table
        traceback.print_exc()
        answer = {"error": one_line(error)}
    sys.stdout.flush()
    sender.send(answer)  # after that this process ends at any moment


def one_line(error: BaseException) -> str:
    """Return what went wrong, and where in this repository."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(f"{REPOSITORY}/")
    ]
    place = f" ({Path(frames[-1].filename).relative_to(REPOSITORY)}:{frames[-1].lineno})" if frames else ""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}{place}"


def shown(value: Any) -> str:
    """Return a found value in a few characters."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(one)}" for name, one in value.items())
    if isinstance(value, list):
        return "; ".join(map(shown, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}" if math.isfinite(value) else "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the outcomes as lines of a Markdown table: a line for each thing that was found."""
    rows: list[tuple[str, str, str]] = []
    for outcome in outcomes:
        problem = outcome.error or outcome.skipped
        if problem is not None:
            rows.append((outcome.part, "FAILED" if outcome.error else "-", problem))
        rows += [(outcome.part, name, shown(value)) for name, value in outcome.found.items()]
        rows.append((outcome.part, "seconds", f"{outcome.seconds:.1f}"))
    return markdown_table(("part", "what", "found"), rows)


def gpu_check(argv: Sequence[str]) -> int:
    """Find out on a GPU what could not be measured without one: kernels, waits, utilisation, memory, decoding.

    Under eight minutes. ``--device cpu --tiny`` tries the file itself where there is no GPU. The exit code is 1 when a
    part failed.
    """
    parser = argparse.ArgumentParser(
        prog="bash scripts/gpu_check.sh", description=gpu_check.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models and a few updates (the CPU has no other size)")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="these parts alone")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"), help="default: gpu_check.json")
    values = parser.parse_args(argv)
    if values.device == "cpu" and not values.tiny:
        raise ValueError("--device cpu goes with --tiny: models of the real sizes would take hours on a CPU")
    check_can_write(values.output)
    log = values.output.with_suffix(".log")
    log.unlink(missing_ok=True)
    place = Place(torch.device(values.device), values.tiny)
    if values.device == "cuda":
        has_gpu = Part("GPU", 60, lambda _: {"available": torch.cuda.is_available()})
        outcome = run_part(has_gpu, place, seconds=60, log=log)  # asking here would forbid the parts' processes
        if not outcome.found.get("available"):
            raise ValueError(
                f"no GPU that torch {torch.__version__} can use; --device cpu --tiny tries the check itself"
            )
    chosen = [part for part in PARTS if values.only is None or part.name in values.only]
    outcomes: list[Outcome] = []
    patience = 20 if values.tiny else 1  # a busy machine is no finding there
    began = time.perf_counter()
    for part in chosen:
        left = patience * ALL_SECONDS - (time.perf_counter() - began)
        if left < 5:
            outcomes.append(Outcome(part.name, 0.0, {}, error=f"not begun: {ALL_SECONDS:.0f} seconds are over"))
        else:
            outcomes.append(run_part(part, place, seconds=min(patience * part.seconds, left), log=log))
        print(f"{part.name}: {outcomes[-1].error or outcomes[-1].skipped or 'done'}", file=sys.stderr, flush=True)
    content = {"device": values.device, "tiny": values.tiny, "parts": [asdict(outcome) for outcome in outcomes]}
    write_whole(values.output, json.dumps(content, indent=2) + "\n")
    print("\n".join(table(outcomes)))
    print(f"\n{values.output} has all of it, {log} what the parts printed")
    return 1 if any(outcome.error for outcome in outcomes) else 0
