"""Weights of sources: asked for, printed, and what share of the tokens each has in training."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from data_utils.corpora.named import split_weight
from data_utils.mixtures import EntryPicker, Mixture, measured_shares
from data_utils.objective.packing import BlockDataset
from tests.helpers.byte_corpus import prepare
from tests.helpers.launching import metrics, run
from tests.helpers.small_corpus import make_corpus
from training.arguments import parse_settings
from training.settings import PretrainingSettings


class Packing:
    """What packing asks of a tokenizer; no token ends a sentence."""

    class special:
        eos, cls = 298, 297

    def sentence_end_table(self, kind):
        return np.zeros(300, bool)


def corpus_of(folder, name, lengths):
    generator = random.Random(name)
    rows = ({"text": "x" * generator.choice(lengths)} for _ in range(400))
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.3, 0.6, 0.1), (0.05, 0.05, 0.9)])
@pytest.mark.parametrize("one_document", [False, True])
def test_sources_have_their_shares_of_the_tokens_however_long_their_documents_are(tmp_path, weights, one_document):
    parts = [
        prepare(corpus_of(tmp_path, name, lengths), cache_dir=tmp_path / "s")
        for name, lengths in (("short", (5, 9)), ("middle", (40, 90)), ("long", (300, 2000)))
    ]
    mixture = Mixture("abc", parts, weights=weights, seq_length=128, one_document=one_document)
    data = BlockDataset(
        mixture,
        tokenizer=Packing(),
        seq_length=128,
        sample_across_documents=not one_document,
        picker=EntryPicker(mixture),
        num_entries=len(mixture.entries),
    )
    asked = np.array(weights) / sum(weights)
    assert mixture.asked.tolist() == asked.tolist()
    assert np.abs(measured_shares(data, range(3000)) - asked).max() < 0.03
    assert mixture.shares[0] > asked[0], "short documents are drawn more often"


def test_a_weight_is_behind_the_last_at_sign(tmp_path):
    assert split_weight("corpus.jsonl") == ("corpus.jsonl", None)
    assert split_weight("a@b/corpus.jsonl@0.3") == ("a@b/corpus.jsonl", 0.3)
    assert split_weight("wikipedia=x@2") == ("wikipedia=x", 2.0)
    assert split_weight("hf:user/set:train@.5") == ("hf:user/set:train", 0.5)
    assert split_weight("mail@host") == ("mail@host", None)
    (tmp_path / "a@1").mkdir()
    assert split_weight(f"{tmp_path}/a@1") == (f"{tmp_path}/a@1", None)
    with pytest.raises(ValueError, match="a weight is a number above 0"):
        split_weight("a@0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a@1", "b"], r"1 of 2 sources have a weight .*give every source one, or none"),
        (["a@1", "b@2", "--dataset-temperature", "0.5"], "has weights .*would set other shares"),
        (["a@1", "b@2", "--save-splits", "x.npy"], "do not go with .*weights of --train-data"),
    ],
)
def test_weights_that_contradict_something_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        parse_settings(PretrainingSettings, ["--train-data", *words], description="")


def test_a_run_says_what_it_was_asked_for_and_what_it_saw(tmp_path):
    words = make_corpus(tmp_path).words()
    at = words.index("--train-data")
    other = corpus_of(tmp_path, "other", (20, 60))
    words[at + 1 : at + 2] = [f"{tmp_path / 'train.jsonl'}@0.7", f"{other}@0.3"]
    words += ["--train-iters", "4", "--experiment-name", "w"]
    result = run("pretrain_glm.py", *words, cwd=tmp_path)
    assert "30.00 % of the training asked for" in result
    assert f"{other} " in result and "(asked for 30.00 %)" in result
    [folder] = (tmp_path / "runs").iterdir()
    [row] = [row for row in metrics(tmp_path, folder.name) if row["kind"] == "shares"]
    assert row["asked"] == {str(tmp_path / "train.jsonl"): 0.7, str(other): 0.3}
    assert sum(row["seen"].values()) == pytest.approx(1) and row["samples"] == 16 and row["iteration"] == 4
