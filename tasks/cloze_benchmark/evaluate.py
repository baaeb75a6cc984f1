"""Answer the questions of the ReCoRD benchmark's evaluation file in two ways, and compare answers and rates.

    padded     as the original: a row per candidate, padded to the length of the file's rows, ten candidates at a time
    shared     the passage once, its candidates after it, no padding computed

python -m tasks.cloze_benchmark.evaluate FOLDER --load CHECKPOINT
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from files.errors import check_bounds, run_main
from tasks.cloze_benchmark.prepare import DEFAULT_FOLDER, FILES

TOLERANCE = 1e-2  # of log-probabilities of candidates, which are sums over their tokens


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.cloze_benchmark.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", default=DEFAULT_FOLDER, help="made by prepare (default: %(default)s)")
    parser.add_argument("--load", required=True, help="a checkpoint, or the folder of a run")
    parser.add_argument("--released", default=None, help="the name of a released model, where nothing says what it is")
    parser.add_argument("--vocab-dir", default=None, help="folder of vocabularies (default: $GLM_VOCAB_DIR)")
    parser.add_argument("--batch-size", type=int, default=8, help="questions at a time (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=None, help="only that many questions, the first ones")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda where there is one)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run both ways and print a line for each, then how they compare; 1 when their scores differ."""
    values = get_parser().parse_args(argv)
    check_bounds(values, ("batch_size",), at_least=1)
    if values.limit is not None:
        check_bounds(values, ("limit",), at_least=1)

    import numpy as np
    import torch

    from generation.api import load_model
    from tasks.cloze_benchmark.scoring import num_correct, padded_scores, shared_scores
    from tasks.cloze_benchmark.store import StoredQuestions

    stored = StoredQuestions(Path(values.folder) / "ReCoRD" / FILES["dev"])
    width, size = stored.seq_length, values.batch_size
    questions = [stored[number] for number in range(min(len(stored), values.limit or len(stored)))]
    device = values.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(
        values.load, released=values.released, vocab_dir=values.vocab_dir, device=device, prepack=False
    ).model
    stored.check_model(vocab_size=model.config.vocab_size, num_positions=model.config.max_position_embeddings)
    count, num_rows = len(questions), sum(len(question.sample.rows) for question in questions)
    scores, seconds = {}, {}
    for name, run in (("padded", partial(padded_scores, width=width)), ("shared", shared_scores)):
        start = time.perf_counter()
        scores[name] = run(model, questions, batch_size=size)
        seconds[name] = time.perf_counter() - start
        right, rate = num_correct(scores[name], questions), 1 / seconds[name]
        print(
            f"{name}: accuracy {right / count:.4f} ({right} of {count} questions), {seconds[name]:.2f} s, "
            f"{count * rate:.2f} questions/s, {num_rows * rate:.1f} rows/s"
        )
    pairs = list(zip(scores["padded"], scores["shared"], strict=True))
    difference = max(float(np.abs(one - other).max()) for one, other in pairs)
    same = sum(one.argmax() == other.argmax() for one, other in pairs)
    ratio = seconds["padded"] / seconds["shared"]
    print(
        f"shared is {ratio:.1f} times as fast; {same} of {count} questions get the same answer, "
        f"scores differ by {difference:.1e} at most"
    )
    return 0 if difference < TOLERANCE else 1


if __name__ == "__main__":
    run_main(main)
