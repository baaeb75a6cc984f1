"""Score windows, and turn the scores into accuracy and perplexity.

Only positions with a scored target meet the vocabulary; batches are rows of similar length that the data ranks share.

b batch, s sequence, h hidden, n scored positions, v vocabulary, w windows
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from model.modeling_glm import GLMModel, target_positions
from mpu.initialize import ParallelTopology
from tasks.language_model.windows import WindowBatch, WindowTable

PROJECTED_AT_ONCE = 256  # positions whose logits are in memory at the same time; larger blocks are slower on a CPU
LARGEST_LOSS = 20.0  # of a perplexity: it is cut off there, as in the original


@dataclass(frozen=True)
class WindowScores:
    """What a model makes of windows.

    Attributes:
        losses: float64 [w], the sum of a window's scored targets.
        correct: bool [w], every scored target of the window is the model's first choice.
    """

    losses: np.ndarray
    correct: np.ndarray


def score_windows(
    model: GLMModel, table: WindowTable, *, batch_size: int, topology: ParallelTopology | None = None
) -> WindowScores:
    """Return the scores of all windows, on every rank; every rank has to call it.

    Each window is run by one data rank. The scores do not depend on batches or ranks, but for rounding. There is no
    dropout, whatever the model's mode.
    """
    topology = topology or ParallelTopology.single()
    device = model.word_embeddings.weight.device
    found = torch.zeros(2, len(table), dtype=torch.float64)
    training = model.training
    model.eval()
    with torch.inference_mode():
        for numbers in _batches(table.widths, batch_size=batch_size, topology=topology):
            batch = table.rows(numbers)
            found[:, torch.from_numpy(numbers)] = score_batch(model, batch).double().cpu()
    model.train(training)
    if topology.data_parallel_group is not None:
        found = found.to(device)
        dist.all_reduce(found, group=topology.data_parallel_group)  # the others have zeros there
        found = found.cpu()
    losses, wrong = found.numpy()
    return WindowScores(losses, wrong == 0)


def score_batch(model: GLMModel, batch: WindowBatch) -> Tensor:
    """Return for every row its loss and how many of its targets are not the first choice, [2,b]."""
    device = model.word_embeddings.weight.device
    mask, target_ids = torch.from_numpy(batch.loss_mask), torch.from_numpy(batch.target_ids)
    chosen = target_positions(mask)
    if chosen is not None:
        mask, target_ids = mask.gather(1, chosen), target_ids.gather(1, chosen)
    rows, columns = mask.nonzero(as_tuple=True)
    targets = target_ids[rows, columns].to(device)
    rows, columns = rows.to(device), columns.to(device)
    hidden = model(
        torch.from_numpy(batch.input_ids).to(device),
        torch.from_numpy(batch.position_ids).to(device),
        torch.from_numpy(batch.prefix_lengths).to(device),
        output="hidden",
        query_positions=chosen,
    )
    found = _token_scores(model, hidden[rows, columns], targets)  # [2,n]
    return torch.zeros(2, len(batch.input_ids), dtype=torch.float64, device=device).index_add_(1, rows, found)


def _token_scores(model: GLMModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return for every target its loss, and 1 where it is not the first choice; ``hidden`` [n,h], result [2,n]."""
    parts = []
    for chosen, wanted in zip(hidden.split(PROJECTED_AT_ONCE), targets.split(PROJECTED_AT_ONCE), strict=True):
        logits = model.project(chosen).float()  # [n,v]
        losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
        parts.append(torch.stack([losses.double(), (logits.argmax(dim=-1) != wanted).double()]))
    return torch.cat(parts, dim=1)


def _batches(widths: np.ndarray, *, batch_size: int, topology: ParallelTopology) -> Iterator[np.ndarray]:
    """Yield the windows of this data rank's batches, the widest first."""
    order = np.argsort(-widths, kind="stable")
    size = topology.data_parallel_size
    for start in range(topology.data_parallel_rank * batch_size, len(order), size * batch_size):
        yield order[start : start + batch_size]


def accuracy(scores: WindowScores) -> dict[str, float]:
    """Return the share of windows that are right in all their targets, in percent."""
    return {"accuracy": 100.0 * float(scores.correct.mean())}


def perplexity(scores: WindowScores, *, num_scored: int, num_tokens: int, num_original_tokens: int) -> dict[str, float]:
    """Return loss and perplexity by the original's denominators, and those per scored id.

    The original divides by the ids of all documents less one. ``adjusted ppl`` is the perplexity per word of the
    file as published; it needs two words.
    """
    assert num_scored and num_tokens > 1, "nothing is scored"
    total = math.fsum(scores.losses)
    loss, exact = total / (num_tokens - 1), total / num_scored
    metrics = {"avg loss": loss, "ppl": _exp(loss)}
    if num_original_tokens > 1:
        metrics["adjusted ppl"] = _exp(loss * (num_tokens - 1) / (num_original_tokens - 1))
    return {**metrics, "loss per token": exact, "ppl per token": _exp(exact)}


def _exp(loss: float) -> float:
    return math.exp(min(LARGEST_LOSS, loss))
