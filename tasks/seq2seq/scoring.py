"""Score a file of predictions against a file of references: ``python -m tasks.seq2seq.scoring HYPS REFS``.

ROUGE and BLEU without Java, Perl or downloads; files2rouge where it is installed and asked for.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from files.errors import run_main
from files.reading import lines_of
from files.writing import write_whole
from tasks.readers import read_text
from tasks.seq2seq.metrics import (
    SENTENCE_BREAK,
    RougeTexts,
    bleu_line,
    library_scores,
    multi_bleu,
    rouge,
    uncounted_scripts,
)

EXTERNAL_SCORER = "files2rouge"


def read_parallel(hypotheses: Path, references: Path) -> tuple[list[str], list[str]]:
    """Return the lines of two files, in pairs. An empty line is an empty prediction.

    Raises ValueError when a file is missing or empty, or when one has more lines than the other.
    """
    hint = "name the predictions, then the references"
    said, true = (lines_of(read_text(path, hint=hint)) for path in (hypotheses, references))
    if not any(line.strip() for line in true):
        raise ValueError(f"{references}: no references in it; one text a line is needed")
    if len(said) != len(true):
        raise ValueError(
            f"{hypotheses} has {len(said)} lines, {references} has {len(true)}; the n-th line of one belongs to the "
            "n-th line of the other"
        )
    return [line.strip() for line in said], [line.strip() for line in true]


def rouge_report(hypotheses: Sequence[str], references: Sequence[str], *, characters: bool = False) -> list[str]:
    """Return the lines that show ROUGE by the built-in scorer, in percent."""
    texts = [
        RougeTexts(*("\n".join(part.strip() for part in text.split(SENTENCE_BREAK)) for text in pair))
        for pair in zip(hypotheses, references, strict=True)
    ]
    unit = "characters" if characters else "stemmed words"
    lines = [f"built-in scorer (rouge-score, {unit}), {len(texts)} texts", f"{'':10}{'P':>8}{'R':>8}{'F':>8}"]
    for name, score in rouge(texts, characters=characters).items():
        lines.append(f"{name:10}" + "".join(f"{100 * figure:8.2f}" for figure in score))
    note = None if characters else uncounted_scripts(references)
    return [*lines, *([f"note: {note}; --characters compares characters"] if note else [])]


def bleu_report(hypotheses: Sequence[str], references: Sequence[str], *, lowercase: bool, chinese: bool) -> list[str]:
    """Return the lines that show BLEU as multi-bleu computes it, and by sacrebleu."""
    scores = library_scores(hypotheses, references, chinese=chinese)
    return [
        bleu_line(multi_bleu(hypotheses, [references], lowercase=lowercase)),
        f"sacrebleu = {scores['sacrebleu']:.2f}, chrF = {scores['chrf']:.2f}",
    ]


def external_rouge(hypotheses: Sequence[str], references: Sequence[str]) -> list[str]:
    """Return what files2rouge prints for the texts, cut into Penn Treebank tokens.

    Raises ValueError when it is not installed or fails.
    """
    program = shutil.which(EXTERNAL_SCORER)
    if program is None:
        raise ValueError(f"--files2rouge: {EXTERNAL_SCORER} is not installed; install it, or use the built-in scorer")
    from nltk.tokenize import TreebankWordTokenizer

    tokenizer = TreebankWordTokenizer()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("hyps", "refs")]
        for path, texts in zip(paths, (hypotheses, references)):
            write_whole(path, "".join(" ".join(tokenizer.tokenize(text)) + "\n" for text in texts))
        run = subprocess.run([program, *map(str, paths)], capture_output=True, text=True, check=False)
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"{program} failed with exit code {run.returncode}: {reason}")
    return [f"{EXTERNAL_SCORER}, {len(hypotheses)} texts", *run.stdout.rstrip().splitlines()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the scores of two files; return the exit code."""
    parser = argparse.ArgumentParser(prog="tasks.seq2seq.scoring", description=__doc__.splitlines()[0])
    parser.add_argument("hypotheses", type=Path, metavar="HYPS", help="predictions, one a line (test.jsonl.hyps)")
    parser.add_argument("references", type=Path, metavar="REFS", help="references, one a line (test.jsonl.refs)")
    parser.add_argument("--files2rouge", action="store_true", help="ROUGE by the installed files2rouge")
    parser.add_argument("--characters", action="store_true", help="ROUGE and BLEU of characters, for Chinese")
    parser.add_argument("-lc", "--lowercase", action="store_true", help="BLEU ignores case")
    values = parser.parse_args(arguments)
    said, true = read_parallel(values.hypotheses, values.references)
    lines = external_rouge(said, true) if values.files2rouge else rouge_report(said, true, characters=values.characters)
    lines += bleu_report(said, true, lowercase=values.lowercase, chinese=values.characters)
    print("\n".join(lines), file=sys.stdout)
    return 0


if __name__ == "__main__":
    run_main(main)
