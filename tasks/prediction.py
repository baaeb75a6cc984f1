"""Let a network choose answers for samples, shared among data ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from generation.scoring import Continuation, Question, score_batch
from generation.scoring import Score as ContinuationScore
from model.heads import MultiTokenCloze
from model.modeling_glm import evaluating
from mpu.mappings import gather_numbered
from tasks.collation import collate, length_buckets
from tasks.objective import answered_exactly, choice_scores, on_device
from tasks.samples import TaskSample
from training.engine import Engine

ROWS_PER_SAMPLE = 10  # a batch of n samples has at most 10 n rows, unless one sample has more


def average_scores(scores: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Return one score per row of every sample from those of several patterns: the mean of their probabilities.

    ``scores`` has one list of arrays [c] per pattern. A single pattern's scores are returned as they are.
    """
    if len(scores) == 1:
        return list(scores[0])
    stacked = (torch.from_numpy(np.stack(rows)).double() for rows in zip(*scores, strict=True))  # [patterns,c] each
    return [rows.softmax(dim=-1).mean(dim=0).numpy() for rows in stacked]


def score_rows(engine: Engine, samples: Sequence[TaskSample], *, batch_size: int, pad_id: int) -> list[np.ndarray]:
    """Return the fp32 scores [c] of every sample's choices, on every rank.

    Without choices (``language_model``) it is [0, 1] when every answer token is the model's first choice, else [1, 0].
    Samples of similar length share a batch; the scores of a sample do not depend on the others, but for rounding. Every
    rank has to call it.
    """
    topology = engine.topology
    batches = list(_batches(samples, batch_size))
    size, rank = topology.data_parallel_size, topology.data_parallel_rank
    own = -(-len(batches) // size)  # the same number of batches on every rank: a sharded model works in step
    found: dict[int, np.ndarray] = {}
    with evaluating(engine.model), torch.inference_mode():
        for turn in range(own):
            numbers = batches[(turn * size + rank) % len(batches)]
            rows = _score(engine, [samples[number] for number in numbers], pad_id=pad_id)
            found.update(zip(numbers, rows, strict=True))
    found = gather_numbered(found, topology=topology)
    return [found[number] for number in range(len(samples))]


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


def shared_question(sample: TaskSample) -> Question | None:
    """Return a sample as one context with its answers, so that the context is run once.

    None where its rows have contexts of their own (or it has no rows, segments, prompts or one row of positions): those
    are run row by row.
    """
    if sample.kind != "multi_token" or sample.segment_ids is not None or sample.position_ids.ndim != 3:
        return None
    if sample.prompt_positions is not None and sample.prompt_positions.shape[-1]:
        return None
    first, ends = sample.loss_mask.argmax(axis=1), sample.length - sample.loss_mask[:, ::-1].argmax(axis=1)
    start = int(first[0]) + 1  # the first answer token is predicted by the last position that all rows share
    shared = (
        (first == first[0]).all()
        and (sample.attention_mask == sample.attention_mask[0]).all()
        and (sample.input_ids[:, :start] == sample.input_ids[0, :start]).all()
        and (sample.position_ids[:, :, :start] == sample.position_ids[0, :, :start]).all()
    )
    if not shared:
        return None
    continuations = tuple(
        Continuation(ids[start:end], positions[:, start:end], targets[start - 1 : end])
        for ids, positions, targets, end in zip(sample.input_ids, sample.position_ids, sample.target_ids, ends)
    )
    prefix_length = int(sample.attention_mask[0])
    return Question(sample.input_ids[0, :start], sample.position_ids[0, :, :start], prefix_length, continuations)


def penalized(scores: Sequence[ContinuationScore], length_penalty: float) -> np.ndarray:
    """Return log-probabilities, fp32 [c], divided by length ** penalty where that is above 0."""
    power = max(0.0, length_penalty)
    return np.array([one.log_probability / one.num_tokens**power for one in scores], dtype=np.float32)


def _score(engine: Engine, samples: Sequence[TaskSample], *, pad_id: int) -> Sequence[np.ndarray]:
    """Return the scores [c] of every sample of a batch."""
    questions = [shared_question(sample) for sample in samples]
    network = engine.network
    # ZeRO stage 3, which marks its parameters with an id, has whole weights only inside the head: row by row then.
    whole = isinstance(network, MultiTokenCloze) and not hasattr(network.model.word_embeddings.weight, "ds_id")
    if whole and network.take_softmax and None not in questions:
        with engine.autocast():
            found = score_batch(network.model, [question for question in questions if question is not None])
        return [penalized(scores, network.length_penalty) for scores in found]
    batch = collate(samples, pad_id=pad_id)
    tensors = on_device(batch, engine.device)
    with engine.autocast():
        if batch.kind == "language_model":
            right = answered_exactly(engine.network, tensors).float()  # [b]
            return torch.stack([1.0 - right, right], dim=1).cpu().numpy()
        return choice_scores(engine.network, batch, tensors).float().cpu().numpy()
