"""Training, pre-training and fine-tuning steps, and steps of two processes.

The model of most of them has 33M parameters: 12 layers, hidden 384, 6 heads, vocabulary 30592.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import baseline
from benchmarks.harness import (
    Limits,
    OwnProcess,
    RandomDocuments,
    Row,
    compare,
    peak_memory,
    random_vocabulary,
    seconds_in_turn,
    seconds_of,
    summarize,
)
from data_utils import rows as token_rows
from data_utils.batches import Batch
from data_utils.objective import Objective
from data_utils.objective.block_infilling import BlankInfillingCollator, BlankInfillingSettings
from data_utils.objective.packing import BlockDataset
from model.config import GLMConfig
from model.heads import SingleTokenCloze
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology, initialize_model_parallel
from mpu.kernels.host_memory import keep_freed_memory
from tasks.superglue.batches import WIDTH_MULTIPLE, collate
from tasks.superglue.objective import TaskCriterion
from tasks.superglue.samples import TaskSample
from training.engine import TorchEngine
from training.optimizer import build_optimizer, clip_gradients
from training.schedule import AnnealingLR
from training.settings import OptimizerSettings

GOALS = {("fp32", 0.0): 2.3, ("fp32", 0.1): 2.1, ("bf16", 0.0): 4.0, ("bf16", 0.1): 3.5}
MEMORY_GOALS = {0.0: 0.42, 0.1: 0.6}  # fp32
TOLERANCES = {"fp32": 2e-6, "bf16": 3e-2}  # of the loss, relative
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
REPEATS = 3
BATCH, WIDTH, CONTEXT, VOCABULARY, LOSS_SHARE = 4, 576, 480, 30592, 0.16
CLOZE_SAMPLES = 16
CLOZE_LENGTHS = {(20, 60): 5.0, (40, 160): 2.2, (60, 250): None}  # and the goals of shared rows
SHORT_DOCUMENTS = 16
PROCESSES = 2
SHARED_ROWS, SHARED_WIDTH, SHARED_CONTEXT, SMALL_VOCABULARY, SHARED_REPEATS = 8, 256, 215, 8192, 5


def train_step() -> list[Row]:
    """A training step, ours against the original's arithmetic: time, peak memory, the same loss.

    Batch 4, width 576, 16 % of the positions predicted; forward, backward, clip, AdamW; dropout 0 and 0.1.
    """
    return [row for dropout in MEMORY_GOALS for row in training_rows(dropout)]


def make_config(dropout: float) -> GLMConfig:
    """Return the sizes of the measured model."""
    return GLMConfig(
        num_layers=12, hidden_size=384, num_attention_heads=6, vocab_size=VOCABULARY, max_position_embeddings=1024,
        embedding_dropout=dropout, attention_dropout=dropout, output_dropout=dropout,
    )  # fmt: skip


def make_batch() -> Batch:
    """Draw the batch; the positions behind the context are predicted."""
    generator = torch.Generator().manual_seed(1)
    ids, targets = torch.randint(VOCABULARY - 600, (2, BATCH, WIDTH), generator=generator)
    places = torch.arange(WIDTH).clamp(max=CONTEXT)
    blocks = (torch.arange(WIDTH) - CONTEXT).clamp(min=0)
    positions = torch.stack([places, blocks]).expand(BATCH, 2, WIDTH).contiguous()
    predicted = (torch.arange(WIDTH) >= WIDTH - round(LOSS_SHARE * WIDTH)).long().expand(BATCH, WIDTH).contiguous()
    return Batch(ids, targets, predicted, positions, torch.full((BATCH,), CONTEXT), Objective.TOKEN)


def loss_of(model: GLMModel, batch: Batch) -> Tensor:
    """Return the mean loss of a batch of tensors."""
    return model(
        batch.input_ids, batch.position_ids, batch.attention_mask, labels=batch.target_ids, loss_mask=batch.loss_mask
    ).mean


def our_step(precision: str, dropout: float) -> Callable[[], float]:
    """Return a function that makes one update and returns its loss; the process keeps its memory, as in training."""
    keep_freed_memory()
    topology = ParallelTopology.single()
    model = GLMModel(make_config(dropout), generator=torch.Generator().manual_seed(2)).train()
    optimizer = build_optimizer(model, OptimizerSettings(lr=1e-4))
    batch = make_batch()

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of(model, batch)
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
    batch = make_batch()

    def step() -> float:
        loss = model.loss(
            batch.input_ids, batch.position_ids, batch.attention_mask, batch.target_ids, batch.loss_mask
        )  # fmt: skip
        loss.backward()
        baseline.clip_gradients(list(model.parameters()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def training_rows(dropout: float) -> list[Row]:
    """Measure a step with this dropout in both precisions, which share the runs of the baseline."""
    ours = {precision: our_step(precision, dropout) for precision in TOLERANCES}
    original = OwnProcess(baseline_step, dropout)
    expected = original()  # also the warm-up
    losses = {}
    with FlopCounterMode(display=False) as counter:
        losses["fp32"] = ours["fp32"]()
    losses["bf16"] = ours["bf16"]()
    *times, baseline_times = seconds_in_turn([*ours.values(), original], repeats=REPEATS, warm=True)
    original.close()
    memory = peak_memory(baseline_step, dropout)
    return [
        summarize(
            f"training step {precision}, dropout {dropout:g}",
            ours_times,
            baseline_times,
            amount=BATCH * WIDTH,
            unit="tokens/s",
            equal=None if dropout else abs(losses[precision] - expected) <= tolerance * abs(expected),
            goal=GOALS[precision, dropout],
            memory_ratio=peak_memory(our_step, precision, dropout) / memory,
            memory_goal=MEMORY_GOALS[dropout] if precision == "fp32" else None,
            limit=Limits.measure().seconds(operations=counter.get_total_flops(), dtype=TYPES[precision]),
        )
        for (precision, tolerance), ours_times in zip(TOLERANCES.items(), times, strict=True)
    ]


def finetune_step() -> list[Row]:
    """Loss and gradients of a fine-tuning batch: trimmed, and in shared rows, against padded to 256; the same loss.

    16 cloze samples of 20-60, 40-160 and 60-250 tokens with two labels of one token each. A step collates the samples,
    computes the cross entropy of the labels and its gradients. Trimmed: padded to the longest sample, what every run
    does. Shared rows: ``--pack-samples``. Both sides use our model: the gain comes on top of the training step's own.
    """
    head = SingleTokenCloze(GLMModel(make_config(0.0), generator=torch.Generator().manual_seed(2))).train()
    rows = []
    for (shortest, longest), goal in CLOZE_LENGTHS.items():
        samples = make_cloze_samples(shortest, longest)
        fixed = finetuning_step(head, samples, pad_to=256)
        for name, share_rows in (("trimmed", False), ("shared rows", True)):
            ours = finetuning_step(head, samples, multiple_of=WIDTH_MULTIPLE, share_rows=share_rows)
            same = abs(ours() - fixed()) < 1e-5
            work = f"fine-tuning step, lengths {shortest}-{longest}, {name}"
            columns = {
                "amount": CLOZE_SAMPLES,
                "unit": "samples/s",
                "equal": same,
                "goal": goal if share_rows else None,
            }
            rows.append(compare(work, ours, fixed, repeats=3, warm=True, **columns))
    return rows


def make_cloze_samples(shortest: int, longest: int) -> list[TaskSample]:
    """Return samples of random lengths whose last position predicts a label."""
    generator = np.random.default_rng(6)
    samples = []
    for number, length in enumerate(generator.integers(shortest, longest + 1, CLOZE_SAMPLES)):
        values = np.zeros((5, length), dtype=np.int64)
        values[0] = generator.integers(0, VOCABULARY - 600, length)
        values[3] = np.arange(length)
        values[2:, -1] = 1, length // 2, 1
        row = token_rows.Row(values, int(length) - 1)
        samples.append(TaskSample("single_token", number, number % 2, (row,), label_ids=(7, 11)))
    return samples


def finetuning_step(head: SingleTokenCloze, samples: Sequence[TaskSample], **options: Any) -> Callable[[], float]:
    """Return a function that collates the samples, computes loss and gradients and returns the loss."""

    def work() -> float:
        head.zero_grad()
        loss = TaskCriterion().loss(head, collate(samples, pad_id=0, **options), device=torch.device("cpu")).mean
        loss.backward()
        return loss.item()

    return work


def shared_rows() -> list[Row]:
    """Pre-training on short documents, one a sample: several in a row (--pack-samples) against a row for each.

    16 documents of 20 to 250 tokens, sequences of 512, spans blanked out; forward and backward in fp32, the same loss.
    """
    model = GLMModel(make_config(0.0), generator=torch.Generator().manual_seed(2)).train()

    def step(pack: bool) -> Callable[[], float]:
        batch = make_short_documents(pack=pack).tensors()

        def work() -> float:
            model.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            return loss.item()

        return work

    together, alone = step(True), step(False)
    same = abs(together() - alone()) < 1e-5
    name = "pre-training on short documents, shared rows"
    return [compare(name, together, alone, repeats=3, amount=SHORT_DOCUMENTS, unit="samples/s", equal=same)]


def make_short_documents(*, pack: bool) -> Batch:
    """Return a batch of samples of one document each."""
    vocabulary = random_vocabulary()
    data = BlockDataset(
        RandomDocuments(200, longest=250), tokenizer=vocabulary, seq_length=512, sample_across_documents=False
    )
    collator = BlankInfillingCollator(vocabulary, BlankInfillingSettings(bert_prob=1.0), max_seq_length=512, pack=pack)
    return collator([data[number] for number in range(SHORT_DOCUMENTS)], batch_index=0)


def scaling() -> list[Row]:
    """Training steps of two processes against those of one: data parallel and tensor parallel, the same loss.

    6 layers, hidden 256, 4 heads, vocabulary 8192; 8 rows of 256 tokens, 16 % of them predicted; fp32, dropout 0. Two
    processes of a gloo group with one thread each, on two cores: together they make an update of the batch, then the
    first one makes it alone while the other waits, in turn. A ratio of 2 is linear.
    """
    launch = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=PROCESSES, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        run_id="scaling",
    )  # fmt: skip
    rows = []
    for name, size in {"data-parallel": 1, "tensor-parallel": PROCESSES}.items():
        together, alone, same = elastic_launch(launch, times_of_rank)(size)[0]
        title = f"training step, {PROCESSES} {name} processes against 1"
        rows.append(
            summarize(
                title, together, alone, amount=SHARED_ROWS * SHARED_WIDTH, unit="tokens/s", equal=same, goal=PROCESSES
            )
        )
    return rows


def make_engine(topology: ParallelTopology) -> TorchEngine:
    """Return this rank's engine; the weights are the same for every topology."""
    config = GLMConfig(
        6, 256, 4, SMALL_VOCABULARY, max_position_embeddings=SHARED_WIDTH,
        embedding_dropout=0.0, attention_dropout=0.0, output_dropout=0.0,
    )  # fmt: skip
    model = GLMModel(config, topology=topology, generator=torch.Generator().manual_seed(1))
    optimizer = build_optimizer(model, OptimizerSettings(lr=1e-4, adam_beta2=0.98))
    scheduler = AnnealingLR(optimizer, start_lr=1e-4, warmup_iters=0, num_iters=100)
    return TorchEngine(model, optimizer=optimizer, scheduler=scheduler, topology=topology)


