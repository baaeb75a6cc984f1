"""Convert a checkpoint of GLM to the Hugging Face layout.

    python scripts/convert_glm_checkpoint_to_transformers.py CHECKPOINT/mp_rank_00_model_states.pt glm-large
        writes pytorch_model.bin beside the file, as the original does
    python scripts/convert_glm_checkpoint_to_transformers.py CHECKPOINT glm-large --output DIR
        writes a folder that transformers loads: weights, configuration, tokenizer, code, model card

CHECKPOINT is a run's folder, a released one, or one of its files, of any model-parallel size; a fine-tuned classifier
as well; or a folder of the Hugging Face layout, which gets the code of today. NAME is a released model (glm-base,
glm-large, glm-doc, glm-410m, glm-515m, glm-roberta-large, glm-2b, glm-10b, glm-large-chinese, glm-10b-chinese), a file
of config_tasks/, or runs/NAME/config.json of a training run; without it the flags below describe the model, or the
config.json in CHECKPOINT, which convert_transformers_checkpoint_to_glm.py leaves there.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from files.errors import run_main
from model.hub.describe import (
    ModelDescription,
    TokenizerDescription,
    add_flags,
    describe_checkpoint,
    describe_name,
    with_flags,
)

if TYPE_CHECKING:
    from model.checkpoints.reading import WholeWeights
    from model.hub.export import TokenizerFiles


DTYPES = ("float32", "bfloat16", "float16")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder, or one of its files")
    parser.add_argument("name", nargs="?", help="released model, file of config_tasks/, or runs/NAME/config.json")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write a complete folder, a new one")
    parser.add_argument("--max-shard-size", default="5GB", help="largest weight file of the folder (5GB)")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the weights in the folder (as they are)")
    parser.add_argument(
        "--load-pretrained", type=Path, metavar="BASE", help="the model that a partial checkpoint is of"
    )
    parser.add_argument("--purpose", choices=("generation", "multiple-choice", "classification"),
                        help="class that config.json names (chosen by the weights)")  # fmt: skip
    parser.add_argument("--pool-token", default="cls", help="what a classifier was trained with (cls)")
    parser.add_argument("--no-tokenizer", action="store_true", help="leave the tokenizer out")
    parser.add_argument("--verify", action="store_true", help="compare the logits of both sides in fp32")
    add_flags(parser)
    values = parser.parse_args(argv)
    if values.output is None and values.name is None:
        parser.error("give a NAME, or --output DIR")
    if values.output is None and values.verify:
        parser.error("--verify needs --output DIR")
    if values.dtype is not None and (values.verify or values.output is None):
        parser.error("--dtype needs --output DIR, and goes without --verify, which compares weights as they are")
    return values


def describe(values: argparse.Namespace) -> ModelDescription | None:
    """Return what NAME and the flags say of the model; None when they say nothing."""
    named = ModelDescription() if values.name is None else describe_name(values.name)
    described = with_flags(named, values)
    return None if described == ModelDescription() else described


def tokenizer_files(description: TokenizerDescription, *, vocab_size: int, checkpoint: Path) -> TokenizerFiles:
    """Return the files of a tokenizer for the model of ``checkpoint``, whose vocabulary has ``vocab_size`` rows.

    Raises ValueError with one line when vocabulary files are missing or of another model.
    """
    from data_utils.tokenizers.text_tokenizers import WordPiece
    from data_utils.tokenizers.tokenizer import build_tokenizer
    from model.hub.export import TokenizerFiles

    kind = description.hub_class()
    # The classes of the layout have no sentinels and no [dBLOCK].
    description = replace(description, block_symbols=True, decoder_mask=False, num_sentinels=0)
    tokenizer = build_tokenizer(**description.arguments())
    padded = tokenizer.padded_size(description.vocab_divisor)
    if padded != vocab_size:
        raise ValueError(
            f"{checkpoint} has a vocabulary of {vocab_size}, the tokenizer {kind.class_name} one of {padded}; "
            "choose the tokenizer it was trained with (--tokenizer-type, --tokenizer-model-type, "
            "--make-vocab-size-divisible-by)"
        )
    token_ids = {"eos_token_id": tokenizer.special.eop, "pad_token_id": tokenizer.special.pad}
    pieces = tokenizer.text_tokenizer
    lower_case = not isinstance(pieces, WordPiece) or pieces.lower_case
    return TokenizerFiles(kind, tokenizer.files, tokenizer.num_tokens, token_ids, lower_case)


def fp32_weights_of(weights: WholeWeights) -> WholeWeights | None:
    """Return the weights of a run under ZeRO in fp32, as its optimizer's files hold them; None for another run.

    Weights that were not trained stay as they are. Raises ValueError when these files cannot be read.
    """
    if not any(weights.location.folder.glob("*optim_states.pt")):
        return None
    from training.deepspeed.checkpoints import fp32_weights

    masters = {name: parts for name, parts in fp32_weights(weights.location.folder).items() if name in weights.pieces}
    print(f"{len(masters)} of {len(weights.pieces)} weights are taken in fp32 from the optimizer's files (ZeRO)")
    return replace(weights, pieces={**weights.pieces, **masters})


def main(argv: list[str] | None = None) -> int:
    """Convert, and print what was written."""
    values = parse_arguments(argv)
    description = describe(values)
    import torch

    from model.checkpoints.reading import read_whole_weights
    from model.checkpoints.writing import check_is_new
    from model.hub.export import ExportOptions, export_bin, export_folder, parse_size

    options = ExportOptions(
        max_shard_size=parse_size(values.max_shard_size), purpose=values.purpose, pool_token=values.pool_token,
        dtype=None if values.dtype is None else getattr(torch, values.dtype),
    )  # fmt: skip
    if values.output is not None:
        check_is_new(values.output)
    weights = read_whole_weights(values.checkpoint, base=values.load_pretrained)
    if weights.left_out:
        print(f"not converted: {', '.join(weights.left_out)}")
    if values.output is None:
        assert description is not None, "NAME is missing"
        print(f"wrote {export_bin(weights, shared_row=description.shared_row)}")
        return 0
    fp32 = fp32_weights_of(weights)
    weights = fp32 or weights
    description = description or describe_checkpoint(weights.file)
    if description is None:
        raise ValueError(
            f"{weights.file} does not say its number of heads and its tokenizer; give a NAME (glm-large ..., or a file "
            "config_tasks/model_*.sh, runs/NAME/config.json), or --num-attention-heads and --tokenizer-type"
        )
    config = description.config_of_weights(weights.shapes(), file=weights.file)
    options = options.of_description(description, weights.file)
    described, tokenizer = None if values.no_tokenizer else description.tokenizer, None
    if described is not None:
        tokenizer = tokenizer_files(described, vocab_size=config.vocab_size, checkpoint=weights.file)
    elif not values.no_tokenizer and description.hub_fields is None:
        raise ValueError("no tokenizer is described; give --tokenizer-type, or --no-tokenizer to leave it out")
    files = export_folder(
        weights, values.output, config=config, tokenizer=tokenizer, options=options, name=description.name
    )
    print(f"wrote {values.output}: {', '.join(file.name for file in files)}")
    if described is not None and described.task_mask and not described.hub_class().task_masks:
        name = described.hub_class().class_name
        print(f"note: {name} has [MASK] alone: texts with [gMASK] or [sMASK] are for the programs here")
    if values.verify:
        from model.hub.verify import verify

        side = {"config": config, "base": values.load_pretrained, "shared_row": options.shared_row}
        print(verify(values.checkpoint, values.output, **side, fp32=fp32))
    return 0


if __name__ == "__main__":
    run_main(main)
