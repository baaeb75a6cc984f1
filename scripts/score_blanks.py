"""Say how well a model fills blanks of one word: the last step of the quickstart.

    python scripts/score_blanks.py CHECKPOINT FOLDER

FOLDER is one of ``scripts/quickstart_corpus.py``: every word of its ``blanks.jsonl`` is ranked among the 500 words that
``train.jsonl`` uses most, by the probability that the model gives them in this blank. The guess to compare with is
always the most frequent of these words. Prints a table, and some of the blanks, drawn at random.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quickstart_corpus import frequent_words

from files.errors import run_main
from files.reading import lines_of, parse_json, read_text, value_of

NUM_EXAMPLES = 5
SHOWN = 50  # characters of a passage on each side of its blank
TOP = (1, 5)


def read_rows(path: Path, *keys: str) -> list[tuple[str, ...]]:
    """Return the texts under ``keys`` of every line of a JSON lines file."""
    rows = []
    for number, line in enumerate(lines_of(read_text(path)), start=1):
        place = f"{path}, line {number}"
        row = parse_json(line, place=place)
        rows.append(tuple(value_of(row, key, str, place=place) for key in keys))
    return rows


def main() -> int:
    """Rank, count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a run's folder of checkpoints, or whatever generation.api.load_model takes")
    parser.add_argument("folder", type=Path, help="of the corpus")
    parser.add_argument("--seed", type=int, default=None, help="draws the examples that are shown (default: the time)")
    arguments = parser.parse_args()
    words = frequent_words(text for (text,) in read_rows(arguments.folder / "train.jsonl", "text"))
    blanks = [row for row in read_rows(arguments.folder / "blanks.jsonl", "prompt", "truth") if row[1] in words]
    if not blanks:
        raise ValueError(f"{arguments.folder / 'blanks.jsonl'}: no blank of a word that the training text uses often")

    from generation.api import load_model

    glm = load_model(arguments.checkpoint)
    began = time.monotonic()
    # The blank in front of a [MASK] belongs to what is filled in.
    choices = [[f" {word}" if " [MASK]" in prompt else word for word in words] for prompt, _ in blanks]
    scores = glm.score([prompt for prompt, _ in blanks], choices, batch_size=4)
    ranked = [sorted(range(len(words)), key=row.__getitem__, reverse=True) for row in scores]
    truths = [words.index(truth) for _, truth in blanks]
    print(f"{len(blanks)} held-out blanks of one word, among the {len(words)} most frequent words:\n")
    print(f"{'':34}{'the model':>12}{'the most frequent':>20}")
    for top in TOP:
        model = sum(truth in order[:top] for truth, order in zip(truths, ranked)) / len(blanks)
        guess = sum(truth < top for truth in truths) / len(blanks)
        name = "its first word is right" if top == 1 else f"the word is among its first {top}"
        print(f"{name:<34}{model:>12.1%}{guess:>20.1%}")
    print(f"\nDrawn at random ({time.monotonic() - began:.0f} s for all):")
    for number in random.Random(arguments.seed).sample(range(len(blanks)), min(NUM_EXAMPLES, len(blanks))):
        prompt, truth = blanks[number]
        best = "  ".join(f"{words[i]} {math.exp(scores[number][i]):.0%}" for i in ranked[number][: TOP[-1]])
        before, _, after = " ".join(prompt.split()).partition("[MASK]")
        before = before if len(before) <= SHOWN else f"... {before[-SHOWN:]}"
        after = after if len(after) <= SHOWN else f"{after[:SHOWN]} ..."
        print(f"\n  {before}[MASK]{after}\n    there was: {truth}\n    the model: {best}")
    return 0


if __name__ == "__main__":
    run_main(main)
