"""Look at the samples a model is trained on, decoded.

    python -m data_utils.show --train-data corpus.jsonl --tokenizer-type SentencePieceTokenizer \\
        --tokenizer-path tokenizer.model --task-mask --bert-prob 0.5 --gap-sentence-prob 0.3 --seq-length 64 --batches 3

For every row: the corrupted text, each span with its input, target and both position rows, and a small picture of who
sees whom. The flags are those of pretrain_glm.py.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import fields

import numpy as np

from data_utils.corpora.files import TEXT_UNITS
from data_utils.corpora.named import find_corpus
from data_utils.corpora.store import Document
from data_utils.loaders import BatchLoader, BatchPlan
from data_utils.objective.block_infilling import Batch, BlankInfillingCollator, BlankInfillingSettings
from data_utils.objective.packing import BlockDataset
from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer
from files.errors import check_bounds, run_main

PICTURE_WIDTH = 48  # columns of a mask's picture; longer rows are drawn coarser
DOCUMENTS_READ = 200  # of all corpora: enough to see what samples look like
PROBABILITIES = (
    "bert_prob", "gap_sentence_prob", "gpt_infill_prob", "gpt_min_ratio", "gap_sentence_ratio", "block_mask_prob",
    "context_mask_ratio", "short_seq_prob", "single_span_prob",
)  # fmt: skip
SWITCHES = (
    "task_mask", "random_position", "sentinel_token", "masked_lm", "no_shuffle_block", "no_block_position",
    "sample_one_document", "fix_command_token",
)  # fmt: skip


class FirstDocuments:
    """The first documents of some corpora, tokenized in memory."""

    def __init__(
        self,
        sources: Sequence[str],
        tokenizer: Tokenizer,
        *,
        text_field: str = "text",
        text_unit: str = "line",
        commands_in_text: bool = False,
    ) -> None:
        each = -(-DOCUMENTS_READ // len(sources))
        self._documents: list[Document] = []
        for source in sources:
            corpus = find_corpus(source, text_field=text_field, text_unit=text_unit, commands_in_text=commands_in_text)
            for document in itertools.islice(corpus.documents(), each):
                texts = [corpus.for_tokens(piece) for piece in document.pieces]
                pieces = tokenizer.encode_batch(texts, as_text=not corpus.has_commands)
                tokens = np.array([token for piece in pieces for token in piece], dtype=np.int64)
                weights = [number % 2 for number, piece in enumerate(pieces) for _ in piece]  # prompt, text, prompt ...
                if len(tokens):
                    self._documents.append(Document(tokens, len(pieces[0]), np.array(weights, dtype=np.int64)))
        if not self._documents:
            raise ValueError(f"{', '.join(sources)}: no text in it")
        self.lengths = np.array([len(document.tokens) for document in self._documents], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Document:
        return self._documents[index]


def mask_picture(prefix_length: int, length: int, *, width: int = PICTURE_WIDTH) -> list[str]:
    """Draw the attention mask of a row of ``length`` tokens, part A of which has ``prefix_length``.

    One line per query (or group of queries), one character per key: ``#`` part A, which everyone sees, ``+`` earlier
    tokens of part B and the query itself, ``.`` hidden.
    """
    step = max(1, -(-length // width))
    places = range(0, length, step)
    return ["".join("#" if key < prefix_length else "+" if key <= query else "." for key in places) for query in places]


def describe_row(
    batch: Batch, row: int, *, name: Callable[[int], str], starts: Collection[int], width: int = PICTURE_WIDTH
) -> Iterator[str]:
    """Yield the lines that explain one row of a batch.

    Args:
        batch: blank-infilling batch.
        row: which of its rows.
        name: text of an id.
        starts: ids of the tokens that start a span.
        width: columns of the picture of the mask.
    """
    prefix_length = int(batch.attention_mask[row])
    is_target = batch.loss_mask[row] != 0
    inputs, targets = batch.input_ids[row], batch.target_ids[row]
    yield f"part A ({prefix_length} tokens): " + " ".join(map(name, inputs[:prefix_length].tolist()))
    if batch.position_ids.ndim == 2:
        places = np.flatnonzero(is_target).tolist()
        yield "masked in place: " + " ".join(f"{place}:{name(int(targets[place]))}" for place in places)
        return
    positions, in_span = batch.position_ids[row]
    yield f"  positions {positions[0]} .. {positions[prefix_length - 1]}, in span {in_span[:prefix_length].max()}"
    first = [place for place in range(prefix_length, len(inputs)) if int(inputs[place]) in starts]
    if not first:
        yield "part B: nothing is predicted in this row"
        return
    # a row's padding has position 0 inside of spans, which no token of part B has
    length = prefix_length + int((in_span[prefix_length:] > 0).sum())
    for number, (start, end) in enumerate(zip(first, [*first[1:], length], strict=True), start=1):
        yield f"part B, span {number}:"
        for title, values in (
            ("input", map(name, inputs[start:end].tolist())),
            ("target", map(name, targets[start:end].tolist())),
            ("loss", is_target[start:end].astype(int)),
            ("position", positions[start:end]),
            ("in span", in_span[start:end]),
        ):
            yield f"  {title:9}" + " ".join(map(str, values))
    yield "who sees whom (one line per query; # part A, + part B so far, . hidden):"
    yield from (f"  {line}" for line in mask_picture(prefix_length, length, width=width))


def get_parser() -> argparse.ArgumentParser:
    """Build the parser; flags have the names, defaults and meaning they have in pretrain_glm.py."""
    parser = argparse.ArgumentParser(
        prog="python -m data_utils.show", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train-data", nargs="+", required=True, help="corpora, files, folders or globs")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--text-unit", default="line", choices=TEXT_UNITS)
    parser.add_argument("--commands-in-text", action="store_true", help="[MASK] ... in files are commands, not text")
    parser.add_argument("--tokenizer-type", default="BertWordPieceTokenizer")
    for flag in ("--tokenizer-model-type", "--tokenizer-path", "--vocab-dir", "--cache-dir"):
        parser.add_argument(flag)
    parser.add_argument("--seq-length", type=int, default=64, help="tokens of a sample (64 fits a screen)")
    parser.add_argument("--max-position-embeddings", type=int, default=512, help="with --sentinel-token: how many")
    parser.add_argument("--batch-size", type=int, default=1, help="rows of a batch")
    parser.add_argument("--batches", type=int, default=3, help="how many batches to show")
    parser.add_argument("--first-batch", type=int, default=0, help="number of the first batch shown")
    parser.add_argument("--picture-width", type=int, default=PICTURE_WIDTH, help="columns of the picture of the mask")
    for name in PROBABILITIES:
        default = getattr(BlankInfillingSettings, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=default)
    parser.add_argument("--non-sentence-start", type=float, default=0.0)
    parser.add_argument("--avg-block-length", type=int, default=3)
    parser.add_argument("--block-lm", action="store_true", help="what is shown anyway")
    for name in SWITCHES:
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true")
    return parser


def show(values: argparse.Namespace, *, write: Callable[[str], None]) -> None:
    """Write a description of every row of the asked-for batches."""
    shared = {one.name for one in fields(BlankInfillingSettings)} & set(vars(values))
    settings = BlankInfillingSettings(
        **{name: getattr(values, name) for name in shared},
        block_position_encoding=not values.no_block_position,
        shuffle_blocks=not values.no_shuffle_block,
    )
    tokenizer = build_tokenizer(
        values.tokenizer_type,
        model_type=values.tokenizer_model_type,
        path=values.tokenizer_path,
        vocab_dir=values.vocab_dir,
        cache_dir=values.cache_dir,
        task_mask=values.task_mask,
        decoder_mask=values.block_mask_prob > 0 or values.context_mask_ratio > 0,
        num_sentinels=values.max_position_embeddings if values.sentinel_token else 0,
        fix_command_token=values.fix_command_token,
    )
    dataset = BlockDataset(
        FirstDocuments(
            values.train_data,
            tokenizer,
            text_field=values.text_field,
            text_unit=values.text_unit,
            commands_in_text=values.commands_in_text,
        ),
        tokenizer=tokenizer,
        seq_length=values.seq_length,
        sample_across_documents=not values.sample_one_document,
        non_sentence_start=values.non_sentence_start,
    )
    collator = BlankInfillingCollator(tokenizer, settings, max_seq_length=values.seq_length)
    loader = BatchLoader(dataset, collator, BatchPlan(len(dataset), values.batch_size))
    starts = {token.id for token in tokenizer.command_tokens if token.name.startswith("sop")}
    for number, batch in enumerate(loader.batches(values.first_batch, values.batches), start=values.first_batch):
        for row in range(len(batch.input_ids)):
            write(f"== batch {number}, row {row}, objective {batch.objective}")
            for line in describe_row(batch, row, name=tokenizer.id_to_token, starts=starts, width=values.picture_width):
                write(line)
            write("")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and show."""
    values = get_parser().parse_args(argv)
    check_bounds(values, PROBABILITIES, at_least=0, at_most=1)
    check_bounds(values, ("batch_size", "batches", "picture_width", "avg_block_length"), at_least=1)
    check_bounds(values, ("seq_length", "max_position_embeddings"), at_least=2)
    check_bounds(values, ("first_batch",), at_least=0)
    show(values, write=print)
    return 0


if __name__ == "__main__":
    run_main(main)
