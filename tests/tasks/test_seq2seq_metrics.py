"""Metrics, output files and the scoring command of sequence to sequence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from tasks.seq2seq.metrics import (
    SENTENCE_BREAK,
    CharacterTokenizer,
    bleu_line,
    metric_names,
    multi_bleu,
    rouge_texts,
    score_predictions,
    word_f1,
)
from tasks.seq2seq.outputs import write_outputs
from tasks.seq2seq.readers import Seq2SeqExample
from tasks.seq2seq.scoring import main
from tasks.settings import SEQ2SEQ_TASKS

SENTENCES = st.lists(st.sampled_from(["red", "car", "of", "the", "a"]), max_size=12).map(" ".join)


def examples_of(references: list[str], **meta: Any) -> list[Seq2SeqExample]:
    return [Seq2SeqExample(f"test-{n}", "", "", reference, meta) for n, reference in enumerate(references)]


def test_bleu_line_of_short_texts():
    assert bleu_line(multi_bleu(["a b c d e"], [["a b c d e f g"]])) == (
        "BLEU = 67.03, 100.0/100.0/100.0/100.0 (BP=0.670, ratio=0.714, hyp_len=5, ref_len=7)"
    )
    assert bleu_line(multi_bleu([""], [["a b"]])) == (
        "BLEU = 0.00, 0.0/0.0/0.0/0.0 (BP=0.000, ratio=0.000, hyp_len=0, ref_len=2)"
    )


def test_bleu_takes_the_shorter_of_two_references_as_close():
    assert multi_bleu(["a b c d"], [["a b c d e"], ["a b c"]]).ref_len == 3


def test_bleu_needs_a_reference_for_each():
    with pytest.raises(ValueError, match="2 hypotheses and 1 references"):
        multi_bleu(["a", "b"], [["a"]])


def test_original_metrics_come_first():
    references = ["police kill the gunman in the street", "rain falls"]
    for task in ("gigaword", "cnn_dm", "xsum", "customization", "squad_generation"):
        scores = score_predictions(task, references, examples_of(references, answer="x"), tokenizer_type="gpt2")
        assert tuple(scores)[:3] == metric_names(task) == ("rouge-1", "rouge-2", "rouge-l")
        # "rain falls" has fewer than five words: the original drops it, the plain figure does not.
        assert scores["rouge-1"] == pytest.approx(0.5)
        assert scores["rouge-1-plain"] == scores["rouge-l-plain"] == pytest.approx(1.0)
        assert scores["bleu"] == pytest.approx(100)
        assert scores["sacrebleu"] == pytest.approx(100)
        assert scores["chrf"] == pytest.approx(100)
        assert not any(name.endswith("characters") for name in scores)


def test_what_is_left_out_of_a_prediction():
    def kept(*sentences: str) -> list[str]:
        [texts] = rouge_texts([SENTENCE_BREAK.join(sentences)], ["x"], family="gpt2", task="xsum", filtered=True)
        return texts.prediction.split("\n") if texts.prediction else []

    assert kept("one two three four") == []
    assert kept("one two three four five") == ["one two three four five"]
    for length in (10, 90):  # seven of ten words seen before are allowed, one more is not
        words = [f"w{n}" for n in range(2 * length)]
        first, allowed = " ".join(words[:length]), " ".join(words[length * 3 // 10 : length * 13 // 10])
        repeated = " ".join(words[length * 3 // 10 - 1 : length * 13 // 10 - 1])
        assert kept(first, allowed) == [first, allowed]
        assert kept(first, repeated) == [first]


def test_rouge_l_depends_on_the_order_of_arguments():
    """The union of matches is taken over the sentences of what is called the truth."""
    prediction = ["the red car of the town [SEP] a blue car in the big town"]
    reference = examples_of(["the blue car [SEP] red town of a car in the big"])
    scores = score_predictions("cnn_dm", prediction, reference, tokenizer_type="gpt2")
    assert scores["rouge-1"] == pytest.approx(scores["rouge-1-plain"])
    assert scores["rouge-l"] != pytest.approx(scores["rouge-l-plain"])


def test_chinese_is_compared_by_characters():
    predictions, references = ["清华大学在北京"], examples_of(["北京有清华大学"])
    scores = score_predictions("customization", predictions, references, tokenizer_type="chinese", characters=True)
    assert scores["rouge-1"] == 0
    assert scores["rouge-1-characters"] == pytest.approx(6 / 7)
    assert scores["rouge-2-characters"] == pytest.approx(4 / 6)
    assert scores["sacrebleu"] > 20
    assert CharacterTokenizer().tokenize("GLM-10B，中文_模型。") == ["glm", "10b", "中", "文", "模", "型"]


def test_squad_counts_questions_not_windows():
    def example(identity: str, *answers: str) -> Seq2SeqExample:
        return Seq2SeqExample("dev-0", "", "", "", {"idx": identity, "answers": answers})

    examples = [example("q", "Oslo"), example("q", "Oslo"), example("r", "N/A"), example("s", "a red car", "bus")]
    scores = score_predictions("squad", ["n / a", "the Oslo", "N/A", "red bus"], examples, tokenizer_type="bert")
    assert scores == pytest.approx({"EM": 200 / 3, "F1": (100 + 100 + 200 / 3) / 3})


def test_blanks_are_scored_one_by_one():
    examples = [
        Seq2SeqExample("test-0", "a [MASK] c [MASK]", "", "a b c d", {"blanks": ("Don't", "Café in Rome")}),
        Seq2SeqExample("test-1", "a [MASK]", "", "a b", {"blanks": ("b",)}),
        Seq2SeqExample("test-2", "a [MASK]", "", "a b", {"blanks": None}),
    ]
    predictions = ["a b c d", "a b", "a b"]
    filled = [["don ' t", "cafe in oslo"], [], ["b"]]
    scores = score_predictions("blank", predictions, examples, tokenizer_type="bert", filled=filled)
    assert scores["bleu"] == pytest.approx(100)
    assert scores["blank-exact-match"] == pytest.approx(100 / 3)
    assert scores["blank-f1"] == pytest.approx(100 * (1 + 2 / 3 + 0) / 3)
    assert 100 / 3 < scores["blank-bleu"] < 100 * 2 / 3  # one right, one half right, one missing
    alone = score_predictions("extraction", predictions, examples, tokenizer_type="bert", filled=filled)
    assert set(alone) == {"blank-exact-match", "blank-f1", "blank-bleu"}
    assert score_predictions("extraction", predictions, examples, tokenizer_type="bert") == {}


def test_word_f1_of_texts_without_words():
    assert word_f1("", " ") == 1
    assert word_f1("a", "") == 0


def test_every_prediction_is_one_line(tmp_path: Path):
    predictions = ["one\ntwo", "three\r\nfour", "日本\r語"]
    examples = examples_of(["a\nb", "c", "d"], answer="x\ny", idx="q", answers=("x",))
    for task in SEQ2SEQ_TASKS:
        paths = {path.name: path for path in write_outputs(task, predictions, examples, folder=tmp_path, split="dev")}
        if task in ("squad", "squad_v1"):
            assert json.loads(paths["dev.jsonl"].read_bytes()) == {"q": "one\ntwo"}
            assert len(paths["dev.jsonl.refs"].read_bytes().splitlines()) == 3
        else:
            assert paths["dev.jsonl.hyps"].read_text(encoding="utf-8") == "one two\nthree four\n日本 語\n"
            assert paths["dev.jsonl.refs"].read_text(encoding="utf-8") == "a b\nc\nd\n"
        assert ("dev.jsonl.source" in paths) == (task == "squad_generation")
    assert not list(tmp_path.glob("*.tmp"))


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "hyps").write_text("the cat sat on the mat today\nHello there my good friend\n", encoding="utf-8")
    (tmp_path / "refs").write_text("the cat sat on the mat\nhello there my dear good friend\n", encoding="utf-8")
    return str(tmp_path / "hyps"), str(tmp_path / "refs")


def test_scoring_command(files, capsys):
    assert main([*files, "-lc"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "built-in scorer (rouge-score, stemmed words), 2 texts"
    table = {line.split()[0]: [float(figure) for figure in line.split()[1:]] for line in lines[2:5]}
    # words in common: 6 of 7 and 6, 5 of 5 and 6
    assert table["rouge-1"][:2] == [
        pytest.approx(50 * (6 / 7 + 1), abs=0.01),
        pytest.approx(50 * (1 + 5 / 6), abs=0.01),
    ]
    assert list(table) == ["rouge-1", "rouge-2", "rouge-l"]
    assert lines[5] == "BLEU = 69.19, 91.7/80.0/62.5/50.0 (BP=1.000, ratio=1.000, hyp_len=12, ref_len=12)"
    assert lines[6].startswith("sacrebleu = ")
    main(list(files))
    assert "BLEU = 69.19" not in capsys.readouterr().out  # Hello is not hello


def test_scoring_command_by_characters(files, capsys):
    for path, text in zip(files, ("清华大学\n", "北京大学\n")):
        Path(path).write_text(text, encoding="utf-8")
    main([*files, "--characters"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "built-in scorer (rouge-score, characters), 1 texts"
    assert lines[2].split() == ["rouge-1", "50.00", "50.00", "50.00"]


def test_files2rouge_is_used_where_it_is_installed(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", os.environ["PATH"])
    with pytest.raises(ValueError, match="--files2rouge: files2rouge is not installed"):
        main([*files, "--files2rouge"])
    program = tmp_path / "bin" / "files2rouge"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    Path(files[0]).write_text("He didn't go.\n", encoding="utf-8")
    Path(files[1]).write_text("He (she) left.\n", encoding="utf-8")
    program.write_text('#!/bin/sh\ncat "$1" "$2"\n', encoding="utf-8")
    program.chmod(0o755)
    main([*files, "--files2rouge"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["files2rouge, 1 texts", "He did n't go .", "He ( she ) left ."]
    assert lines[3].startswith("BLEU = ")
    program.write_text("#!/bin/sh\necho no Perl >&2\nexit 3\n", encoding="utf-8")
    with pytest.raises(ValueError, match="failed with exit code 3: no Perl"):
        main([*files, "--files2rouge"])


def run_script(repository: Path, *arguments: str, folder: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the script in a folder of the user's, with the interpreter of the tests."""
    command = ["bash", str(repository / "scripts" / "evaluate_seq2seq.sh"), *arguments]
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("one line\n", "hyps has 2 lines, .*refs has 1;"),
        ("\n", "refs: no references in it"),
        (None, "refs: no such file"),
    ],
)
def test_scoring_script_says_what_is_wrong(text: str | None, problem: str, files, repository: Path):
    Path(files[1]).unlink()
    if text is not None:
        Path(files[1]).write_text(text, encoding="utf-8")
    run = run_script(repository, "hyps", "refs", folder=Path(files[0]).parent)
    assert run.returncode == 2
    assert run.stdout == ""
    [error] = [line for line in run.stderr.splitlines() if not line.startswith("+ ")]
    assert re.match(f"error: .*{problem}", error)


def test_scoring_script(files, repository: Path):
    folder = Path(files[0]).parent
    run = run_script(repository, "hyps", "refs", "-lc", folder=folder)
    assert run.returncode == 0, run.stderr
    assert "BLEU = 69.19" in run.stdout
    run = run_script(repository, "hyps", folder=folder)
    assert run.returncode == 2
    assert run.stderr.startswith("error: name two files")


def test_references_against_themselves(data_dir: Path, capsys):
    path = str(data_dir / "seq2seq" / "customization" / "test.target")
    main([path, path])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:] for line in lines[2:5]] == [["100.00"] * 3] * 3
    assert lines[5].startswith("BLEU = 100.00, 100.0/100.0/100.0/100.0 (BP=1.000, ratio=1.000")
