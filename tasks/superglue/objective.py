"""Scores of the choices of an example: the losses made of them, and letting a network choose.

b batch, c choices or labels, s sequence, v vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_utils.batches import Batch
from data_utils.objective import Objective
from generation.scoring import score_batch
from model.heads import MultiTokenCloze
from model.modeling_glm import GLMModel, LanguageModelLoss, evaluating
from model.shared_rows import SharedRows
from mpu.kernels.host_memory import send
from mpu.mappings import run_shared
from mpu.masks import PrefixMask
from tasks.readers import NO_LABEL
from tasks.superglue.batches import TaskBatch, collate, length_buckets, shared_question
from tasks.superglue.samples import TaskSample
from training.engine import BlankInfilling, Engine
from training.metrics import BatchSize

ROWS_PER_SAMPLE = 10  # a batch of n samples has at most 10 n rows, unless one sample has more
LOSS_FUNCTIONS = ("cross_entropy", "hinge", "generative", "mix")
COUNTED = ("loss_mask", "segment_ids")
ABSENT_SCORE = -10000.0  # of choices that only fill up the batch


def on_device(batch: TaskBatch, device: torch.device) -> dict[str, Tensor]:
    """Return the tensors of ``batch`` on ``device``, by field name.

    What is counted (targets, segments) stays on the host: a GPU's answer would have to be waited for.
    """
    arrays = batch.tensors().arrays().items()
    return {name: value if name in COUNTED else send(value, device) for name, value in arrays}


def choice_scores(model: nn.Module, batch: TaskBatch, tensors: dict[str, Tensor]) -> Tensor:
    """Run the head on a batch of any kind but ``language_model`` and return the fp32 scores [b,c], absent ones masked.

    ``model`` is the head that ``run.add_head`` puts around a GLM for the kind of batch, possibly wrapped.
    """
    inputs = [tensors[name] for name in ("input_ids", "position_ids", "prefix_lengths")]
    options = {name: tensors[name] for name in ("prompt_positions", "shared_rows", "shared_starts") if name in tensors}
    if batch.kind == "single_token":
        scores, _ = model(*inputs, tensors["target_ids"], **options)
    elif batch.kind == "multi_token":
        scores = model(*inputs, tensors["target_ids"], tensors["loss_mask"], **options)
    elif batch.kind == "fast_decode":
        answers = ("answer_ids", "answer_position_ids", "answer_prefix_lengths", "target_ids", "loss_mask")
        scores = model(*inputs, **{name: tensors[name] for name in answers})
    else:
        assert batch.kind == "classification", batch.kind
        scores = model(*inputs, **options)
    return mask_scores(scores.float(), tensors.get("choice_mask"), tensors.get("segment_ids"))


def mask_scores(scores: Tensor, choice_mask: Tensor | None, segment_ids: Tensor | None) -> Tensor:
    """Give choices that an example does not have the score -10000.

    With ``segment_ids`` [b,rows] the rows are segments of answers, which are added up: scores [b,rows] become [b,c].
    """
    if choice_mask is None:
        return scores
    real = choice_mask.to(scores.dtype)
    if segment_ids is None:
        return scores * real + ABSENT_SCORE * (1.0 - real)
    num_answers = int(segment_ids.max()) + 1
    segment_ids = send(segment_ids, scores.device)
    sums = scores.new_zeros(scores.size(0), num_answers).scatter_add(1, segment_ids, scores * real)
    num_segments = torch.zeros_like(sums).scatter_add(1, segment_ids, real)
    return sums.masked_fill(num_segments == 0, ABSENT_SCORE)


def score_loss(scores: Tensor, labels: Tensor, *, function: str = "cross_entropy") -> Tensor:
    """Return the sum over the batch of the loss of ``scores`` [b,c], masked, with the right choices ``labels`` [b]."""
    right = scores.gather(1, labels.unsqueeze(1))  # [b,1]
    if function == "hinge":
        return torch.clamp(1.0 + scores - right, min=0.0).sum() - len(labels)
    generative = -right.sum()
    if function == "generative":
        return generative
    cross_entropy = F.cross_entropy(scores, labels, reduction="sum")
    return cross_entropy if function == "cross_entropy" else generative + cross_entropy


def decoupled_loss(scores: Tensor, labels: Tensor, choice_mask: Tensor | None) -> Tensor:
    """Return the decoupled label loss (``--adapet``): wrong choices' scores less the right ones', over the batch."""
    signs = torch.ones_like(scores).scatter(1, labels.unsqueeze(1), -1.0)
    real = 1.0 if choice_mask is None else choice_mask.to(scores.dtype)
    return (signs * scores * real).sum()


def answered_exactly(model: GLMModel, tensors: dict[str, Tensor]) -> Tensor:
    """Tell [b] whether the language model's first choice is the target at every answer position (WSC without choices).

    ``model`` is a bare GLM; the answer is fed as it stands (teacher forcing).
    """
    inputs = [tensors[name] for name in ("input_ids", "position_ids", "prefix_lengths")]
    hidden = model(*inputs, prompt_positions=tensors.get("prompt_positions"), output="hidden")
    rows, columns = (send(places, hidden.device) for places in tensors["loss_mask"].nonzero(as_tuple=True))
    best = model.project(hidden[rows, columns]).argmax(dim=-1)
    wrong = (best != tensors["target_ids"][rows, columns]).float()
    return torch.zeros(hidden.size(0), device=hidden.device).index_add(0, rows, wrong) == 0


class TaskCriterion:
    """The loss of task batches, per example, and of the blank-infilling batches that ``--block-lm-ratio`` mixes in."""

    def __init__(self, *, function: str = "cross_entropy", adapet: bool = False) -> None:
        assert function in LOSS_FUNCTIONS, function
        self.function = function
        self.adapet = adapet

    def loss(self, model: nn.Module, batch: TaskBatch | Batch, *, device: torch.device) -> LanguageModelLoss:
        """Return the sum of losses and the number of examples, or of target tokens where tokens are predicted."""
        if isinstance(batch, Batch):
            return self._infilling_loss(model, batch, device=device)
        if batch.kind == "language_model":
            return self._token_loss(model, batch, device=device)
        assert NO_LABEL not in batch.labels, batch.uids
        tensors = on_device(batch, device)
        weight = torch.full((), float(len(batch)), device=device)
        scores = choice_scores(model, batch, tensors)
        if self.adapet:
            return LanguageModelLoss(decoupled_loss(scores, tensors["labels"], tensors.get("choice_mask")), weight)
        return LanguageModelLoss(score_loss(scores, tensors["labels"], function=self.function), weight)

    def weight(self, batch: TaskBatch | Batch) -> float:
        """Return the number of examples or of target tokens."""
        if isinstance(batch, Batch):
            return float(batch.loss_mask.sum())
        return float(batch.loss_mask.sum()) if batch.kind == "language_model" else float(len(batch))

    def objective(self, batch: TaskBatch | Batch) -> Objective:
        """Return the kind of blanks; that of task batches is one of its own."""
        return batch.objective if isinstance(batch, Batch) else Objective.DOWNSTREAM

    def size(self, batch: TaskBatch | Batch) -> BatchSize:
        """Return the samples, their choices, and the size of the input, answers included."""
        if isinstance(batch, Batch):
            return BlankInfilling().size(batch)
        rows = len(batch) if batch.choice_mask is None else int(batch.choice_mask.sum())
        parts = [batch.input_ids, batch.answer_ids] if batch.shared_rows is None else [batch.shared_rows]
        tokens = sum(part.size for part in parts if part is not None)
        return BatchSize(len(batch), rows, tokens, batch.num_real_tokens)

    def _token_loss(self, model: nn.Module, batch: TaskBatch, *, device: torch.device) -> LanguageModelLoss:
        """Return the loss of the targets; their weights are left on the host, where they are counted without a wait."""
        tensors = batch.tensors()
        input_ids, positions, mask = tensors.input_ids, tensors.position_ids, PrefixMask.prefix(tensors.prefix_lengths)
        labels, weights, prompts = tensors.target_ids, tensors.loss_mask, tensors.prompt_positions
        if tensors.shared_rows is not None:
            rows = SharedRows.of(tensors.shared_rows, tensors.prefix_lengths, width=input_ids.size(1))
            input_ids, positions, labels, weights = map(rows.gather, (input_ids, positions, labels, weights))
            mask = rows.mask
        inputs = (send(input_ids, device), send(positions, device), mask.to(device))
        prompts = None if prompts is None else send(prompts, device)
        return model(*inputs, labels=send(labels, device), loss_mask=weights, prompt_positions=prompts)

    def _infilling_loss(self, model: nn.Module, batch: Batch, *, device: torch.device) -> LanguageModelLoss:
        """Return the token loss; the heads give logits [b,s,v] when they are asked for no targets."""
        tensors = batch.tensors()
        logits = model(*(send(x, device) for x in (tensors.input_ids, tensors.position_ids, tensors.attention_mask)))
        rows, columns = tensors.loss_mask.nonzero(as_tuple=True)
        losses = F.cross_entropy(
            logits[send(rows, device), send(columns, device)].float(),
            send(tensors.target_ids[rows, columns], device),
            reduction="none",
        )
        weights = send(tensors.loss_mask[rows, columns].to(losses.dtype), device)
        return LanguageModelLoss((losses * weights).sum(), weights.sum())


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
    with evaluating(engine.model), torch.inference_mode():
        return run_shared(
            list(_batches(samples, batch_size)),
            lambda numbers: _score(engine, [samples[number] for number in numbers], pad_id=pad_id),
            topology=engine.topology,
        )


def _batches(samples: Sequence[TaskSample], batch_size: int) -> Iterator[list[int]]:
    """Yield the numbers of samples that share a batch, neighbours in length."""
    batch: list[int] = []
    rows = 0
    for number in length_buckets(samples):
        more = len(samples[number].rows)
        if batch and (len(batch) == batch_size or rows + more > ROWS_PER_SAMPLE * batch_size):
            yield batch
            batch, rows = [], 0
        batch.append(number)
        rows += more
    if batch:
        yield batch


def _score(engine: Engine, samples: Sequence[TaskSample], *, pad_id: int) -> Sequence[np.ndarray]:
    """Return the scores [c] of every sample of a batch."""
    questions = [shared_question(sample) for sample in samples]
    network = engine.network
    # ZeRO stage 3, which marks its parameters with an id, has whole weights only inside the head: row by row then.
    if (
        isinstance(network, MultiTokenCloze)
        and network.take_softmax
        and not hasattr(network.model.word_embeddings.weight, "ds_id")
        and None not in questions
    ):
        with engine.autocast():
            scored = score_batch(network.model, [question for question in questions if question is not None])
        power = max(0.0, network.length_penalty)
        return [np.array([s.log_probability / s.num_tokens**power for s in scores], np.float32) for scores in scored]
    batch = collate(samples, pad_id=pad_id)
    tensors = on_device(batch, engine.device)
    with engine.autocast():
        if batch.kind == "language_model":
            assert isinstance(network, GLMModel)
            right = answered_exactly(network, tensors).float()  # [b]
            return list(torch.stack([1.0 - right, right], dim=1).cpu().numpy())
        return list(choice_scores(network, batch, tensors).float().cpu().numpy())
