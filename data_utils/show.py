"""Look at the samples a model is trained on, decoded.

    python -m data_utils.show --train-data corpus.jsonl --tokenizer-type SentencePieceTokenizer \\
        --tokenizer-path tokenizer.model --task-mask --bert-prob 0.5 --gap-sentence-prob 0.3 --seq-length 64 --batches 3

For every row: the corrupted text, each span with its input, target and both position rows, and a small picture of who
sees whom. The flags are those of pretrain_glm.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from data_utils.block_infilling import Batch, BlankInfillingCollator, BlankInfillingSettings
from data_utils.corpora import read_documents
from data_utils.errors import run_main
from data_utils.indexed_dataset import Document
from data_utils.loaders import BatchLoader
from data_utils.packing import BlockDataset
from data_utils.samplers import BatchPlan
from data_utils.tokenization import Tokenizer, build_tokenizer

PICTURE_WIDTH = 48  # columns of a mask's picture; longer rows are drawn coarser
DOCUMENTS_READ = 200  # of a corpus: enough to see what samples look like


class ShownDocuments:
    """The first documents of a corpus, tokenized in memory."""

    def __init__(self, sources: Sequence[str], tokenizer: Tokenizer, *, text_field: str) -> None:
        self._documents: list[Document] = []
        for source in sources:
            for document in read_documents(source, text_field=text_field):
                prompt, text = tokenizer.encode_batch([document.prompt, document.text])
                if prompt or text:
                    self._documents.append(Document(np.array(prompt + text, dtype=np.int64), len(prompt)))
                if len(self._documents) == DOCUMENTS_READ:
                    break
        if not self._documents:
            raise ValueError(f"{', '.join(sources)}: no text in it")
        self.lengths = np.array([len(document.tokens) for document in self._documents], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Document:
        return self._documents[index]


def mask_picture(separator: int, length: int, *, width: int = PICTURE_WIDTH) -> list[str]:
    """Draw the attention mask of a row of ``length`` tokens, part A of which has ``separator``.

    One line per query (or group of queries), one character per key: ``#`` part A, which everyone sees, ``+`` earlier
    tokens of part B and the query itself, ``.`` hidden.
    """
    step = max(1, -(-length // width))
    places = range(0, length, step)
    return ["".join("#" if key < separator else "+" if key <= query else "." for key in places) for query in places]


def describe_row(batch: Batch, row: int, *, name: Callable[[int], str]) -> Iterator[str]:
    """Yield the lines that explain one row of a batch; ``name`` gives the text of an id."""
    separator = int(batch.attention_mask[row])
    is_target = batch.loss_mask[row] != 0
    length = max(separator, int(np.flatnonzero(is_target)[-1]) + 1 if is_target.any() else 0)
    inputs, targets = batch.input_ids[row, :length], batch.target_ids[row, :length]
    yield f"part A ({separator} tokens): " + " ".join(map(name, inputs[:separator]))
    if batch.position_ids.ndim == 2:
        yield "masked in place: " + " ".join(f"{i}:{name(targets[i])}" for i in np.flatnonzero(is_target[:length]))
        return
    positions, in_span = batch.position_ids[row, :, :length]
    starts = [i for i in range(separator, length) if i == separator or positions[i] != positions[i - 1]]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], length], strict=True), start=1):
        yield f"part B, span {number}:"
        for title, values in (
            ("input", [name(index) for index in inputs[start:end]]),
            ("target", [name(index) for index in targets[start:end]]),
            ("position", positions[start:end].tolist()),
            ("in span", in_span[start:end].tolist()),
        ):
            yield f"  {title:9}" + " ".join(map(str, values))
    yield "who sees whom (one line per query; # part A, + part B so far, . hidden):"
    yield from (f"  {line}" for line in mask_picture(separator, length))


def get_parser() -> argparse.ArgumentParser:
    """Build the parser; flags have the names and meaning they have in pretrain_glm.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-data", nargs="+", required=True, help="corpora, files, folders or globs")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--tokenizer-type", default="BertWordPieceTokenizer")
    parser.add_argument("--tokenizer-model-type")
    parser.add_argument("--tokenizer-path")
    parser.add_argument("--vocab-dir")
    parser.add_argument("--fix-command-token", action="store_true")
    parser.add_argument("--seq-length", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=1, help="rows of a batch")
    parser.add_argument("--batches", type=int, default=3, help="how many batches to show")
    parser.add_argument("--first-batch", type=int, default=0, help="number of the first batch shown")
    for flag, default in (
        ("--bert-prob", 0.5),
        ("--gap-sentence-prob", 0.0),
        ("--gpt-infill-prob", 0.5),
        ("--gpt-min-ratio", 0.5),
        ("--gap-sentence-ratio", 0.15),
        ("--block-mask-prob", 0.0),
        ("--context-mask-ratio", 0.0),
        ("--short-seq-prob", 0.0),
        ("--single-span-prob", 0.0),
    ):
        parser.add_argument(flag, type=float, default=default)
    parser.add_argument("--avg-block-length", type=int, default=3)
    for flag in ("--block-lm", "--task-mask", "--random-position", "--no-shuffle-block", "--no-block-position"):
        parser.add_argument(flag, action="store_true")
    return parser


def show(values: argparse.Namespace, *, write: Callable[[str], None]) -> None:
    """Write a description of every row of the asked-for batches."""
    tokenizer = build_tokenizer(
        values.tokenizer_type,
        model_type=values.tokenizer_model_type,
        path=values.tokenizer_path,
        vocab_dir=values.vocab_dir,
        task_mask=values.task_mask,
        decoder_mask=values.block_mask_prob > 0 or values.context_mask_ratio > 0,
        fix_command_token=values.fix_command_token,
    )
    settings = BlankInfillingSettings(
        bert_prob=values.bert_prob,
        gap_sentence_prob=values.gap_sentence_prob,
        gpt_infill_prob=values.gpt_infill_prob,
        gpt_min_ratio=values.gpt_min_ratio,
        gap_sentence_ratio=values.gap_sentence_ratio,
        average_block_length=values.avg_block_length,
        block_mask_prob=values.block_mask_prob,
        context_mask_ratio=values.context_mask_ratio,
        short_seq_prob=values.short_seq_prob,
        single_span_prob=values.single_span_prob,
        block_position_encoding=not values.no_block_position,
        shuffle_blocks=not values.no_shuffle_block,
        task_mask=values.task_mask,
        random_position=values.random_position,
    )
    documents = ShownDocuments(values.train_data, tokenizer, text_field=values.text_field)
    dataset = BlockDataset(documents, vocabulary=tokenizer, seq_length=values.seq_length)
    collator = BlankInfillingCollator(tokenizer, settings, max_seq_length=values.seq_length)
    loader = BatchLoader(dataset, collator, BatchPlan(len(dataset), values.batch_size))
    for number, batch in enumerate(loader.batches(values.first_batch, values.batches), start=values.first_batch):
        for row in range(len(batch.input_ids)):
            write(f"== batch {number}, row {row}, objective {batch.mode}")
            for line in describe_row(batch, row, name=tokenizer.id_to_token):
                write(line)
            write("")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and show."""
    show(get_parser().parse_args(argv), write=print)
    return 0


if __name__ == "__main__":
    run_main(main)
