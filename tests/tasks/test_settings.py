"""The settings of fine-tuning: what a command line becomes, and what is refused in one line."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

import generate_samples
from data_utils.objective.block_infilling import BlankInfillingSettings
from generation.sampling import DecodingSettings
from tasks.language_model.samples import LanguageModelSettings
from tasks.seq2seq.readers import Seq2SeqOptions
from tasks.settings import FinetuningSettings
from tasks.superglue.readers import DataOptions
from tasks.superglue.samples import EncodingOptions
from training.arguments import parse_settings
from training.settings import Group

RTE = ("--task", "rte", "--epochs", "1", "--block-lm", "--cloze-eval")
SEQ2SEQ = ("--task", "xsum", "--epochs", "1", "--block-lm", "--src-seq-length", "600", "--tgt-seq-length", "60")


def configure(*words: str) -> FinetuningSettings:
    return parse_settings(FinetuningSettings, words, environment={})


def test_transformer_xl_is_refused_outside_of_pretraining():
    with pytest.raises(ValueError, match=r"--transformer-xl is for pre-training of causal models only.*fine-tuning"):
        configure(*RTE, "--transformer-xl")
    with pytest.raises(ValueError, match=r"--transformer-xl is for pre-training of causal models only.*generation"):
        generate_samples.main(["--block-lm", "--load-pretrained", "absent", "--transformer-xl"])


def test_mem_length_has_no_effect_and_says_so():
    settings = configure(*RTE, "--mem-length", "64")
    assert [notice for notice in settings.notices if "--mem-length" in notice]
    assert settings.model.config(vocab_size=64) == configure(*RTE).model.config(vocab_size=64)
    assert configure(*RTE).notices == ()


def test_flags_of_pretraining_are_named_in_one_line():
    [notice] = configure(*RTE, "--train-iters", "9", "--split", "1,1,1", "--multi-batch-size", "2").notices
    assert notice.startswith("warning: without effect: ")
    assert all(f"{flag} (concerns pre-training)" in notice for flag in ("--train-iters", "--split"))


def test_groups_say_what_the_flags_say(tmp_path: Path):
    settings = configure(*RTE, "--save", str(tmp_path), "--experiment-name", "e", "--lora-rank", "4",
                         "--lora-target", "dense", "dense", "--load-pretrained", "p",
                         "--eval-batch-size", "9", "--valid-data", "dev", "dev32")  # fmt: skip
    assert settings.checkpoint.save == tmp_path / "e" and settings.run.summary_folder == Path("runs/e")
    adapters = settings.adapters.new_adapters()
    assert adapters is not None and (adapters.rank, adapters.alpha, adapters.targets) == (4, 8.0, ("dense",))
    assert (settings.batch.evaluation_batch_size, settings.data.valid_data) == (9, ("dev", "dev32"))
    assert settings.values["save"] == str(tmp_path), "config.json keeps the command line"
    words = ("--num-beams", "5", "--length-penalty", "0.7", "--min-tgt-length", "2", "--top-k", "9", "--compatible")
    assert configure(*SEQ2SEQ, *words).decoding == DecodingSettings(
        max_length=60, num_beams=5, length_penalty=0.7, min_length=2, top_k=9, draw_candidates=True
    )
    assert not configure(*SEQ2SEQ, *words, "--select-topk").decoding.draw_candidates


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--block-lm", "--epochs", "1"], "no --task"),
        (["--task", "rte"], "no --epochs"),
        ([*RTE, "--epochs", "-1"], "--epochs is -1; at least 0 is needed"),
        ([*RTE, "--seq-length", "4"], "--seq-length is 4; at least 8 is needed"),
        ([*RTE, "--seq-length", "600"], "does not fit --max-position-embeddings 512"),
        ([*RTE, "--continuous-prompt"], "needs --num-prompt-tokens or --prefix-prompt"),
        ([*RTE, "--freeze-transformer"], "leaves nothing to train"),
        ([*RTE, "--pack-samples", "--pad-to-max"], "--pack-samples does not go with"),
        ([*RTE, "--lora-alpha", "2"], "--lora-alpha is for adapters: give --lora-rank as well"),
        ([*RTE, "--lora-rank", "0", "--load-pretrained", "p"], "--lora-rank is 0"),
        ([*RTE, "--lora-rank", "2"], "--lora-rank needs --load-pretrained"),
        ([*RTE, "--lora-adapter", "a", "--lora-rank", "2"], "leave --lora-rank out"),
        ([*RTE, "--encoder-decoder"], "never finished in the original"),
        (["--task", "xsum", "--epochs", "1", "--block-lm"], "no --src-seq-length"),
        ([*SEQ2SEQ, "--src-seq-length", "7"], "--src-seq-length is 7; at least 8 is needed"),
        ([*SEQ2SEQ, "--blank-maskratio", "1.5"], "--blank-maskratio is 1.5"),
        ([*SEQ2SEQ, "--label-smoothing", "1"], "--label-smoothing is 1.0"),
        ([*SEQ2SEQ, "--min-tgt-length", "61"], "--min-tgt-length 61 is above --tgt-seq-length 60"),
        ([*SEQ2SEQ, "--tgt-seq-length", "0"], "--tgt-seq-length is 0"),
        ([*SEQ2SEQ, "--tgt-seq-length", "601"], "--tgt-seq-length 601 is above the model's 600 block positions"),
        ([*SEQ2SEQ, "--num-beams", "0"], "--num-beams is 0"),
        ([*SEQ2SEQ, "--length-penalty", "nan"], "--length-penalty is nan"),
        ([*SEQ2SEQ, "--top-p", "2"], "--top-p is 2.0"),
        (["--task", "wikitext", "--block-lm"], "evaluates one file"),
        (["--task", "wikitext", "--block-lm", "--valid-data", "x", "--epochs", "1"], "only evaluates"),
    ],
)
def test_contradictions_are_refused_in_one_line(words: list[str], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        configure(*words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "others"),
    [
        (EncodingOptions, {"block_positions"}),
        (DataOptions, {"for_training", "needs_labels"}),
        (Seq2SeqOptions, {"block_positions"}),
        (LanguageModelSettings, {"overlap", "block_positions"}),
        (DecodingSettings, {"max_length", "min_length", "draw_candidates"}),
        (
            BlankInfillingSettings,
            {"block_position_encoding", "shuffle_blocks", "max_block_length", "context_mask_range"},
        ),
    ],
)
def test_fields_are_named_after_flags(record: type, others: set[str]):
    """Those that are not are given where the record is made, or fixed: no flag loses its effect by a new name."""
    settings = configure(*RTE)
    groups = [group for group in vars(settings).values() if isinstance(group, Group)]
    names = [name for group in groups for name in vars(group)]
    assert {one.name for one in fields(record)} - set(names) == others
    assert len(names) == len(set(names)), "no two groups have an option of the same name"
