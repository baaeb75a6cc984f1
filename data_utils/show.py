"""Look at the samples a model is trained on, decoded.

    python -m data_utils.show --train-data corpus.jsonl --tokenizer-type SentencePieceTokenizer \\
        --tokenizer-path tokenizer.model --task-mask --bert-prob 0.5 --gap-sentence-prob 0.3 --seq-length 64 --batches 3

For every row: the corrupted text, each span with its input, target and both position rows, and a small picture of who
sees whom. The flags are those of pretrain_glm.py.

    python -m data_utils.show --step 120 [--record runs/glm/order] [--ranks 8] THE FLAGS OF THE RUN

shows the batches of update 120 of a run: its samples with their documents, then their rows. They depend on their
numbers alone and are made again; where the run has recorded its order (--record-order), the two are compared. Without
a record, a run on several data ranks needs their number, --ranks.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import fields, replace

import numpy as np

from data_utils.corpora.files import TEXT_UNITS
from data_utils.corpora.named import find_corpus, split_weight
from data_utils.corpora.store import Document
from data_utils.loaders import BatchLoader, BatchPlan
from data_utils.objective.block_infilling import Batch, BlankInfillingCollator, BlankInfillingSettings
from data_utils.objective.packing import BlockDataset
from data_utils.order_record import Origin, read_update
from data_utils.rows import PICTURE_WIDTH, mask_picture
from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer
from files.errors import check_bounds, run_main

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
            name, _ = split_weight(source)
            corpus = find_corpus(name, text_field=text_field, text_unit=text_unit, commands_in_text=commands_in_text)
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
    for number, batch in enumerate(loader.batches(values.first_batch, values.batches), start=values.first_batch):
        write_rows(batch, tokenizer, title=f"batch {number}", width=values.picture_width, write=write)


def write_rows(batch: Batch, tokenizer: Tokenizer, *, title: str, width: int, write: Callable[[str], None]) -> None:
    """Write a description of every row of a batch."""
    starts = {token.id for token in tokenizer.command_tokens if token.name.startswith("sop")}
    for row in range(len(batch.input_ids)):
        write(f"== {title}, row {row}, objective {batch.objective}")
        for line in describe_row(batch, row, name=tokenizer.id_to_token, starts=starts, width=width):
            write(line)
        write("")


def show_update(values: argparse.Namespace, words: Sequence[str], *, write: Callable[[str], None]) -> None:
    """Write a description of update ``values.step`` of a run with the flags ``words``.

    Raises ValueError where the record and what is made again are not the same, or the record is of other documents.
    """
    from training.arguments import parse_settings
    from training.data import build_run_tokenizer, described_documents, loader_of_rank
    from training.settings import PretrainingSettings

    settings = parse_settings(PretrainingSettings, words)
    batch, steps = settings.batch, settings.batch.gradient_accumulation_steps
    recorded = None
    if values.record is not None or settings.run.order_folder.is_dir():
        recorded = read_update(values.record or settings.run.order_folder, values.step)
    elif settings.mixture.multi_task_ratio > 0:
        raise ValueError(
            "--multi-task-ratio: which batches were the tasks' is known from a record alone; give --record"
        )
    tokenizer = build_run_tokenizer(settings)
    numbers = range((values.step - 1) * steps, values.step * steps)
    num_ranks = values.ranks or settings.device.world_size if recorded is None else len(recorded.ranks)
    for rank in range(num_ranks):
        documents, loader = loader_of_rank(
            replace(settings, batch=replace(batch, pack_samples=False)),  # every sample in its row
            tokenizer=tokenizer,
            num_batches=max(settings.run.train_iters, values.step) * steps,
            rank=rank,
            num_ranks=num_ranks,
        )
        dataset = loader.dataset
        assert isinstance(dataset, BlockDataset)
        described = described_documents(documents)
        of_record = described if recorded is None else recorded.documents[rank].get("documents")
        if of_record != described:
            raise ValueError(
                f"the record is of {of_record}, the flags give {described}: give the flags of the run (--train-data, "
                "--split, --load-splits, the tokenizer's ...)"
            )

        def made(number: int, loader: BatchLoader = loader, dataset: BlockDataset = dataset) -> Origin:
            return Origin(number, [(sample, dataset[sample].pieces) for sample in loader.plan.numbers(number)])

        for origin in map(made, numbers) if recorded is None else recorded.ranks[rank]:
            title = f"update {values.step}, data rank {rank}, batch {origin.batch}"
            if not all(pieces for _, pieces in origin.samples):
                write(f"== {title}: samples {', '.join(str(n) for n, _ in origin.samples)} of the tasks mixed in\n")
                continue
            if recorded is not None:
                _compare_with_data(origin, made(origin.batch), title)
            write(f"== {title}: {'made again' if recorded is None else 'the record and the data agree'}")
            for number, pieces in origin.samples:
                parts = (
                    f"document {document}, tokens {start} to {start + length}" for document, start, length in pieces
                )
                write(f"sample {number}: {'; '.join(parts)}")
            write("")
            samples = [dataset.sample_of(pieces) for _, pieces in origin.samples]
            blanked = loader.collator(samples, batch_index=origin.batch)
            write_rows(blanked, tokenizer, title=title, width=values.picture_width, write=write)


def _compare_with_data(origin: Origin, made: Origin, title: str) -> None:
    """Raise ValueError where a batch of the record is not the one that is made under its number."""
    for recorded, again in itertools.zip_longest(origin.samples, made.samples):
        if recorded != again:
            raise ValueError(
                f"{title}: the record has sample {recorded}, the data give {again} (its number, then document, first "
                "token and tokens of its pieces): give the flags of the run (--batch-size, --shuffle, --seq-length ...)"
            )


def get_update_parser() -> argparse.ArgumentParser:
    """Build the parser of what ``--step`` needs beside the flags of the run."""
    parser = argparse.ArgumentParser(
        prog="python -m data_utils.show", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--step", type=int, required=True, help="number of the update, from 1 on, as in the log")
    parser.add_argument("--record", help="folder of the record (default: that of the run, where its name has no date)")
    parser.add_argument("--ranks", type=int, help="data ranks of the run, where there is no record (default: 1)")
    parser.add_argument("--picture-width", type=int, default=PICTURE_WIDTH, help="columns of the picture of the mask")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and show."""
    words = sys.argv[1:] if argv is None else argv
    if any(word.partition("=")[0] == "--step" for word in words):
        values, rest = get_update_parser().parse_known_args(words)
        check_bounds(values, ("step", "picture_width"), at_least=1)
        if values.ranks is not None:
            check_bounds(values, ("ranks",), at_least=1)
        show_update(values, rest, write=print)
        return 0
    values = get_parser().parse_args(argv)
    check_bounds(values, PROBABILITIES, at_least=0, at_most=1)
    check_bounds(values, ("batch_size", "batches", "picture_width", "avg_block_length"), at_least=1)
    check_bounds(values, ("seq_length", "max_position_embeddings"), at_least=2)
    check_bounds(values, ("first_batch",), at_least=0)
    show(values, write=print)
    return 0


if __name__ == "__main__":
    run_main(main)
