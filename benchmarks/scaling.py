"""Training steps of two processes against those of one: data parallel and tensor parallel, the same loss.

    python -m benchmarks.scaling [--json]

6 layers, hidden 256, 4 heads, vocabulary 8192; 8 rows of 256 tokens, 16 % of them predicted; fp32, dropout 0. Two
processes of a gloo group with one thread each, on two cores: together they make an update of the batch, then the first
one makes it alone while the other waits, in turn. A ratio of 2 is linear.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from benchmarks.measuring import Row, report, seconds_of, summarize
from data_utils.batches import Batch
from data_utils.errors import run_main
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology, initialize_model_parallel
from training.engine import TorchEngine
from training.optimizer import build_optimizer
from training.schedule import AnnealingLR
from training.settings import OptimizerSettings

PROCESSES = 2
ROWS, WIDTH, CONTEXT, VOCABULARY, REPEATS = 8, 256, 215, 8192, 5
KINDS = {"data-parallel": 1, "tensor-parallel": PROCESSES}  # model-parallel size
TOLERANCE = 2e-6  # of the loss, relative


def make_engine(topology: ParallelTopology) -> TorchEngine:
    """Return this rank's engine; the weights are the same for every topology."""
    config = GLMConfig(
        6, 256, 4, VOCABULARY, max_position_embeddings=WIDTH,
        embedding_dropout=0.0, attention_dropout=0.0, output_dropout=0.0,
    )  # fmt: skip
    model = GLMModel(config, topology=topology, generator=torch.Generator().manual_seed(1))
    optimizer = build_optimizer(model, OptimizerSettings(lr=1e-4, adam_beta2=0.98))
    scheduler = AnnealingLR(optimizer, start_lr=1e-4, warmup_iters=0, num_iters=100)
    return TorchEngine(model, optimizer=optimizer, scheduler=scheduler, topology=topology)


def make_batch(rows: slice) -> Batch:
    """Draw the batch and return these rows of it; the positions behind the context are predicted."""
    ids, targets = np.random.default_rng(2).integers(0, VOCABULARY, (2, ROWS, WIDTH))
    columns = np.arange(WIDTH)
    positions = np.stack([columns.clip(max=CONTEXT), (columns - CONTEXT).clip(min=0)])
    mask = np.tile((columns > CONTEXT).astype(np.int64), (ROWS, 1))
    return Batch(
        input_ids=ids[rows],
        target_ids=targets[rows],
        loss_mask=mask[rows],
        position_ids=np.tile(positions, (ROWS, 1, 1))[rows],
        attention_mask=np.full(ROWS, CONTEXT)[rows],
        mode="bert",
    )


def times_of_rank(model_parallel_size: int) -> tuple[list[float], list[float], bool]:
    """Return the seconds of joint updates and of those of the first process alone, and whether their losses agree."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    topology = initialize_model_parallel(model_parallel_size)
    share = ROWS // topology.data_parallel_size
    batch = make_batch(slice(topology.data_parallel_rank * share, (topology.data_parallel_rank + 1) * share))
    joint = make_engine(topology)
    alone = make_engine(ParallelTopology.single()) if topology.rank == 0 else None
    losses, together, single = [], [], []

    def step() -> None:
        losses.append(joint.train_step([batch]).loss)

    for _ in range(1 + REPEATS):
        dist.barrier()
        together.append(seconds_of(step))
        dist.barrier()
        if topology.data_parallel_group is not None:
            dist.all_reduce(losses[-1], group=topology.data_parallel_group)
        if alone is not None:
            single.append(seconds_of(lambda: losses.append(alone.train_step([make_batch(slice(None))]).loss)))
    found, expected = torch.stack(losses[::2]), torch.stack(losses[1::2]) if alone is not None else None
    same = expected is not None and bool(((found - expected).abs() <= TOLERANCE * expected.abs()).all())
    dist.destroy_process_group()
    return together[1:], single[1:], same


def measure() -> Sequence[Row]:
    """Return a row per kind of parallelism."""
    launch = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=PROCESSES, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        run_id="scaling",
    )  # fmt: skip
    rows = []
    for name, size in KINDS.items():
        together, alone, same = elastic_launch(launch, times_of_rank)(size)[0]
        title = f"training step, {PROCESSES} {name} processes against 1"
        rows.append(summarize(title, together, alone, amount=ROWS * WIDTH, unit="tokens/s", equal=same, goal=PROCESSES))
    return rows


if __name__ == "__main__":
    run_main(lambda: report(measure, description=__doc__))
