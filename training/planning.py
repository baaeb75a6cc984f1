"""The plan of a pre-training run: what would be built, on how many ranks, and the memory, disk and time it takes.

    python pretrain_glm.py ... --dry-run        the plan of that run; GLM_PLAN_WORLD_SIZE=64 plans for 64 ranks
    python -m training.planning --table         the table of docs/scaling.md

Everything is computed from the settings: no process is started, no data read, nothing written.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from data_utils.errors import run_main
from data_utils.objective.block_infilling import BlankInfillingSettings
from data_utils.tokenizers.tokenizer import build_tokenizer
from model.modeling_glm import GLMModel, count_parameters
from model.released import RELEASED_MODELS
from training.arguments import parse_arguments
from training.build import model_config
from training.configurations import (
    BatchSettings,
    BlankSettings,
    PretrainingConfiguration,
    TokenizerSettings,
    pretraining_configuration,
)
from training.data import tokenizer_keywords
from training.deepspeed.config import deepspeed_plan
from training.memory_estimate import (
    FP32,
    HALF,
    Arithmetic,
    RankMemory,
    States,
    activations,
    checkpoint_bytes,
    deepspeed_states,
    host_memory,
    shard_of_rank,
    torch_states,
)
from training.metrics import ComputeCost
from training.plan_report import GB, Layout, Plan
from training.precision import supported_precision

CONFIGURATIONS = Path(__file__).resolve().parent.parent / "config"
TOKENS_PER_SENTENCE = 16  # for the width of sentence blanks; an assumption


@contextmanager
def _offline() -> Iterator[None]:
    """Keep vocabularies from being downloaded while a plan is made."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        del os.environ["HF_HUB_OFFLINE"]
        if before is not None:
            os.environ["HF_HUB_OFFLINE"] = before


