"""Let a network choose answers for samples, shared among data ranks (spec: superglue 9)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from tasks.collation import collate, length_buckets
from tasks.objective import answered_exactly, choice_scores, on_device
from tasks.samples import TaskSample
from training.engine import Engine
from training.precision import autocast

ROWS_PER_SAMPLE = 10  # a batch of n samples has at most 10 n rows, unless one sample has more


def choose(engine: Engine, samples: Sequence[TaskSample], *, batch_size: int, pad_id: int) -> list[int]:
    """Return the number of the best row for every sample, on every rank; the first of equals.

    Without choices (``language_model``) it is 1 when every answer token is the model's first choice, else 0. Samples of
    similar length share a batch; the choice for a sample does not depend on the others. Every rank has to call it.
    """
    topology = engine.topology
    batches = list(_batches(samples, batch_size))
    size, rank = topology.data_parallel_size, topology.data_parallel_rank
    own = -(-len(batches) // size)  # the same number of batches on every rank: a sharded model works in step
    chosen: dict[int, int] = {}
    engine.model.eval()
    with torch.inference_mode():
        for turn in range(own):
            numbers = batches[(turn * size + rank) % len(batches)]
            best = _choose(engine, [samples[number] for number in numbers], pad_id=pad_id)
            chosen.update(zip(numbers, best, strict=True))
    engine.model.train()
    if topology.data_parallel_group is not None:
        shares: list[dict[int, int]] = [{}] * size
        dist.all_gather_object(shares, chosen, group=topology.data_parallel_group)
        chosen = {number: row for share in shares for number, row in share.items()}
    return [chosen[number] for number in range(len(samples))]


def _batches(samples: Sequence[TaskSample], batch_size: int) -> Iterator[list[int]]:
    """Yield the numbers of samples that share a batch, neighbours in length."""
    batch: list[int] = []
    rows = 0
    for number in length_buckets(samples):
        more = samples[number].num_rows
        if batch and (len(batch) == batch_size or rows + more > ROWS_PER_SAMPLE * batch_size):
            yield batch
            batch, rows = [], 0
        batch.append(number)
        rows += more
    if batch:
        yield batch


def _choose(engine: Engine, samples: Sequence[TaskSample], *, pad_id: int) -> list[int]:
    batch = collate(samples, pad_id=pad_id)
    tensors = on_device(batch, engine.device)
    with autocast(engine.precision, device=engine.device):
        if batch.kind == "language_model":
            return answered_exactly(engine.network, tensors).long().tolist()
        return choice_scores(engine.network, batch, tensors).argmax(dim=1).tolist()
