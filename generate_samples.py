"""Fill blanks with a trained GLM: interactively, from a file, or for prompts on the command line.

    python generate_samples.py --block-lm ... --load-pretrained CHECKPOINT                     (interactive)
    python generate_samples.py ... --input prompts.txt --output filled.jsonl --num-beams 4     (file)
    python generate_samples.py ... --prompt "The capital of France is [MASK]."

Model and tokenizer flags as in training (config_tasks/model_blocklm_*.sh). Greedy: --top-k 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_utils.errors import run_main
from training.arguments import get_parser, parse_arguments
from training.configurations import device_settings, model_settings, precision_settings, tokenizer_settings

if TYPE_CHECKING:
    import torch

    from generation.infill import BlankFiller
    from generation.sampling import DecodingSettings
    from mpu.initialize import ParallelTopology


def build_parser() -> argparse.ArgumentParser:
    """Return the shared parser with the flags of this program."""
    parser = get_parser(__doc__, program="generate_samples.py")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    group = parser.add_argument_group("generate_samples.py")
    group.add_argument("--prompt", nargs="+", help="fill these prompts and leave")
    group.add_argument("--input", help="file of prompts: one a line, or .jsonl objects with a key 'prompt'")
    group.add_argument("--output", help="JSON lines file for the results of --prompt or --input")
    group.add_argument("--samples-dir", default="samples", help="folder of the interactive program's transcripts")
    group.add_argument("--int8", action="store_true", help="weights of 8 bits, the rest in bf16 (CPU): faster decoding")
    group.add_argument("--no-cuda-graphs", action="store_true", help="on a GPU launch every kernel of a step by itself")
    group.add_argument("--draw-candidates", action="store_true", help="draw the candidates of beams, as the original")
    return parser


def decoding_settings(values: argparse.Namespace) -> DecodingSettings:
    """Return how blanks are filled; a length that the model cannot reach is lowered, with a line that says so."""
    from generation.sampling import DecodingSettings

    max_length = min(values.out_seq_length, values.max_position_embeddings)
    if max_length < values.out_seq_length:
        print(f"note: --out-seq-length {values.out_seq_length} is lowered to the model's {max_length} positions")
    return DecodingSettings(
        max_length=max_length,
        temperature=values.temperature,
        top_k=values.top_k,
        top_p=values.top_p,
        num_beams=values.num_beams,
        length_penalty=values.length_penalty,
        no_repeat_ngram_size=values.no_repeat_ngram_size,
        min_length=values.min_tgt_length,
        draw_candidates=values.draw_candidates,
    )


def load_filler(values: argparse.Namespace, *, topology: ParallelTopology, device: torch.device) -> BlankFiller:
    """Build tokenizer and model and load the weights, or this rank's part; print what was loaded."""
    from data_utils.tokenizers.tokenizer import build_tokenizer
    from generation.api import load_model
    from training.build import model_config
    from training.data import tokenizer_keywords
    from training.engine import AUTOCAST_TYPES, supported_precision

    settings = tokenizer_settings(values)
    tokenizer = build_tokenizer(**tokenizer_keywords(settings))
    config = model_config(model_settings(values), vocab_size=tokenizer.padded_size(settings.vocab_divisor))
    precision, warning = supported_precision(precision_settings(values), device=device)
    if warning:
        print(warning)
    options = {"dtype": AUTOCAST_TYPES.get(precision), "device": device, "topology": topology, "int8": values.int8}
    options |= {"block_positions": not values.no_block_position, "static": False if values.no_cuda_graphs else None}
    glm = load_model(values.load_pretrained or values.load, config=config, tokenizer=tokenizer, **options)
    assert glm.report is not None
    print(glm.report.summary(), flush=True)
    return glm.filler


def generate(values: argparse.Namespace) -> int:
    """Fill prompts of the command line and of a file, or else ask for them."""
    from generation.interactive import (
        PromptRecord,
        answer_typed_prompts,
        fill_records,
        format_result,
        read_prompts,
        write_results,
    )
    from training.distributed import finish_distributed, silence_other_ranks, start_distributed

    topology, device = start_distributed(device_settings(values))
    silence_other_ranks(topology)
    options = {"settings": decoding_settings(values), "seed": values.seed, "topology": topology}
    records = [PromptRecord(text, f"--prompt {number}") for number, text in enumerate(values.prompt or [], start=1)]
    records += read_prompts(values.input) if values.input else []
    filler = load_filler(values, topology=topology, device=device)
    if not records:
        answer_typed_prompts(filler, Path(values.samples_dir), seq_length=values.seq_length, **options)
        return finish_distributed(0)
    rows = fill_records(filler, records, batch_size=values.eval_batch_size or values.batch_size, **options)
    print(*map(format_result, rows), sep="\n")
    if values.output and topology.rank == 0:
        write_results(values.output, rows)
    return finish_distributed(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and generate."""
    parsed = parse_arguments(argv, parser=build_parser())
    values = parsed.values
    print("".join(f"{notice}\n" for notice in parsed.notices if values.rank == 0), end="")
    if not (values.load_pretrained or values.load):
        raise ValueError("no weights: name a checkpoint with --load-pretrained")
    if values.dry_run:
        raise ValueError("--dry-run is for pretrain_glm.py; leave it out")
    if values.output and not (values.input or values.prompt):
        raise ValueError("--output needs --input or --prompt")
    from training.distributed import faults_in_one_line

    with faults_in_one_line(batch_size=values.batch_size, checkpoints=None):
        return generate(values)


if __name__ == "__main__":
    run_main(main)
