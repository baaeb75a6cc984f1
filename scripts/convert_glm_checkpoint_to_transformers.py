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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hf_description import add_flags, describe

from data_utils.errors import run_main


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder, or one of its files")
    parser.add_argument("name", nargs="?", help="released model, file of config_tasks/, or runs/NAME/config.json")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write a complete folder, a new one")
    parser.add_argument("--max-shard-size", default="5GB", help="largest weight file of the folder (5GB)")
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
    return values


def convert(values: argparse.Namespace) -> int:
    """Convert, and print what was written."""
    description = describe(values.name, values)
    from hf_sources import open_source, read_weights

    from model.hub.export import SHARED_ROWS, ExportOptions, check_is_new, export_bin, export_folder, parse_size

    options = ExportOptions(
        max_shard_size=parse_size(values.max_shard_size), purpose=values.purpose, pool_token=values.pool_token
    )
    if values.output is not None:
        check_is_new(values.output)
    weights = read_weights(values.checkpoint, values.load_pretrained)
    if weights.left_out:
        print(f"not converted: {', '.join(weights.left_out)}")
    if values.output is None:
        print(f"wrote {export_bin(weights, shared_row=SHARED_ROWS.get(description.name))}")
        return 0
    source = open_source(weights, description, options=options, with_tokenizer=not values.no_tokenizer)
    files = export_folder(
        weights,
        values.output,
        config=source.config,
        tokenizer=source.tokenizer,
        options=source.options,
        name=source.name,
    )
    print(f"wrote {values.output}: {', '.join(file.name for file in files)}")
    if source.tokenizer is not None and source.tokenizer.note:
        print(f"note: {source.tokenizer.note}")
    if values.verify:
        from model.hub.verify import verify

        options = {"config": source.config, "base": values.load_pretrained, "shared_row": source.options.shared_row}
        print(verify(values.checkpoint, values.output, **options))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return convert(parse_arguments(argv))


if __name__ == "__main__":
    run_main(main)
