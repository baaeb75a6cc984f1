"""Convert a model of the Hugging Face layout to a checkpoint of GLM.

    python scripts/convert_transformers_checkpoint_to_glm.py DIR OUT
    python scripts/convert_transformers_checkpoint_to_glm.py THUDM/glm-10b checkpoints/glm-10b --model-parallel-size 2

The first argument is a folder, or the name of a model on the hub. OUT gets the mp_rank_XX_model_states.pt, the
tokenizer's files and model.sh, which is used like a file of config_tasks/: bash scripts/generate_block.sh OUT/model.sh
Code that comes with the model is not run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from files.errors import run_main


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder, or name on the hub")
    parser.add_argument("output", type=Path, help="folder of the new checkpoint")
    parser.add_argument("--model-parallel-size", type=int, default=1, help="files, and GPUs, per model")
    parser.add_argument("--verify", action="store_true", help="compare the logits of both sides in fp32")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    values = parse_arguments(argv)
    from model.hub.importing import fetch_model, import_folder, open_hub_model

    model = open_hub_model(fetch_model(values.model))
    if model.weights.left_out:
        print(f"not converted: {', '.join(model.weights.left_out)}")
    files = import_folder(model, values.output, size=values.model_parallel_size)
    print(f"wrote {values.output}: {', '.join(file.name for file in files)}, model.sh")
    if values.verify:
        from model.hub.verify import verify

        print(verify(values.output, model.folder, config=model.config))
    return 0


if __name__ == "__main__":
    run_main(main)
