"""Sample numbers, rank slices and whole batches as recorded: samplers.json, loader.json."""

from __future__ import annotations

import numpy as np
import pytest

from data_utils.loaders import DEFAULT_GENERATOR_SEED, BatchLoader, BatchPlan, RandomSampleNumbers
from data_utils.objective.block_infilling import BlankInfillingCollator, BlankInfillingSettings
from data_utils.objective.causal import SegmentPlan
from data_utils.objective.packing import BlockDataset
from tests.helpers.stand_ins import RECORDED_FIELDS, StandInDocuments, StandInVocabulary

# Parts of a recorded argument list that the loader has no say in.
ARGUMENTS_OF_OTHERS = {"eod_token", "transformer_xl", "encoder_decoder"}


@pytest.fixture(scope="module")
def recorded(golden):
    return golden.json("pretraining/samplers.json")


def test_every_part_is_checked(recorded):
    kinds = {name for name, cases in recorded.items() if isinstance(cases, list)}
    assert kinds == {
        "random_sampler",
        "distributed_batch_sampler",
        "distributed_sequential_sampler",
        "plain_batch_sampler",
    }


def test_random_numbers(recorded):
    for case in recorded["random_sampler"]:
        seed = case["generator_seed"] if case["epoch"] < 0 else case["epoch"]
        numbers = RandomSampleNumbers(case["dataset_len"], case["num_samples"], seed=seed)
        assert numbers[:].tolist() == case["indices"]


def test_batches_of_ranks(recorded):
    for case in recorded["distributed_batch_sampler"]:
        length = case["dataset_len"]
        order = RandomSampleNumbers(length, length) if case["base"] == "random" else None
        assert case["base"] in {"random", "sequential"}
        plan = BatchPlan(
            length,
            case["global_batch_size"],
            rank=case["rank"],
            world_size=case["world_size"],
            order=order,
            drop_last=case["drop_last"],
        )
        start = case["start_iter"] * (case["gradient_accumulation_steps"] or 1)
        first_pass = [plan.numbers(index) for index in range(start, len(plan))]
        shown = [batch for batch in case["first_pass"] if batch != "..."]
        assert first_pass[: len(shown)] == shown
        assert len(first_pass) == case["first_pass_len"]
        assert not first_pass or first_pass[-1] == case["first_pass_last"]
        assert plan.numbers(len(plan)) == case["second_pass_first"]
        assert len(plan) == case["len"] == case["second_pass_len"]


def test_rows_of_segment_recurrence(recorded):
    for case in recorded["distributed_sequential_sampler"]:
        plan = SegmentPlan(
            case["num_samples"],
            case["global_batch_size"],
            num_batches=case["train_iters"],
            rank=case["rank"],
            world_size=case["world_size"],
        )
        # ours go on without end; the original stops after ten times the batches of the run
        batches = [plan.numbers(index) for index in range(case["start_iter"], 10 * case["train_iters"])]
        assert len(batches) == case["batches_total"]
        assert len(plan) == case["len"]
        assert batches[: len(case["first_batches"])] == case["first_batches"]
        assert batches[-1] == case["last_batch"]


def test_batches_of_a_single_process(recorded):
    for case in recorded["plain_batch_sampler"]:
        plan = BatchPlan(case["dataset_len"], case["batch_size"], drop_last=case["drop_last"])
        assert [plan.numbers(index) for index in range(len(plan))] == case["batches"]


def test_loader(golden):
    recorded = golden.json("pretraining/loader.json")
    vocabulary = StandInVocabulary(recorded["tokenizer"])
    documents = StandInDocuments(recorded["documents"])
    for case in recorded["cases"]:
        arguments = {k: v for k, v in case["args"].items() if k not in ARGUMENTS_OF_OTHERS}
        loader, start = build_loader(case, arguments, documents, vocabulary)
        assert not arguments, f"arguments that nothing here reads: {arguments}"
        assert len(loader.plan) == case["loader_len"]
        for batch, expected in zip(loader.batches(start, len(case["batches"])), case["batches"], strict=True):
            assert set(expected) == {*RECORDED_FIELDS.values(), "mode"}
            for ours, theirs in RECORDED_FIELDS.items():
                assert getattr(batch, ours).tolist() == expected[theirs], (case["name"], ours)
            assert batch.objective == expected["mode"]


def build_loader(
    case: dict, arguments: dict, documents: StandInDocuments, vocabulary: StandInVocabulary
) -> tuple[BatchLoader, int]:
    """Build the loader of a recorded case, taking what it reads out of ``arguments``; also where it starts."""
    rank, world_size = case["data_parallel_rank"], case["data_parallel_world_size"]
    scatter = arguments.pop("loader_scatter") or 1
    seq_length = arguments.pop("seq_length")
    accumulation = arguments.pop("gradient_accumulation_steps")
    num_updates = arguments.pop("train_iters")
    dataset = BlockDataset(
        documents,
        tokenizer=vocabulary,
        seq_length=seq_length,
        sample_across_documents=not arguments.pop("sample_one_document"),
        non_sentence_start=arguments.pop("non_sentence_start"),
    )
    num_workers = arguments.pop("num_workers")
    settings = BlankInfillingSettings(
        shuffle_blocks=not arguments.pop("no_shuffle_block"),
        block_position_encoding=not arguments.pop("no_block_position"),
        **{name: arguments.pop(name) for name in list(arguments) if hasattr(BlankInfillingSettings, name)},
    )
    collator = BlankInfillingCollator(vocabulary, settings, max_seq_length=seq_length, rank=rank, world_size=world_size)
    global_batch = case["batch_size_per_rank"] * world_size
    order = None
    if case["shuffle"]:
        num_numbers = global_batch * num_updates * accumulation
        order = RandomSampleNumbers(len(dataset), num_numbers, seed=DEFAULT_GENERATOR_SEED)
    plan = BatchPlan(
        len(dataset) if order is None else len(order),
        global_batch // scatter,
        rank=rank // scatter,
        world_size=world_size // scatter,
        order=order,
        drop_last=world_size > 1,
    )
    start = case["start_iter"] * accumulation
    # After a resume the original counts batches from 0 again; ours count on.
    return BatchLoader(dataset, collator, plan, num_workers=num_workers, collator_start=-start), start


def test_worker_processes_change_nothing():
    recorded_documents = [{"tokens": list(range(100, 160)), "loss_masks": [1] * 60}]
    vocabulary = StandInVocabulary(
        {
            "commands": {"eos": 1, "ENC": 3, "MASK": 4, "sop": 6, "eop": 7},
            "sentence_end_ids_collator": [130],
            "sentence_end_ids_dataset": [130],
        }
    )
    dataset = BlockDataset(StandInDocuments(recorded_documents), tokenizer=vocabulary, seq_length=40)
    collator = BlankInfillingCollator(vocabulary, BlankInfillingSettings(), max_seq_length=40)
    plan = BatchPlan(len(dataset), 2)
    alone = BatchLoader(dataset, collator, plan).batches(3, 4)
    together = BatchLoader(dataset, collator, plan, num_workers=2).batches(3, 4)
    for ours, theirs in zip(alone, together, strict=True):
        np.testing.assert_array_equal(ours.input_ids, theirs.input_ids)
        np.testing.assert_array_equal(ours.position_ids, theirs.position_ids)
