"""Train a SentencePiece tokenizer on the user's own text.

    python -m data_utils.train_tokenizer FILES ... --vocab-size 8000 --output tokenizer.model

FILES are what ``--train-data`` takes: .jsonl, .json, .txt, .parquet, also .gz and .zst, folders and globs. Use the
result with ``--tokenizer-type SentencePieceTokenizer --tokenizer-path tokenizer.model``. The same text gives the same
model: pieces of whole words and word parts, single bytes for everything else, so that no text is ever unknown. Blanks
and line ends are kept, as with GPT-2's tokenizer: what follows a ``[MASK]`` has the ids it has inside of a text.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_utils.corpora.named import read_documents
from files import reading
from files.cores import usable_cores
from files.errors import check_bounds, run_main
from files.writing import whole_file

MODEL_TYPES = ("bpe", "unigram", "char")
BLANK = "\u2581"  # how SentencePiece writes it
LONGEST_LINE = 4000  # characters; the trainer leaves longer ones out, so documents are cut


def lines_of(sources: Sequence[str], *, text_field: str, skip_malformed: bool, limit: int) -> Iterator[str]:
    """Yield up to ``limit`` lines of the documents of all sources, long ones cut at blanks."""
    lines = (
        line
        for source in sources
        for document in read_documents(source, text_field=text_field, skip_malformed=skip_malformed)
        for paragraph in reading.lines_of(document.text)
        for line in cut(paragraph)
    )
    return itertools.islice(lines, limit)


def cut(line: str) -> Iterator[str]:
    """Yield pieces of at most ``LONGEST_LINE`` characters, cut at a blank where there is one."""
    while len(line) > LONGEST_LINE:
        place = line.rfind(" ", 1, LONGEST_LINE)
        place = place if place > 0 else LONGEST_LINE
        yield line[:place]
        line = line[place:]
    if line.strip():
        yield line


def train(
    sources: Sequence[str],
    output: Path,
    *,
    vocab_size: int,
    model_type: str = "bpe",
    text_field: str = "text",
    skip_malformed: bool = False,
    max_lines: int = 1_000_000,
    words: Sequence[str] = (),
    num_threads: int | None = None,
    fit: bool = False,
) -> Path:
    """Train a model of ``vocab_size`` pieces and write it to ``output`` in one step.

    ``fit`` takes another size where the text has too few pieces, or too many characters, for this one. Each of
    ``words`` is one piece with the blank in front of it, whatever the text: answers of cloze tasks have to be.
    Raises ValueError when the sources hold no text, or too little for the size.
    """
    import sentencepiece
    from tqdm import tqdm

    same: dict[str, Any] = {
        "model_type": model_type, "text_field": text_field, "skip_malformed": skip_malformed, "max_lines": max_lines,
        "words": words, "num_threads": num_threads,
    }  # fmt: skip

    lines = lines_of(sources, text_field=text_field, skip_malformed=skip_malformed, limit=max_lines)
    first = next(lines, None)
    if first is None:
        raise ValueError(f"{', '.join(sources)}: no text to train a tokenizer on")
    content = io.BytesIO()
    counted = tqdm(itertools.chain([first], lines), desc="reading", unit=" lines", file=sys.stderr, disable=None)
    mistakes: list[Exception] = []  # of the text; the trainer would swallow what they say

    def checked() -> Iterator[str]:
        try:
            yield from counted
        except (ValueError, OSError) as error:
            mistakes.append(error)
            raise

    try:
        with contextlib.redirect_stderr(io.StringIO()):
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=checked(),
                model_writer=content,
                vocab_size=vocab_size,
                model_type=model_type,
                character_coverage=0.9995,
                byte_fallback=model_type != "char",
                normalization_rule_name="nfkc",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                user_defined_symbols=["\n", *(f"{BLANK}{word}" for word in words)],
                max_sentence_length=4 * LONGEST_LINE,
                num_threads=num_threads or min(4, usable_cores()),
                minloglevel=2,
            )
    except (RuntimeError, ValueError, OSError) as error:
        if mistakes:
            raise mistakes[0] from error
        reason = str(error).strip().splitlines()[-1].rpartition("] ")[2]  # without the trainer's own source line
        most, least = re.search(r"too high .* <= (\d+)", reason), re.search(r"required_chars\. \d+ vs (\d+)", reason)
        if fit and (most or least):
            size = int(most[1]) if most else int(least[1]) + vocab_size // 2 if least else 0
            print(f"the text has {'fewer pieces' if most else 'more characters'}: a vocabulary of {size}")
            return train(sources, output, vocab_size=size, **same)
        raise ValueError(
            f"--vocab-size {vocab_size} does not fit this text; choose another size, or give more text ({reason})"
        ) from error
    with whole_file(output) as file:
        file.write(content.getvalue())
    return output


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="text, in any format that --train-data takes")
    parser.add_argument("--vocab-size", type=int, default=8000, help="pieces of the vocabulary (default 8000)")
    parser.add_argument("--fit", action="store_true", help="where the text does not allow this size, the nearest")
    parser.add_argument("--output", type=Path, default=Path("tokenizer.model"), help="default: tokenizer.model")
    parser.add_argument("--model-type", choices=MODEL_TYPES, default="bpe")
    parser.add_argument("--text-field", default="text", help="key of the text in JSON lines (default text)")
    parser.add_argument("--skip-malformed", action="store_true", help="leave malformed lines out instead of stopping")
    parser.add_argument("--max-lines", type=int, default=1_000_000, help="lines to learn from at most")
    parser.add_argument("--words", nargs="+", default=[], help="words that are one piece each, whatever the text")
    values = parser.parse_args(argv)
    check_bounds(values, ("vocab_size", "max_lines"), at_least=1)
    print(f"training a tokenizer of {values.vocab_size} pieces on {', '.join(values.files)} ...", flush=True)
    train(
        values.files,
        values.output,
        vocab_size=values.vocab_size,
        model_type=values.model_type,
        text_field=values.text_field,
        skip_malformed=values.skip_malformed,
        max_lines=values.max_lines,
        words=values.words,
        fit=values.fit,
    )
    print(
        f"wrote {values.output}; use it with --tokenizer-type SentencePieceTokenizer --tokenizer-path {values.output}"
    )
    return 0


if __name__ == "__main__":
    run_main(main)
