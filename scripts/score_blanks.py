"""Say how well a model fills blanks of one word: the last step of the quickstart.

    python scripts/score_blanks.py CHECKPOINT FOLDER
    python scripts/score_blanks.py CHECKPOINT --text FILE [--count 1000]

FOLDER is one of ``scripts/quickstart_corpus.py``: every word of its ``blanks.jsonl`` is ranked among the 500 words that
``train.jsonl`` uses most, by the probability that the model gives them in this blank. The guess to compare with is
always the most frequent of these words.

FILE is any text (whatever ``--train-data`` takes), best of books that the model has not seen: any word of it may be
blanked out, and the model, which does not know that it was one word, writes what it likes. An answer is right when it
is that word, in the same letters. The answers are those of a beam search with twelve beams, the most probable first;
two lines of the table count all of them, two only those that are one word. The same blanks are then filled with other
words beside them, the two on each side of another blank: a model that reads what stands there answers differently.

Prints a table, and some of the blanks, drawn at random.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quickstart_corpus import WORD, frequent_words, make_blanks, user_documents

from files.errors import check_bounds, run_main
from files.reading import lines_of, parse_json, read_text, value_of

if TYPE_CHECKING:
    from generation.api import GLM

NUM_EXAMPLES = 5
SHOWN = 50  # characters of a passage on each side of its blank
TOP = (1, 5)
NUM_BEAMS = 12
LONGEST_ANSWER = 8  # tokens
REPLACED = 2  # words on each side of a blank

Answers = list[list[tuple[str, float]]]  # per blank the best, with their log-probabilities


def read_rows(path: Path, *keys: str) -> list[tuple[str, ...]]:
    """Return the texts under ``keys`` of every line of a JSON lines file."""
    rows = []
    for number, line in enumerate(lines_of(read_text(path)), start=1):
        place = f"{path}, line {number}"
        row = parse_json(line, place=place)
        rows.append(tuple(value_of(row, key, str, place=place) for key in keys))
    return rows


def rank(glm: GLM, blanks: Sequence[tuple[str, ...]], words: Sequence[str]) -> Answers:
    """Return the best of ``words`` in every blank."""
    # The blank in front of a [MASK] belongs to what is filled in.
    choices = [[f" {word}" if " [MASK]" in prompt else word for word in words] for prompt, _ in blanks]
    scores = glm.score([prompt for prompt, _ in blanks], choices, batch_size=4)
    return [sorted(zip(words, row), key=lambda pair: pair[1], reverse=True)[: TOP[-1]] for row in scores]


def search(glm: GLM, prompts: Sequence[str], *, batch_size: int = 16) -> Answers:
    """Return the most probable answers of any length to every prompt, which has one blank."""
    from generation.infill import SearchedBlanks
    from generation.sampling import DecodingSettings

    settings, filler = DecodingSettings(max_length=LONGEST_ANSWER, num_beams=NUM_BEAMS), glm.filler
    answers: Answers = []
    for first in range(0, len(prompts), batch_size):
        inputs = [filler.encode(prompt, settings=settings) for prompt in prompts[first : first + batch_size]]
        found = SearchedBlanks(filler, filler.context(inputs), [row.blanks[0] for row in inputs], settings=settings)
        while not found.finished:
            found.step()
        for number in range(len(inputs)):
            answers.append(
                [(glm.tokenizer.decode(one.ids).strip(), one.log_probability) for one in found.results(number)]
            )
    return answers


def exchange_neighbours(prompts: Sequence[str]) -> list[str]:
    """Give every blank the words beside the next prompt's blank."""
    sides = [[side.split(" ") for side in prompt.split("[MASK]")] for prompt in prompts]
    changed = []
    for (before, after), (other_before, other_after) in zip(sides, [*sides[1:], *sides[:1]]):
        left = before[: -REPLACED - 1] + other_before[-REPLACED - 1 :]  # the last is what touches the blank, often ""
        right = other_after[: REPLACED + 1] + after[REPLACED + 1 :]
        changed.append(f"{' '.join(left)}[MASK]{' '.join(right)}")
    return changed


