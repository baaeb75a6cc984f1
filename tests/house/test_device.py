"""What a GPU would be asked: no step waits for it but where it is said here, and attention reaches its fast kernels.

Everything runs on the device of ``tests/helpers/device.py``, which has numbers, and gives those of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_utils.batches import Batch
from data_utils.objective import Objective
from data_utils.objective.causal import causal_masks
from data_utils.rows import Row
from generation.infill import BlankFiller
from generation.requests import FillRequest, RequestFiller, TokenDrawn
from mpu.initialize import ParallelTopology
from mpu.kernels import flash, static_attention
from mpu.kernels.host_memory import send
from tasks.seq2seq.decoding import TargetDecoder
from tasks.seq2seq.samples import Seq2SeqSample
from tasks.seq2seq.samples import collate as collate_texts
from tasks.superglue.batches import collate
from tasks.superglue.objective import TaskCriterion, mask_scores, score_rows
from tasks.superglue.samples import Kind
from tests.helpers.device import NAME, Chip, WaitError, attention_kernel, chip_process
from tests.helpers.engines import LENGTH, make_batch, make_engine, scoring_engine
from tests.helpers.small_corpus import SmallCorpus, make_corpus
from tests.helpers.small_models import DECODING, PROMPTS, TINY_COMMAND_IDS, WORDS, random_model
from tests.helpers.task_samples import PAD, make_model, make_samples
from tests.helpers.training_data import build, configure, take
from training.build import build_engine
from training.engine import BlankInfilling, TorchEngine
from training.metrics import IntervalMetrics
from training.optimizer import build_optimizer
from training.settings import OptimizerSettings

SINGLE = ParallelTopology.single()
# Where the host may wait for the device.
EVERY_LOG_INTERVAL = "training/metrics.py: report"
EVERY_EVALUATION = "training/metrics.py: result"
EVERY_UPDATE_OF_SOME = "training/engine.py: _update"  # fp16, whose next loss scale depends on it, and Adafactor
EVERY_FEW_TOKENS = "generation/state.py: write"
EVERY_TOKEN = "generation/sampling.py: choose_tokens"
EVERY_TOKEN_OF_BEAMS = "generation/beam_search.py: _as_lists"
EVERY_TOLD_TOKEN = "generation/infill.py: _told"  # what the web page and the HTTP interface show of it
EVERY_TOKEN_OF_BLANKS = "tasks/seq2seq/decoding.py: fill_blanks"
EVERY_SCORED_BATCH = "generation/scoring.py: _token_scores"

FORBIDDEN: dict[str, Callable[[torch.Tensor], Any]] = {
    "item": lambda numbers: numbers.sum().item(),
    "bool": lambda numbers: bool((numbers > 0).all()),
    "tolist": lambda numbers: numbers.tolist(),
    "nonzero": lambda numbers: numbers.nonzero(),
    "mask": lambda numbers: numbers[numbers > 1],
    "to the host": lambda numbers: numbers.cpu(),
    "into host memory": lambda numbers: torch.zeros(3).copy_(numbers, non_blocking=True),
    "blocking": lambda numbers: torch.ones(3).pin_memory().to(numbers.device),
    "not pinned": lambda numbers: torch.ones(3).to(numbers.device, non_blocking=True),
    "made on the device": lambda numbers: torch.tensor([1.0], device=numbers.device),
    "index on the host": lambda numbers: numbers[torch.tensor([0, 1])],
    "index in a list": lambda numbers: numbers[[0, 1]],
    "mixed": lambda numbers: numbers + torch.ones(3),
    "generator": lambda numbers: numbers.normal_(generator=torch.Generator()),
    "in the backward pass": lambda numbers: _Reading.apply(numbers.clone().requires_grad_()).sum().backward(),
}
ALLOWED: dict[str, Callable[[torch.Tensor], Any]] = {
    "arithmetic": lambda numbers: (numbers * 2 + torch.tensor(1.0)).sum(),
    "filling": lambda numbers: numbers.masked_fill(numbers > 1, 0.0),
    "assignment": lambda numbers: numbers.clone().__setitem__(numbers > 1, 0.0),
    "to the device": lambda numbers: send(torch.ones(3), numbers.device) + numbers,
    "made there": lambda numbers: torch.full((), 2.0, device=numbers.device) + torch.arange(3, device=numbers.device),
    "index": lambda numbers: numbers[numbers.argsort()],
}

OnChip = Callable[..., Any]


@pytest.fixture(scope="module")
def on_chip() -> Iterator[OnChip]:
    with chip_process() as call:
        yield call


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def batches(corpus: SmallCorpus) -> dict[bool, list[Batch]]:
    """Return batches without and with rows that samples share."""
    return {packed: take(build(corpus, *["--pack-samples"][:packed]), 3) for packed in (False, True)}


class _Reading(torch.autograd.Function):
    """Look at a number when the gradient comes."""

    @staticmethod
    def forward(ctx: Any, numbers: torch.Tensor) -> torch.Tensor:
        return numbers * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * gradient.sum().item()


def noticed() -> list[str]:
    """Return what raised."""
    names = []
    with Chip() as chip:
        with chip.preparation():
            numbers = torch.tensor([1.0, 2.0, 3.0]).to(f"{NAME}:0")
        for name, operation in {**FORBIDDEN, **ALLOWED}.items():
            try:
                operation(numbers)
            except WaitError:
                names.append(name)
    return names


def test_the_device_notices(on_chip: OnChip):
    assert on_chip(noticed) == list(FORBIDDEN)


def updates(engine: TorchEngine, batches: list[Any], chip: Chip | None = None) -> list[float]:
    """Make an update from every batch; return the mean loss, the last norm, and the loss of an evaluation."""
    metrics = IntervalMetrics(engine.device, topology=SINGLE)
    for batch in batches:
        metrics.add(engine.train_step([batch]))
    report = metrics.report(len(batches))
    return [report.loss, report.grad_norm, engine.evaluate(batches).loss]


def fast_attention(chip: Chip) -> set[str]:
    """Return the kernels of the attention calls; none of them copies anything first."""
    assert not [call for call in chip.attention if call.copies]
    return {call.kernel for call in chip.attention}


def pretraining(
    folder: str, flags: list[str], batches: list[Batch]
) -> tuple[list[float], list[float], dict[str, int], set[str]]:
    """Make updates on the CPU and on the device; return what came of both, the waits, and the attention kernels."""
    configuration = configure(SmallCorpus(Path(folder)), *flags)
    results = []
    for device in ("cpu", f"{NAME}:0"):
        allowed = {EVERY_LOG_INTERVAL, EVERY_EVALUATION, EVERY_UPDATE_OF_SOME}
        with Chip(allowed) as chip, pytest.MonkeyPatch.context() as patch:
            if "--attention-dropout" in flags:  # the device's FlashAttention has no dropout
                patch.setattr(flash, "DEVICE_TYPE", NAME)
            with chip.preparation():
                torch.manual_seed(1)
                engine = build_engine(configuration, vocab_size=128, topology=SINGLE, device=torch.device(device))
            results.append(updates(engine, batches))
    return results[0], results[1], dict(chip.waits), fast_attention(chip)


NO_DROPOUT = ["--hidden-dropout", "0", "--attention-dropout", "0"]


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        (["--fp32", *NO_DROPOUT], 1e-4),
        (["--fp32", "--pack-samples", *NO_DROPOUT], 1e-4),
        (["--fp32", "--checkpoint-activations", *NO_DROPOUT], 1e-4),
        (["--fp32", "--optimizer", "adafactor", *NO_DROPOUT], 1e-4),
        (["--bf16", *NO_DROPOUT], 0.01),
        (["--bf16", "--pack-samples", *NO_DROPOUT], 0.01),
        (["--bf16"], 0.1),
        (["--fp16", "--loss-scale", "128"], 0.1),
    ],
    ids=["fp32", "packed", "recomputed", "adafactor", "bf16 flash", "bf16 flash packed", "bf16", "fp16"],
)
def test_updates_of_blank_infilling(
    on_chip: OnChip, corpus: SmallCorpus, batches: dict[bool, list[Batch]], flags: list[str], tolerance: float
):
    chosen = batches["--pack-samples" in flags]
    cpu, chip, waits, kernels = on_chip(pretraining, str(corpus.folder), flags, chosen)
    assert chip == pytest.approx(cpu, rel=tolerance)
    read = {EVERY_UPDATE_OF_SOME: len(chosen)} if {"--fp16", "adafactor"} & set(flags) else {}
    assert waits == {EVERY_LOG_INTERVAL: 1, EVERY_EVALUATION: 2, **read}
    half = "--bf16" in flags and "--attention-dropout" in flags
    assert kernels == ({"two calls", "efficient"} if half else {"efficient"})  # the last layer has queries of its own


def causal_batch(seed: int, *, relative: bool) -> Batch:
    batch = make_batch(seed, targets=LENGTH, mode="gpt")
    masks = causal_masks(batch.input_ids, eos=3, reset_attention_mask=True)
    positions = masks.position_ids if relative else np.stack([masks.position_ids, 0 * masks.position_ids], axis=1)
    return replace(
        batch, loss_mask=masks.loss_mask, position_ids=positions, attention_mask=masks.attention_mask,
        objective=Objective.DOCUMENT, layout="matrix",
    )  # fmt: skip


def causal(relative: bool, dropout: float) -> tuple[list[float], list[float], dict[str, int], set[str]]:
    results = []
    options = {"relative_encoding": True, "block_position_encoding": False} if relative else {}
    for device in ("cpu", f"{NAME}:0"):
        with Chip({EVERY_LOG_INTERVAL, EVERY_EVALUATION}) as chip:
            with chip.preparation():
                engine = make_engine(device=device, dropout=dropout, **options)
            results.append(updates(engine, [causal_batch(seed, relative=relative) for seed in range(3)]))
    return results[0], results[1], dict(chip.waits), fast_attention(chip)


@pytest.mark.parametrize("relative", [False, True], ids=["learned", "relative"])
def test_updates_of_causal_models(on_chip: OnChip, relative: bool):
    cpu, chip, waits, kernels = on_chip(causal, relative, 0.0)
    assert chip == pytest.approx(cpu, rel=1e-4)
    assert waits == {EVERY_LOG_INTERVAL: 1, EVERY_EVALUATION: 2}
    assert kernels == (set() if relative else {"efficient"})  # relative positions are explicit scores
    with_dropout = on_chip(causal, relative, 0.1)
    assert with_dropout[2] == waits


HEADS: tuple[tuple[Kind, bool, str], ...] = (
    ("single_token", False, "cls"),
    ("multi_token", True, "cls"),
    ("fast_decode", True, "cls"),
    ("language_model", False, "cls"),
    ("classification", True, "start"),
    ("classification", False, "cls"),
)


def finetuning(kind: Kind, choices: bool, pool_token: str, share_rows: bool) -> tuple[list[float], list[float], dict]:
    """Return loss and gradient norm of an update, and the scores of the samples, on the CPU and on the device."""
    samples = make_samples("multi_token" if kind == "fast_decode" else kind, 5, 0, choices=choices, one_row=False)
    if kind == "fast_decode":
        samples = [
            replace(
                sample,
                kind=kind,
                choices=False,
                rows=sample.rows[:1],
                answers=tuple(Row(row.values[:, row.prefix_length :], 1) for row in sample.rows),
            )
            for sample in samples
        ]
    batch = collate(samples, pad_id=PAD, multiple_of=8, share_rows=share_rows)
    results = []
    for device in ("cpu", f"{NAME}:0"):
        with Chip({EVERY_LOG_INTERVAL, EVERY_SCORED_BATCH, "tasks/superglue/objective.py: _score"}) as chip:
            with chip.preparation():
                engine = scoring_engine(make_model(kind, pool_token=pool_token).float().to(device), device=device)
                engine.criterion = TaskCriterion()
                engine.optimizer = build_optimizer(engine.model, OptimizerSettings())
            metrics = IntervalMetrics(engine.device, topology=SINGLE)
            metrics.add(engine.train_step([batch]))
            report = metrics.report(1)
            scores = np.concatenate(score_rows(engine, samples, batch_size=8, pad_id=PAD)).tolist()
            results.append([report.loss, report.grad_norm, *scores])
    return results[0], results[1], dict(chip.waits)


@pytest.mark.parametrize(("kind", "choices", "pool_token"), HEADS)
@pytest.mark.parametrize("share_rows", [False, True], ids=["rows", "shared"])
def test_updates_of_every_head(on_chip: OnChip, kind: Kind, choices: bool, pool_token: str, share_rows: bool):
    if kind == "fast_decode" and share_rows:
        return
    cpu, chip, waits = on_chip(finetuning, kind, choices, pool_token, share_rows)
    assert chip == pytest.approx(cpu, rel=1e-3, abs=1e-4)
    assert waits.pop(EVERY_LOG_INTERVAL) == 1
    assert sum(waits.values()) == 1, waits  # one batch of samples is scored


def text_samples(*, training: bool) -> list[Seq2SeqSample]:
    """Return made-up sources with a blank, and texts for them."""
    samples = []
    for number in range(3):
        source, target = 6 + number, 3 - number
        values = np.arange(14, dtype=np.int64) + number
        values[2], values[10] = TINY_COMMAND_IDS["MASK"], TINY_COMMAND_IDS["sop"]
        positions = np.stack([np.where(np.arange(14) < 10, np.arange(14), 2), np.maximum(np.arange(14) - 9, 0)])
        given = (
            (values, (np.arange(14) >= 10).astype(np.int64) * (np.arange(14) < 10 + target))
            if training
            else (None, None)
        )
        samples.append(Seq2SeqSample(values, positions, 10, source, *given, (2,), str(number)))
    return samples


def writing() -> tuple[list[Any], list[Any], dict[str, int], set[str]]:
    """Learn to write texts, with label smoothing; write them with beams, and fill their blanks."""
    results = []
    for device in ("cpu", f"{NAME}:0"):
        with Chip({EVERY_LOG_INTERVAL, EVERY_EVALUATION, EVERY_TOKEN_OF_BEAMS, EVERY_TOKEN_OF_BLANKS}) as chip:
            with chip.preparation():
                model = random_model().to(device)
                engine = scoring_engine(model, device=device)
                engine.criterion = BlankInfilling(label_smoothing=0.1)
                engine.optimizer = build_optimizer(model, OptimizerSettings())
            losses = updates(engine, [collate_texts(text_samples(training=True), pad_id=PAD)] * 2)
            decoder = TargetDecoder(model.eval(), WORDS, settings=DECODING["beams with processors"])
            with torch.inference_mode():
                found = decoder.search(text_samples(training=False))
                filled = decoder.fill_blanks(text_samples(training=False))
            results.append([*losses, [one[0].tokens for one in found], [text.ids for text in filled]])
    return results[0], results[1], dict(chip.waits), fast_attention(chip)


def test_texts_to_write(on_chip: OnChip):
    cpu, chip, waits, kernels = on_chip(writing)
    assert chip[:3] == pytest.approx(cpu[:3], rel=1e-3)
    assert chip[3:] == cpu[3:]
    assert waits.pop(EVERY_LOG_INTERVAL) == 1 and waits.pop(EVERY_EVALUATION) == 2
    most = DECODING["beams with processors"].max_length
    assert set(waits) == {EVERY_TOKEN_OF_BEAMS, EVERY_TOKEN_OF_BLANKS} and max(waits.values()) <= most, waits
    assert kernels <= {"efficient", "flash"}


def segments() -> bool:
    """Add up the scores of answers that are cut into segments, which are counted on the host."""
    rows = torch.tensor([[0, 0, 1], [0, 1, 2]])
    with Chip() as chip:
        scores, real = torch.randn(2, 3, device=f"{NAME}:0"), torch.ones(2, 3, device=f"{NAME}:0")
        return mask_scores(scores, real, rows).shape == (2, 3) and not chip.waits


def test_segments_of_answers(on_chip: OnChip):
    assert on_chip(segments)


def filling(name: str, static: bool, split: bool) -> tuple[list[str], list[str], dict[str, int], set[str], int]:
    results = []
    for device in ("cpu", f"{NAME}:0"):
        allowed = {EVERY_FEW_TOKENS, EVERY_TOKEN, EVERY_TOKEN_OF_BEAMS}
        with Chip(allowed) as chip, pytest.MonkeyPatch.context() as patch:
            if split:
                patch.setattr(static_attention, "LONG_CACHE", 256)
                patch.setattr(static_attention, "COLUMNS_OF_A_PART", 64)
            with chip.preparation():
                filler = BlankFiller(random_model().to(device), WORDS, static=static)
            filled = filler.fill(PROMPTS[:4], settings=DECODING[name], batch_size=4)
            results.append([one.text for one in filled])
    tokens = max(sum(len(piece) + 1 for piece in one.pieces) for one in filled)
    return results[0], results[1], dict(chip.waits), fast_attention(chip), tokens


def serving() -> tuple[list[Any], list[Any], dict[str, int], int]:
    """Fill requests that draw and one that searches, and tell of every token."""
    results = []
    for device in ("cpu", f"{NAME}:0"):
        with Chip({EVERY_TOKEN, EVERY_TOKEN_OF_BEAMS, EVERY_TOLD_TOKEN}) as chip:
            with chip.preparation():
                requests = RequestFiller(BlankFiller(random_model().to(device), WORDS, static=True))
                settings = [DECODING[name] for name in ("greedy", "sampling", "beams")]
                inputs = [requests.filler.encode(PROMPTS[0], settings=one) for one in settings]
                requests.add([FillRequest(*pair) for pair in zip(inputs, settings, strict=True)])
            events, steps = [], 0
            while requests.active:
                events += [replace(event, request=None) for event in requests.step()]
                steps += 1
            results.append(events)
    return results[0], results[1], dict(chip.waits), steps


def test_requests(on_chip: OnChip):
    cpu, chip, waits, steps = on_chip(serving)
    assert len(chip) == len(cpu)
    for one, other in zip(chip, cpu, strict=True):
        assert type(one) is type(other)
        if isinstance(one, TokenDrawn):
            assert one.token.id == other.token.id
            assert one.token.alternatives[0][0] == other.token.alternatives[0][0]
            assert one.token.log_probability == pytest.approx(other.token.log_probability, abs=1e-4)
    assert set(waits) == {EVERY_TOKEN, EVERY_TOKEN_OF_BEAMS, EVERY_TOLD_TOKEN}
    assert waits[EVERY_TOKEN] <= 2 * steps and waits[EVERY_TOLD_TOKEN] <= 2 * steps  # two settings; samples and beams


def half_precision() -> dict[str, set[str]]:
    """Return the attention kernels of texts that are written in 16 bits, by the way they are."""
    kernels = {}
    for static in (True, False):
        for name in ("greedy", "beams"):
            with Chip({EVERY_FEW_TOKENS, EVERY_TOKEN, EVERY_TOKEN_OF_BEAMS}) as chip:
                with chip.preparation():
                    filler = BlankFiller(random_model().half().to(f"{NAME}:0"), WORDS, static=static)
                filler.fill(PROMPTS[:3], settings=DECODING[name])
                filler.fill(PROMPTS[0], settings=DECODING[name])
            kernels[f"{name}, {static}"] = fast_attention(chip)
    return kernels


def test_attention_in_half_precision(on_chip: OnChip):
    """Flash reads a prompt that has no padding, and is what follows it alone where its cache grows."""
    fixed = {"efficient", "flash"}
    assert on_chip(half_precision) == {
        "greedy, True": fixed, "beams, True": fixed, "greedy, False": fixed, "beams, False": fixed
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "options", "expected"),
    [
        ({}, {}, ("flash", 0)),
        ({}, {"is_causal": True}, ("flash", 0)),
        ({"queries": 1}, {"is_causal": True}, ("efficient", 0)),
        ({"dtype": torch.float32}, {}, ("efficient", 0)),
        ({"dtype": torch.float64}, {}, ("math", 0)),
        ({"head_dim": 12}, {"mask": torch.float16}, ("math", 0)),
        ({}, {"mask": torch.float16}, ("efficient", 0)),
        ({}, {"mask": torch.bool}, ("efficient", 1)),
        ({"keys": 15}, {"mask": torch.float16}, ("efficient", 1)),
        ({"keys": 15}, {"mask": torch.bool}, ("efficient", 2)),
        ({"strided": True}, {}, ("math", 0)),
        ({}, {"mask": torch.float16, "learned": True}, ("math", 0)),
        ({}, {"mask": torch.float32}, None),
        ({}, {"mask": torch.float16, "is_causal": True}, None),
    ],
)
def test_what_attention_takes(shapes: dict[str, Any], options: dict[str, Any], expected: tuple[str, int] | None):
    """The rules of torch's sdp_utils, as ``attention_kernel`` has them."""
    queries, keys, head_dim = shapes.get("queries", 16), shapes.get("keys", 16), shapes.get("head_dim", 16)
    dtype = shapes.get("dtype", torch.float16)
    query, key, value = (torch.zeros(2, 3, length, head_dim, dtype=dtype) for length in (queries, keys, keys))
    if shapes.get("strided"):
        query = torch.zeros(2, 3, head_dim, queries, dtype=dtype).transpose(2, 3)
    mask = None
    if "mask" in options:
        mask = torch.zeros(2, 1, queries, keys, dtype=options["mask"], requires_grad=options.get("learned", False))
    arguments = (query, key, value, mask)
    if expected is None:
        with pytest.raises(WaitError):
            attention_kernel(*arguments, is_causal=options.get("is_causal", False))
        return
    kernel, copies = attention_kernel(*arguments, is_causal=options.get("is_causal", False))
    assert (kernel, len(copies)) == expected


@pytest.mark.parametrize(
    ("name", "static", "split"),
    [
        ("greedy", True, False),
        ("sampling", True, False),
        ("processors", True, False),
        ("beams with processors", True, False),
        ("drawn beams", True, False),
        ("greedy", False, False),
        ("beams", False, False),
        ("greedy", True, True),
    ],
)
def test_blanks(on_chip: OnChip, name: str, static: bool, split: bool):
    cpu, chip, waits, kernels, tokens = on_chip(filling, name, static, split)
    assert chip == cpu
    assert kernels <= {"efficient", "flash"}
    [(place, count)] = waits.items()
    if static and name in ("greedy", "sampling", "full sampling"):
        assert place == EVERY_FEW_TOKENS and count < tokens / 2, (waits, tokens)
    else:
        assert place == (EVERY_TOKEN_OF_BEAMS if "beams" in name else EVERY_TOKEN) and count <= tokens, (waits, tokens)
