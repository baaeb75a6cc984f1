"""Questions and summaries of the multilingual release: seq2seq_examples.json, seq2seq_samples.json."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer
from tasks.multilingual.run import read_multilingual
from tasks.seq2seq.readers import Seq2SeqExample, Seq2SeqOptions, read_examples
from tasks.seq2seq.samples import build_sample

NAMES = {"squad_v1": "xquad", "squad": "xquad_v2"}  # with the multilingual release these names meant XQuAD
FOLDERS = {"mtg_crosssum": "mtg", "cnn_dm": "cnndm"}


@pytest.fixture
def tokenizer(golden) -> Tokenizer:
    return build_tokenizer(
        "ChineseSPTokenizer", model_type=str(golden.path("multilingual/mglm_tiny.model")), task_mask=True
    )


def write(files: dict[str, str], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def test_windows_of_questions(golden, tokenizer, tmp_path):
    recorded = golden.json("multilingual/seq2seq_examples.json")
    write(recorded["qa_files"], tmp_path)
    options = Seq2SeqOptions(
        src_seq_length=recorded["max_src_length"], tgt_seq_length=16, task_mask=True, legacy_qa_eval=True
    )
    for case in recorded["qa"]:
        task, split = NAMES.get(case["task"], case["task"]), case["split"]
        examples = read_multilingual(task, tmp_path, split, tokenizer=tokenizer, options=options)
        for example, entry in zip(examples, case["examples"], strict=True):
            meta = entry["meta"]
            assert (example.guid, example.source) == (entry["guid"], entry["text_a"])
            repeated = example.meta["idx"].startswith("data[")  # a second question of the same id goes by its place
            assert repeated or example.meta["idx"] == entry["idx"]
            assert (example.meta["answer"], example.reference) == (meta["answer"], meta["ref"])
            assert (example.meta["question"], list(example.meta["answers"])) == (meta["question"], meta["answers"])
            if "xquad" not in task or split != "dev":  # the original calls the dev set of XQuAD English
                assert example.language.split("-")[0] == {"arabic": "ar", "english": "en"}.get(
                    meta["language"], meta["language"]
                )


def test_all_windows_of_all_questions_are_evaluated(golden, tokenizer, tmp_path):
    recorded = golden.json("multilingual/seq2seq_examples.json")
    write(recorded["qa_files"], tmp_path)
    options = Seq2SeqOptions(src_seq_length=recorded["max_src_length"], tgt_seq_length=16, task_mask=True)
    examples = read_multilingual("xquad", tmp_path, "test", tokenizer=tokenizer, options=options)
    asked = {
        (name.split(".")[1], question["id"])
        for name, content in recorded["qa_files"].items()
        if name.startswith("xquad/")
        for article in json.loads(content)["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }
    assert {(example.language, example.meta["idx"]) for example in examples} == asked
    assert any(example.meta["answer"] == "N/A" for example in examples)


def written(example: Seq2SeqExample) -> list[Any]:
    return [example.source, example.target, example.reference, example.meta.get("tgt_lang"), example.meta.get("task")]


def recorded_texts(entry: dict[str, Any]) -> list[Any]:
    meta = entry["meta"]
    return [entry["text_a"], entry["text_b"], meta["ref"], meta.get("tgt_lang"), meta.get("task")]


def test_summaries(golden, tokenizer, tmp_path):
    recorded = golden.json("multilingual/seq2seq_examples.json")
    write(recorded["sum_files"], tmp_path)
    (tmp_path / "wikilingua").mkdir()
    for name, content in recorded["wikilingua"].items():
        (tmp_path / "wikilingua" / f"{name}.pkl").write_bytes(pickle.dumps(content))
    options = Seq2SeqOptions(src_seq_length=48, tgt_seq_length=16, task_mask=True, summary_prompt="tldr")
    for case in recorded["sum"]:
        task, split = case["task"], case["split"]
        read = read_examples if task == "cnn_dm" else read_multilingual
        examples = read(task, tmp_path / FOLDERS.get(task, task), split, tokenizer=tokenizer, options=options)
        if task == "xlsum" and split == "dev":  # the original keeps every tenth
            examples = examples[9::10]
        assert list(map(written, examples)) == list(map(recorded_texts, case["examples"]))
        for example, entry in zip(examples, case["examples"]):
            assert example.guid == (entry["guid"] if task in FOLDERS else f"{split}-{entry['guid']}")


def test_mixture_of_papers_and_news(golden, tokenizer, tmp_path):
    recorded = golden.json("multilingual/seq2seq_examples.json")
    write(recorded["sum_files"], tmp_path)
    mixed, folder = recorded["mixed_zh"], tmp_path / "ncls"
    rows = range(1, mixed["rows"] + 1)
    lines = [
        json.dumps({key: value.replace("<i>", str(i)) for key, value in mixed["row_format"].items()}) for i in rows
    ]
    papers = {f"scisummnet/top1000_complete/P{i}/Documents_xml/P{i}.xml": mixed["xml"] for i in rows}
    write({"scisummnet/scisummnet-zh.txt": "\n".join(lines), **papers}, folder)
    options = Seq2SeqOptions(src_seq_length=48, tgt_seq_length=16, task_mask=True, summary_prompt="tldr")
    for case in mixed["cases"]:
        if not case["multitask"]:
            examples = read_multilingual("zhsum", folder, case["split"], tokenizer=tokenizer, options=options)
            assert len(examples) == case["total"]
            chosen = [examples[index] for index in case["index"]]
            assert list(map(written, chosen)) == list(map(recorded_texts, case["examples"]))
        elif case["split"] == "train":  # here the triples alone, without the papers
            examples = read_multilingual("ncls_multitask", folder, "train", tokenizer=tokenizer, options=options)
            expected = [recorded_texts(entry) for entry, n in zip(case["examples"], case["index"]) if n >= 799]
            assert list(map(written, examples)) == expected
            assert len({example.guid for example in examples}) == len(examples)


def test_samples(golden, tokenizer):
    file = str(golden.path("multilingual/mglm_tiny.model"))
    plain = build_tokenizer("ChineseSPTokenizer", model_type=file)
    cases = golden.json("multilingual/seq2seq_samples.json")
    for number, case in enumerate(cases):
        recorded, task_mask = case["sample"], number != len(cases) - 2
        options = Seq2SeqOptions(
            src_seq_length=case["src_seq_length"],
            tgt_seq_length=case["tgt_seq_length"],
            task_mask=task_mask,
            block_positions=not case["no_block_position"],
            summary_prompt="tldr",
            compatible=True,
        )
        meta = case["meta"]
        target = case["text_b"]
        if target is None:
            target = meta["question"] if case["task"] == "squad_generation" else meta["answer"]
        example = Seq2SeqExample(recorded["uid"], case["text_a"], target.strip(), "", meta)
        sample = build_sample(
            NAMES.get(case["task"], case["task"]),
            example,
            tokenizer=tokenizer if task_mask else plain,
            options=options,
            for_training="target" in recorded,
        )
        assert sample.input_ids[: sample.context_length].tolist() == case["source_ids"], number
        assert sample.input_ids.tolist() == recorded["text"], number
        assert sample.position_ids.tolist() == recorded["position_id"], number
        assert sample.prefix_length == recorded["attention_mask"]
        for ours, theirs in ((sample.target_ids, "target"), (sample.loss_mask, "loss_mask")):
            assert (None if ours is None else ours.tolist()) == recorded.get(theirs), number
