"""Fill blanks with a trained GLM: interactively, from a file, or for prompts on the command line.

    python generate_samples.py --load-pretrained CHECKPOINT                                    (interactive)
    python generate_samples.py ... --input prompts.txt --output filled.jsonl --num-beams 4     (file)
    python generate_samples.py ... --prompt "The capital of France is [MASK]."

CHECKPOINT is one of a run, or a folder of the Hugging Face layout: both say what model and tokenizer they are. Released
ones need the flags of config_tasks/model_blocklm_*.sh. Without any it is the demo model that comes with the code.
Greedy: --top-k 1.

Results are written to --output when all are there, and then printed. What ends the program before (an error, SIGTERM,
SIGHUP, Ctrl-C) leaves those that are there in OUTPUT.partial, or printed where there is no --output.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from files.errors import run_main
from files.writing import check_can_write
from training.arguments import parse_settings
from training.settings import GENERATION, Group, Settings, added, refuse

if TYPE_CHECKING:
    import torch

    from generation.infill import BlankFiller
    from generation.sampling import DecodingSettings
    from mpu.initialize import ParallelTopology
    from training.signals import StopRequest


@dataclass(frozen=True)
class PromptFiles(Group):
    """generate_samples.py: where prompts come from and results go"""

    prompt: tuple[str, ...] | None = added(None, "fill these prompts and leave", nargs="+")
    input: str | None = added(
        None,
        "file of prompts: .txt or no suffix with one a line, .jsonl or .ndjson with an object with a key 'prompt' a "
        "line, .json with either a list of them or one a line",
    )
    output: str | None = added(None, "JSON lines file for the results of --prompt or --input; replaced if it exists")
    samples_dir: str = added("samples", "folder of the interactive program's transcripts")
    input_source: str = added("interactive", "--input as the multilingual release calls it; interactive asks")
    output_path: str | None = added(
        None, "folder of a text file for each prompt, all beams one a line (with --fill replace: default samples)"
    )
    with_id: bool = added(False, "lines of --input-source are an id, a tab and a prompt; texts go to ID.txt")
    int8: bool = added(False, "weights of 8 bits, the rest in bf16 (CPU): faster decoding")
    no_cuda_graphs: bool = added(False, "on a GPU launch every kernel of a step by itself")
    draw_candidates: bool = added(False, "draw the candidates of beams, as the original")

    @property
    def source(self) -> str | None:
        """Return the file of prompts; None without."""
        return self.input if self.input_source == "interactive" else self.input_source


@dataclass(frozen=True)
class SampleSettings(Settings):
    """The options of this program."""

    program: ClassVar[str] = GENERATION
    takes_demo: ClassVar[bool] = True
    used_most: ClassVar[tuple[str, ...]] = ("files", "generation", "checkpoint", "model", "tokenizer", "precision")

    files: PromptFiles = field(default_factory=PromptFiles)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(
            (
                not (self.checkpoint.load_pretrained or self.checkpoint.load),
                "no weights: name a checkpoint with --load-pretrained",
            ),
            (self.run.dry_run, "--dry-run is for pretrain_glm.py; leave it out"),
            (
                self.files.input is not None and self.files.input_source != "interactive",
                "--input and --input-source both name the file of prompts; leave one of them out",
            ),
            (self.files.with_id and not self.files.source, "--with-id needs --input-source, a file of lines"),
            (
                self.files.output and not (self.files.source or self.files.prompt),
                "--output needs --input or --prompt",
            ),
        )


def tell(text: str, *, files: PromptFiles) -> None:
    """Print ``text``. Where nobody reads and results go to a file, the program goes on in silence."""
    try:
        print(text, flush=True)
    except OSError as error:
        if not files.output:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"warning: nothing more is printed ({error.strerror})", file=sys.stderr)


def decoding_settings(settings: SampleSettings) -> DecodingSettings:
    """Return how blanks are filled; a length that the model cannot reach is lowered, with a line that says so."""
    from generation.sampling import DecodingSettings

    options, positions = settings.generation, settings.model.max_position_embeddings
    if positions < options.out_seq_length:
        note = f"note: --out-seq-length {options.out_seq_length} is lowered to the model's {positions} positions"
        tell(note, files=settings.files)
    return settings.select(
        DecodingSettings, max_length=min(options.out_seq_length, positions), min_length=options.min_tgt_length
    )


def load_filler(settings: SampleSettings, *, topology: ParallelTopology, device: torch.device) -> BlankFiller:
    """Build tokenizer and model and load the weights, or this rank's part; print what was loaded."""
    from generation.api import load_model
    from training.data import build_run_tokenizer
    from training.engine import AUTOCAST_TYPES, supported_precision

    tokenizer = build_run_tokenizer(settings)
    vocab_size = tokenizer.padded_size(settings.tokenizer.make_vocab_size_divisible_by)
    precision, reason = supported_precision(settings.precision, device=device, training=False)
    if reason:
        tell(reason, files=settings.files)
    path = settings.checkpoint.load_pretrained or settings.checkpoint.load
    assert path is not None
    over = (
        settings.checkpoint.load if settings.checkpoint.load_pretrained and settings.prompt.key_value_prefix else None
    )
    glm = load_model(
        path,
        config=settings.network(vocab_size=vocab_size),
        tokenizer=tokenizer,
        dtype=AUTOCAST_TYPES.get(precision),
        device=device,
        topology=topology,
        int8=settings.files.int8,
        block_positions=not settings.blank.no_block_position,
        static=False if settings.files.no_cuda_graphs else None,
        prompt=over,  # of a run that trained a prefix prompt alone
    )
    assert glm.report is not None
    tell(glm.report.summary(), files=settings.files)
    return glm.filler