def share(answers: Answers, truths: Sequence[str], top: int) -> float:
    """Return how often the truth is among the first ``top`` answers."""
    return sum(truth in [text for text, _ in best[:top]] for best, truth in zip(answers, truths)) / len(truths)


def main() -> int:
    """Rank or search, count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a run's folder of checkpoints, or whatever generation.api.load_model takes")
    parser.add_argument("folder", type=Path, nargs="?", help="of the corpus")
    parser.add_argument("--text", help="text of which any word may be blanked out, instead of the folder")
    parser.add_argument("--count", type=int, default=1000, help="blanks of the text (default 1000)")
    parser.add_argument("--seed", type=int, default=None, help="draws the examples that are shown (default: the time)")
    arguments = parser.parse_args()
    check_bounds(arguments, ("count",), at_least=1)
    if (arguments.folder is None) == (arguments.text is None):
        parser.error("give a FOLDER or --text FILE")
    free = arguments.text is not None
    if free:
        documents = list(user_documents([arguments.text]))
        counts = Counter(found[0] for document in documents for found in WORD.finditer(document))
        words = [word for word, _ in counts.most_common()]
        made = make_blanks(documents, None, count=arguments.count)
        blanks: list[tuple[str, ...]] = [(blank["prompt"], blank["truth"]) for blank in made]
        source, among = arguments.text, "any word, whatever the model writes"
    else:
        words = frequent_words(text for (text,) in read_rows(arguments.folder / "train.jsonl", "text"))
        blanks = [row for row in read_rows(arguments.folder / "blanks.jsonl", "prompt", "truth") if row[1] in words]
        source, among = arguments.folder / "blanks.jsonl", f"among the {len(words)} most frequent words"
    if not blanks:
        raise ValueError(f"{source}: no blank of {'a word' if free else 'a word that the training text uses often'}")

    from generation.api import load_model

    glm = load_model(arguments.checkpoint)
    began = time.monotonic()
    prompts, truths = [prompt for prompt, _ in blanks], [truth for _, truth in blanks]
    answers = search(glm, prompts) if free else rank(glm, blanks, words)
    columns: dict[str, Answers] = {"the model": answers}
    columns["the most frequent"] = [[(word, 0.0) for word in words[: TOP[-1]]]] * len(blanks)
    if free:
        columns["others beside it"] = search(glm, exchange_neighbours(prompts))
    print(f"{len(blanks)} held-out blanks of one word, {among}:\n")
    print(f"{'':36}" + "".join(f"{name:>20}" for name in columns))
    if free:
        print_shares(columns, truths, what="answer")
    alone = {name: [[pair for pair in best if WORD.fullmatch(pair[0])] for best in columns[name]] for name in columns}
    print_shares(alone, truths, what="word")
    print(f"\nDrawn at random ({time.monotonic() - began:.0f} s for all):")
    for number in random.Random(arguments.seed).sample(range(len(blanks)), min(NUM_EXAMPLES, len(blanks))):
        best = "  ".join(f"{text} {math.exp(score):.0%}" for text, score in answers[number][: TOP[-1]])
        before, _, after = " ".join(prompts[number].split()).partition("[MASK]")
        before = before if len(before) <= SHOWN else f"... {before[-SHOWN:]}"
        after = after if len(after) <= SHOWN else f"{after[:SHOWN]} ..."
        print(f"\n  {before}[MASK]{after}\n    there was: {truths[number]}\n    the model: {best}")
    return 0


def print_shares(columns: dict[str, Answers], truths: Sequence[str], *, what: str) -> None:
    """Print a line of the table for each of ``TOP``."""
    for top in TOP:
        name = f"its first {what} is right" if top == 1 else f"the word is among its first {top} {what}s"
        print(f"{name:<36}" + "".join(f"{share(column, truths, top):>20.1%}" for column in columns.values()))


if __name__ == "__main__":
    run_main(main)
