"""Fine-tuning as on ReCoRD: questions on a passage with up to ten candidates of a few tokens each; samples/s.

    python -m benchmarks.record --model large [--compile] [--attention KERNEL] [--pack-samples] [--steps 100]
        [--warmup 20] [--questions 8] [--candidates 10] [--shortest 150] [--longest 350] [--precision bf16]
        [--peak-tflops 989] [--json] [any flag of finetune_glm.py]

A sample is a question with all its candidates, each in a row of its own behind the passage, or with ``--pack-samples``
in rows they share. Samples are random; collation, the engine, the optimizer and dropout 0.1 are those of a real run.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.corpus import VOCABULARY
from benchmarks.mfu import as_json, measure, report
from benchmarks.models import MODELS
from data_utils.errors import run_main
from model.modeling_glm import GLMModel
from tasks.collation import TaskBatch, collate
from tasks.finetuning import build_engine
from tasks.network import HeadSettings, add_head
from tasks.objective import TaskCriterion
from tasks.samples import TaskSample
from tasks.settings import FinetuningSettings
from tasks.task_data import WIDTH_MULTIPLE
from training.arguments import parse_settings
from training.build import seed_model
from training.distributed import faults_in_one_line, finish_distributed, seed_everything, start_distributed

LONGEST_CANDIDATE = 6
FIRST_ID = 10  # ids below are commands


def make_sample(generator: np.random.Generator, number: int, *, candidates: int, length: int) -> TaskSample:
    """Return a question of ``length`` tokens and its candidates of one to six, the first of which is right."""
    answers = generator.integers(1, LONGEST_CANDIDATE + 1, candidates)
    width = length + int(answers.max()) + 1
    passage = generator.integers(FIRST_ID, VOCABULARY, length)
    fields = {name: np.zeros((candidates, width), dtype=np.int32) for name in ("input_ids", "target_ids", "loss_mask")}
    positions = np.zeros((candidates, 2, width), dtype=np.int32)
    for row, answer in enumerate(answers):
        tokens = generator.integers(FIRST_ID, VOCABULARY, answer)
        end = length + answer
        fields["input_ids"][row, :length] = passage
        fields["input_ids"][row, length + 1 : end] = tokens[:-1]
        fields["target_ids"][row, length:end] = tokens
        fields["loss_mask"][row, length:end] = 1
        positions[row, 0, :end] = length // 2  # where the gap is
        positions[row, 0, :length] = np.arange(length)
        positions[row, 1, length:end] = np.arange(1, answer + 1)
    prefix_lengths = np.full(candidates, length, dtype=np.int32)
    return TaskSample("multi_token", number, 0, position_ids=positions, attention_mask=prefix_lengths, **fields)


def make_batches(options: argparse.Namespace, *, share_rows: bool) -> Iterator[TaskBatch]:
    """Yield batches without end; collation is part of the measured time, drawing the samples hardly counts."""
    generator = np.random.default_rng(6)
    number = 0
    while True:
        samples = []
        for _ in range(options.questions):
            length = int(generator.integers(options.shortest, options.longest + 1))
            samples.append(make_sample(generator, number, candidates=options.candidates, length=length))
            number += 1
        yield collate(samples, pad_id=0, multiple_of=WIDTH_MULTIPLE, share_rows=share_rows)


def finetuning_flags(options: argparse.Namespace) -> list[str]:
    """Return the flags of ``finetune_glm.py`` that describe the measured run."""
    config = MODELS[options.model].config
    words = ["--task", "record", "--cloze-eval", "--block-lm", "--epochs", "1", "--data-dir", "none"]
    for name, value in {
        "num-layers": config.num_layers, "hidden-size": config.hidden_size,
        "num-attention-heads": config.num_attention_heads, "max-position-embeddings": config.max_position_embeddings,
        "seq-length": config.max_position_embeddings, "batch-size": options.questions,
    }.items():  # fmt: skip
        words += [f"--{name}", str(value)]
    return words + ([] if options.precision == "fp32" else [f"--{options.precision}"])


def get_parser() -> argparse.ArgumentParser:
    """Build the parser of the benchmark's own options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="large")
    parser.add_argument("--precision", choices=("bf16", "fp16", "fp32"), default="bf16")
    for name, default, text in (
        ("steps", 100, "measured updates"), ("warmup", 20, "updates before"), ("questions", 8, "in a batch"),
        ("candidates", 10, "of a question"), ("shortest", 150, "tokens of a question"),
        ("longest", 350, "tokens of a question"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--peak-tflops", type=float, help="dense peak of one device (default: that of a known GPU)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options, rest = get_parser().parse_known_args(argv)
    if not 1 <= options.shortest <= options.longest or min(options.steps, options.questions, options.candidates) < 1:
        raise ValueError(
            "--steps, --questions, --candidates and --shortest are at least 1, --longest no less than that"
        )
    configuration = parse_settings(FinetuningSettings, [*finetuning_flags(options), *rest])
    with faults_in_one_line(batch_size=options.questions, checkpoints=None):
        return run(configuration, options)


def run(configuration: FinetuningSettings, options: argparse.Namespace) -> int:
    """Build the network and its engine, measure, and print the result on the first rank."""
    topology, device = start_distributed(configuration.device)
    if options.json:
        logging.getLogger("glm").setLevel(logging.CRITICAL)
    seed_everything(configuration.run.seed)
    config = configuration.model.config(vocab_size=MODELS[options.model].config.vocab_size)
    model = GLMModel(config, topology=topology)
    seed_model(model, configuration.run.seed, topology=topology)
    engine = build_engine(
        add_head(model, HeadSettings("multi_token")).train(),
        configuration,
        criterion=TaskCriterion(),
        num_updates=options.warmup + options.steps,
        topology=topology,
        device=device,
    )
    found = measure(
        engine,
        make_batches(options, share_rows=configuration.batch.pack_samples),
        config=config,
        name=f"ReCoRD, {options.model}",
        warmup=options.warmup,
        steps=options.steps,
        accumulation_steps=configuration.batch.gradient_accumulation_steps,
        given_tflops=options.peak_tflops,
    )
    steps = configuration.batch.gradient_accumulation_steps * options.steps
    samples = options.questions * steps * topology.data_parallel_size
    rate = samples / found.seconds
    if topology.rank == 0 and options.json:
        print(json.dumps({**as_json(found), "samples_per_second": rate}))
    elif topology.rank == 0:
        print("\n".join([*report(found), f"{rate:,.1f} samples/s of {options.candidates} candidates"]), flush=True)
    return finish_distributed(0)


if __name__ == "__main__":
    run_main(main)
