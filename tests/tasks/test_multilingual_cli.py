"""finetune_glm.py on tasks in several languages: one run of each family, then the same texts again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data_utils.corpora.tokenization import CACHE_FOLDER
from data_utils.tokenizers.tokenizer import build_tokenizer
from finetune_glm import main
from tests.helpers.launching import run
from tests.helpers.small_models import random_model

SIZES = ("--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "4", "--max-sequence-length", "65")
RUN = ("--batch-size", "4", "--lr", "1e-3", "--no-progress", "--overwrite", "--device", "cpu", "--log-interval", "100")
CONTEXT = {
    "en": "The keeper painted the door green before the storm. The tram is red.",
    "de": "Der Wärter strich die Tür grün vor dem Sturm. Die Bahn ist rot.",
    "zh": "看守人在风暴前把门漆成了绿色。电车是红色的。",
}
ANSWER = {"en": "door", "de": "Tür", "zh": "门"}


def questions(language: str, count: int = 3) -> str:
    entries = [
        {"id": f"q{n}", "question": f"what is green {n}?", "answers": [{"text": ANSWER[language]}]}
        for n in range(count)
    ]
    return json.dumps({"data": [{"paragraphs": [{"context": CONTEXT[language], "qas": entries}]}]})


@pytest.fixture(scope="module")
def stage(tmp_path_factory, golden) -> Path:
    """Return a folder with the data of the tasks and the weights of a model."""
    folder = tmp_path_factory.mktemp("stage")
    rows = [
        f"{CONTEXT['en']}\tgreen {n}.\t{label}" for n, label in enumerate(("neutral", "entailment", "contradictory"))
    ]
    words = "".join(f"{word}\tO\n" for word in CONTEXT["en"].split()[:4]) + "Bern\tB-LOC\n\n"
    pairs = "".join(f"{CONTEXT['en']} {n}\n{CONTEXT['zh']}\n" for n in range(4))
    files = {
        "xnli/train-en.tsv": "\n".join(rows), "xnli/dev-de.tsv": "\n".join(rows), "xnli/dev-en.tsv": "\n".join(rows),
        "panx/train-en.tsv": words, "panx/dev-de.tsv": words,
        "squad/train-v1.1.json": questions("en"),
        **{f"xquad/xquad.{language}.json": questions(language) for language in CONTEXT},
        **{f"ncls/{split}.txt": pairs for split in ("train", "dev", "test")},
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    tokenizer = build_tokenizer(
        "ChineseSPTokenizer", model_type=str(golden.path("multilingual/mglm_tiny.model")), task_mask=True
    )
    torch.save({"module": random_model(vocab_size=tokenizer.padded_size()).state_dict()}, folder / "pretrained.pt")
    return folder


def flags(stage: Path, golden, task: str, *more: str) -> list[str]:
    model = ["--block-lm", "--task-mask", "--cloze-eval", "--summary-prompt", "tldr", *SIZES]
    tokenizer = ["--tokenizer-type", "ChineseSPTokenizer"]
    tokenizer += ["--tokenizer-model-type", str(golden.path("multilingual/mglm_tiny.model"))]
    places = ["--load-pretrained", str(stage / "pretrained.pt"), "--summary-dir", str(stage), "--experiment-name", task]
    return ["--task", task, *model, *tokenizer, *places, *RUN, *more]


def results(stage: Path, name: str) -> dict[str, float | str]:
    return json.loads((stage / "runs" / name / "test_results.json").read_text(encoding="utf-8"))


def test_understanding(stage: Path, golden, monkeypatch):
    monkeypatch.chdir(stage)
    common = ("--seq-length", "64", "--epochs", "1")
    assert main(flags(stage, golden, "XNLI", "--data-dir", "xnli", "--pattern-id", "4", *common)) == 0
    found = results(stage, "XNLI")
    languages = [found["accuracy/de"], found["accuracy/en"]]
    assert found["accuracy"] == pytest.approx(sum(languages) / 2) and found["accuracy-without-en"] == languages[0]
    more = ("--pattern-ensemble", "--metrics", "entity-f1", *common)
    assert main(flags(stage, golden, "panx", "--data-dir", "panx", *more)) == 0
    assert {"f1-macro", "entity-f1", "f1-macro/de"} <= set(results(stage, "panx"))


QUESTIONS = ("--data-dir", ".", "--src-seq-length", "48", "--tgt-seq-length", "6", "--num-beams", "2")


@pytest.fixture(scope="module")
def answers(stage: Path, golden) -> dict[str, str]:
    assert main(flags(stage, golden, "xquad", *QUESTIONS, "--data-dir", str(stage), "--epochs", "1")) == 0
    assert main(flags(stage, golden, "xquad", *QUESTIONS, "--data-dir", str(stage), "--epochs", "0")) == 0
    return {name: (stage / "runs" / "xquad" / f"test.{name}.jsonl").read_text(encoding="utf-8") for name in CONTEXT}


def test_questions(stage: Path, answers):
    found = results(stage, "xquad")
    assert found["qa-normalization"] == "squad"
    assert {f"{metric}/{language}" for metric in ("EM", "F1") for language in CONTEXT} <= set(found)
    assert all(set(json.loads(text)) == {"q0", "q1", "q2"} for text in answers.values())


def test_batches_and_stores_do_not_change_answers(stage: Path, golden, answers):
    for chosen in (["1"], ["16"], ["16", "--lazy-seq2seq-loader"], ["1", "--lazy-seq2seq-loader"]):
        more = ("--data-dir", str(stage), "--epochs", "0", "--eval-batch-size", *chosen)
        assert main(flags(stage, golden, "xquad", *QUESTIONS, *more)) == 0
        for name, text in answers.items():
            assert (stage / "runs" / "xquad" / f"test.{name}.jsonl").read_text(encoding="utf-8") == text
    assert len(list((stage / CACHE_FOLDER).glob("xquad-test-*.bin"))) == 1


@pytest.mark.slow
def test_ranks_do_not_change_answers(stage: Path, golden, answers):
    more = ("--data-dir", str(stage), "--epochs", "0", "--lazy-seq2seq-loader")
    run("finetune_glm.py", *flags(stage, golden, "xquad", *QUESTIONS, *more), cwd=stage, ranks=2)
    for name, text in answers.items():
        assert (stage / "runs" / "xquad" / f"test.{name}.jsonl").read_text(encoding="utf-8") == text


def test_summaries(stage: Path, golden, monkeypatch, capsys):
    monkeypatch.chdir(stage)
    more = ("--data-dir", "ncls", "--src-seq-length", "48", "--tgt-seq-length", "8", "--epochs", "1", "--limit", "2")
    assert main(flags(stage, golden, "ncls", *more)) == 0
    found = results(stage, "ncls")
    assert (found["rouge-unit"], found["limit"]) == ("mglm", 2)
    assert "tok:zh" in str(found["sacrebleu-signature"]) and isinstance(found["sacrebleu"], float)
    assert {"rouge-1", "rouge-2", "rouge-l", "chrf"} <= set(found)
    for kind in ("hyps", "refs"):
        assert len((stage / "runs" / "ncls" / f"test.jsonl.{kind}").read_text("utf-8").splitlines()) == 2
    assert " >> by rouge-unit mglm, sacrebleu-signature nrefs:1" in "".join(capsys.readouterr())


def test_a_language_without_a_file_is_one_line(stage: Path, golden, monkeypatch):
    monkeypatch.chdir(stage)
    more = ("--data-dir", "xnli", "--seq-length", "64", "--epochs", "0", "--languages", "sw")
    with pytest.raises(
        ValueError, match=r"dev\*\.tsv: no file of the language sw; there are files of de, en"
    ) as caught:
        main(flags(stage, golden, "xnli", *more))
    assert "\n" not in str(caught.value)
