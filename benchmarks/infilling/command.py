"""Blank infilling against its rivals: python -m benchmarks infilling RIVAL --minutes M ...

    python -m benchmarks infilling glm --train-data TRAIN --valid-data VALID     one rival: train, answer, score
    python -m benchmarks infilling t5 ...                                         the same command for every other one
    python -m benchmarks infilling table --folder FOLDER --output docs/infilling_benchmark.md

Rivals: glm (short spans, as T5), no-shuffle and no-positions (the same with --no-shuffle-block and
--no-block-position), mixed (short spans, sentences, long pieces), neighbours (mixed, with --initialization neighbours),
t5, fim, diffusion. All have the same number of parameters, samples of text, tokenizer, optimizer and processor time;
the learning rate is the best of --rates after --sweep-minutes each. A run that was ended goes on with the same command,
and what is there is not made again. `table` puts the results that are there into a page, between its two marks, and a
JSON file beside it.
What is compared, and what is not shown: docs/infilling_benchmark.md.
"""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.infilling import RIVALS
from files.errors import check_bounds

if TYPE_CHECKING:
    from benchmarks.infilling.training import Rival


def rival_class(name: str) -> type[Rival]:
    """Return the class of a rival."""
    module, kind = RIVALS[name]
    return getattr(importlib.import_module(f"benchmarks.infilling.{module}"), kind)


def infilling(argv: Sequence[str]) -> int:
    """Train, ask and score one rival, or put the results of all into a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks infilling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rival", choices=(*RIVALS, "table"))
    parser.add_argument("--train-data", help="text to train on, in any format of --train-data of pretrain_glm.py")
    parser.add_argument("--valid-data", help="text that blanks are made of")
    parser.add_argument("--folder", type=Path, default=Path("runs/infilling"), help="default: runs/infilling")
    parser.add_argument("--minutes", type=float, default=30.0, help="training, by the processor's clock (default: 30)")
    parser.add_argument("--updates", type=int, help="train for so many updates in place of --minutes")
    parser.add_argument("--threads", type=int, default=1, help="of every process (default: 1)")
    parser.add_argument("--layers", type=int, default=6, help="of GLM; the others get as many parameters (default: 6)")
    parser.add_argument("--hidden", type=int, default=256, help="width of GLM, a multiple of 64 (default: 256)")
    parser.add_argument("--seq-length", type=int, default=128, help="tokens of a sample (default: 128)")
    parser.add_argument("--batch-size", type=int, default=16, help="samples of an update (default: 16)")
    parser.add_argument("--vocab-size", type=int, default=8000, help="pieces of the shared tokenizer (default: 8000)")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16, where the processor has it")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3], help="learning rates to choose of"
    )
    parser.add_argument("--sweep-minutes", type=float, default=1.0, help="training with each rate (default: 1)")
    parser.add_argument("--sweep-updates", type=int, help="so many updates in place of --sweep-minutes")
    parser.add_argument("--blanks", type=int, default=200, help="held-out blanks of each kind (default: 200)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of decoding (default: 1 2 3)")
    parser.add_argument("--temperature", type=float, default=0.7, help="of decoding (default: 0.7)")
    parser.add_argument("--top-k", type=int, default=20, help="of decoding (default: 20)")
    parser.add_argument("--output", type=Path, default=Path("docs/infilling_benchmark.md"), help="page of the table")
    values = parser.parse_args(argv)
    if values.rival == "table":
        from benchmarks.infilling.report import write_page

        return write_page(values.folder, values.output)
    given = [name for name in ("updates", "sweep_updates") if getattr(values, name) is not None]
    check_bounds(values, ("threads", "layers", "batch_size", "vocab_size", "blanks", "top_k", *given), at_least=1)
    for name in ("minutes", "sweep_minutes", "temperature"):
        value = getattr(values, name)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"--{name.replace('_', '-')} is {value:g}; a number above 0 is needed")
    if values.hidden < 64 or values.hidden % 64:
        raise ValueError(f"--hidden is {values.hidden}; a multiple of 64 is needed, the width of an attention head")
    for name in ("train_data", "valid_data"):
        if getattr(values, name) is None:
            raise ValueError(f"no --{name.replace('_', '-')}: give a file of text")

    from benchmarks.infilling.measuring import measure
    from benchmarks.infilling.training import Experiment

    experiment = Experiment(
        folder=values.folder.resolve(), train_data=str(Path(values.train_data).resolve()),
        valid_data=str(Path(values.valid_data).resolve()), minutes=values.minutes, updates=values.updates,
        layers=values.layers, hidden=values.hidden, seq_length=values.seq_length, batch_size=values.batch_size,
        vocab_size=values.vocab_size, rates=tuple(values.rates), sweep_minutes=values.sweep_minutes,
        sweep_updates=values.sweep_updates, bf16=values.bf16, count=values.blanks, seeds=tuple(values.seeds),
        temperature=values.temperature, top_k=values.top_k, threads=values.threads,
    )  # fmt: skip
    measure(values.rival, rival_class(values.rival)(experiment))
    return 0
