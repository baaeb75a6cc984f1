"""Blank construction on one core: sequences of 512 tokens, batches of 16.

    python -m benchmarks.collator [--json]

The baseline is the rate recorded for the original, 1,600 samples/s on one core of another machine. That the batches are
the original's bit for bit is what tests/data_utils/test_golden_blocks.py shows.

torch is imported, as it is in every process that builds batches: its import frees large blocks, and from then on glibc
keeps what is freed. In a process that has never freed any, 40 % of the time goes into asking the kernel for the memory
of each batch again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch  # noqa: F401 - as said above

from benchmarks.corpus import RandomDocuments, random_vocabulary
from benchmarks.measuring import Row, compare, report
from data_utils.errors import run_main
from data_utils.objective.block_infilling import BlankInfillingCollator, BlankInfillingSettings
from data_utils.objective.packing import BlockDataset

SEQ_LENGTH, BATCH, BATCHES = 512, 16, 100
RECORDED_RATE, GOAL = 1600, 10.0
SETTINGS = {
    "spans only": BlankInfillingSettings(bert_prob=1.0),
    "three objectives": BlankInfillingSettings(bert_prob=0.5, gap_sentence_prob=0.3, task_mask=True),
}


def measure() -> Sequence[Row]:
    """Return a row per mix of objectives."""
    vocabulary = random_vocabulary()
    data = BlockDataset(RandomDocuments(500), tokenizer=vocabulary, seq_length=SEQ_LENGTH)
    batches = [[data[index * BATCH + row] for row in range(BATCH)] for index in range(BATCHES)]
    rows = []
    for name, settings in SETTINGS.items():
        collator = BlankInfillingCollator(vocabulary, settings, max_seq_length=SEQ_LENGTH)

        def work(collator: BlankInfillingCollator = collator) -> None:
            for index, samples in enumerate(batches):
                collator(samples, batch_index=index)

        rows.append(
            compare(
                f"blank construction, {name}",
                work,
                amount=BATCHES * BATCH,
                unit="samples/s",
                recorded_rate=RECORDED_RATE,
                goal=GOAL,
            )
        )
    return rows


if __name__ == "__main__":
    run_main(lambda: report(measure, description=__doc__))
