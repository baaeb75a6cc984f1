"""Scores of continuations: every batch size, every number of ranks, and the plain computation say the same."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest
import torch

from generation.inputs import QuestionEncoder
from generation.scoring import Question, Score, score_batch, score_questions
from model.heads import MultiTokenCloze
from model.modeling_glm import GLMModel
from mpu.initialize import ParallelTopology, initialize_model_parallel
from tasks.registry import TASKS
from tasks.superglue.batches import collate
from tasks.superglue.objective import score_rows
from tasks.superglue.readers import InputExample
from tasks.superglue.samples import EncodingOptions
from tests.helpers.distributed import run
from tests.helpers.engines import scoring_engine
from tests.helpers.small_models import TINY_COMMAND_IDS, WordTokenizer, made_up_texts, random_model

TOKENIZER = WordTokenizer(TINY_COMMAND_IDS, num_tokens=58)
LENGTH = 64


def questions_of(texts: Sequence[tuple[str, list[str]]], **options: bool) -> list[Question]:
    encoder = QuestionEncoder(TOKENIZER, LENGTH)
    return [encoder.question(context, choices, **options) for context, choices in texts]


def plain_score(model: GLMModel, question: Question, number: int) -> Score:
    """Run one continuation as a row of its own, without cache, mask matrix or shared positions."""
    one = question.continuations[number]
    ids = torch.from_numpy(np.concatenate([question.input_ids, one.input_ids])).unsqueeze(0)
    positions = torch.from_numpy(np.concatenate([question.position_ids, one.position_ids], axis=1)).unsqueeze(0)
    with torch.inference_mode():
        logits = model(ids, positions, torch.tensor([question.prefix_length]))[0, -len(one.target_ids) :]
    targets = torch.from_numpy(one.target_ids)
    values = torch.log_softmax(logits.float(), dim=-1).gather(1, targets.unsqueeze(1))
    return Score(values.sum().item(), len(targets), bool((logits.argmax(dim=-1) == targets).all()))


def assert_equal(found: Sequence[Sequence[Score]], expected: Sequence[Sequence[Score]]) -> None:
    assert [len(scores) for scores in found] == [len(scores) for scores in expected]
    for one, other in zip(chain.from_iterable(found), chain.from_iterable(expected), strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)
        assert (one.num_tokens, one.greedy) == (other.num_tokens, other.greedy)


@pytest.mark.parametrize("unidirectional", [False, True])
def test_batches_and_the_plain_computation_agree(unidirectional: bool):
    model = random_model(positions=LENGTH)
    questions = questions_of(made_up_texts(23), unidirectional=unidirectional)
    expected = [[plain_score(model, q, number) for number in range(len(q.continuations))] for q in questions]
    for batch_size in (1, 4, 16):
        assert_equal(score_questions(model, questions, batch_size=batch_size), expected)
    assert len({round(s.log_probability, 3) for scores in expected for s in scores}) > 30, "scores tell texts apart"


def test_choices_do_not_see_each_other():
    model = random_model(positions=LENGTH)
    [alone] = score_questions(model, questions_of([("w1 [MASK] w2", ["w3 w4 w5"])]))
    [among] = score_questions(model, questions_of([("w1 [MASK] w2", ["w9 w8", "w3 w4 w5", "w7 w7 w7 w7"])]))
    assert among[1].log_probability == pytest.approx(alone[0].log_probability, abs=1e-5)


def test_of_equal_tokens_the_first_is_the_models_choice():
    model = random_model(positions=LENGTH)
    questions = questions_of([("w1 [MASK] w2", ["w30", "w20", "w10"])])
    first, other = TOKENIZER.encode("w10 w20")
    direction = model.word_embeddings.weight[first].detach().clone()
    greedy = []
    for scale in (100.0, -100.0):  # with one of them both have the same highest logit
        with torch.no_grad():
            model.word_embeddings.weight[first] = model.word_embeddings.weight[other] = scale * direction
        [scores] = score_questions(model, questions)
        assert scores[1].log_probability == scores[2].log_probability
        greedy.append([score.greedy for score in scores])
    assert sorted(greedy) == [[False, False, False], [False, False, first < other]]


def test_many_long_choices_take_several_rows():
    model = random_model(positions=LENGTH)
    choices = [" ".join(f"w{(start + step) % 50}" for step in range(40)) for start in range(17)]
    questions = questions_of([("w1 [MASK]", choices), ("w2", ["w3"])])
    calls: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, inputs: calls.append(tuple(inputs[0].shape)))
    found = score_batch(model, questions)
    assert len(calls) == 1 and calls[0][0] > 2 and calls[0][1] <= 300
    expected = [[plain_score(model, q, number) for number in range(len(q.continuations))] for q in questions]
    assert_equal(found, expected)


def test_training_mode_is_left_as_it_was():
    model = random_model(positions=LENGTH).train()
    questions = questions_of(made_up_texts(3))
    first = score_questions(model, questions)
    assert model.training
    assert_equal(first, score_questions(model.eval(), questions))


@pytest.mark.parametrize("unidirectional", [False, True])
def test_the_task_says_the_same(unidirectional: bool):
    """The samples of ``multichoice``, by rows of their own (multi-token scores) and with the context run once."""
    model, texts = random_model(positions=LENGTH), made_up_texts(9, seed=5)
    examples = [
        InputExample(str(number), text, meta={"choices": choices}, label=0)
        for number, (text, choices) in enumerate(texts)
    ]
    options = EncodingOptions(seq_length=LENGTH, unidirectional=unidirectional)
    samples = TASKS["multichoice"].build_samples(examples, TOKENIZER, options).samples
    head = MultiTokenCloze(model)
    rows = []
    with torch.inference_mode():
        for sample in samples:
            batch = collate([sample], pad_id=50).tensors()
            inputs = batch.input_ids, batch.position_ids, batch.prefix_lengths
            rows.append(head(*inputs, batch.target_ids, batch.loss_mask)[0])
    found = score_questions(model, questions_of(texts, unidirectional=unidirectional))
    evaluated = score_rows(scoring_engine(head), samples, batch_size=4, pad_id=50)
    for row, scores, values in zip(rows, found, evaluated, strict=True):
        np.testing.assert_allclose([score.log_probability for score in scores], row.numpy(), atol=1e-4)
        np.testing.assert_allclose(values, row.numpy(), atol=1e-4)


def scores_of_rank(model_parallel_size: int) -> tuple[list[list[Score]], list[np.ndarray]]:
    topology = initialize_model_parallel(model_parallel_size)
    generator = torch.Generator().manual_seed(0)
    config = random_model(positions=LENGTH).config
    model = GLMModel(config, topology=topology, generator=generator).eval()
    texts = made_up_texts(11)
    examples = [InputExample(str(n), text, meta={"choices": choices}) for n, (text, choices) in enumerate(texts)]
    samples = TASKS["multichoice"].build_samples(examples, TOKENIZER, EncodingOptions(seq_length=LENGTH)).samples
    engine = scoring_engine(MultiTokenCloze(model), topology=topology)
    questions = score_questions(model, questions_of(texts), batch_size=3, topology=topology)
    return questions, score_rows(engine, samples, batch_size=3, pad_id=50)


@pytest.mark.parametrize("model_parallel_size", [1, 2], ids=["data ranks", "tensor-parallel ranks"])
def test_two_ranks_say_what_one_says(model_parallel_size: int):
    expected = score_questions(random_model(positions=LENGTH), questions_of(made_up_texts(11)))
    for found, rows in run(scores_of_rank, 2, model_parallel_size):
        assert_equal([[Score(*score) for score in scores] for scores in found], expected)
        for row, scores in zip(rows, expected, strict=True):
            np.testing.assert_allclose(row, [score.log_probability for score in scores], atol=1e-4)


def test_windows_score_every_token_once():
    model, encoder = random_model(positions=LENGTH), QuestionEncoder(TOKENIZER, 12)
    words = [f"w{(7 * number) % 50}" for number in range(40)]
    for count in (1, 2, 10, 11, 12, 25, 40):
        text = " ".join(words[:count])
        for options in ({}, {"unidirectional": True}, {"skip_first": True}):
            windows = encoder.windows(text, overlap=4, **options)
            scored = [target for window in windows for target in window.continuations[0].target_ids]
            assert scored == TOKENIZER.encode(text)[int("skip_first" in options) :], (count, options)
            assert all(window.length <= 14 for window in windows)
    assert encoder.windows("", overlap=4) == []
    [window] = encoder.windows("w1 w2 w3", overlap=4)
    [[score]] = score_questions(model, [window])
    assert score.log_probability == pytest.approx(plain_score(model, window, 0).log_probability, abs=1e-4)


@pytest.mark.parametrize("kept", ["w49 [MASK]", "[MASK] w1"])
def test_a_context_that_is_too_long_keeps_its_blank(kept: str):
    encoder = QuestionEncoder(TOKENIZER, 16)
    long = " ".join(f"w{number}" for number in range(40))
    text = f"{long} {kept}" if kept.startswith("w") else f"{kept} {long}"
    question = encoder.question(text, ["w5 w6"])
    assert encoder.num_shortened == 1
    assert question.prefix_length == 14 and TINY_COMMAND_IDS["MASK"] in question.input_ids.tolist()
    at = question.input_ids.tolist().index(TINY_COMMAND_IDS["MASK"])
    assert question.position_ids[:, -1].tolist() == [at, 1]


@pytest.mark.parametrize(
    ("choices", "options", "message"),
    [
        ([], {}, "line 3: no choices"),
        (["w1", " "], {}, "line 3: choice 1, ' ', has no tokens"),
        (["w1 " * 70], {}, "line 3: a choice of 70 tokens leaves no room"),
        (["w1"], {"mask": "xMASK"}, "mask 'xMASK'"),
    ],
)
def test_mistakes(choices: list[str], options: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message) as error:
        QuestionEncoder(TOKENIZER, LENGTH).question("w1", choices, place="line 3", **options)
    assert "\n" not in str(error.value)


def test_an_overlap_has_to_fit():
    with pytest.raises(ValueError, match="between 1 and 10"):
        QuestionEncoder(TOKENIZER, 12).windows("w1 w2", overlap=11)


def test_single_is_the_default_topology():
    model, questions = random_model(positions=LENGTH), questions_of(made_up_texts(4))
    assert_equal(
        score_questions(model, questions), score_questions(model, questions, topology=ParallelTopology.single())
    )
