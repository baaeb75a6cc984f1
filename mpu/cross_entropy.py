"""Cross entropy over a vocabulary that is cut over the model-parallel ranks, and from hidden states in bounded memory.

n tokens, h hidden, v vocabulary, t tensor-parallel size
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from mpu.initialize import ParallelTopology
from mpu.mappings import all_reduce

LARGE_VOCABULARY = 100_000  # from that many rows on a loss is computed in chunks
CHUNK_ELEMENTS = 1 << 26  # logits of this rank at a time: 256 MB in fp32


class _VocabParallelCrossEntropy(Function):
    """loss = log(sum of exp) - target logit, of logits shifted by their maximum over all shards.

    With label smoothing e the target logit becomes (1 - e) target logit + e mean logit.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target_ids: Tensor, topology: ParallelTopology, label_smoothing: float
    ) -> Tensor:
        width = logits.size(-1)
        maximum = all_reduce(logits.max(dim=-1).values, topology, operation=dist.ReduceOp.MAX)  # [...]
        shifted = logits - maximum.unsqueeze(-1)  # [...,v/t]
        local_ids = target_ids - topology.model_parallel_rank * width
        foreign = (local_ids < 0) | (local_ids >= width)
        local_ids = local_ids.masked_fill(foreign, 0).unsqueeze(-1)
        target_logits = shifted.gather(-1, local_ids).squeeze(-1).masked_fill(foreign, 0.0)
        uniform = label_smoothing / (width * topology.model_parallel_size)  # share of every id of the vocabulary
        if label_smoothing:
            target_logits = (1.0 - label_smoothing) * target_logits + uniform * shifted.sum(dim=-1)
        target_logits = all_reduce(target_logits, topology)
        probabilities = shifted.exp_()
        total = all_reduce(probabilities.sum(dim=-1), topology)
        probabilities.div_(total.unsqueeze(-1))
        ctx.save_for_backward(probabilities, local_ids, foreign)
        ctx.label_smoothing, ctx.uniform = label_smoothing, uniform
        return total.log() - target_logits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        probabilities, local_ids, foreign = ctx.saved_tensors
        upstream = gradient.unsqueeze(-1)
        logit_gradient = probabilities * upstream
        if ctx.uniform:
            logit_gradient -= ctx.uniform * upstream
        at_target = (1.0 - ctx.label_smoothing) * upstream.masked_fill(foreign.unsqueeze(-1), 0.0)
        return logit_gradient.scatter_add(-1, local_ids, -at_target), None, None, None


def vocab_parallel_cross_entropy(
    logits: Tensor, target_ids: Tensor, *, topology: ParallelTopology, label_smoothing: float = 0.0
) -> Tensor:
    """Return the fp32 loss [...] of every token.

    ``logits`` [...,v/t] is this rank's shard in any floating type; ``target_ids`` [...] are global ids. The sum is
    taken in fp32. No id is ignored: callers mask. With ``label_smoothing`` e it is (1 - e) times the cross entropy plus
    e times the mean of -log-probability over the vocabulary, padding rows included.
    """
    assert logits.shape[:-1] == target_ids.shape, (logits.shape, target_ids.shape)
    with torch.autocast(device_type=logits.device.type, enabled=False):
        if topology.model_parallel_size > 1:
            return _VocabParallelCrossEntropy.apply(logits.float(), target_ids, topology, label_smoothing)
        flat = F.cross_entropy(
            logits.float().flatten(0, -2), target_ids.flatten(), reduction="none", label_smoothing=label_smoothing
        )
    return flat.view(target_ids.shape)


def chunked_loss_sum(
    hidden: Tensor,
    word_table: Tensor,
    target_ids: Tensor,
    weights: Tensor,
    *,
    topology: ParallelTopology,
    label_smoothing: float = 0.0,
    unit_weights: bool = False,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """Return the weighted sum, fp32, of the losses of ``vocab_parallel_cross_entropy`` without all logits at a time.

    ``hidden`` [n,h], ``word_table`` [v/t,h] of this rank, ``target_ids`` and ``weights`` [n]. Of a chunk of tokens the
    logits are made, used and dropped, and made again in the backward pass. ``unit_weights`` says that all weights are
    1: torch's own function does it then, where there is one, for a whole vocabulary in the type of the parameters and
    without smoothing.
    """
    autocast = torch.is_autocast_enabled(hidden.device.type)
    options = getattr(nn, "LinearCrossEntropyOptions", None)
    rows = max(1, chunk_elements // word_table.size(0))
    whole = topology.model_parallel_size == 1 and not autocast
    if options is not None and unit_weights and whole and not label_smoothing:
        return F.linear_cross_entropy(
            hidden,
            word_table,
            target_ids,
            reduction="sum",
            options=options(chunking_method=None, batch_chunk_size=rows),
        ).float()

    def loss_sum(hidden: Tensor, target_ids: Tensor, weights: Tensor) -> Tensor:
        logits = F.linear(hidden, word_table)
        losses = vocab_parallel_cross_entropy(logits, target_ids, topology=topology, label_smoothing=label_smoothing)
        return (losses * weights).sum()

    total = hidden.new_zeros((), dtype=torch.float32)
    for chunk in zip(hidden.split(rows), target_ids.split(rows), weights.split(rows), strict=True):
        total = total + checkpoint(loss_sum, *chunk, use_reentrant=False, preserve_rng_state=False)
    return total
