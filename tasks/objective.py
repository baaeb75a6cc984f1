"""Scores of task batches and the losses made of them.

b batch, c choices or labels, s sequence, v vocabulary
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_utils.batches import Batch
from data_utils.objective import Objective
from model.modeling_glm import LanguageModelLoss
from model.shared_rows import SharedRows
from mpu.kernels.host_memory import send
from mpu.masks import PrefixMask
from tasks.collation import TaskBatch, to_tensors

LOSS_FUNCTIONS = ("cross_entropy", "hinge", "generative", "mix")
COUNTED = ("loss_mask", "segment_ids")
ABSENT_SCORE = -10000.0  # of choices that only fill up the batch


def on_device(batch: TaskBatch, device: torch.device) -> dict[str, Tensor]:
    """Return the tensors of ``batch`` on ``device``, by field name.

    What is counted (targets, segments) stays on the host: a GPU's answer would have to be waited for.
    """
    arrays = to_tensors(batch).arrays().items()
    return {name: value if name in COUNTED else send(value, device) for name, value in arrays}


def choice_scores(model: nn.Module, batch: TaskBatch, tensors: dict[str, Tensor]) -> Tensor:
    """Run the head on a batch of any kind but ``language_model`` and return the fp32 scores [b,c], absent ones masked.

    ``model`` is the head of ``tasks.network`` that belongs to the kind of batch, possibly wrapped.
    """
    inputs = [tensors["input_ids"], tensors.get("position_ids"), tensors["attention_mask"]]
    options = {name: tensors[name] for name in ("prompt_positions", "shared_rows") if name in tensors}
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
    found = torch.zeros_like(sums).scatter_add(1, segment_ids, real)
    return sums.masked_fill(found == 0, ABSENT_SCORE)


def score_loss(scores: Tensor, labels: Tensor, *, function: str = "cross_entropy") -> Tensor:
    """Return the sum over the batch of the loss of ``scores`` [b,c], masked, with the right choices ``labels`` [b]."""
    own = scores.gather(1, labels.unsqueeze(1))  # [b,1]
    if function == "hinge":
        return torch.clamp(1.0 + scores - own, min=0.0).sum() - len(labels)
    generative = -own.sum()
    if function == "generative":
        return generative
    cross_entropy = F.cross_entropy(scores, labels, reduction="sum")
    return cross_entropy if function == "cross_entropy" else generative + cross_entropy


def decoupled_loss(scores: Tensor, labels: Tensor, choice_mask: Tensor | None) -> Tensor:
    """Return the decoupled label loss (``--adapet``): wrong choices' scores less the right ones', over the batch."""
    signs = torch.ones_like(scores).scatter(1, labels.unsqueeze(1), -1.0)
    real = 1.0 if choice_mask is None else choice_mask.to(scores.dtype)
    return (signs * scores * real).sum()


def answered_exactly(model: nn.Module, tensors: dict[str, Tensor]) -> Tensor:
    """Tell [b] whether the language model's first choice is the target at every answer position (WSC without choices).

    ``model`` is a bare GLM; the answer is fed as it stands (teacher forcing).
    """
    inputs = [tensors["input_ids"], tensors.get("position_ids"), tensors["attention_mask"]]
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
        tensors = on_device(batch, device)
        weight = torch.tensor(float(len(batch)), device=device)
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

    def num_tokens(self, batch: TaskBatch | Batch) -> int:
        """Return the size of the input, answers included."""
        if getattr(batch, "shared_rows", None) is not None:
            return batch.shared_rows.size
        answers = getattr(batch, "answer_ids", None)
        return batch.input_ids.size + (0 if answers is None else answers.size)

    def _token_loss(self, model: nn.Module, batch: TaskBatch, *, device: torch.device) -> LanguageModelLoss:
        """Return the loss of the targets; their weights are left on the host, where they are counted without a wait."""
        tensors = to_tensors(batch).arrays()
        names = ("input_ids", "position_ids", "attention_mask", "target_ids", "loss_mask")
        input_ids, positions, mask, labels, weights = (tensors.get(name) for name in names)
        if "shared_rows" in tensors:
            rows = SharedRows.of(tensors["shared_rows"], mask, width=input_ids.size(1))
            input_ids, positions, labels, weights = map(rows.gather, (input_ids, positions, labels, weights))
            mask = rows.mask
        inputs = (None if each is None else send(each, device) for each in (input_ids, positions))
        mask = mask.to(device) if isinstance(mask, PrefixMask) else send(mask, device)
        prompts = tensors.get("prompt_positions")
        prompts = None if prompts is None else send(prompts, device)
        return model(*inputs, mask, labels=send(labels, device), loss_mask=weights, prompt_positions=prompts)

    def _infilling_loss(self, model: nn.Module, batch: Batch, *, device: torch.device) -> LanguageModelLoss:
        """Return the token loss; the heads give logits [b,s,v] when they are asked for no targets."""
        tensors = batch.tensors()
        logits = model(*(x.to(device) for x in (tensors.input_ids, tensors.position_ids, tensors.attention_mask)))
        rows, columns = tensors.loss_mask.nonzero(as_tuple=True)
        losses = F.cross_entropy(
            logits[rows.to(device), columns.to(device)].float(),
            tensors.target_ids[rows, columns].to(device),
            reduction="none",
        )
        weights = tensors.loss_mask[rows, columns].to(device, losses.dtype)
        return LanguageModelLoss((losses * weights).sum(), weights.sum())
