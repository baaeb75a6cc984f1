"""ReCoRD as the benchmark asks it: examples, rows, HDF5 files, batches, and the scores of a tiny model."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data_utils.rows import stack_rows, stacked_positions
from model.config import GLMConfig
from model.heads import MultiTokenCloze
from model.modeling_glm import GLMModel
from tasks.cloze_benchmark import evaluate
from tasks.cloze_benchmark.prepare import FILES, main
from tasks.cloze_benchmark.questions import ClozeQuestion, encode_questions, read_examples, right_candidates
from tasks.cloze_benchmark.scoring import num_correct, padded_scores, shared_scores
from tasks.cloze_benchmark.store import StoredQuestions, write_questions
from tasks.superglue.batches import collate
from tasks.superglue.objective import choice_scores, score_loss
from tests.helpers.golden_index import GoldenFolder
from tests.helpers.small_models import random_model
from training.schedule import AnnealingLR

h5py = pytest.importorskip("h5py")
LENGTH = 128
SPLITS = {"train": "train", "eval": "dev"}
STORES = {"train": "record_train_sparse.hdf5", "eval": "record_eval_sparse.hdf5"}


@pytest.fixture(scope="module")
def recorded(golden: GoldenFolder) -> dict[str, Any]:
    """Return record_cloze.json."""
    content = golden.json("multilingual/record_cloze.json")
    assert content["seq_length"] == LENGTH
    return content


@pytest.fixture(scope="module")
def arrays(golden: GoldenFolder) -> Any:
    """Return record_arrays.npz."""
    return np.load(golden.path("multilingual/record_arrays.npz"))


@pytest.fixture(scope="module")
def texts(recorded: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the recorded texts."""
    folder = tmp_path_factory.mktemp("texts")
    for name in ("train", "val"):
        (folder / f"{name}.jsonl").write_text(recorded[f"{name}_jsonl"], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tokenizer(vocab_dir: Path) -> Any:
    """Return the benchmark's tokenizer."""
    from data_utils.tokenizers.tokenizer import build_tokenizer

    return build_tokenizer("BertWordPieceTokenizer", model_type="bert-large-uncased", vocab_dir=vocab_dir)


@pytest.fixture(scope="module")
def questions(texts: Path, tokenizer: Any) -> dict[str, list[ClozeQuestion]]:
    """Return the questions of both files."""
    return {
        name: list(encode_questions(read_examples(texts, split), tokenizer, seq_length=LENGTH))
        for name, split in SPLITS.items()
    }


@pytest.mark.parametrize("name", SPLITS)
def test_examples(name: str, recorded: dict[str, Any], texts: Path):
    examples = read_examples(texts, SPLITS[name])
    found = [
        {
            "guid": example.guid,
            "idx": example.idx,
            "text_a": example.text_a,
            "text_b": example.text_b,
            "label": example.label,
            "candidates": example.meta["candidates"],
            "answers": example.meta["answers"],
            "num_choices": example.num_choices,
            "answer_idx": list(right_candidates(example)),
        }
        for example in examples
    ]
    assert found == recorded[f"{name}_examples"]


def arrays_of(questions: list[ClozeQuestion], length: int) -> dict[str, np.ndarray]:
    rows = [row for question in questions for row in question.sample.rows]
    values = stack_rows(rows, width=length)
    ends = np.cumsum([len(question.sample.rows) for question in questions])
    return {
        "text": values[0],
        "target": values[1],
        "logit_mask": values[2],
        "position": stacked_positions(values),
        "mask": np.array([row.prefix_length for row in rows]),
        "choice_start_end": np.stack([[0, *ends[:-1]], ends], axis=1),
    }


@pytest.mark.parametrize("name", SPLITS)
def test_rows_and_files(name: str, arrays: Any, questions: dict, golden: GoldenFolder, tmp_path: Path):
    recorded_file = golden.path(f"multilingual/{STORES[name]}")
    stored = StoredQuestions(recorded_file)
    assert (len(stored), stored.seq_length) == (len(questions[name]), LENGTH)
    for found in (questions[name], [stored[number] for number in range(len(stored))]):
        for key, value in arrays_of(found, LENGTH).items():
            np.testing.assert_array_equal(value, arrays[f"{name}_{key}"], err_msg=key)
        if name == "eval":
            counts = np.diff(arrays["eval_answer_start_end"]).ravel()
            assert [len(question.right) for question in found] == list(counts)
            assert [number for question in found for number in question.right] == list(arrays["eval_answer_idx"])
    written = tmp_path / "written.hdf5"
    num_rows = write_questions(written, questions[name], seq_length=LENGTH, with_answers=name == "eval")
    assert num_rows == stored.num_rows == len(arrays[f"{name}_text"])
    with h5py.File(recorded_file) as one, h5py.File(written) as two:
        assert set(one) == set(two)
        for group in one:
            assert set(one[group]) == set(two[group])
            assert one[group].attrs["h5sparse_format"] == two[group].attrs["h5sparse_format"]
            assert list(one[group].attrs["h5sparse_shape"]) == list(two[group].attrs["h5sparse_shape"])
            for member in one[group]:
                assert one[group][member].dtype == two[group][member].dtype, (group, member)
                np.testing.assert_array_equal(one[group][member][:], two[group][member][:], err_msg=group)


def test_a_passage_that_is_too_long_loses_its_end(arrays: Any, texts: Path, tokenizer: Any):
    found = arrays_of(list(encode_questions(read_examples(texts, "train"), tokenizer, seq_length=64)), 64)
    for key in ("text", "mask", "position", "target"):
        np.testing.assert_array_equal(found[key], arrays[f"train64_{key}"], err_msg=key)


@pytest.mark.parametrize("name", SPLITS)
def test_batches_and_scores(name: str, arrays: Any, recorded: dict[str, Any], questions: dict, golden: GoldenFolder):
    """The scores of candidates that only fill a batch differ: -10000 in both files here, -1e9 there when evaluating."""
    indices = recorded[f"collate_{name}"]["indices"]
    chosen = [questions[name][index] for index in indices]
    batch = collate([question.sample for question in chosen], pad_id=0, pad_to=LENGTH)
    fields = {
        "text": batch.input_ids,
        "position": batch.position_ids,
        "mask": batch.prefix_lengths,
        "target": batch.target_ids,
        "logit_mask": batch.loss_mask,
        "loss_mask": batch.choice_mask,
        "label": batch.labels,
    }
    for key, value in fields.items():
        np.testing.assert_array_equal(value, arrays[f"collate_{name}_{key}"], err_msg=key)
    if name == "eval":
        assert [list(question.right) for question in chosen] == recorded["collate_eval"]["answer_idx"]

    head = torch.load(golden.path("multilingual/record_head.pt"), weights_only=True)
    sizes = {key: value for key, value in head["config"].items() if key != "modulo"}
    model = GLMModel(GLMConfig(**sizes))
    model.load_state_dict(head["module"])
    cloze = MultiTokenCloze(model.eval())
    tensors = {key: torch.from_numpy(value) for key, value in batch.arrays().items()}
    for key in ("input_ids", "target_ids"):
        tensors[key] = tensors[key] % head["config"]["modulo"]
    with torch.no_grad():
        raw = cloze(
            *(tensors[key] for key in ("input_ids", "position_ids", "prefix_lengths", "target_ids", "loss_mask"))
        )
        scores = choice_scores(cloze, batch, tensors)
    torch.testing.assert_close(raw, head[f"{name}_logits"], atol=1e-4, rtol=0)
    real = tensors["choice_mask"].bool()
    torch.testing.assert_close(scores[real], head[f"{name}_masked"][real], atol=1e-4, rtol=0)
    loss = score_loss(scores, tensors["labels"]) / len(batch)
    torch.testing.assert_close(loss, head[f"{name}_loss"], atol=1e-5, rtol=0)
    best = scores.argmax(dim=1)
    assert best.tolist() == head[f"{name}_pred"].tolist()
    if name == "eval":
        correct = sum(int(choice) in question.right for choice, question in zip(best, chosen))
        assert correct == int(head["eval_correct"])


@pytest.mark.parametrize("length", [LENGTH, 64])
def test_two_ways_to_the_same_scores(length: int, texts: Path, tokenizer: Any):
    """With 64 positions passages are cut, for each candidate by as much as it needs: such rows share nothing."""
    questions = list(encode_questions(read_examples(texts, "dev"), tokenizer, seq_length=length))
    model = random_model(vocab_size=tokenizer.num_tokens, positions=LENGTH)
    padded = padded_scores(model, questions, width=LENGTH, batch_size=3)
    shared = shared_scores(model, questions, batch_size=2)
    assert [len(one) for one in padded] == [len(one) for one in shared] == [q.sample.num_choices for q in questions]
    for one, other in zip(padded, shared):
        np.testing.assert_allclose(one, other, atol=1e-3)
    assert num_correct(padded, questions) == num_correct(shared, questions)


def test_accuracy(recorded: dict[str, Any], questions: dict):
    sample = questions["eval"][0].sample
    for case in recorded["accuracy_cases"]:
        scores = [np.eye(9, dtype=np.float32)[prediction] for prediction in case["predictions"]]
        asked = [ClozeQuestion(sample, tuple(right)) for right in case["answer_idx"]]
        assert num_correct(scores, asked) == case["correct"]


def test_the_learning_rate(recorded: dict[str, Any]):
    """The original's falls below its end value, even below 0; ours stays there."""
    for case in recorded["lr_schedule"]:
        num_iters = case["lr_decay_iters"]
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=case["lr"])
        falling, ours = (
            AnnealingLR(
                optimizer,
                start_lr=case["lr"],
                warmup_iters=case["warmup"] * num_iters,
                num_iters=num_iters,
                decay_ratio=case["lr_decay_ratio"],
                clamp=clamp,
            )
            for clamp in (False, True)
        )
        for step, rate in zip(case["steps"], case["lrs"], strict=True):
            assert falling.rate(step) == pytest.approx(rate, rel=1e-9)
            assert ours.rate(step) == pytest.approx(rate if step <= num_iters else ours.rate(num_iters), rel=1e-9)


