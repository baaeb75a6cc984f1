"""The plan of a pre-training run: parameters, memory of a rank, tokens, disk and time, before anything is started.

    python pretrain_glm.py ... --dry-run        the plan of that run; GLM_PLAN_WORLD_SIZE=64 plans for 64 ranks
    python -m training.plan --table             the table of docs/scaling.md

No process is started, no data read, nothing written. Bytes of parameters, gradients and optimizer are counted on the
model itself, built on the meta device; activations are the sum of the tensors that autograd keeps, layer by layer, and
tests/training/test_plan.py compares both with what real engines hold.

b micro batch, s width of the batch, h hidden, n heads of the model, v vocabulary, t tensor-parallel size
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from files.errors import run_main
from model.config import GLMConfig
from model.modeling_glm import QUERY_MULTIPLE, GLMModel, count_parameters
from model.released import RELEASED_MODELS
from mpu.attention import FUSED_FROM_KEY_LENGTH
from mpu.initialize import ParallelTopology
from mpu.mappings import any_rank
from training.arguments import parse_settings
from training.data import build_run_tokenizer
from training.deepspeed.config import deepspeed_plan
from training.engine import supported_precision
from training.metrics import PEAK_FLOPS, ComputeCost
from training.settings import BatchSettings, BlankSettings, PretrainingSettings, Settings

logger = logging.getLogger("glm")

FP32, HALF, BYTE = 4, 2, 1
GB = 1e9
CARDS = (24, 40, 80, 141)  # GB of known GPUs, taken as 10^9 bytes
PLANNED_MFU = 0.4
PLANNED_GPUS = ("A100", "H100")
TOKENS_PER_SENTENCE = 16  # for the width of sentence blanks; an assumption
# CUDA context, kernels and the buffers of NCCL (on a CPU: the process and its libraries); then the share of the rest
# that the allocator cannot use.
FIXED_GPU_BYTES, FIXED_CPU_BYTES = 1_500_000_000, 2_000_000_000
FRAGMENTATION = 0.05
# DeepSpeed's defaults for what its file does not say.
BUCKET_ELEMENTS = 500_000_000
LIVE_ELEMENTS = 1_000_000_000


# The time of a step with recomputed activations, as a share of one without: a forward pass more.
RECOMPUTED_STEP = 4 / 3


# Parameters, gradients and optimizer


def shard_of_rank(config: GLMConfig, *, tensor_parallel_size: int, rank: int = 0) -> GLMModel:
    """Build the shard of one tensor-parallel rank on the meta device: shapes without memory.

    Raises ValueError when the sizes cannot be cut into that many parts.
    """
    topology = replace(
        ParallelTopology.single(),
        rank=rank,
        world_size=tensor_parallel_size,
        model_parallel_size=tensor_parallel_size,
        model_parallel_rank=rank,
    )
    return GLMModel(config, topology=topology, device="meta")


@dataclass(frozen=True)
class States:
    """Bytes of a rank's parameters, gradients and optimizer, and what comes and goes around an update.

    Attributes:
        parameters, gradients, optimizer: on the device for good; ``optimizer`` is fp32 masters and moments.
        casts: copies in half precision that autocast keeps during a forward pass.
        buffers: buckets of collectives, parameters gathered by ZeRO stage 3.
        step: temporary memory of an update, when activations are gone.
        start: the weights on the device before ZeRO shares them.
        offloaded: what ZeRO keeps on the host instead.
    """

    parameters: int
    gradients: int
    optimizer: int
    casts: int = 0
    buffers: int = 0
    step: int = 0
    start: int = 0
    offloaded: int = 0


def torch_states(
    shard: GLMModel, *, optimizer: str, precision: str, bf16_params: bool = False, spread_over: int = 1
) -> States:
    """Count the torch engine's states: everything in fp32 on every data rank, gradients in the buckets of DDP.

    With ``bf16_params`` parameters and gradients are bf16, and parameters have fp32 masters. Spread over several data
    ranks (``--fsdp``), a share of it; whole are two layers and a layer's gradients, in the precision of the products,
    and what is outside of the layers, in fp32.
    """
    count = shard.num_parameters()
    moments = 2 * count
    if optimizer != "adam":  # Adafactor: rows and columns of matrices
        moments = sum(sum(p.shape) if p.dim() >= 2 else p.numel() for p in shard.parameters())
    if bf16_params:
        return States(
            (FP32 + HALF) * count, HALF * count, FP32 * moments, step=FP32 * count, start=(FP32 + HALF) * count
        )
    cast = sum(p.numel() for name, p in shard.named_parameters() if "position" not in name and "norm" not in name)
    casts = 0 if precision == "fp32" else HALF * cast
    if spread_over > 1:
        outside = sum(p.numel() for name, p in shard.named_parameters() if ".layers." not in name)
        layer = (count - outside) // shard.config.num_layers
        buffers = 2 * FP32 * outside + 3 * bytes_of(precision) * layer
        share = FP32 * -(-count // spread_over)
        casts = 0 if precision == "fp32" else HALF * shard.word_embeddings.weight.numel()
        return States(share, share, FP32 * moments // spread_over, casts=casts, buffers=buffers, start=share)
    return States(FP32 * count, FP32 * count, FP32 * moments, casts=casts, start=FP32 * count)


def zero_bytes(optimizer: str) -> int:
    """Return the bytes per parameter of an fp32 master and its moments; flat ones, so Adafactor factors nothing."""
    return FP32 * (3 if optimizer == "adam" else 2)


def deepspeed_states(
    shard: GLMModel, *, optimizer: str, precision: str, zero: Mapping[str, Any], data_parallel_size: int
) -> States:
    """Count DeepSpeed's states under the ``zero_optimization`` block ``zero`` (stage 0: fp32, as plain torch).

    ZeRO keeps parameters in the type of ``precision`` and an fp32 master and moments of each data rank's share; stage 2
    shares gradients, stage 3 parameters too.
    """

    def elements(name: str, default: int) -> int:
        value = zero.get(name, default)
        return min(default if value == "auto" else int(value), count)

    def offloads(what: str) -> bool:
        return ((zero.get(f"offload_{what}") or {}).get("device") or "none") != "none"

    count, stage, size = shard.num_parameters(), zero["stage"], bytes_of(precision)
    bucket = elements("reduce_bucket_size", BUCKET_ELEMENTS) * size
    if stage == 0:
        plain = torch_states(shard, optimizer=optimizer, precision="fp32")
        return replace(plain, buffers=bucket if data_parallel_size > 1 else 0)
    share = -(-count // data_parallel_size)
    parameters, masters = (count if stage < 3 else share) * size, share * zero_bytes(optimizer)
    gradients, step = (count if stage == 1 else share) * size, share * FP32  # the share's gradients in fp32
    buffers = bucket * (2 if zero.get("overlap_comm", stage == 3) else 1)
    if stage == 3:
        buffers += elements("stage3_max_live_parameters", LIVE_ELEMENTS) * size
    offloaded = 0
    if offloads("optimizer"):
        offloaded += masters + step
        masters = step = 0
        gradients = gradients if stage == 1 else 0  # they leave bucket by bucket
    if stage == 3 and offloads("param"):
        offloaded += parameters
        parameters = 0
    return States(parameters, gradients, masters, 0, buffers, step, start=size * count, offloaded=offloaded)


def bytes_of(precision: str) -> int:
    return FP32 if precision == "fp32" else HALF


def checkpoint_bytes(shard: GLMModel, states: States, *, optimizer: str | None, stage: int, size: int) -> int:
    """Return the size on disk of one tensor-parallel rank's part of a checkpoint, ``size`` bytes per weight.

    Without an ``optimizer`` only the weights are saved; ``stage`` is 0 without ZeRO.
    """
    count = shard.num_parameters()
    if optimizer is None:
        return size * count
    return size * count + (states.optimizer if stage == 0 else zero_bytes(optimizer) * count)


# Activations


@dataclass(frozen=True)
class Arithmetic:
    """Bytes per element of a forward pass, and how attention is computed.

    Attributes:
        residual: of the stream between the layers (fp32 under autocast).
        compute: of the inputs of matrix products.
        on_gpu: the fused attention kernel is always used; in half precision as two calls without a mask
            (mpu/kernels/flash.py), but for the last layer.
    """

    residual: int
    compute: int
    on_gpu: bool = True

    def is_fused(self, *, width: int, dropout: float) -> bool:
        """Tell whether attention keeps no scores (mpu/attention.py)."""
        if self.on_gpu:
            return True
        return dropout == 0.0 and (self.compute == FP32 or width >= FUSED_FROM_KEY_LENGTH)


def layer_activations(
    config: GLMConfig, arithmetic: Arithmetic, *, batch_size: int, width: int, num_queries: int, t: int
) -> int:
    """Return the bytes that one layer keeps for its backward pass; ``num_queries`` of a row have an output.

    Legend of the sum: the inputs of two LayerNorms; the inputs of the four matrix products (h, h/t, h, 4h/t) and of
    GELU (4h/t); query, key and value (3h/t); attention; two dropout masks of a byte.
    """
    compute = arithmetic.compute
    stream = batch_size * width * config.hidden_size  # elements of [b,s,h]
    queries = batch_size * num_queries * config.hidden_size
    square = batch_size * num_queries * width  # of the scores of a head
    heads = config.num_attention_heads // t
    kept = (stream + queries) * (arithmetic.residual + compute) + (2 * stream + queries) // t * compute
    kept += (1 + 4 + 4) * (queries // t) * compute
    if arithmetic.is_fused(width=width, dropout=config.attention_dropout):
        kept += heads * batch_size * num_queries * FP32  # the log of each row's sum
        if not arithmetic.on_gpu:
            kept += square * compute  # the mask in additive form, which the kernel makes anew in every layer
        elif compute == HALF and num_queries == width:
            kept += 4 * (stream // t) * compute  # queries, keys, values and outputs in the order of the calls, at most
        if num_queries < width:
            kept += stream // t * compute  # key and value stay parts of the product that held all three
    elif config.attention_dropout > 0.0:
        kept += heads * square * (2 * compute + BYTE)
    else:
        kept += heads * square * compute
    if config.output_dropout > 0.0:
        kept += 2 * queries * BYTE
    return kept


@dataclass(frozen=True)
class Activations:
    """Bytes of the activations of one micro batch.

    Attributes:
        plain: all that is kept for the backward pass without activation checkpointing.
        checkpointed: with it: the inputs of the chunks and what one chunk keeps while it is computed again.
        temporary: gradients of the largest activations while the backward pass is there.
    """

    plain: int
    checkpointed: int
    temporary: int


def activations(
    config: GLMConfig,
    arithmetic: Arithmetic,
    *,
    batch_size: int,
    width: int,
    num_targets: int,
    tensor_parallel_size: int = 1,
) -> Activations:
    """Estimate the activations of one micro batch of ``width`` positions with ``num_targets`` targets in all rows."""
    t = tensor_parallel_size
    num_queries = -(-num_targets // batch_size)  # in the last layer
    if arithmetic.on_gpu:
        num_queries = -(-num_queries // QUERY_MULTIPLE) * QUERY_MULTIPLE
    num_queries = width if config.relative_encoding else min(width, num_queries)
    layer, last_layer = (
        layer_activations(config, arithmetic, batch_size=batch_size, width=width, num_queries=number, t=t)
        for number in (width, num_queries)
    )
    stream = batch_size * width * config.hidden_size
    logits = num_targets * config.vocab_size // t * FP32
    # The input of the last LayerNorm, the inputs of the projection, the probabilities, the embeddings' dropout mask.
    ends = batch_size * num_queries * config.hidden_size * arithmetic.residual
    ends += num_targets * config.hidden_size * arithmetic.compute + logits
    if config.embedding_dropout > 0.0:
        ends += stream * BYTE
    if arithmetic.on_gpu:
        # Masks are made once a step: a byte for a query and a key, and for some kernels what is added to the score.
        added = arithmetic.compute
        ends += batch_size * width * width * (BYTE + (added if added == FP32 else 0))
        ends += batch_size * num_queries * width * (BYTE + added) if num_queries < width else 0
    chunk = min(config.checkpoint_num_layers, config.num_layers)
    num_chunks = -(-config.num_layers // chunk)
    return Activations(
        plain=(config.num_layers - 1) * layer + last_layer + ends,
        checkpointed=num_chunks * stream * arithmetic.residual + chunk * layer + ends,
        temporary=max(2 * logits, 2 * 4 * stream // t * arithmetic.compute),
    )


def batch_shape(blank: BlankSettings, batch: BatchSettings) -> tuple[int, int]:
    """Return the width of a row and the targets of a micro batch, the most that any objective in the mix makes.

    Every blank adds its mask and its start token to a row, and its end token to the targets.
    """
    length, widths, targets = batch.seq_length, [], []
    for share, ratio, blank_length in (
        (blank.bert_prob, blank.bert_ratio, blank.avg_block_length),
        (blank.gap_sentence_prob, blank.gap_sentence_ratio, TOKENS_PER_SENTENCE),
        (1.0 - blank.bert_prob - blank.gap_sentence_prob, 1.0, length),
    ):
        if share > 1e-9:
            num_blanks = max(1.0, ratio * length / blank_length)
            widths.append(length + 2 * num_blanks)
            targets.append(ratio * length + num_blanks)
    return round(max(widths)), round(batch.batch_size * max(targets))


# The plan


@dataclass(frozen=True)
class Plan:
    """A resolved run.

    Attributes:
        configuration: its settings. ``config``: the model. ``vocabulary``: where its size comes from.
        num_parameters: of the whole model; ``rank_parameters`` those a tensor-parallel rank holds.
        engine: in words; ``zero_stage`` is 0 without ZeRO.
        width, num_targets: positions of a row and targets of a micro batch, at most.
        states, activations: bytes on one rank. ``checkpoint_bytes``: on disk, all ranks.
        flops_per_token: forward and backward; recomputation is not counted.
        notices: what to know before starting.
    """

    configuration: PretrainingSettings
    config: GLMConfig
    vocabulary: str
    num_parameters: int
    rank_parameters: int
    engine: str
    zero_stage: int
    width: int
    num_targets: int
    on_gpu: bool
    states: States
    activations: Activations
    checkpoint_bytes: int
    flops_per_token: float
    notices: tuple[str, ...]

    @property
    def data_parallel_size(self) -> int:
        return self.configuration.device.world_size // self.configuration.device.model_parallel_size

    @property
    def tokens_per_update(self) -> int:
        """Return the text tokens of one update over all data ranks."""
        batch = self.configuration.batch
        return batch.batch_size * batch.gradient_accumulation_steps * self.data_parallel_size * batch.seq_length

    @property
    def recomputes(self) -> bool:
        """Tell whether activations are recomputed; with ``auto`` they are on GPUs that are too small otherwise."""
        chosen = self.configuration.model.checkpoint_activations
        return chosen is True or (chosen == "auto" and self.on_gpu)

    @property
    def kept_activations(self) -> int:
        """Return the bytes of the activations that are kept for the backward pass."""
        return self.activations.checkpointed if self.recomputes else self.activations.plain

    @property
    def memory(self) -> int:
        """Return what one rank needs, at most; with ``auto`` what it needs at least."""
        return self.memory_with(self.kept_activations)

    def memory_with(self, kept_activations: int) -> int:
        """Return the peak of one rank's device in bytes, with the CUDA context (or process) and fragmentation."""
        states = self.states
        lasting = states.parameters + states.gradients + states.optimizer + states.buffers
        passing = max(states.casts + kept_activations + self.activations.temporary, states.step)
        peak = max(lasting + passing, states.start)
        return peak + int(FRAGMENTATION * peak) + (FIXED_GPU_BYTES if self.on_gpu else FIXED_CPU_BYTES)

    @property
    def fitting_cards(self) -> tuple[int, ...]:
        """Return the known GPU sizes, in GB, that one rank fits on."""
        return tuple(card for card in CARDS if self.memory <= card * GB)

    def seconds(self, num_updates: int, *, gpu: str) -> float:
        """Return the time that ``num_updates`` take on GPUs of that name at ``PLANNED_MFU``."""
        rate = PEAK_FLOPS[gpu] * PLANNED_MFU * self.configuration.device.world_size
        return self.flops_per_token * self.tokens_per_update * num_updates / rate

    def report(self) -> str:
        config, batch, devices, states = self.config, self.configuration.batch, self.configuration.device, self.states
        updates, keep = self.configuration.run.train_iters, self.configuration.checkpoint.keep_checkpoints
        size, steps = self.activations, batch.gradient_accumulation_steps
        share = "" if devices.model_parallel_size == 1 else f", {self.rank_parameters:,} on each tensor rank"
        factors = f"{batch.batch_size} x {steps} x {self.data_parallel_size} x {batch.seq_length}"
        kept, other, alternative = "kept", "recomputed", size.checkpointed
        if self.recomputes:
            kept, other, alternative = "recomputed", "kept", size.plain
        saved = in_gb(size.plain - size.checkpointed)
        costs = f"recomputing costs {RECOMPUTED_STEP - 1:.0%} more time, keeping {saved} more memory"
        if self.configuration.model.checkpoint_activations == "auto":
            costs += (
                f"; auto keeps them on GPUs with {in_gb(self.memory_with(size.plain))}"
                if self.on_gpu
                else "; auto keeps them on a CPU, whose memory is not planned for"
            )
        cards = ", ".join(f"{card} GB" for card in self.fitting_cards)
        fits = f": fits GPUs of {cards}" if cards else f": fits no GPU of up to {CARDS[-1]} GB"
        times = ", ".join(f"{about(self.seconds(updates or 1000, gpu=gpu))} on {gpu}" for gpu in PLANNED_GPUS)
        rows = [
            ("model", f"{self.num_parameters:,} parameters{share}: {config.num_layers} layers, hidden "
                      f"{config.hidden_size}, {config.num_attention_heads} heads, {config.max_position_embeddings} "
                      "positions"),
            ("vocabulary", f"{config.vocab_size:,} ({self.vocabulary})"),
            ("engine", self.engine),
            ("layout", f"{devices.world_size} ranks = {devices.model_parallel_size} tensor-parallel x "
                       f"{self.data_parallel_size} data-parallel; neighbours share a model"),
            ("update", f"{self.tokens_per_update:,} tokens = {factors}: "
                       "micro batch x accumulation x data ranks x length"),
            ("run", f"{updates:,} updates, {updates * self.tokens_per_update:,} tokens"),
            ("memory", f"of one rank's {'GPU' if self.on_gpu else 'process'}, at most {in_gb(self.memory)}"
                       + (fits if self.on_gpu else "")),
            ("", f"{in_gb(states.parameters)} parameters, {in_gb(states.gradients)} gradients, "
                 f"{in_gb(states.optimizer)} optimizer, {in_gb(states.casts + states.buffers)} casts and buffers, "
                 f"{in_gb(states.offloaded)} offloaded to the host"),
            ("", f"{in_gb(self.kept_activations)} activations, {kept} ({in_gb(alternative)} if {other}), "
                 f"{in_gb(size.temporary)} temporary: {batch.batch_size} rows of {self.width}, "
                 f"{self.num_targets:,} targets"),
            ("", f"{costs} (--checkpoint-activations)"),
            ("checkpoint", f"{in_gb(self.checkpoint_bytes)} on disk, "
                           + ("all are kept" if keep is None else f"{keep} are kept, one more while saving")
                           + " (--keep-checkpoints)"),
            ("compute", f"{self.flops_per_token * self.tokens_per_update:.3g} FLOPs per update; "
                        f"{updates or 1000:,} updates: {times} "
                        f"(assumed: {PLANNED_MFU:.0%} of the half-precision peak)"),
        ]  # fmt: skip
        title = f"plan of {self.configuration.run.experiment_name}: computed, not measured; GB are 10^9 bytes"
        return "\n".join([title, *(f"  {name:<12}{text}" for name, text in rows), *self.notices])


