"""Pre-training on short documents, one a sample: several samples in a row (--pack-samples) against a row for each.

    python -m benchmarks.shared_rows [--json]

12 layers, hidden 384, 6 heads, vocabulary 30592; 16 documents of 20 to 250 tokens, sequences of 512, spans blanked out;
forward and backward in fp32, the same loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from benchmarks.corpus import RandomDocuments, random_vocabulary
from benchmarks.measuring import Row, compare, report
from benchmarks.train_step import make_config
from data_utils.batches import Batch
from data_utils.errors import run_main
from data_utils.objective.block_infilling import BlankInfillingCollator, BlankInfillingSettings
from data_utils.objective.packing import BlockDataset
from model.modeling_glm import GLMModel

SEQ_LENGTH, SAMPLES = 512, 16


def make_batch(*, pack: bool) -> Batch:
    """Return a batch of samples of one document each."""
    vocabulary = random_vocabulary()
    data = BlockDataset(
        RandomDocuments(200, longest=250), tokenizer=vocabulary, seq_length=SEQ_LENGTH, sample_across_documents=False
    )
    collator = BlankInfillingCollator(
        vocabulary, BlankInfillingSettings(bert_prob=1.0), max_seq_length=SEQ_LENGTH, pack=pack
    )
    return collator([data[number] for number in range(SAMPLES)], batch_index=0)


def step(model: GLMModel, batch: Batch) -> Callable[[], float]:
    """Return a function that computes loss and gradients and returns the loss."""
    tensors = batch.tensors()

    def work() -> float:
        model.zero_grad()
        loss = model(
            tensors.input_ids,
            tensors.position_ids,
            tensors.attention_mask,
            labels=tensors.target_ids,
            loss_mask=tensors.loss_mask,
        ).mean
        loss.backward()
        return loss.item()

    return work


def measure() -> Sequence[Row]:
    """Return one row."""
    model = GLMModel(make_config(0.0), generator=torch.Generator().manual_seed(2)).train()
    together, alone = (step(model, make_batch(pack=pack)) for pack in (True, False))
    same = abs(together() - alone()) < 1e-5
    name = "pre-training on short documents, shared rows"
    return [compare(name, together, alone, repeats=3, amount=SAMPLES, unit="samples/s", equal=same)]


if __name__ == "__main__":
    run_main(lambda: report(measure, description=__doc__))
