"""Samples that share rows: nothing is lost, and the model computes what it computes for rows of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_utils.batches import Batch, first_fit
from data_utils.objective.block_infilling import BlankInfillingCollator, BlankInfillingSettings
from data_utils.objective.packing import BlockDataset
from model.config import GLMConfig
from model.modeling_glm import GLMModel
from mpu.masks import PrefixMask
from tests.helpers.launching import metrics, run
from tests.helpers.small_corpus import SmallCorpus, make_corpus
from tests.helpers.stand_ins import VOCABULARY, make_documents

SEQ_LENGTH = 64


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), extra=st.integers(0, 30))
@settings(deadline=None)
def test_first_fit(lengths: list[int], extra: int):
    width = max(lengths) + extra
    rows = first_fit(lengths, width)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    used = [sum(lengths[number] for number in row) for row in rows]
    assert max(used) <= width
    # No row's first sample would have fitted into the rows before it.
    for place, row in enumerate(rows):
        for earlier in rows[:place]:
            before = sum(lengths[n] for n in earlier if lengths[n] >= lengths[row[0]])
            assert before + lengths[row[0]] > width


def batches(seed: int, *, pack: bool, masked_lm: bool = False) -> Batch:
    """Return a batch of short documents, one a sample."""
    documents = make_documents([3 + (7 * number + seed) % 40 for number in range(12)], seed=seed)
    data = BlockDataset(documents, tokenizer=VOCABULARY, seq_length=SEQ_LENGTH, sample_across_documents=False)
    options = BlankInfillingSettings(
        bert_prob=0.4, gap_sentence_prob=0.3, gpt_min_ratio=0.25, short_seq_prob=0.0, masked_lm=masked_lm
    )
    collator = BlankInfillingCollator(VOCABULARY, options, max_seq_length=SEQ_LENGTH, pack=pack)
    return collator([data[seed + number] for number in range(9)], batch_index=seed)


@pytest.mark.parametrize("masked_lm", [False, True])
def test_real_tokens_are_what_is_no_padding(masked_lm: bool):
    for seed in range(12):
        alone, shared = (batches(seed, pack=pack, masked_lm=masked_lm) for pack in (False, True))
        assert alone.num_real_tokens == shared.num_real_tokens < alone.input_ids.size
        assert (shared.filled, shared.room) == (shared.num_real_tokens, shared.input_ids.size)
        assert alone.room == 9 * SEQ_LENGTH and 9 * 5 <= alone.filled <= alone.num_real_tokens


def loss_and_gradients(batch: Batch, *, masked_lm: bool = False) -> tuple[float, list[torch.Tensor]]:
    config = GLMConfig(
        2, 16, 2, 256, max_position_embeddings=96, initializer_std=0.3, block_position_encoding=not masked_lm
    )
    model = GLMModel(config, generator=torch.Generator().manual_seed(1)).double().eval()
    tensors = batch.tensors()
    result = model(
        tensors.input_ids,
        tensors.position_ids,
        tensors.attention_mask,
        labels=tensors.target_ids,
        loss_mask=tensors.loss_mask,
    )
    result.mean.backward()
    return result.mean.item(), [parameter.grad for parameter in model.parameters()]


@given(seed=st.integers(0, 10**4), masked_lm=st.booleans())
@settings(max_examples=25, deadline=None)
def test_loss_and_gradients_are_those_of_rows_of_their_own(seed: int, masked_lm: bool):
    alone, together = (batches(seed, pack=pack, masked_lm=masked_lm) for pack in (False, True))
    if masked_lm and alone.objective != "bert":
        return  # such a model has one row of positions; the other objectives have two
    assert together.input_ids.size <= alone.input_ids.size and len(alone.input_ids) == 9 - alone.num_dropped
    assert together.loss_mask.sum() == alone.loss_mask.sum()
    loss, gradients = loss_and_gradients(alone, masked_lm=masked_lm)
    packed_loss, packed_gradients = loss_and_gradients(together, masked_lm=masked_lm)
    assert packed_loss == pytest.approx(loss, rel=1e-6)
    for one, other in zip(gradients, packed_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_the_mask_keeps_samples_apart():
    owners = torch.tensor([[[1, 1, 1, 2, 2, 0], [1, 1, 0, 1, 0, 0]]])
    mask = PrefixMask.from_attention_mask(owners).visible_keys(query_length=6, key_length=6, device="cpu")
    expected = ["110000", "110000", "111000", "000100", "000110", "000001"]
    assert mask.visible is not None
    assert ["".join(str(int(x)) for x in row) for row in mask.visible[0, 0].tolist()] == expected
    with pytest.raises(ValueError, match="without a cache"):
        PrefixMask.from_attention_mask(owners).visible_keys(query_length=6, key_length=8, device="cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.slow
def test_pretraining_with_shared_rows(corpus: SmallCorpus, tmp_path):
    """The same losses to rounding, from smaller batches."""
    words = [*corpus.words(), "--short-seq-prob", "1", "--seq-length", "128", "--max-position-embeddings", "160"]
    words += ["--train-iters", "3", "--log-interval", "1", "--hidden-dropout", "0", "--attention-dropout", "0"]
    found = {}
    for name, more in (("alone", []), ("together", ["--pack-samples"])):
        run("pretrain_glm.py", *words, *more, "--experiment-name", name, "--summary-dir", str(tmp_path), cwd=tmp_path)
        [summary] = (tmp_path / "runs").glob(f"{name}*")
        found[name] = [row for row in metrics(tmp_path, summary.name) if row["kind"] == "train"]
    losses = {name: [row["loss"] for row in rows] for name, rows in found.items()}
    assert losses["together"] == pytest.approx(losses["alone"], rel=1e-4)
    assert len(losses["alone"]) == 3 and not np.isnan(losses["alone"]).any()
