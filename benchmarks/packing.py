"""Packing documents into samples of 512 tokens, on one core.

    python -m benchmarks.packing [--json]

The baseline is the rate recorded for the original, 5,000 samples/s on one core of another machine. That the samples are
the original's bit for bit is what tests/data_utils/test_golden_packing.py shows.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.corpus import RandomDocuments, random_vocabulary
from benchmarks.measuring import Row, compare, report
from data_utils.errors import run_main
from data_utils.objective.packing import BlockDataset

SEQ_LENGTH, SAMPLES = 512, 4000
RECORDED_RATE, GOAL = 5000, 10.0


def measure() -> Sequence[Row]:
    """Return one row."""
    data = BlockDataset(RandomDocuments(500), tokenizer=random_vocabulary(), seq_length=SEQ_LENGTH)

    def work() -> None:
        for index in range(SAMPLES):
            data[index]

    return [
        compare("packing", work, amount=SAMPLES, unit="samples/s", recorded_rate=RECORDED_RATE, goal=GOAL),
    ]


if __name__ == "__main__":
    run_main(lambda: report(measure, description=__doc__))