def make_shared_batch(rows: slice) -> Batch:
    """Draw the batch and return these rows of it; the positions behind the context are predicted."""
    ids, targets = np.random.default_rng(2).integers(0, SMALL_VOCABULARY, (2, SHARED_ROWS, SHARED_WIDTH))
    columns = np.arange(SHARED_WIDTH)
    positions = np.stack([columns.clip(max=SHARED_CONTEXT), (columns - SHARED_CONTEXT).clip(min=0)])
    mask = np.tile((columns > SHARED_CONTEXT).astype(np.int64), (SHARED_ROWS, 1))
    return Batch(
        input_ids=ids[rows],
        target_ids=targets[rows],
        loss_mask=mask[rows],
        position_ids=np.tile(positions, (SHARED_ROWS, 1, 1))[rows],
        attention_mask=np.full(SHARED_ROWS, SHARED_CONTEXT)[rows],
        objective=Objective.TOKEN,
    )


def times_of_rank(model_parallel_size: int) -> tuple[list[float], list[float], bool]:
    """Return the seconds of joint updates and of those of the first process alone, and whether their losses agree."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    topology = initialize_model_parallel(model_parallel_size)
    share = SHARED_ROWS // topology.data_parallel_size
    batch = make_shared_batch(slice(topology.data_parallel_rank * share, (topology.data_parallel_rank + 1) * share))
    joint = make_engine(topology)
    alone = make_engine(ParallelTopology.single()) if topology.rank == 0 else None
    losses, together, single = [], [], []

    def step() -> None:
        losses.append(joint.train_step([batch]).loss)

    for _ in range(1 + SHARED_REPEATS):
        dist.barrier()
        together.append(seconds_of(step))
        dist.barrier()
        if topology.data_parallel_group is not None:
            dist.all_reduce(losses[-1], group=topology.data_parallel_group)
        if alone is not None:
            single.append(seconds_of(lambda: losses.append(alone.train_step([make_shared_batch(slice(None))]).loss)))
    joined, expected = torch.stack(losses[::2]), torch.stack(losses[1::2]) if alone is not None else None
    same = expected is not None and bool(((joined - expected).abs() <= 2e-6 * expected.abs()).all())
    dist.destroy_process_group()
    return together[1:], single[1:], same
