"""Everything about one rival, from the first update to its figures; ``run.json`` keeps each part once it is done."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import machine
from benchmarks.infilling.blanks import KINDS, Blank, make_blanks, score
from benchmarks.infilling.training import TIMED, Answers, Record, Rival, processor_seconds
from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer

RESULT = "run.json"


def measure(name: str, rival: Rival) -> dict[str, Any]:
    """Train, ask and score; return what ``run.json`` in the rival's folder holds afterwards."""
    experiment = rival.experiment
    torch.set_num_threads(experiment.threads)
    folder = experiment.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder / RESULT, experiment)
    record.put(title=rival.title, note=rival.note)
    experiment.prepare()
    choose_rate(rival, record, folder)
    if "curve" not in record.values:
        began, updates = time.monotonic(), record.values["updates"]
        training = rival.train(folder, rate=record.values["rate"], updates=updates)
        each = record.values["seconds_per_update"]
        if training.seconds is not None:
            seconds = training.seconds - record.values["start_up_seconds"]
        else:  # a part of it was another process's
            seconds = math.nan if each is None else updates * each
        record.put(
            curve=training.curve, seconds=seconds, wall_seconds=time.monotonic() - began,
            tokens_per_second=updates * experiment.batch_size * experiment.seq_length / seconds, machine=machine(),
        )  # fmt: skip
        print(f"{name}: trained for {updates} updates, {seconds:.0f} s of the processor", flush=True)
    if "variants" not in record.values:
        tokenizer = build_tokenizer("SentencePieceTokenizer", path=experiment.tokenizer_path)
        blanks = make_blanks(experiment.valid_data, tokenizer, count=experiment.count, room=experiment.room)
        answers = rival.load(folder)
        asked = partial(ask, blanks=blanks, tokenizer=tokenizer, seeds=experiment.seeds, threads=experiment.threads)
        if "results" not in record.values:
            record.put(parameters=answers.num_parameters, results=asked(answers))
        record.put(variants={name: asked(variant) for name, variant in answers.variants().items()})
    print(f"{name}: {record.file}", flush=True)
    return record.values


def choose_rate(rival: Rival, record: Record, folder: Path) -> None:
    """Train shortly with every rate; put down the one with the lowest loss over the last quarter, and an update's time.

    How many updates fit into the time of a short training is told by timing some before, unless updates are given.
    """
    experiment, rates = rival.experiment, rival.experiment.rates
    timed = experiment.updates is None or (len(rates) > 1 and experiment.sweep_updates is None)
    if "sweep_updates" not in record.values and not timed:
        record.put(seconds_per_update=None, start_up_seconds=0.0, sweep={}, sweep_updates=experiment.sweep_updates)
    if "sweep_updates" not in record.values:
        times = []
        for updates in TIMED:
            with one_time(folder / f"timed-{updates}") as place:
                times.append(rival.train(place, rate=rates[0], updates=updates).seconds or 0.0)
        each = max(1e-6, (times[1] - times[0]) / (TIMED[1] - TIMED[0]))
        record.put(
            seconds_per_update=each, start_up_seconds=max(0.0, times[0] - TIMED[0] * each), sweep={},
            sweep_updates=experiment.sweep_updates or max(1, round(60 * experiment.sweep_minutes / each)),
        )  # fmt: skip
        print(f"{folder.name}: {each:.3f} s of the processor an update", flush=True)
    sweep, updates = dict(record.values["sweep"]), record.values["sweep_updates"]
    for rate in rates if len(rates) > 1 else ():
        if str(rate) not in sweep:
            with one_time(folder / f"rate-{rate}") as place:
                training = rival.train(place, rate=rate, updates=updates)
            last = [loss for _, loss in training.curve[-max(1, len(training.curve) // 4) :]]
            seconds = (training.seconds or 0.0) - record.values["start_up_seconds"]
            sweep[str(rate)] = {"loss": sum(last) / len(last), "seconds_per_update": seconds / updates}
            record.put(sweep=sweep)
            print(f"{folder.name}: rate {rate:g}, loss {sweep[str(rate)]['loss']:.3f}", flush=True)
    if "rate" not in record.values:
        best = min(sweep, key=lambda rate: sweep[rate]["loss"]) if sweep else str(rates[0])
        each = record.values["seconds_per_update"]
        if sweep and not experiment.sweep_updates:  # long enough to tell better
            each = sum(one["seconds_per_update"] for one in sweep.values()) / len(sweep)
        updates = experiment.updates or max(1, round(60 * experiment.minutes / each))
        record.put(rate=float(best), seconds_per_update=each, updates=updates)
        print(f"{folder.name}: rate {best}, {updates} updates", flush=True)


@contextmanager
def one_time(folder: Path) -> Iterator[Path]:
    """Give an empty folder that is deleted afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


def ask(
    model: Answers, blanks: Sequence[Blank], tokenizer: Tokenizer, *, seeds: Sequence[int], threads: int
) -> dict[str, Any]:
    """Return figures per kind of blank, loss per target token, tokens a second, and some answers."""
    began = processor_seconds(threads)
    ids = [model.answer(blanks, seed=seed) for seed in seeds]
    seconds = processor_seconds(threads) - began
    losses = model.losses(blanks)
    texts = [[tokenizer.decode(answer) for answer in row] for row in ids]
    kinds: dict[str, Any] = {}
    for kind in KINDS:
        numbers = [number for number, blank in enumerate(blanks) if blank.kind == kind]
        truths = [tokenizer.decode(blanks[number].truth) for number in numbers]
        kinds[kind] = score(truths, [[row[number] for number in numbers] for row in texts]).summary()
        targets = sum(len(blanks[number].truth) + 1 for number in numbers)
        kinds[kind]["loss"] = None if losses is None else sum(losses[number] for number in numbers) / targets
    examples = [
        {
            "kind": blanks[number].kind, "before": tokenizer.decode(blanks[number].before)[-60:],
            "truth": tokenizer.decode(blanks[number].truth), "answer": texts[0][number],
            "after": tokenizer.decode(blanks[number].after)[:60],
        }
        for number in range(0, len(blanks), max(1, len(blanks) // 9))
    ]  # fmt: skip
    tokens = sum(len(answer) for row in ids for answer in row)
    return {"kinds": kinds, "answered_tokens_per_second": tokens / max(seconds, 1e-9), "examples": examples}
