"""The run of a language-model task: windows of texts are scored, nothing is trained."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from data_utils.tokenizers.tokenizer import Tokenizer
from generation.scoring import Score as WindowScore
from generation.scoring import score_questions
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from tasks.language_model.readers import TokenDocuments, read_documents, read_endings
from tasks.language_model.samples import LanguageModelSettings, WindowTable, document_windows, ending_windows
from tasks.run import Score, TaskRun
from tasks.settings import FinetuningSettings
from training.engine import BlankInfilling, Engine

logger = logging.getLogger("glm")

ENDINGS = ("lambda", "lambada")  # the first is how the original spells it
LARGEST_LOSS = 20.0  # of a perplexity: it is cut off there, as in the original


@dataclass(frozen=True)
class EvaluationSplit:
    """The windows of a file; ``documents`` is None for LAMBADA."""

    name: str
    windows: WindowTable
    documents: TokenDocuments | None


class LanguageModelRun(TaskRun):
    """One run of LAMBADA (``lambda``, ``lambada``), ``wikitext`` or ``language_model``."""

    def __init__(
        self,
        configuration: FinetuningSettings,
        *,
        tokenizer: Tokenizer,
        topology: ParallelTopology,
    ) -> None:
        super().__init__(configuration, tokenizer=tokenizer, topology=topology)
        self.settings = configuration.select(
            LanguageModelSettings,
            overlap=max(1, configuration.task.overlapping_eval),
            block_positions=not configuration.blank.no_block_position,
        )
        self.name = configuration.task.name.lower()
        if configuration.zero_stage == 3:
            raise ValueError(f"{self.name} needs whole weights, which ZeRO stage 3 lacks: use stage 2 or 1")
        self.metrics = ("accuracy",) if self.name in ENDINGS else ("avg loss",)
        self.test = [self._read(Path((configuration.data.valid_data or ("",))[0]))]

    def build_network(self) -> nn.Module:
        """Build the GLM with the weights of ``--load-pretrained``."""
        return self.build_glm(self.configuration.model)

    def criterion(self) -> BlankInfilling:
        """Return a loss for the engine; no update is made."""
        return BlankInfilling()

    def collate(self, samples: Sequence[Any]) -> Any:
        """Return the rows of windows of the file, given their numbers."""
        return [self.test[0].windows.row(number) for number in samples]

    def split_size(self, split: EvaluationSplit) -> int:
        """Return the windows of a split."""
        return len(split.windows)

    def evaluate(self, engine: Engine, split: EvaluationSplit, *, folder: Path | None) -> Score:
        """Score all windows; the data ranks share them."""
        network = engine.network
        assert isinstance(network, GLMModel)
        with engine.autocast():
            scores = score_windows(
                network,
                split.windows,
                batch_size=self.configuration.batch.evaluation_batch_size,
                topology=self.topology,
            )
        if split.documents is None:
            return Score(split.name, len(split.windows), accuracy(scores), {})
        num_scored = split.windows.num_scored
        metrics = perplexity(
            scores,
            num_scored=num_scored,
            num_tokens=split.documents.num_tokens,
            num_original_tokens=split.documents.num_original_tokens,
        )
        return Score(split.name, num_scored, metrics, {})

    def _read(self, path: Path) -> EvaluationSplit:
        """Read the file, or with ``--limit`` its first lines, and cut it into windows."""
        limit = self.configuration.task.limit
        if self.name in ENDINGS:
            endings = read_endings(path, tokenizer=self.tokenizer, limit=limit)
            logger.info(f"{self.name}: {len(endings):,} passages of {path}")
            windows = ending_windows(endings, settings=self.settings, tokenizer=self.tokenizer)
            return EvaluationSplit(self.name, windows, None)
        self.settings.check_overlap()
        documents = read_documents(path, task=self.name, tokenizer=self.tokenizer, limit=limit)
        windows = document_windows(documents, settings=self.settings, tokenizer=self.tokenizer)
        if not len(windows):
            raise ValueError(f"{path}, line 1: no document has two tokens, so nothing can be predicted")
        skipped = sum(len(ids) < 2 for ids in documents.documents)
        logger.info(
            f"{self.name}: {documents.num_original_tokens:,} words of {path}, {documents.num_tokens:,} tokens in "
            f"{len(documents.documents):,} documents, {windows.num_scored:,} of them scored in {len(windows):,} windows"
            + (f"; {skipped:,} documents of less than two tokens are left out" if skipped else "")
        )
        return EvaluationSplit(self.name, windows, documents)


def score_windows(
    model: GLMModel, windows: WindowTable, *, batch_size: int, topology: ParallelTopology | None = None
) -> list[WindowScore]:
    """Return the score of every window, on every rank; every rank has to call it."""
    scores = score_questions(model, windows, lengths=windows.widths, batch_size=batch_size, topology=topology)
    return [score for [score] in scores]


def accuracy(scores: Sequence[WindowScore]) -> dict[str, float]:
    """Return the share of windows whose targets are all the model's first choices, in percent."""
    return {"accuracy": 100.0 * sum(score.greedy for score in scores) / len(scores)}


def perplexity(
    scores: Sequence[WindowScore], *, num_scored: int, num_tokens: int, num_original_tokens: int
) -> dict[str, float]:
    """Return loss and perplexity by the original's denominators, and those per scored id.

    The original divides by the ids of all documents less one. ``adjusted ppl`` is the perplexity per word of the
    file as published; it needs two words.
    """
    assert num_scored and num_tokens > 1, "nothing is scored"
    total = -math.fsum(score.log_probability for score in scores)
    loss, exact = total / (num_tokens - 1), total / num_scored
    metrics = {"avg loss": loss, "ppl": _exp(loss)}
    if num_original_tokens > 1:
        metrics["adjusted ppl"] = _exp(loss * (num_tokens - 1) / (num_original_tokens - 1))
    return {**metrics, "loss per token": exact, "ppl per token": _exp(exact)}


def _exp(loss: float) -> float:
    return math.exp(min(LARGEST_LOSS, loss))