def generate(settings: SampleSettings, stop: StopRequest) -> int:
    """Fill prompts of the command line and of a file, or ask for them; what is done before ``stop`` ends it stays."""
    from generation.interactive import answer_typed_prompts
    from generation.prompts import PromptRecord, fill_records, read_prompts, with_ids
    from training.distributed import finish_distributed, silence_other_ranks, start_distributed

    files, batch = settings.files, settings.batch
    topology, device = start_distributed(settings.device)
    silence_other_ranks(topology)
    options: dict[str, Any] = {"settings": decoding_settings(settings), "seed": settings.run.seed, "topology": topology}
    records = [PromptRecord(text, f"--prompt {number}") for number, text in enumerate(files.prompt or (), start=1)]
    read = read_prompts(files.source) if files.source else []
    records += with_ids(read) if files.with_id else read
    check_output(files)
    filler = load_filler(settings, topology=topology, device=device)
    if not records:
        folder = Path(files.output_path or files.samples_dir)
        answer_typed_prompts(filler, folder, seq_length=batch.seq_length, **options)
        return finish_distributed(0)
    done: dict[int, dict[str, Any]] = {}
    try:
        rows = fill_records(filler, records, batch_size=batch.evaluation_batch_size, done=done, **options)
    except BaseException:
        if done and topology.rank == 0:
            hand_over([done[number] for number in sorted(done)], files, total=len(records), stop=stop)
        raise
    if topology.rank == 0:
        hand_over(rows, files, total=len(records), stop=stop)
    return finish_distributed(0)


def check_output(files: PromptFiles) -> None:
    """Raise ValueError, before anything is computed, for an ``--output`` that cannot be written."""
    if not files.output:
        return
    check_can_write(files.output)
    if files.source and os.path.realpath(files.source) == os.path.realpath(files.output):
        raise ValueError(f"--output {files.output} is the file of prompts; choose another name")


def hand_over(rows: Sequence[dict[str, Any]], files: PromptFiles, *, total: int, stop: StopRequest) -> None:
    """Write rows to the file that is asked for, then print them; fewer than ``total`` go to OUTPUT.partial.

    They are printed also when they cannot be written. Raises the OSError then.
    """
    from generation.prompts import format_result, keep_texts, write_results

    path = f"{files.output}{'.partial' if len(rows) < total else ''}"
    try:
        if files.output:
            with stop.remember():
                write_results(path, rows)
        if files.output_path:
            for row in rows:
                texts, name = row.get("alternatives", [row["filled"]]), row["id"] if files.with_id else None
                keep_texts(Path(files.output_path), row["prompt"], texts, name=name)
        if len(rows) < total:
            where = f"they are in {path}" if files.output else "they are printed"
            print(f"note: {len(rows)} of {total} prompts are filled; {where}", file=sys.stderr)
    finally:
        tell("\n".join(map(format_result, rows)), files=files)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and generate."""
    settings = parse_settings(SampleSettings, argv, description=__doc__)
    if settings.notices and settings.device.rank == 0:
        tell("\n".join(settings.notices), files=settings.files)
    from training.distributed import faults_in_one_line

    with faults_in_one_line(batch_size=settings.batch.batch_size, checkpoints=None) as stop:
        return generate(settings, stop)


if __name__ == "__main__":
    run_main(main)
