"""How well a model fills blanks of one word, in any text."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from files.errors import run_main
from tests.helpers import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))
import score_blanks

TEXT = (
    "She opened the door and went out of the room. He shook his head and said that he did not know it.\n"
    "They had been in the house for a long time, and the old man was very glad to see them again.\n"
)


def test_neighbours_are_those_of_the_next_blank():
    prompts = ["a b c d [MASK] e f g h.", "i j k [MASK] l m n o.", "p [MASK], q"]
    assert score_blanks.exchange_neighbours(prompts) == [
        "a b j k [MASK] l m g h.",
        "i p [MASK], q n o.",
        "c d [MASK] e f",
    ]


def test_shares_count_the_first_answers():
    answers = [[("door", -1.0), ("window", -2.0)], [("of", -0.5)], []]
    assert score_blanks.share(answers, ["window", "of", "the"], 1) == pytest.approx(1 / 3)
    assert score_blanks.share(answers, ["window", "of", "the"], 5) == pytest.approx(2 / 3)


def test_the_demo_model_reads_what_stands_beside_a_blank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "text.txt").write_text(TEXT * 3, encoding="utf-8")
    words = [str(REPOSITORY / "model" / "demo"), "--text", str(tmp_path / "text.txt"), "--count", "60", "--seed", "1"]
    monkeypatch.setattr(sys, "argv", ["score_blanks.py", *words])
    assert score_blanks.main() == 0
    printed = capsys.readouterr().out
    assert printed.startswith("60 held-out blanks of one word, any word, whatever the model writes:")
    last = next(line for line in printed.splitlines() if line.startswith("the word is among its first 5 words"))
    model, _, others = map(float, last[36:].replace("%", "").split())
    assert model > 20 and model > 2 * others


def test_a_folder_or_a_text_is_needed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["score_blanks.py", "checkpoint"])
    with pytest.raises(SystemExit) as left:
        run_main(score_blanks.main)
    assert left.value.code == 2
    assert "give a FOLDER or --text FILE" in capsys.readouterr().err