def about(seconds: float) -> str:
    """Return a time in two or three digits and the unit that suits it."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return "a second" if seconds < 2 else f"{seconds:.0f} seconds"


def in_gb(size: float) -> str:
    return f"{size / GB:.2f} GB"


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


def padded_vocabulary(settings: Settings, *, fallback: int) -> tuple[int, str]:
    """Return the rows of the embedding table and where the number comes from.

    It is the tokenizer's, when its files are at hand; else that of the released models with its kind of vocabulary, or
    ``fallback`` (``--vocab-size``) for a SentencePiece model of one's own.
    """
    divisor, kind = settings.tokenizer.make_vocab_size_divisible_by, settings.tokenizer.tokenizer_type
    try:
        with _offline():
            tokenizer = build_run_tokenizer(settings)
        return tokenizer.padded_size(divisor), f"{tokenizer.num_tokens:,} tokens, padded to a multiple of {divisor}"
    except ValueError:
        named = settings.tokenizer.tokenizer_model_type if kind == "ChineseSPTokenizer" else None
        sizes = {released.config.vocab_size for released in RELEASED_MODELS.values()
                 if released.tokenizer_type == kind and (kind != "ChineseSPTokenizer" or
                     Path(released.tokenizer_model_type or "").name == Path(named or "").name)}  # fmt: skip
    if kind == "SentencePieceTokenizer" or not sizes:
        return -(-fallback // divisor) * divisor, "no vocabulary file here; the size is that of --vocab-size"
    size = -(-max(sizes) // divisor) * divisor
    return size, f"no vocabulary files here; the size is that of the released models ({kind})"


def make_plan(configuration: PretrainingSettings, *, vocab_size: int | None = None) -> Plan:
    """Resolve a run: ``configuration.device`` says how many ranks there would be.

    ``vocab_size`` is the padded one (default: the tokenizer's). Raises ValueError for sizes that cannot be cut over the
    ranks, and for a DeepSpeed file that cannot be used.
    """
    devices, batch, optimizer = configuration.device, configuration.batch, configuration.optimizer.optimizer
    world_size, t = devices.world_size, devices.model_parallel_size
    if world_size % t:
        raise ValueError(
            f"{world_size} processes cannot be cut into model-parallel groups of {t}; start a multiple of "
            "--model-parallel-size processes"
        )
    ranks, origin = world_size // t, "given"
    if vocab_size is None:
        vocab_size, origin = padded_vocabulary(configuration, fallback=configuration.values["vocab_size"])
    config = configuration.network(vocab_size=vocab_size)
    shard = shard_of_rank(config, tensor_parallel_size=t)
    device, notices = torch.device("cpu" if devices.device == "cpu" else "cuda"), []
    on_gpu = device.type != "cpu"
    saved = None if configuration.checkpoint.no_save_optim else optimizer
    if configuration.deepspeed_content is None:
        stage = 0
        precision, reason = supported_precision(configuration.precision, device=device)
        notices += [reason] if reason else []
        how = "FSDP2: shared parameters, gradients and moments" if devices.fsdp else "DistributedDataParallel"
        engine = f"torch, {how}" if ranks > 1 else "torch"
        engine += ", fp32" if precision == "fp32" else f", fp32 parameters, {precision} autocast"
        bf16_params = configuration.precision.bf16_params and precision == "bf16"
        if bf16_params:
            engine = engine.replace("fp32 parameters, bf16 autocast", "bf16 parameters with fp32 masters")
        counted: dict[str, Any] = {"optimizer": optimizer, "precision": precision, "bf16_params": bf16_params}
        states = torch_states(shard, **counted, spread_over=ranks if devices.fsdp else 1)
        arithmetic = Arithmetic(HALF if bf16_params else FP32, bytes_of(precision), on_gpu)
        size_on_disk = checkpoint_bytes(shard, torch_states(shard, **counted), optimizer=saved, stage=0, size=FP32)
    else:
        settings = deepspeed_plan(configuration, device=device)
        stage, precision, zero = settings.stage, settings.precision, settings.config["zero_optimization"]
        notices += settings.notices
        if find_spec("deepspeed") is None:
            notices.append(
                "warning: DeepSpeed is not installed here; where it is missing the torch engine runs instead"
            )
        engine = f"DeepSpeed, ZeRO stage {stage}, {precision} parameters"
        engine += "" if precision == "fp32" else " with fp32 masters"
        states = deepspeed_states(shard, optimizer=optimizer, precision=precision, zero=zero, data_parallel_size=ranks)
        arithmetic = Arithmetic(bytes_of(precision), bytes_of(precision), on_gpu)
        size_on_disk = checkpoint_bytes(shard, states, optimizer=saved, stage=stage, size=bytes_of(precision))
    scatter = configuration.corpus.loader_scatter
    scatter = None if scatter is None else min(scatter, ranks)
    if scatter is not None and (scatter <= 0 or ranks % scatter):
        notices.append(
            f"warning: this run will not start: --loader-scatter {scatter} does not divide its {ranks} data ranks"
        )
    width, num_targets = batch_shape(configuration.blank, batch)
    shape = {"batch_size": batch.batch_size, "width": width, "num_targets": num_targets}
    cost = ComputeCost.of(
        num_parameters=count_parameters(config),
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        seq_length=batch.seq_length,
        device_name=None,
    )
    return Plan(
        configuration=configuration,
        config=config,
        vocabulary=origin,
        num_parameters=count_parameters(config),
        rank_parameters=shard.num_parameters(),
        engine=engine,
        zero_stage=stage,
        width=width,
        num_targets=num_targets,
        on_gpu=on_gpu,
        states=states,
        activations=activations(config, arithmetic, **shape, tensor_parallel_size=t),
        checkpoint_bytes=t * size_on_disk,
        flops_per_token=cost.flops_per_token,
        notices=tuple(notices),
    )


def choose_recomputation(
    configuration: PretrainingSettings, *, vocab_size: int, topology: ParallelTopology, device: torch.device
) -> PretrainingSettings:
    """Turn ``--checkpoint-activations auto`` of the settings into on or off, and say which; every rank has to call it.

    Activations are recomputed where the plan needs more than the memory of some rank's GPU. That of a CPU is not known.
    """
    if configuration.model.checkpoint_activations != "auto":
        return configuration
    recompute, reason = False, "the memory of a CPU is not planned for (--checkpoint-activations recomputes them)"
    if device.type == "cuda":
        made, size = (
            make_plan(configuration, vocab_size=vocab_size),
            torch.cuda.get_device_properties(device).total_memory,
        )
        needed = made.memory_with(made.activations.plain)
        recompute = any_rank(needed > size, topology=topology, device=device)
        reason = f"all of them would make it {in_gb(needed)}, and the GPU has {in_gb(size)}"
    logger.info(f"activations are {'recomputed' if recompute else 'kept'}: {reason}")
    return replace(configuration, model=replace(configuration.model, checkpoint_activations=recompute))


def print_plan(configuration: PretrainingSettings) -> int:
    """Print the plan of a run, on its first rank alone; return the exit code."""
    if configuration.device.rank == 0:
        print(*configuration.notices, make_plan(configuration).report(), sep="\n", flush=True)
    return 0


# The table of docs/scaling.md: released model, launch configuration, GPUs, tensor-parallel size, optimizer offloaded
RECIPES = (
    ("GLM-Base", "config_block_base.json", 1, 1, False),
    ("GLM-Base", "config_block_base.json", 8, 1, False),
    ("GLM-Large", "config_block_large.json", 1, 1, False),
    ("GLM-Large", "config_block_large.json", 8, 1, False),
    ("GLM-410M", "config_block_large.json", 1, 1, False),
    ("GLM-410M", "config_block_large.json", 8, 1, False),
    ("GLM-515M", "config_block_large.json", 1, 1, False),
    ("GLM-515M", "config_block_large.json", 8, 1, False),
    ("GLM-2B", "config_block_10B.json", 1, 1, False),
    ("GLM-2B", "config_block_10B.json", 8, 1, False),
    ("GLM-2B", "config_block_10B.json", 16, 1, False),
    ("GLM-10B", "config_block_10B.json", 1, 1, True),
    ("GLM-10B", "config_block_10B.json", 8, 1, False),
    ("GLM-10B", "config_block_10B.json", 8, 2, False),
    ("GLM-10B", "config_block_10B.json", 8, 4, False),
    ("GLM-10B", "config_block_10B.json", 64, 1, False),
    ("GLM-10B", "config_block_10B.json", 64, 2, False),
    ("GLM-10B", "config_block_10B.json", 256, 1, False),
)
OBJECTIVE_FLAGS = {"GLM-Base": "--bert-prob 1", "GLM-Large": "--bert-prob 1", "GLM-410M": "--bert-prob 0.5",
              "GLM-515M": "--bert-prob 0.5"}  # fmt: skip
ALL_OBJECTIVES = "--bert-prob 0.5 --gap-sentence-prob 0.3 --task-mask"
COLUMNS = ("model", "GPUs", "TP", "ZeRO", "micro batch", "parameters", "gradients", "optimizer", "activations",
           "kept instead", "total", "fits GPUs of", "checkpoint")  # fmt: skip


def recipe_cells(name: str, file: str, num_gpus: int, tensor_parallel_size: int, offload: bool) -> list[str]:
    """Plan a line of the table as ``scripts/ds_pretrain_nvidia.sh`` would start it; return its cells, memory in GB."""
    released = RELEASED_MODELS[name]
    config, path = released.config, Path(__file__).resolve().parent.parent / "config" / file
    flags = f"""--block-lm --deepspeed --checkpoint-activations {OBJECTIVE_FLAGS.get(name, ALL_OBJECTIVES)}
        --num-layers {config.num_layers} --hidden-size {config.hidden_size}
        --num-attention-heads {config.num_attention_heads} --max-position-embeddings {config.max_position_embeddings}
        --tokenizer-type {released.tokenizer_type} --model-parallel-size {tensor_parallel_size} --train-data corpus"""
    words = [*flags.split(), "--deepspeed_config", str(path)]
    configuration = parse_settings(PretrainingSettings, words, environment={"WORLD_SIZE": str(num_gpus)})
    if offload:
        content = dict(configuration.deepspeed_content or {})
        content["zero_optimization"] = {**content["zero_optimization"], "offload_optimizer": {"device": "cpu"}}
        configuration = replace(configuration, deepspeed_content=content)
    plan = make_plan(configuration, vocab_size=config.vocab_size)
    states, amounts, batch = plan.states, plan.activations, configuration.batch
    sizes = [states.parameters, states.gradients, states.optimizer, amounts.checkpointed, amounts.plain, plan.memory]
    stage, shape = f"{plan.zero_stage}{' + offload' if offload else ''}", f"{batch.batch_size} x {batch.seq_length}"
    numbers, cards = [f"{size / GB:.1f}" for size in sizes], ", ".join(map(str, plan.fitting_cards)) or "none"
    checkpoint = f"{plan.checkpoint_bytes / GB:.1f}"
    return [name, str(num_gpus), str(tensor_parallel_size), stage, shape, *numbers, cards, checkpoint]


def memory_table() -> str:
    """Return the table of docs/scaling.md in Markdown."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *(recipe_cells(*recipe) for recipe in RECIPES)]
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
