"""Rivals of blank infilling: what each makes of a sample, how answers are scored, and a whole run at a tiny size."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.infilling import measuring, training
from benchmarks.infilling.blanks import KINDS, LONGEST, make_blanks, score, word_spans
from benchmarks.infilling.command import infilling, rival_class
from benchmarks.infilling.diffusion import LENGTHS, DiffusionAnswers, DiffusionRival
from benchmarks.infilling.fim import FimRival
from benchmarks.infilling.report import COMMAND
from benchmarks.infilling.t5 import corrupt, number_of_spans, random_parts
from benchmarks.infilling.training import Experiment, until
from benchmarks.pages import marks
from data_utils.objective.packing import Sample
from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer

WORDS = "the a old red small house river horse child garden sees finds likes follows under near behind with".split()  # noqa: SIM905


def sentence(generator: random.Random) -> str:
    words = [generator.choice(WORDS) for _ in range(generator.randint(6, 14))]
    return f"{words[0].title()} {' '.join(words[1:])}."


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("infilling")
    generator = random.Random(1)
    text = folder / "text.jsonl"
    documents = [" ".join(sentence(generator) for _ in range(60)) for _ in range(20)]
    text.write_text("".join(json.dumps({"text": one}) + "\n" for one in documents), encoding="utf-8")
    made = Experiment(
        folder=folder, train_data=str(text), valid_data=str(text), updates=6, layers=2, hidden=64, vocab_size=400,
        seq_length=96, batch_size=2, rates=(1e-3,), count=6, seeds=(1, 2),
    )  # fmt: skip
    made.prepare()
    return made


@pytest.fixture(scope="module")
def tokenizer(experiment: Experiment) -> Tokenizer:
    return build_tokenizer("SentencePieceTokenizer", path=experiment.tokenizer_path)


def test_blanks_are_pieces_of_the_text_between_words(experiment: Experiment, tokenizer: Tokenizer):
    blanks = make_blanks(experiment.valid_data, tokenizer, count=10, room=experiment.room)
    assert [blank.kind for blank in blanks] == [kind for kind in KINDS for _ in range(10)]
    text = Path(experiment.valid_data).read_text(encoding="utf-8")
    for blank in blanks:
        least, most = KINDS[blank.kind]
        truth = tokenizer.decode(blank.truth)
        assert least <= len(truth.split()) <= most and len(blank.truth) <= LONGEST
        assert 0 < len(blank.before) + len(blank.after) <= experiment.room and blank.before and blank.after
        assert tokenizer.decode([*blank.before, *blank.truth, *blank.after]).strip() in text
        assert truth.startswith(" ") and truth.endswith(".") == (blank.kind == "sentence")
    assert blanks == make_blanks(experiment.valid_data, tokenizer, count=10, room=experiment.room)
    with pytest.raises(ValueError, match="places for blanks of 1-3 words, 100000 are needed"):
        make_blanks(experiment.valid_data, tokenizer, count=100_000, room=experiment.room)


def test_punctuation_behind_a_word_is_no_part_of_a_blank():
    text = " He said, “No—never!” to Mr. Brown's dog."
    assert [text[start:end] for start, end in word_spans(text)] == [" He", " said", " to", " Mr", " Brown's", " dog"]


def test_figures_of_answers_worked_out_by_hand():
    scores = score(["a red horse", "the dog"], [[" a red horse ", "dog"], ["a horse", "The dog"]])
    assert scores.exact.tolist() == [[1, 0], [0, 0]]
    assert scores.right_length.tolist() == [[1, 0], [0, 1]]
    # matches, words, matched pairs, pairs, length, length of the truth
    assert scores.counts[0].tolist() == [[3, 3, 2, 2, 3, 3], [1, 1, 0, 0, 1, 2]]
    assert scores.counts[1].tolist() == [[2, 2, 0, 1, 2, 3], [1, 2, 0, 1, 2, 2]]
    assert scores.rouge[0].tolist() == pytest.approx([1.0, 2 / 3])  # precision 1, recall 1/2
    figures = scores.summary()
    first = np.sqrt(4 / 4 * 2 / 2) * np.exp(1 - 5 / 4)
    assert figures["bleu2"][0] == pytest.approx(100 * (first + 0) / 2, abs=0.01)
    assert figures["exact"][0] == 25.0 and figures["exact"][1] == 0.0 and figures["exact"][2] == 50.0


@pytest.mark.parametrize("length", [2, 7, 40, 96])
def test_t5_spans_put_together_again_are_the_sample(length: int):
    tokens, first = list(range(1, length + 1)), 1000
    removed, count = number_of_spans(length)
    source, target = corrupt(tokens, random.Random(length), first_sentinel=first)
    pieces: dict[int, list[int]] = {}
    for token in target:
        if token >= first:
            last = pieces.setdefault(token, [])
        else:
            last.append(token)
    restored = [t for token in source for t in (pieces[token] if token >= first else [token])]
    assert restored == tokens and len(pieces) == count + 1 and not pieces[first + count]
    assert sum(map(len, pieces.values())) == removed
    assert sorted(random_parts(9, 3, random.Random(0))) and sum(random_parts(9, 3, random.Random(0))) == 9


def test_a_causal_sample_is_prefix_suffix_middle(experiment: Experiment):
    rival = FimRival(experiment)
    tokenizer, special = rival.tokenizer(), rival.tokenizer().special
    tokens = np.array([special.cls, *range(10, 40)])
    batch = rival.collate([Sample(tokens, np.ones_like(tokens))] * 40, random.Random(3), tokenizer)
    moved = 0
    for row in batch["input_ids"].tolist():
        if special.sop not in row:
            assert row[: len(tokens)] == tokens.tolist()
            continue
        moved += 1
        prefix, rest = row[1 : row.index(special.sep)], row[row.index(special.sep) + 1 :]
        suffix, middle = rest[: rest.index(special.sop)], until(rest[rest.index(special.sop) + 1 :], special.ends)
        assert [*prefix, *middle, *suffix] == tokens[1:].tolist()
    assert 28 <= moved < 40


def test_the_bound_of_diffusion_counts_masked_tokens_over_their_share(experiment: Experiment):
    rival = DiffusionRival(experiment)
    tokenizer = rival.tokenizer()
    special, model = tokenizer.special, rival.build(tokenizer).eval()
    tokens = np.array([special.cls, *range(10, 90)])
    batch = rival.collate([Sample(tokens, np.ones_like(tokens))] * 8, random.Random(5), tokenizer)
    masked = batch["input_ids"] == special.mask
    assert (batch["labels"] != -100).equal(masked) and not masked[:, 0].any()
    assert batch["labels"][masked].tolist() == torch.tensor(tokens).expand(8, -1)[masked].tolist()
    shares = 1 / batch["weights"]
    assert shares.diff().gt(0).all() and masked.float().mean(1).sub(shares).abs().max() < 0.2
    with torch.inference_mode():
        losses = nn.functional.cross_entropy(
            model(input_ids=batch["input_ids"]).logits.transpose(1, 2), batch["labels"], reduction="none"
        )
        expected = (losses.sum(1) / shares).sum() / tokens.size / 8
        assert rival.loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-4)


class Interrupted(FimRival):
    """A training that ends in its fourth update."""

    calls = 0

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        self.calls += 1
        if self.calls == 4:
            raise KeyboardInterrupt
        return super().loss(model, batch)


def test_a_resumed_training_is_the_straight_one(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)  # save after every update
    (tmp_path / "straight").mkdir()
    (tmp_path / "resumed").mkdir()
    straight = FimRival(experiment).train(tmp_path / "straight", rate=1e-3, updates=6)
    with pytest.raises(KeyboardInterrupt):
        Interrupted(experiment).train(tmp_path / "resumed", rate=1e-3, updates=6)
    resumed = FimRival(experiment).train(tmp_path / "resumed", rate=1e-3, updates=6)
    assert resumed.curve == straight.curve and [updates for updates, _ in straight.curve] == [1, 2, 3, 4, 5, 6]
    first, second = (FimRival(experiment).load(tmp_path / name).model for name in ("straight", "resumed"))
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def words_of(experiment: Experiment, *more: str) -> list[str]:
    return [
        "--train-data", experiment.train_data, "--valid-data", experiment.valid_data, "--folder",
        str(experiment.folder), "--updates", "6", "--layers", "2", "--hidden", "64", "--vocab-size", "400",
        "--seq-length", "96", "--batch-size", "2", "--rates", "1e-3", "--blanks", "6", "--seeds", "1", "2", *more,
    ]  # fmt: skip


def test_rivals_run_once_and_share_a_table(experiment: Experiment, tmp_path: Path):
    page = tmp_path / "page.md"
    begin, end = marks(COMMAND)
    page.write_text(f"# Page\n\n{begin}\nOUTDATED\n{end}\n\nafter\n", encoding="utf-8")
    for name in ("t5", "diffusion"):
        assert infilling([name, *words_of(experiment)]) == 0
        file = experiment.folder / name / "run.json"
        before = file.read_bytes()
        values = json.loads(before)
        assert values["updates"] == 6 and values["curve"][-1][0] == 6 and values["parameters"] > 100_000
        assert infilling([name, *words_of(experiment)]) == 0  # nothing is left to do
        assert file.read_bytes() == before
    assert infilling(["table", "--folder", str(experiment.folder), "--output", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "OUTDATED" not in text and text.startswith("# Page\n") and text.endswith(f"{end}\n\nafter\n")
    assert text.count("\n| T5 span corruption |") == 6 and text.count("\n| masked diffusion | given |") == 4
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert list(kept) == ["t5", "diffusion"] and str(experiment.folder) not in json.dumps(kept)
    with pytest.raises(ValueError, match=r"made with count 6, now it is 7; .* another --folder"):
        infilling(["t5", *words_of(experiment, "--blanks", "7")])


def test_the_time_decides_how_many_updates_and_the_loss_which_rate(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(measuring, "TIMED", (1, 3))
    timed = replace(
        experiment, folder=tmp_path, updates=None, minutes=0.01, sweep_minutes=0.005, rates=(1e-3, 1e-9), count=2,
        seeds=(1,),
    )  # fmt: skip
    values = measuring.measure("fim", FimRival(timed))
    assert list(values["sweep"]) == ["0.001", "1e-09"] and values["rate"] == 1e-3
    each = values["seconds_per_update"]
    assert each == pytest.approx(np.mean([one["seconds_per_update"] for one in values["sweep"].values()]))
    assert values["updates"] == max(1, round(0.6 / each)) == values["curve"][-1][0]
    assert sorted(path.name for path in (tmp_path / "fim").iterdir()) == ["checkpoint.pt", "run.json"]
    assert set(values["results"]["kinds"]) == set(KINDS)


def test_diffusion_guesses_a_length_or_is_told_it(experiment: Experiment, tokenizer: Tokenizer):
    rival = DiffusionRival(experiment)
    torch.manual_seed(0)
    answers = DiffusionAnswers(rival.build(rival.tokenizer()).eval(), rival.tokenizer(), experiment)
    blanks = make_blanks(experiment.valid_data, tokenizer, count=2, room=experiment.room)
    assert {len(answer) for answer in answers.answer(blanks, seed=1)} <= set(LENGTHS)
    told = answers.variants()["given"].answer(blanks, seed=1)
    assert [len(answer) for answer in told] == [len(blank.truth) for blank in blanks]
    assert tokenizer.special is not None and all(rival.tokenizer().special.mask not in answer for answer in told)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glm", "no-positions"])
def test_glm_is_trained_by_its_program(name: str, experiment: Experiment, tokenizer: Tokenizer):
    assert infilling([name, *words_of(experiment)]) == 0
    values = json.loads((experiment.folder / name / "run.json").read_text(encoding="utf-8"))
    others = rival_class("t5")(experiment)
    assert isinstance(others, training.TransformersRival)
    count = sum(parameter.numel() for parameter in others.build(others.tokenizer()).parameters())
    assert values["parameters"] == pytest.approx(count, rel=0.15)  # tables of positions weigh most here
    model = rival_class(name)(experiment).load(experiment.folder / name)
    blanks = make_blanks(experiment.valid_data, tokenizer, count=2, room=experiment.room)
    assert all(len(answer) <= LONGEST for answer in model.answer(blanks, seed=1))
    assert model.answer(blanks, seed=1) == model.answer(blanks, seed=1) != model.answer(blanks, seed=2)
    sums = model.losses(blanks)
    assert sums is not None
    uniform = np.log(experiment.vocab_size)
    assert all(0.5 * uniform < total / (len(b.truth) + 1) < 1.5 * uniform for total, b in zip(sums, blanks))


def test_mistakes_are_said_in_one_line(experiment: Experiment, tmp_path: Path):
    for more, said in (
        (["--hidden", "100"], "--hidden is 100; a multiple of 64"),
        (["--minutes", "0"], "--minutes is 0; a number above 0"),
        (["--layers", "3", "--folder", str(tmp_path)], "--layers 3: encoder and decoder of T5"),
    ):
        with pytest.raises(ValueError, match=said):
            infilling(["t5", *words_of(experiment, *more)])
    with pytest.raises(ValueError, match="no --train-data: give a file of text"):
        infilling(["t5"])
    with pytest.raises(ValueError, match="no results yet; run python -m benchmarks infilling RIVAL first"):
        infilling(["table", "--folder", str(tmp_path)])
    assert replace(experiment, seq_length=100).room == 56
