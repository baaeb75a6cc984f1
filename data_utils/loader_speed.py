"""Measure how fast batches are made, without a model, and compare it with what a model needs.

    python -m data_utils.loader_speed [--needed 180000 | metrics.jsonl | H100] [--seconds 10] THE FLAGS OF THE RUN

The flags are those of pretrain_glm.py: corpus, tokenizer, blanks, --batch-size, --num-workers ... What is needed is in
real tokens a second (without padding) of all data ranks: a number; the best rate in the metrics.jsonl of a run, had it
not waited for data; or what the plan of the run expects on GPUs of that name. One data rank's loader is measured, and
needs its share; the loaders of other ranks on this machine take cores of their own. The exit code is 1 where the loader
is too slow.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_utils.loaders import BATCHES_AHEAD
from files.cores import usable_cores
from files.errors import check_bounds, run_main
from files.reading import described, read_json

if TYPE_CHECKING:
    from data_utils.loaders import BatchLoader
    from training.settings import PretrainingSettings

WITHOUT_LIMIT = 2**20  # updates, where --train-iters is not given


@dataclass(frozen=True)
class LoaderSpeed:
    """What was measured of one data rank's loader.

    Attributes:
        batches, samples: that were made in ``seconds``.
        tokens, real_tokens: their input, with padding and without.
        packing_efficiency: share of the positions that packing had which it filled.
        num_workers: processes that made them; 0 is this one.
        needed: real tokens a second of this rank's share; None where nothing was given to compare with.
    """

    batches: int
    samples: int
    tokens: int
    real_tokens: int
    seconds: float
    packing_efficiency: float
    num_workers: int
    needed: float | None = None

    @property
    def real_tokens_per_second(self) -> float:
        """Return the rate, without padding."""
        return self.real_tokens / self.seconds

    @property
    def keeps_up(self) -> bool:
        """Tell whether batches are made at least as fast as they are needed."""
        return self.needed is None or self.real_tokens_per_second >= self.needed

    def row(self) -> dict[str, object]:
        """Return all of it for JSON."""
        rates = {name: getattr(self, name) / self.seconds for name in ("batches", "samples", "tokens", "real_tokens")}
        return {
            **asdict(self),
            **{f"{name}_per_second": rate for name, rate in rates.items()},
            "keeps_up": self.keeps_up,
        }


def measure(loader: BatchLoader, *, seconds: float, samples_per_batch: int) -> LoaderSpeed:
    """Make batches for ``seconds``, once the workers have begun and made what they make ahead."""
    batches = loader.batches()
    for _ in range(max(1, loader.num_workers * BATCHES_AHEAD)):
        next(batches)
    count = tokens = real_tokens = filled = room = 0
    began = time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds or not count:
        batch = next(batches)
        count += 1
        tokens, real_tokens = tokens + batch.input_ids.size, real_tokens + batch.num_real_tokens
        filled, room = filled + batch.filled, room + batch.room
    return LoaderSpeed(
        count, count * samples_per_batch, tokens, real_tokens, passed, filled / max(room, 1), loader.num_workers
    )


def needed_rate(text: str, settings: PretrainingSettings, *, num_ranks: int) -> tuple[float, str]:
    """Return the real tokens a second of all data ranks that ``--needed`` asks for, and where the number comes from.

    Raises ValueError for what is no number, no file of metrics and no GPU.
    """
    from training.metrics import PEAK_FLOPS

    try:
        number = float(text)
    except ValueError:
        pass
    else:
        if not 0 < number < math.inf:
            raise ValueError(f"--needed is {text}; tokens a second above 0 are needed")
        return number, "given"
    if Path(text).is_file():
        return _reached(Path(text), num_ranks)
    if text in PEAK_FLOPS:
        from training.plan import PLANNED_MFU, make_plan

        plan = make_plan(settings)
        rate = PEAK_FLOPS[text] * PLANNED_MFU * settings.device.world_size / plan.flops_per_token
        return rate, f"the plan: {settings.device.world_size} x {text} at {PLANNED_MFU:.0%} of the peak"
    raise ValueError(
        f"--needed is {described(text)}; give real tokens a second (180000), the metrics.jsonl of a run, or a GPU: "
        f"{', '.join(PEAK_FLOPS)}"
    )


def _reached(path: Path, num_ranks: int) -> tuple[float, str]:
    """Return the rate at which ``num_ranks`` data ranks are as fast as those of a run, had it not waited for data."""
    from training.logging import read_rows

    rows = [row for row in read_rows(path) if row["kind"] == "train" and row.get("real_tokens_per_second")]
    if not rows:
        raise ValueError(f"{path}: no rows of training with real_tokens_per_second; a run of this version writes them")
    rates = [row["real_tokens_per_second"] / max(1.0 - row.get("waiting_share", 0.0), 0.01) for row in rows]
    config = path.with_name("config.json")
    values = read_json(config, dict) if config.is_file() else {}
    then = values.get("world_size", num_ranks) // values.get("model_parallel_size", 1)
    rate, row = max(zip(rates, rows), key=lambda pair: pair[0])
    return rate * num_ranks / then, f"{path}, iteration {row['iteration']}, had it not waited for data"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m data_utils.loader_speed", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--needed", metavar="RATE", help="tokens a second, a metrics.jsonl, or the name of a GPU")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long batches are made (default: 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    values, words = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    check_bounds(values, ("seconds",), at_least=0.01)

    from training.arguments import parse_settings
    from training.data import build_run_tokenizer, loader_of_rank
    from training.loop import waiting_remedies
    from training.settings import PretrainingSettings

    settings = parse_settings(PretrainingSettings, words)
    devices, batch = settings.device, settings.batch
    num_ranks = devices.world_size // devices.model_parallel_size
    needed = None if values.needed is None else needed_rate(values.needed, settings, num_ranks=num_ranks)
    tokenizer = build_run_tokenizer(settings)
    _, loader = loader_of_rank(
        settings,
        tokenizer=tokenizer,
        num_batches=(settings.run.train_iters or WITHOUT_LIMIT) * batch.gradient_accumulation_steps,
        num_workers=batch.num_workers,
        num_ranks=num_ranks,
    )
    speed = measure(loader, seconds=values.seconds, samples_per_batch=batch.batch_size)
    if needed is not None:
        speed = replace(speed, needed=needed[0] / num_ranks)
    row = speed.row()
    if values.json:
        print(json.dumps(row))
        return 0 if speed.keeps_up else 1
    print(f"{speed.batches:,} batches of {batch.batch_size} samples in {speed.seconds:.1f} s")
    print(f"{speed.num_workers} workers on {usable_cores()} cores")
    print(f"{row['samples_per_second']:,.0f} samples/s")
    print(f"{row['real_tokens_per_second']:,.0f} real tokens/s, {row['tokens_per_second']:,.0f} with padding")
    print(f"padding {1 - speed.real_tokens / speed.tokens:.1%}, packing fills {speed.packing_efficiency:.1%}")
    if needed is not None and speed.needed is not None:
        share = f", {speed.needed:,.0f} of each of {num_ranks} ranks" if num_ranks > 1 else ""
        print(f"needed: {needed[0]:,.0f} real tokens/s{share} ({needed[1]})")
        ratio = f"the loader makes {speed.real_tokens_per_second / speed.needed:.2f} times what is needed"
        remedies = [remedy for remedy in waiting_remedies(settings) if "loader_speed" not in remedy]
        print(ratio if speed.keeps_up else f"{ratio}, a model would wait; what helps: {'; '.join(remedies)}")
    return 0 if speed.keeps_up else 1


if __name__ == "__main__":
    run_main(main)
