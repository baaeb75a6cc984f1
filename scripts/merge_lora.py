"""Add an adapter (LoRA) to the weights of the checkpoint it was trained on.

    python scripts/merge_lora.py checkpoints/blocklm-base checkpoints/rte-lora/adapter merged

The adapter is a folder with adapter_config.json, of a run with --lora-rank or of the package peft. The checkpoint may
be of any model-parallel size, which it keeps, or of the Hugging Face layout. What is written is a checkpoint without
adapters, for --load-pretrained, generate_samples.py or a conversion to Hugging Face.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from files.errors import run_main


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line: what is adapted, the adapter, and where to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder the adapter was trained on")
    parser.add_argument("adapter", type=Path, help="folder with adapter_config.json")
    parser.add_argument("output", type=Path, help="new folder for the merged weights")
    return parser.parse_args(argv)


def main() -> int:
    """Run the command."""
    arguments = parse_arguments()
    from model.hub.adapters import merge_into_checkpoint, read_adapter

    adapter = read_adapter(arguments.adapter)
    merged = merge_into_checkpoint(arguments.checkpoint, adapter, arguments.output)
    print(f"wrote {merged}: {len(adapter.adapted)} weights changed by adapters of rank {adapter.settings.rank}")
    return 0


if __name__ == "__main__":
    run_main(main)
