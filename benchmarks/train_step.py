"""One training step of a 33M model, ours against the original's arithmetic: time, peak memory, the same loss.

    python -m benchmarks.train_step [--json]

12 layers, hidden 384, 6 heads, vocabulary 30592; batch 4, width 576, 16 % of the positions predicted; forward,
backward, clip, AdamW; fp32 and bf16, dropout 0 and 0.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import baseline
from benchmarks.measuring import OwnProcess, Row, peak_memory, report, seconds_in_turn, summarize
from data_utils.errors import run_main
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology
from mpu.kernels.host_memory import keep_freed_memory
from training.optimizer import build_optimizer, clip_gradients
from training.settings import OptimizerSettings

GOALS = {("fp32", 0.0): 2.3, ("fp32", 0.1): 2.1, ("bf16", 0.0): 4.0, ("bf16", 0.1): 3.5}
MEMORY_GOALS = {0.0: 0.42, 0.1: 0.6}  # fp32
TOLERANCES = {"fp32": 2e-6, "bf16": 3e-2}  # of the loss, relative
REPEATS = 3
BATCH, WIDTH, CONTEXT, VOCABULARY, LOSS_SHARE = 4, 576, 480, 30592, 0.16


@dataclass(frozen=True)
class Inputs:
    """A random batch: ids [b,s], positions [b,2,s], prefix_lengths [b], loss mask [b,s]."""

    input_ids: Tensor
    position_ids: Tensor
    prefix_lengths: Tensor
    labels: Tensor
    loss_mask: Tensor


def make_config(dropout: float) -> GLMConfig:
    """Return the sizes of the measured model."""
    return GLMConfig(
        num_layers=12, hidden_size=384, num_attention_heads=6, vocab_size=VOCABULARY, max_position_embeddings=1024,
        embedding_dropout=dropout, attention_dropout=dropout, output_dropout=dropout,
    )  # fmt: skip


def make_inputs() -> Inputs:
    """Draw the batch; the positions behind the context are predicted."""
    generator = torch.Generator().manual_seed(1)
    ids, labels = torch.randint(VOCABULARY - 600, (2, BATCH, WIDTH), generator=generator)
    places = torch.arange(WIDTH).clamp(max=CONTEXT)
    blocks = (torch.arange(WIDTH) - CONTEXT).clamp(min=0)
    positions = torch.stack([places, blocks]).expand(BATCH, 2, WIDTH).contiguous()
    predicted = (torch.arange(WIDTH) >= WIDTH - round(LOSS_SHARE * WIDTH)).long().expand(BATCH, WIDTH).contiguous()
    return Inputs(ids, positions, torch.full((BATCH,), CONTEXT), labels, predicted)


def our_step(precision: str, dropout: float) -> Callable[[], float]:
    """Return a function that makes one update and returns its loss; the process keeps its memory, as in training."""
    keep_freed_memory()
    topology = ParallelTopology.single()
    model = GLMModel(make_config(dropout), generator=torch.Generator().manual_seed(2)).train()
    optimizer = build_optimizer(model, OptimizerSettings(lr=1e-4))
    inputs = make_inputs()

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(
                inputs.input_ids, inputs.position_ids, inputs.prefix_lengths,
                labels=inputs.labels, loss_mask=inputs.loss_mask,
            ).mean  # fmt: skip
        loss.backward()
        clip_gradients(model.parameters(), 1.0, topology=topology)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def baseline_step(dropout: float) -> Callable[[], float]:
    """Return the same with the original's arithmetic, in fp32 for want of fp16 on a CPU."""
    config = make_config(dropout)
    source = GLMModel(config, generator=torch.Generator().manual_seed(2))
    model = baseline.BaselineGLM(config, source.state_dict()).train()
    optimizer = baseline.build_optimizer(model, lr=1e-4)
    inputs = make_inputs()

    def step() -> float:
        loss = model.loss(
            inputs.input_ids, inputs.position_ids, inputs.prefix_lengths, inputs.labels, inputs.loss_mask
        )  # fmt: skip
        loss.backward()
        baseline.clip_gradients(list(model.parameters()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def measure() -> Sequence[Row]:
    """Return a row per precision and dropout; the two precisions share the runs of the baseline."""
    return [row for dropout in MEMORY_GOALS for row in _measure(dropout)]


def _measure(dropout: float) -> list[Row]:
    ours = {precision: our_step(precision, dropout) for precision in TOLERANCES}
    original = OwnProcess(baseline_step, dropout)
    expected = original()  # also the warm-up
    losses = {precision: step() for precision, step in ours.items()}
    *own, other = seconds_in_turn([*ours.values(), original], repeats=REPEATS, warm=True)
    original.close()
    memory = peak_memory(baseline_step, dropout)
    return [
        summarize(
            f"training step {precision}, dropout {dropout:g}",
            times,
            other,
            amount=BATCH * WIDTH,
            unit="tokens/s",
            equal=None if dropout else abs(losses[precision] - expected) <= tolerance * abs(expected),
            goal=GOALS[precision, dropout],
            memory_ratio=peak_memory(our_step, precision, dropout) / memory,
            memory_goal=MEMORY_GOALS[dropout] if precision == "fp32" else None,
        )
        for (precision, tolerance), times in zip(TOLERANCES.items(), own, strict=True)
    ]


if __name__ == "__main__":
    run_main(lambda: report(measure, description=__doc__))
