"""GLM, trained by ``pretrain_glm.py`` and asked as ``generate_samples.py`` asks; and two ablations of the paper."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import generation.inputs
from benchmarks.infilling.blanks import LONGEST, Blank
from benchmarks.infilling.training import POINTS, TIMED, Answers, Experiment, Rival, Training, run_program
from data_utils.batches import pad_batch
from data_utils.objective import Objective
from data_utils.rows import infilling_row
from generation.api import GLM, load_model
from generation.sampling import DecodingSettings
from model.modeling_glm import evaluating
from training.engine import BlankInfilling
from training.logging import read_rows

SPANS = ("--bert-prob", "1")  # as T5: 15 % of the tokens, three in a row on average
# Short spans, whole sentences and long pieces, each with the mask that tells nothing of the length.
MIXED = ("--bert-prob", "0.4", "--gap-sentence-prob", "0.3", "--gpt-min-ratio", "0.5")

MORE_MASKS, NEAR = 5, 4  # masks that are not asked for, and the tokens beside the blank that they leave alone


class GlmRival(Rival):
    """Blank infilling: the context in both directions, a blank from left to right up to its end token."""

    title = "GLM"
    note = "ends with a token"
    flags: tuple[str, ...] = SPANS

    def train(self, folder: Path, *, rate: float, updates: int) -> Training:
        """Run the program; it goes on by itself."""
        experiment = self.experiment
        metrics, straight = folder / "metrics.jsonl", not (folder / "glm").exists()
        words = [
            "pretrain_glm.py", *experiment.flags(rate=rate, updates=updates), *self.flags,
            "--save", str(folder), "--experiment-name", "glm", "--auto-resume", "--summary-dir", str(folder),
            "--metrics-file", str(metrics), "--log-interval", str(max(1, updates // POINTS)),
            "--eval-interval", "0", "--save-interval", str(max(TIMED[1], updates // 10)), "--keep-checkpoints", "1",
        ]  # fmt: skip
        seconds = run_program(words, threads=experiment.threads)
        curve = [(row["iteration"], row["loss"]) for row in read_rows(metrics) if row["kind"] == "train"]
        return Training(curve, seconds if straight else None)

    def load(self, folder: Path) -> Answers:
        """Load the checkpoint as users do."""
        return GlmAnswers(load_model(folder / "glm", prepack=False), self.experiment)


class ThreeObjectives(GlmRival):
    """Sentences and long pieces are blanked out as well."""

    title = "GLM, three objectives"
    flags = MIXED


class NeighboursFirst(GlmRival):
    """The first weights have heads that look beside a blank: small runs leave their plateau (docs/demo_model.md)."""

    title = "GLM, three objectives, neighbours first"
    flags = (*MIXED, "--initialization", "neighbours", "--bert-ratio", "0.4")


class NoShuffle(GlmRival):
    """Spans are generated in the order of the text."""

    title = "GLM without span shuffling"
    flags = (*SPANS, "--no-shuffle-block")


class NoSecondPositions(GlmRival):
    """Tokens of a blank do not count in a second row of positions."""

    title = "GLM without second positions"
    flags = (*SPANS, "--no-block-position")


@dataclass(frozen=True)
class UncountedBlank(generation.inputs.Blank):
    """A blank of the ablation: every token of a piece has the position of the mask, as in training."""

    def position_of(self, step: int, *, block_positions: bool = True) -> tuple[int, int]:
        """Return where the mask is, and 1."""
        return (self.start, 1)


class GlmAnswers(Answers):
    """A checkpoint that fills blanks."""

    def __init__(self, glm: GLM, experiment: Experiment, *, more_masks: int = 0) -> None:
        """``more_masks``: so many other tokens of the context are masks, too."""
        self.glm, self.special = glm, glm.tokenizer.special
        self.experiment, self.more_masks = experiment, more_masks
        self.num_parameters = glm.model.num_parameters()
        self.decoding = DecodingSettings(
            max_length=LONGEST, temperature=experiment.temperature, top_k=experiment.top_k
        )  # fmt: skip

    def variants(self) -> dict[str, Answers]:
        """Return the same model that sees as many masks as in training: it has learned that few of them are long."""
        name = f"the same, {MORE_MASKS} more masks in the context"
        return {name: GlmAnswers(self.glm, self.experiment, more_masks=MORE_MASKS)}

    def _context(self, blank: Blank) -> list[int]:
        ids = [self.special.cls, *blank.before, self.special.mask, *blank.after]
        place = len(blank.before) + 1
        others = [number for number in range(1, len(ids)) if abs(number - place) > NEAR]
        for number in random.Random(0).sample(others, min(self.more_masks, len(others))):
            ids[number] = self.special.mask
        return ids

    def answer(self, blanks: Sequence[Blank], *, seed: int) -> list[list[int]]:
        """Draw token by token, every prompt with a generator of its own."""
        kind = generation.inputs.Blank if self.glm.block_positions else UncountedBlank
        inputs = []
        for blank in blanks:
            ids, place = tuple(self._context(blank)), len(blank.before) + 1
            inputs.append(generation.inputs.PromptInputs("[MASK]", ids, tuple(range(len(ids))), (kind(place, place),)))
        filled = self.glm.filler.fill_all(inputs, settings=self.decoding, seed=seed, batch_size=32)
        return [list(one.pieces[0]) for one in filled]

    @torch.inference_mode()
    def losses(self, blanks: Sequence[Blank]) -> list[float] | None:
        """Return the loss of pre-training, of a row with one blank."""
        sums = []
        with evaluating(self.glm.model):
            for blank in blanks:
                row = infilling_row(
                    self._context(blank), [*blank.truth, self.special.eop], special=self.special,
                    block_positions=self.glm.block_positions, answer_position=len(blank.before) + 1,
                )  # fmt: skip
                batch = pad_batch([row], Objective.TOKEN)
                sums.append(float(BlankInfilling().loss(self.glm.model, batch, device=torch.device("cpu")).loss_sum))
        return sums
