"""Bytes that a rank needs: parameters, gradients and optimizer counted, activations and temporary memory estimated.

What is counted comes from the model itself, built on the meta device. What is estimated is the sum of the tensors that
autograd keeps, layer by layer; tests/training/test_planning.py compares it with what autograd does keep.

b micro batch, s width of the batch, h hidden, n heads of the model, v vocabulary, t tensor-parallel size
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.attention import FUSED_FROM_KEY_LENGTH
from mpu.initialize import ParallelTopology

FP32, HALF, BYTE = 4, 2, 1
# CUDA context, kernels and the buffers of NCCL; then the share of the rest that the allocator cannot use.
FIXED_GPU_BYTES = 1_500_000_000
FRAGMENTATION = 0.05
PROCESS_BYTES = 2_000_000_000  # of the interpreter, torch and its libraries on the host
# DeepSpeed's defaults for what its file does not say.
BUCKET_ELEMENTS = 500_000_000
LIVE_ELEMENTS = 1_000_000_000


def shard_of_rank(config: GLMConfig, *, tensor_parallel_size: int, rank: int = 0) -> GLMModel:
    """Build the shard of one tensor-parallel rank on the meta device: shapes without memory.

    Raises ValueError when the sizes cannot be cut into that many parts.
    """
    topology = ParallelTopology(
        rank=rank,
        world_size=tensor_parallel_size,
        model_parallel_size=tensor_parallel_size,
        model_parallel_rank=rank,
        data_parallel_size=1,
        data_parallel_rank=0,
    )
    return GLMModel(config, topology=topology, device="meta")


@dataclass(frozen=True)
class Arithmetic:
    """Bytes per element of a forward pass, and how attention is computed.

    Attributes:
        residual: of the stream between the layers (fp32 under autocast).
        compute: of the inputs of matrix products.
        on_gpu: the fused attention kernel is always used.
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
    config: GLMConfig,
    arithmetic: Arithmetic,
    *,
    batch_size: int,
    width: int,
    tensor_parallel_size: int,
    num_queries: int | None = None,
) -> int:
    """Return the bytes that one layer keeps for its backward pass.

    ``num_queries`` of a row have an output (None: all); in the last layer those are the targets. Legend of the sum: the
    inputs of two LayerNorms; the inputs of the four matrix products (h, h/t, h, 4h/t) and of GELU (4h/t); query, key
    and value (3h/t); attention; two dropout masks of a byte.
    """
    t, compute = tensor_parallel_size, arithmetic.compute
    num_queries = width if num_queries is None else num_queries
    stream = batch_size * width * config.hidden_size  # elements of [b,s,h]
    queries = batch_size * num_queries * config.hidden_size
    square = batch_size * num_queries * width  # of the scores of a head
    heads = config.num_attention_heads // t
    kept = (stream + queries) * (arithmetic.residual + compute) + (2 * stream + queries) // t * compute
    kept += (1 + 4 + 4) * (queries // t) * compute
    if arithmetic.is_fused(width=width, dropout=config.attention_dropout):
        # The log of each row's sum, and the mask in additive form, which the kernel makes anew in every layer.
        kept += heads * batch_size * num_queries * FP32 + square * compute
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
    t, sizes = tensor_parallel_size, {"batch_size": batch_size, "width": width}
    layer = layer_activations(config, arithmetic, **sizes, tensor_parallel_size=t)
    num_queries = width if config.relative_encoding else min(width, -(-num_targets // batch_size))
    last_layer = layer_activations(config, arithmetic, **sizes, tensor_parallel_size=t, num_queries=num_queries)
    stream = batch_size * width * config.hidden_size
    logits = num_targets * config.vocab_size // t * FP32
    # The dropout mask of the embeddings, the input of the last LayerNorm, the inputs of the projection, the
    # probabilities.
    ends = batch_size * num_queries * config.hidden_size * arithmetic.residual
    ends += num_targets * config.hidden_size * arithmetic.compute + logits
    if config.embedding_dropout > 0.0:
        ends += stream * BYTE
    chunk = min(config.checkpoint_num_layers, config.num_layers)
    num_chunks = -(-config.num_layers // chunk)
    return Activations(
        plain=(config.num_layers - 1) * layer + last_layer + ends,
        checkpointed=num_chunks * stream * arithmetic.residual + chunk * layer + ends,
        temporary=max(2 * logits, 2 * 4 * stream // t * arithmetic.compute),
    )


@dataclass(frozen=True)
class States:
    """Bytes of a rank's parameters, gradients and optimizer, and what comes and goes around an update.

    Attributes:
        parameters: on the GPU for good.
        casts: copies in half precision that autocast keeps during a forward pass.
        gradients: on the GPU.
        optimizer: fp32 masters and moments on the GPU.
        buffers: buckets of collectives, parameters gathered by ZeRO stage 3.
        step: temporary memory of an update, when activations are gone.
        start: the weights on the GPU before DeepSpeed takes them over.
        host: what is offloaded to the host.
    """

    parameters: int
    casts: int
    gradients: int
    optimizer: int
    buffers: int
    step: int
    start: int
    host: int


def moments_of(shard: GLMModel, *, optimizer: str) -> int:
    """Return the elements of the optimizer's state for the parameters of ``shard``."""
    if optimizer == "adam":
        return 2 * shard.num_parameters()
    # Adafactor: rows and columns of matrices.
    return sum(sum(p.shape) if p.dim() >= 2 else p.numel() for p in shard.parameters())


def torch_states(shard: GLMModel, *, optimizer: str, precision: str) -> States:
    """Count the torch engine's states: everything in fp32 on every data rank, gradients in the buckets of DDP."""
    count = shard.num_parameters()
    cast = sum(p.numel() for name, p in shard.named_parameters() if "position" not in name and "norm" not in name)
    return States(
        parameters=FP32 * count,
        casts=0 if precision == "fp32" else HALF * cast,
        gradients=FP32 * count,
        optimizer=FP32 * moments_of(shard, optimizer=optimizer),
        buffers=0,
        step=0,
        start=FP32 * count,
        host=0,
    )


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
    count, ranks, stage = shard.num_parameters(), data_parallel_size, zero["stage"]
    size = FP32 if precision == "fp32" else HALF
    bucket = min(_elements(zero, "reduce_bucket_size", BUCKET_ELEMENTS), count) * size
    if stage == 0:
        plain = torch_states(shard, optimizer=optimizer, precision="fp32")
        return States(**{**vars(plain), "buffers": bucket if ranks > 1 else 0})
    share = -(-count // ranks)
    masters = share * zero_bytes(optimizer)
    gradients = (count if stage == 1 else share) * size
    step = share * FP32  # the gradients of the share in fp32
    parameters = (count if stage < 3 else share) * size
    buffers = bucket * (2 if zero.get("overlap_comm", stage == 3) else 1)
    if stage == 3:
        buffers += min(_elements(zero, "stage3_max_live_parameters", LIVE_ELEMENTS), count) * size
    host = 0
    if _offloads(zero, "optimizer"):
        host += masters + step
        masters = step = 0
        gradients = gradients if stage == 1 else 0  # they leave bucket by bucket
    if stage == 3 and _offloads(zero, "param"):
        host += parameters
        parameters = 0
    return States(
        parameters=parameters,
        casts=0,
        gradients=gradients,
        optimizer=masters,
        buffers=buffers,
        step=step,
        start=size * count,
        host=host,
    )


def _elements(zero: Mapping[str, Any], name: str, default: int) -> int:
    value = zero.get(name, default)
    return default if value == "auto" else int(value)


def _offloads(zero: Mapping[str, Any], what: str) -> bool:
    block = zero.get(f"offload_{what}") or {}
    return block.get("device", "none") != "none" or bool(what == "optimizer" and zero.get("cpu_offload"))


@dataclass(frozen=True)
class RankMemory:
    """The memory of one rank's device: states, and the activations of the chosen mode."""

    states: States
    activations: Activations
    checkpointing: bool
    on_gpu: bool = True

    @property
    def kept(self) -> int:
        """Return the bytes of the activations that are kept for the backward pass."""
        return self.activations.checkpointed if self.checkpointing else self.activations.plain

    @property
    def allowance(self) -> int:
        """Return what the CUDA context (on a CPU the process itself) and fragmentation take."""
        return (FIXED_GPU_BYTES if self.on_gpu else PROCESS_BYTES) + int(FRAGMENTATION * self.peak)

    @property
    def total(self) -> int:
        """Return the peak, allowance included."""
        return self.peak + self.allowance

    @property
    def peak(self) -> int:
        """Return the most that torch holds at once."""
        states = self.states
        lasting = states.parameters + states.gradients + states.optimizer + states.buffers
        passing = max(states.casts + self.kept + self.activations.temporary, states.step)
        return max(lasting + passing, states.start)


@dataclass(frozen=True)
class HostMemory:
    """The memory of one rank's process on the host, without the mapped data store (the page cache holds that).

    Attributes:
        offload: what ZeRO-Offload keeps there.
        building: the fp32 weights, which are made on the host, and one whole matrix.
        saving: the largest piece that is copied from the GPU when a checkpoint is written.
        resuming: what is read before it goes to the GPU.
    """

    offload: int
    building: int
    saving: int
    resuming: int

    @property
    def total(self) -> int:
        """Return the peak."""
        return PROCESS_BYTES + self.offload + max(self.building, self.saving, self.resuming)


def host_memory(
    shard: GLMModel, states: States, *, optimizer: str, stage: int, size: int, data_parallel_size: int
) -> HostMemory:
    """Estimate the host's part; ``stage`` is 0 without ZeRO, ``size`` the bytes per parameter of the model."""
    count, share = shard.num_parameters(), -(-shard.num_parameters() // data_parallel_size)
    config, largest = shard.config, max(parameter.numel() for parameter in shard.parameters())
    if stage == 0:
        saving, resuming = FP32 * largest, states.optimizer
    else:
        saving = max(FP32 * share, size * count if stage == 3 else 0)
        resuming = size * count + zero_bytes(optimizer) * share
    whole = config.vocab_size * config.hidden_size * FP32  # every rank draws it and keeps its part
    return HostMemory(offload=states.host, building=FP32 * count + whole, saving=saving, resuming=resuming)


def checkpoint_bytes(shard: GLMModel, states: States, *, optimizer: str | None, stage: int, size: int) -> int:
    """Return the size on disk of one tensor-parallel rank's part of a checkpoint, ``size`` bytes per weight.

    Without an ``optimizer`` only the weights are saved.
    """
    count = shard.num_parameters()
    if optimizer is None:
        return size * count
    return size * count + (states.optimizer if stage == 0 else zero_bytes(optimizer) * count)