@pytest.fixture
def prepared(texts: Path, vocab_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> SimpleNamespace:
    """Return a folder with an archive that the command has prepared, and what it printed."""
    folder = tmp_path / "glm"
    folder.mkdir()
    with zipfile.ZipFile(folder / "ReCoRD.zip", "w") as archive:
        for name in ("train", "val", "test"):
            archive.writestr(f"ReCoRD/{name}.jsonl", (texts / f"{'val' if name == 'test' else name}.jsonl").read_text())
    command = [str(folder), "--seq-length", str(LENGTH), "--vocab-dir", str(vocab_dir)]
    assert main(command) == 0
    return SimpleNamespace(folder=folder, command=command, lines=capsys.readouterr().out.splitlines())


def test_the_command_unpacks_and_writes_once(prepared: SimpleNamespace, capsys: pytest.CaptureFixture[str]):
    texts = prepared.folder / "ReCoRD"
    files = [texts / name for name in FILES.values()]
    numbers = ("6 questions, 36 candidates, 128 positions", "4 questions, 25 candidates, 128 positions")
    assert prepared.lines == [f"{file} is written: {text}" for file, text in zip(files, numbers)]
    before = [file.read_bytes() for file in files]
    main(prepared.command)
    assert capsys.readouterr().out.splitlines() == [f"{file} is there: {text}" for file, text in zip(files, numbers)]
    assert [file.read_bytes() for file in files] == before
    with pytest.raises(ValueError, match="has rows of 128 positions, --seq-length is 64"):
        main([*prepared.command, "--seq-length", "64"])


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path):
    (tmp_path / "ReCoRD.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"ReCoRD\.zip is not the archive of ReCoRD"):
        main([str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["ReCoRD.zip"]


def set_value(group: str, member: str, place: int, value: int) -> Any:
    def change(content: Any) -> None:
        content[group][member][place] = value

    return change


DAMAGE = {
    "no group position": lambda content: content.__delitem__("position"),
    "no group answer_start_end": lambda content: content.__delitem__("answer_start_end"),
    "stored as 'csr'": lambda content: content["text"].attrs.__setitem__("h5sparse_format", "csr"),
    "text/indices": set_value("text", "indices", 0, 9999),
    "text/data": set_value("text", "data", 0, -5),
    "differ in their numbers of rows": lambda content: content["mask"].attrs.__setitem__("h5sparse_shape", (26, 1)),
    "a row is shorter or longer": set_value("mask", "data", 0, 128),
    "candidates are not one after the other": set_value("choice_start_end", "data", 0, 1),
    "an answer is none of the candidates": set_value("answer_idx", "data", 0, 99),
}


@pytest.mark.parametrize("problem", DAMAGE)
def test_damaged_files_are_named(problem: str, questions: dict, tmp_path: Path):
    path = tmp_path / "eval.hdf5"
    write_questions(path, questions["eval"], seq_length=LENGTH, with_answers=True)
    with h5py.File(path, "r+") as content:
        DAMAGE[problem](content)
    with pytest.raises(ValueError, match=r"eval\.hdf5.*damaged") as caught:
        StoredQuestions(path)
    assert "/" in problem or problem in str(caught.value)


def test_a_cut_file_is_named(questions: dict, tmp_path: Path):
    path = tmp_path / "eval.hdf5"
    write_questions(path, questions["eval"], seq_length=LENGTH, with_answers=True)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"eval\.hdf5: no file of the cloze benchmark, or a damaged one"):
        StoredQuestions(path)


def test_the_two_ways_are_compared(prepared: SimpleNamespace, tokenizer: Any, vocab_dir: Path, capsys: Any):
    model = random_model(vocab_size=tokenizer.padded_size(128), positions=LENGTH)
    checkpoint = prepared.folder / "checkpoint"
    checkpoint.mkdir()
    torch.save({"module": model.state_dict()}, checkpoint / "mp_rank_00_model_states.pt")
    config = model.config
    description = {
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "tokenizer_type": "BertWordPieceTokenizer",
        "tokenizer_model_type": "bert-large-uncased",
    }
    (checkpoint / "config.json").write_text(json.dumps(description), encoding="utf-8")
    words = [str(prepared.folder), "--load", str(checkpoint), "--vocab-dir", str(vocab_dir), "--device", "cpu"]
    assert evaluate.main(words) == 0
    padded, shared, ratio = capsys.readouterr().out.splitlines()[-3:]
    accuracy = r"accuracy (\S+ \(\d of 4 questions\)), .* questions/s, .* rows/s"
    assert re.fullmatch(f"padded: {accuracy}", padded)[1] == re.fullmatch(f"shared: {accuracy}", shared)[1]
    assert "4 of 4 questions get the same answer" in ratio