def padded_vocabulary(settings: TokenizerSettings, *, fallback: int) -> tuple[int, str]:
    """Return the rows of the embedding table and where the number comes from.

    It is the tokenizer's, when its files are at hand; else that of the released models with its kind of vocabulary, or
    ``fallback`` (``--vocab-size``) for a SentencePiece model of one's own.
    """
    divisor = settings.vocab_divisor
    try:
        with _offline():
            tokenizer = build_tokenizer(**tokenizer_keywords(settings))
        return tokenizer.padded_size(divisor), f"{tokenizer.num_tokens:,} tokens, padded to a multiple of {divisor}"
    except ValueError:
        sizes = {released.config.vocab_size for released in RELEASED_MODELS.values()
                 if released.tokenizer_type == settings.tokenizer_type}  # fmt: skip
    if settings.tokenizer_type == "SentencePieceTokenizer" or not sizes:
        return -(-fallback // divisor) * divisor, "no vocabulary file here; the size is that of --vocab-size"
    size = -(-max(sizes) // divisor) * divisor
    return size, f"no vocabulary files here; the size is that of the released models ({settings.tokenizer_type})"


def batch_shape(blank: BlankSettings, batch: BatchSettings) -> tuple[int, int]:
    """Return the width of a row and the targets of a micro batch, the most that any objective in the mix makes.

    Every blank adds its mask and its start token to a row, and its end token to the targets.
    """
    length, widths, targets = batch.seq_length, [], []
    for share, ratio, blank_length in (
        (blank.bert_prob, BlankInfillingSettings.bert_ratio, blank.average_block_length),
        (blank.gap_sentence_prob, blank.gap_sentence_ratio, TOKENS_PER_SENTENCE),
        (1.0 - blank.bert_prob - blank.gap_sentence_prob, 1.0, length),
    ):
        if share > 1e-9:
            num_blanks = max(1.0, ratio * length / blank_length)
            widths.append(length + 2 * num_blanks)
            targets.append(ratio * length + num_blanks)
    return round(max(widths)), round(batch.batch_size * max(targets))


def make_plan(configuration: PretrainingConfiguration, *, vocab_size: int | None = None) -> Plan:
    """Resolve a run: ``configuration.device`` says how many ranks there would be.

    ``vocab_size`` is the padded one (default: the tokenizer's). Raises ValueError for sizes that cannot be cut over the
    ranks, and for a DeepSpeed file that cannot be used.
    """
    devices, batch, optimizer = configuration.device, configuration.batch, configuration.optimizer.name
    layout, origin = Layout(devices.world_size, devices.model_parallel_size), "given"
    if vocab_size is None:
        fallback = configuration.values["vocab_size"]
        vocab_size, origin = padded_vocabulary(configuration.tokenizer, fallback=fallback)
    config = model_config(configuration.model, vocab_size=vocab_size)
    shard = shard_of_rank(config, tensor_parallel_size=layout.tensor_parallel_size)
    device, ranks = torch.device("cpu" if devices.device == "cpu" else "cuda"), layout.data_parallel_size
    build = _torch_engine if configuration.deepspeed_content is None else _deepspeed_engine
    engine = build(configuration, shard, ranks=ranks, device=device)
    width, num_targets = batch_shape(configuration.blank, batch)
    shape = {"batch_size": batch.batch_size, "width": width, "num_targets": num_targets}
    amounts = activations(config, engine.arithmetic, **shape, tensor_parallel_size=layout.tensor_parallel_size)
    on_disk = {"stage": engine.stage, "size": engine.arithmetic.residual}  # ZeRO's weights have the type of the stream
    saved = checkpoint_bytes(
        shard, engine.states, optimizer=optimizer if configuration.checkpoint.save_optimizer else None, **on_disk
    )
    cost = ComputeCost.of(
        num_parameters=count_parameters(config),
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        seq_length=batch.seq_length,
        device_name=None,
    )
    return Plan(
        name=configuration.run.experiment_name,
        config=config,
        vocabulary=origin,
        num_parameters=count_parameters(config),
        rank_parameters=shard.num_parameters(),
        engine=engine.words,
        zero_stage=engine.stage,
        layout=layout,
        batch=batch,
        width=width,
        num_targets=num_targets,
        num_updates=configuration.run.train_iters,
        memory=RankMemory(engine.states, amounts, config.checkpoint_activations, engine.arithmetic.on_gpu),
        host=host_memory(shard, engine.states, optimizer=optimizer, data_parallel_size=ranks, **on_disk),
        checkpoint_bytes=layout.tensor_parallel_size * saved,
        checkpoints=configuration.checkpoint.keep,
        flops_per_token=cost.flops_per_token,
        in_memory=configuration.corpus.in_memory,
        notices=(*engine.notices, *_refusals(configuration, ranks=ranks)),
    )


def _refusals(configuration: PretrainingConfiguration, *, ranks: int) -> tuple[str, ...]:
    """Return what would stop the run once it reads its data."""
    scatter = configuration.corpus.scatter
    if scatter is None or (scatter > 0 and ranks % scatter == 0):
        return ()
    return (f"warning: this run will not start: --loader-scatter {scatter} is no divisor of its {ranks} data ranks",)


def print_plan(configuration: PretrainingConfiguration, *, notices: Sequence[str]) -> int:
    """Print the plan of a run, on its first rank alone; return the exit code."""
    if configuration.device.rank == 0:
        print(*notices, make_plan(configuration).report(), sep="\n", flush=True)
    return 0


@dataclass(frozen=True)
class _Engine:
    """An engine that is not built: in words, and what it does to memory; ``stage`` is 0 without ZeRO."""

    words: str
    states: States
    stage: int
    arithmetic: Arithmetic
    notices: tuple[str, ...]


def _torch_engine(
    configuration: PretrainingConfiguration, shard: GLMModel, *, ranks: int, device: torch.device
) -> _Engine:
    precision, warning = supported_precision(configuration.precision, device=device)
    words = "torch, DistributedDataParallel" if ranks > 1 else "torch"
    words += ", fp32" if precision == "fp32" else f", fp32 parameters, {precision} autocast"
    states = torch_states(shard, optimizer=configuration.optimizer.name, precision=precision)
    arithmetic = Arithmetic(FP32, _size(precision), on_gpu=device.type != "cpu")
    return _Engine(words, states, 0, arithmetic, (warning,) if warning else ())


def _deepspeed_engine(
    configuration: PretrainingConfiguration, shard: GLMModel, *, ranks: int, device: torch.device
) -> _Engine:
    plan = deepspeed_plan(
        configuration.deepspeed_content or {},
        batch_size=configuration.batch.batch_size,
        accumulation_steps=configuration.batch.accumulation_steps,
        optimizer=configuration.optimizer,
        precision=configuration.precision,
        device=device,
    )
    notices = plan.notices
    if find_spec("deepspeed") is None:
        notices += ("warning: DeepSpeed is not installed here; where it is missing the torch engine runs instead",)
    states = deepspeed_states(
        shard,
        optimizer=configuration.optimizer.name,
        precision=plan.precision,
        zero=plan.config["zero_optimization"],
        data_parallel_size=ranks,
    )
    words = f"DeepSpeed, ZeRO stage {plan.stage}, {plan.precision} parameters"
    words += "" if plan.precision == "fp32" else " with fp32 masters"
    words += ", partly offloaded to the host" if states.host else ""
    size = _size(plan.precision)
    return _Engine(words, states, plan.stage, Arithmetic(size, size, on_gpu=device.type != "cpu"), notices)


def _size(precision: str) -> int:
    return FP32 if precision == "fp32" else HALF


# What the table of docs/scaling.md lists: released model, launch configuration, flags beside it, GPUs, tensor-parallel
# size, and whether the optimizer is offloaded.
WORDS = ("--bert-prob", "1.0")
WORDS_AND_DOCUMENTS = ("--bert-prob", "0.5")
ALL_OBJECTIVES = ("--bert-prob", "0.5", "--gap-sentence-prob", "0.3", "--task-mask")


@dataclass(frozen=True)
class Recipe:
    """One line of the table."""

    released: str
    json: str
    objectives: tuple[str, ...]
    num_gpus: int
    tensor_parallel_size: int = 1
    offload: bool = False

    def plan(self) -> Plan:
        """Plan the run as ``scripts/ds_pretrain_nvidia.sh`` would start it."""
        released = RELEASED_MODELS[self.released]
        config = released.config
        words = {
            "--num-layers": config.num_layers,
            "--hidden-size": config.hidden_size,
            "--num-attention-heads": config.num_attention_heads,
            "--max-position-embeddings": config.max_position_embeddings,
            "--tokenizer-type": released.tokenizer_type,
            "--model-parallel-size": self.tensor_parallel_size,
            "--deepspeed_config": CONFIGURATIONS / self.json,
            "--train-data": "corpus",
        }
        flags = ["--block-lm", "--deepspeed", "--checkpoint-activations", *self.objectives]
        flags += [str(word) for pair in words.items() for word in pair]
        parsed = parse_arguments(flags, environment={"WORLD_SIZE": str(self.num_gpus)})
        configuration = pretraining_configuration(parsed, date="")
        if self.offload:
            content = dict(configuration.deepspeed_content or {})
            content["zero_optimization"] = {**content["zero_optimization"], "offload_optimizer": {"device": "cpu"}}
            configuration = replace(configuration, deepspeed_content=content)
        return make_plan(configuration, vocab_size=config.vocab_size)

    def cells(self) -> list[str]:
        """Return the line's cells, in the order of ``COLUMNS``; memory in GB."""
        plan = self.plan()
        memory, states = plan.memory, plan.memory.states
        sizes = [
            states.parameters, states.gradients, states.optimizer, memory.activations.checkpointed,
            memory.activations.plain, memory.total, plan.host.total, plan.checkpoint_bytes,
        ]  # fmt: skip
        numbers = [f"{size / GB:.1f}" for size in sizes]
        cards = ", ".join(map(str, plan.fitting_cards)) or "none"
        return [
            self.released,
            str(self.num_gpus),
            str(self.tensor_parallel_size),
            f"{plan.zero_stage}{' + offload' if self.offload else ''}",
            f"{plan.batch.batch_size} x {plan.batch.seq_length}",
            *numbers[:6],
            cards,
            *numbers[6:],
        ]


COLUMNS = ("model", "GPUs", "TP", "ZeRO", "micro batch", "parameters", "gradients", "optimizer", "activations",
           "kept instead", "total", "fits GPUs of", "host per rank", "checkpoint")  # fmt: skip
_BASE, _LARGE, _10B = "config_block_base.json", "config_block_large.json", "config_block_10B.json"
RECIPES = (
    Recipe("GLM-Base", _BASE, WORDS, 1),
    Recipe("GLM-Base", _BASE, WORDS, 8),
    Recipe("GLM-Large", _LARGE, WORDS, 1),
    Recipe("GLM-Large", _LARGE, WORDS, 8),
    Recipe("GLM-410M", _LARGE, WORDS_AND_DOCUMENTS, 1),
    Recipe("GLM-410M", _LARGE, WORDS_AND_DOCUMENTS, 8),
    Recipe("GLM-515M", _LARGE, WORDS_AND_DOCUMENTS, 1),
    Recipe("GLM-515M", _LARGE, WORDS_AND_DOCUMENTS, 8),
    Recipe("GLM-2B", _10B, ALL_OBJECTIVES, 1),
    Recipe("GLM-2B", _10B, ALL_OBJECTIVES, 8),
    Recipe("GLM-2B", _10B, ALL_OBJECTIVES, 16),
    Recipe("GLM-10B", _10B, ALL_OBJECTIVES, 1, offload=True),
    Recipe("GLM-10B", _10B, ALL_OBJECTIVES, 8),
    Recipe("GLM-10B", _10B, ALL_OBJECTIVES, 8, tensor_parallel_size=2),
    Recipe("GLM-10B", _10B, ALL_OBJECTIVES, 8, tensor_parallel_size=4),
    Recipe("GLM-10B", _10B, ALL_OBJECTIVES, 64),
    Recipe("GLM-10B", _10B, ALL_OBJECTIVES, 64, tensor_parallel_size=2),
    Recipe("GLM-10B", _10B, ALL_OBJECTIVES, 256),
)


def memory_table() -> str:
    """Return the table of docs/scaling.md in Markdown."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *(recipe.cells() for recipe in RECIPES)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", required=True, help="print the memory table in Markdown")
    parser.parse_args()
    print(memory_table())
    return 0


if __name__ == "__main__":
    run_main(main)
