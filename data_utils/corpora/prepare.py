"""Tokenize corpora once into stores on disk, which training finds again.

    python -m data_utils.corpora.prepare --train-data corpus.jsonl --output stores --tokenizer-type GPT2BPETokenizer

On several machines each makes a shard, ``--shard 1/16`` ... ``--shard 16/16``, in one folder that all of them see, and
``python -m data_utils.corpora.merge stores`` joins them. What was killed is started again; it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from data_utils.corpora.files import TEXT_UNITS, Shard
from data_utils.corpora.tokenization import Preparation
from data_utils.tokenizers.tokenizer import build_tokenizer
from files.cores import usable_cores
from files.errors import check_bounds, run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of this command; tokenizer flags are those of training."""
    parser = argparse.ArgumentParser(
        prog="python -m data_utils.corpora.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--train-data", nargs="+", required=True, help="registered names, files, folders, globs or hf:NAME"
    )
    parser.add_argument("--output", required=True, help="folder of the stores; give it to training as --data-cache-dir")
    parser.add_argument("--text-field", default="text", help="field of the text in rows of files given by path")
    parser.add_argument("--text-unit", default="line", choices=TEXT_UNITS, help="what of a text file is a document")
    parser.add_argument(
        "--commands-in-text", action="store_true", help="[MASK], <|endofpiece|> ... in files are commands, not text"
    )
    parser.add_argument("--num-workers", type=int, default=usable_cores(), help="processes (default: all cores)")
    parser.add_argument("--skip-malformed", action="store_true", help="count and skip malformed rows")
    parser.add_argument("--no-pre-tokenize", action="store_true", help="keep text, to be tokenized on access")
    parser.add_argument("--drop-duplicates", action="store_true", help="keep the first of documents with the same text")
    parser.add_argument("--shard", metavar="N/COUNT", help="only the N-th of COUNT parts, for data_utils.corpora.merge")
    tokenizer = parser.add_argument_group("tokenizer", "as in training: a store belongs to one tokenizer")
    tokenizer.add_argument("--tokenizer-type", default="BertWordPieceTokenizer")
    tokenizer.add_argument("--tokenizer-model-type", default=None)
    tokenizer.add_argument("--tokenizer-path", default=None)
    tokenizer.add_argument("--vocab-dir", default=None, help="folder of vocabularies (default: $GLM_VOCAB_DIR)")
    tokenizer.add_argument("--cache-dir", default=None, help="folder of downloaded vocabularies")
    tokenizer.add_argument("--task-mask", action="store_true", help="with [gMASK] and [sMASK]")
    tokenizer.add_argument(
        "--decoder-mask",
        action="store_true",
        help="with [dBLOCK], which --block-mask-prob or --context-mask-ratio add in training",
    )
    tokenizer.add_argument(
        "--num-sentinels",
        type=int,
        default=0,
        help="numbered mask tokens and one: what --max-position-embeddings is in a training with --sentinel-token",
    )
    tokenizer.add_argument("--fix-command-token", action="store_true", help="corrected Chinese command tokens")
    return parser  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Make the stores."""
    values = get_parser().parse_args(argv)
    check_bounds(values, ("num_workers", "num_sentinels"), at_least=0)
    shard = None if values.shard is None else Shard.parse(values.shard)
    build = partial(
        build_tokenizer,
        values.tokenizer_type,
        model_type=values.tokenizer_model_type,
        path=values.tokenizer_path,
        task_mask=values.task_mask,
        decoder_mask=values.decoder_mask,
        num_sentinels=values.num_sentinels,
        fix_command_token=values.fix_command_token,
        vocab_dir=values.vocab_dir,
        cache_dir=values.cache_dir,
    )
    preparation = Preparation(
        build(),
        build,
        cache_dir=values.output,
        text_field=values.text_field,
        text_unit=values.text_unit,
        commands_in_text=values.commands_in_text,
        num_workers=values.num_workers,
        skip_malformed=values.skip_malformed,
        pre_tokenize=not values.no_pre_tokenize,
        drop_duplicates=values.drop_duplicates,
        progress=sys.stderr.isatty(),
    )
    if shard is not None:
        stores = preparation.make_shard(values.train_data, shard)
        print(f"shard {shard} of {len(stores)} sources is ready in {values.output}")
        return 0
    documents = preparation.documents(values.train_data)
    print(f"{len(documents)} documents of {len(values.train_data)} sources are ready in {values.output}")
    return 0


if __name__ == "__main__":
    run_main(main)
