"""Decoding one row: the share of the device's memory bandwidth that it reaches.

    python -m benchmarks.decode_bandwidth [--model NAME] [--json]

A token that is decoded alone has to read every weight and the cache once. The bound is those bytes over the bandwidth
of copying a large buffer (bytes read and written), measured in turn with the decoding; the ratio is the bound over the
time of a token, the prompt's share included: 128 tokens of context, 256 new ones, greedy, random weights. On a GPU:
bf16, by CUDA graphs and by launching every kernel. On the CPU: bf16, and weights of 8 bits. Default: 2b on a GPU, small
(12 layers of 512) elsewhere.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch

from benchmarks.generate import CONTEXT, NEW, make_contexts, number_tokenizer
from benchmarks.measuring import Row, report, seconds_of
from benchmarks.models import MODELS
from data_utils.errors import run_main
from generation.api import prepack_for_inference
from generation.infill import BlankFiller, prompt_generator
from generation.sampling import DecodingSettings
from model.config import GLMConfig
from model.modeling_glm import GLMModel

GOAL = 0.5
REPEATS = 5
COPIED = {"cpu": 2**28, "cuda": 2**30}  # bytes of the buffer, many times any cache of the processor


def make_model(config: GLMConfig, device: torch.device) -> GLMModel:
    """Return a model with random weights in bf16, made where it runs."""
    model = GLMModel(config, device="meta", dtype=torch.bfloat16).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(1)
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.02, generator=generator)
    return model


def bytes_of_a_token(config: GLMConfig, *, weight_bytes: int, cache_bytes: int) -> float:
    """Return what the mean token has to read: matrices, the vocabulary, and the cache of the positions before it."""
    hidden, layers = config.hidden_size, config.num_layers
    weights = (12 * layers * hidden**2 + config.vocab_size * hidden) * weight_bytes
    vectors = (13 * layers + 2) * hidden * 2  # biases and LayerNorms, in bf16
    cache = 2 * layers * hidden * (CONTEXT + NEW / 2) * cache_bytes
    return weights + vectors + cache


def decoding(filler: BlankFiller) -> Callable[[], None]:
    """Return a function that fills the blank of one context with ``NEW`` tokens."""
    [inputs] = make_contexts(1)
    settings = DecodingSettings(max_length=NEW, min_length=NEW, top_k=1)

    def decode() -> None:
        [filled] = filler.fill_inputs([inputs], settings=settings, generators=[prompt_generator(1, 0)])
        assert len(filled.pieces[0]) == NEW

    return decode


def copying(device: torch.device) -> tuple[Callable[[], None], int]:
    """Return a function that copies a buffer, and the bytes it moves."""
    source = torch.zeros(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * source.numel()


def measure(name: str | None) -> list[Row]:
    """Return a row for each way of decoding that the device has."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = name or ("2b" if device.type == "cuda" else "small")
    config = MODELS[name].config
    ways: dict[str, tuple[Callable[[], None], float]] = {}
    if device.type == "cuda":
        model = make_model(config, device)
        for label, static in (("CUDA graphs", True), ("kernel by kernel", False)):
            ways[f"bf16, {label}"] = decoding(BlankFiller(model, number_tokenizer(), static=static)), 2
    else:
        for label, int8 in (("bf16", False), ("int8", True)):
            model = make_model(config, device)
            prepack_for_inference(model, int8=int8)
            ways[label] = decoding(BlankFiller(model, number_tokenizer())), 1 if int8 else 2
    copy, moved = copying(device)

    def seconds(work: Callable[[], None], times: int = 1) -> float:
        def run() -> None:
            for _ in range(times):
                work()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return seconds_of(run) / times

    for work in (copy, *(decode for decode, _ in ways.values())):
        seconds(work)
    found: dict[str, list[tuple[float, float]]] = {label: [] for label in ways}  # seconds a token, bound
    for _ in range(REPEATS):
        for label, (decode, weight_bytes) in ways.items():
            bandwidth = moved / seconds(copy, times=3)
            size = bytes_of_a_token(config, weight_bytes=weight_bytes, cache_bytes=2 if device.type == "cuda" else 4)
            found[label].append((seconds(decode) / NEW, size / bandwidth))
    return [_row(f"decode {name}, batch 1, {label}", pairs) for label, pairs in found.items()]


def _row(work: str, pairs: Sequence[tuple[float, float]]) -> Row:
    times = [own for own, _ in pairs]
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4)
    return Row(
        work=work,
        ours=median,
        spread=(high - low) / 2 / median,
        baseline=statistics.median(bound for _, bound in pairs),
        ratio=statistics.median(bound / own for own, bound in pairs),
        rate=1 / median,
        unit="tokens/s",
        goal=GOAL,
    )


def main() -> int:
    """Parse ``--model``, measure, print."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--model", choices=sorted(MODELS))
    values, others = parser.parse_known_args()
    return report(lambda: measure(values.model), description=__doc__, argv=others)


if __name__ == "__main__":
    run_main(main)
