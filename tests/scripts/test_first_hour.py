"""What a newcomer types: --help, paths from anywhere and with blanks, Ctrl-C, text of one's own in any language."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from model.released import DEMO_MODEL
from tests.helpers import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))
import dispatcher
import quickstart_corpus

SCRIPTS = [
    *sorted(file for file in (REPOSITORY / "scripts").rglob("*.sh") if file.read_text(encoding="utf-8")[:2] == "#!"),
    REPOSITORY / "benchmarks" / "run.sh",
]
CHINESE = ["今天天气很好，我们去公园散步。", "他在图书馆里读了一本很好的书。", "我们的学校在城市的中心，离家不远。"]


def typed(*words: str, cwd: Path, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in ``cwd``; nothing that launches is started, only shown."""
    environment = {**os.environ, "PYTHON": sys.executable, "DRY_RUN": "1", **variables}
    found = subprocess.run(["bash", *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == code, found.stdout + found.stderr
    return found


def shown(found: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the words of the command that a script shows before it becomes it."""
    return shlex.split(next(line[2:] for line in found.stderr.splitlines() if line.startswith("+ ")))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_prints_the_comment_and_starts_nothing(script: Path, tmp_path: Path):
    for words in (["--help"], ["a", "-h"]):
        found = typed(str(script), *words, cwd=tmp_path)
        comment = re.match(r"#!.*\n((?:#.*\n)+)", script.read_text(encoding="utf-8"))
        assert comment is not None and found.stdout == re.sub("(?m)^# ?", "", comment[1])
        assert found.stderr == ""
    assert not list(tmp_path.iterdir())


def test_paths_are_meant_from_where_they_are_typed(tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("a [MASK]\n", encoding="utf-8")
    model = str(REPOSITORY / "config_tasks" / "model_blocklm_base.sh")
    words = [str(REPOSITORY / "scripts" / "generate_block.sh"), model, "--input", "prompts.txt"]
    command = shown(typed(*words, cwd=tmp_path, CHECKPOINT_PATH="My Drive/glm"))
    assert command[1] == str(REPOSITORY / "generate_samples.py")
    assert command[command.index("--load-pretrained") + 1] == "My Drive/glm/blocklm-base-blank"
    assert command[-2:] == ["--input", "prompts.txt"]
    found = typed(str(REPOSITORY / "scripts" / "train_tokenizer.sh"), "my text.txt", "--vocab-size", "9", cwd=tmp_path)
    assert shown(found)[1:] == ["-m", "data_utils.train_tokenizer", "my text.txt", "--vocab-size", "9"]
    from_the_top = typed("scripts/train_tokenizer.sh", "t.txt", cwd=REPOSITORY)
    assert shown(from_the_top)[1:] == ["-m", "data_utils.train_tokenizer", "t.txt"]


def test_without_a_model_it_is_the_demo_model(tmp_path: Path):
    """No --load-pretrained is given: the program takes the demo model, and says so."""
    command = shown(typed(str(REPOSITORY / "scripts" / "generate_block.sh"), "--prompt", "a [MASK]", cwd=tmp_path))
    assert not [word for word in command if word.startswith("--load")]
    words = [sys.executable, *command[1:], "--out-seq-length", "4", "--device", "cpu"]
    found = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(f"no checkpoint is named: this is the demo model, {DEMO_MODEL}, a small one\n")
    assert "Filled: a" in found.stdout


def test_fine_tuning_takes_folders_with_blanks(tmp_path: Path):
    (tmp_path / "my data").mkdir()
    (tmp_path / "finetune_glm.py").write_text("import json, sys\nprint(json.dumps(sys.argv[1:]))\n", encoding="utf-8")
    for name in ("scripts", "config_tasks", "data_utils", "files"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    words = ["scripts/ds_finetune_superglue.sh", "config_tasks/model_blocklm_tiny.sh", "config_tasks/task_rte.sh"]
    variables = {"DATA_PATH": "my data", "SAVE_PATH": "to here", "CHECKPOINT_PATH": "/x/My Drive", "TINY_DATA": "t t"}
    flags = json.loads(typed(*words, cwd=tmp_path, **variables).stdout.splitlines()[-1])
    for flag, value in (
        ("--data-dir", "my data"),
        ("--save", "to here"),
        ("--load-pretrained", "/x/My Drive/blocklm-tiny-en"),
        ("--tokenizer-path", "t t/tokenizer.model"),
    ):
        assert flags[flags.index(flag) + 1] == value
    assert flags[flags.index("--deepspeed_config") + 1] == "config_tasks/config_blocklm_10B.json"


def test_lists_of_the_original_and_of_the_environment_are_split(tmp_path: Path):
    model = tmp_path / "model.sh"
    model.write_text('MODEL_TYPE="m"\nMODEL_ARGS="--block-lm \\\n  --num-layers 2"\n', encoding="utf-8")
    command = shown(typed("scripts/generate_block.sh", str(model), "--prompt", "two words", cwd=REPOSITORY))
    assert command[2:5] == ["--block-lm", "--num-layers", "2"] and command[-1] == "two words"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate_block.sh", "config_tasks/task_rte.sh"], "is of the kind understanding (it sets no MODEL_ARGS)"),
        (["generate_block.sh", "README.md"], "error: README.md is no model file"),
        (["generate_block.sh", "nowhere/"], "nowhere/: no such file"),
        (["generate_block_ptuning.sh", "config_tasks/model_blocklm_base.sh"], "PROMPT '': no such checkpoint"),
        (["evaluate_multichoice.sh", "nowhere.sh"], "nowhere.sh: no such file"),
        (["evaluate_seq2seq.sh", "one"], "name two files"),
        (
            ["ds_pretrain_nvidia.sh", "config_tasks/model_blocklm_base.sh"],
            "is of the kind model (it sets no gpt_options)",
        ),
        (["finetune_superglue.sh", "config_tasks/model_blocklm_base.sh"], "no understanding file is named"),
        (["evaluate_lm.sh", "config_tasks/model_blocklm_base.sh", "config_tasks/task_rte.sh"], "sets no EVALUATE_ARGS"),
        (["quickstart.sh", "--steps"], "--steps needs a value"),
        (["quickstart.sh", "--data"], "--data needs one file of text at least"),
        (["quickstart.sh", "--data", "nowhere.txt"], "--data nowhere.txt: no such file"),
        (["pretrain_tiny.sh"], "name a language"),
        (["pretrain_tiny.sh", "zh"], "name yours with --data FILE"),
    ],
)
def test_what_is_missing_or_swapped_is_one_line(words: list[str], message: str):
    found = typed(f"scripts/{words[0]}", *words[1:], cwd=REPOSITORY, code=2, TINY_DATA="/nowhere")
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: ") and message in line


STEPS = """
source scripts/launch.sh
as_step "$PYTHON" -c 'import sys, time; print("begun", flush=True); time.sleep(60); sys.exit(int(sys.argv[1]))' 0
echo "the next step"
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("to", [os.kill, os.killpg], ids=["script", "terminal"])
def test_a_signal_ends_the_step_and_the_script(number: signal.Signals, to: Callable[[int, int], None]):
    process = subprocess.Popen(
        ["bash", "-c", f"set -euo pipefail; {STEPS}"], cwd=REPOSITORY, env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    to(process.pid, number)
    output, _ = process.communicate(timeout=30)
    assert output == ""
    assert process.returncode not in (0, None)
    with pytest.raises(ProcessLookupError):  # nobody is left
        for _ in range(50):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def corpus(folder: Path, *files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["quickstart_corpus.py", str(folder), *(["--data", *map(str, files)] if files else [])]
    )
    assert quickstart_corpus.main() == 0


def rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_text_in_any_language_has_blanks_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = [f"{number}：{CHINESE[number % 3]}" for number in range(400)]
    (tmp_path / "zh.txt").write_text("\n".join([*lines, lines[0], ""]), encoding="utf-8")
    corpus(tmp_path / "out", tmp_path / "zh.txt", monkeypatch=monkeypatch)
    texts = [row["text"] for name in ("train", "valid") for row in rows(tmp_path / "out" / f"{name}.jsonl")]
    assert sorted(line for text in texts for line in text.split("\n")) == sorted(lines), "short lines are joined"
    assert all(len(text) >= quickstart_corpus.MINIMUM_CHARACTERS for text in texts)
    blanks = rows(tmp_path / "out" / "blanks.jsonl")
    assert len(blanks) == quickstart_corpus.NUM_BLANKS
    held_out = "\n".join(row["text"] for row in rows(tmp_path / "out" / "valid.jsonl"))
    for blank in blanks:
        assert len(blank["truth"]) == 1, "a word of Chinese is a character"
        assert blank["prompt"].count("[MASK]") == 1
        assert blank["prompt"].replace("[MASK]", blank["truth"]) in held_out


def test_a_corpus_is_used_again_and_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    mine, other = tmp_path / "mine.txt", tmp_path / "other.txt"
    mine.write_text("\n".join(f"The cat number {n} sat on the mat." for n in range(100)), encoding="utf-8")
    other.write_text("\n".join(f"The dog number {n} sat by the fire." for n in range(100)), encoding="utf-8")
    folder = tmp_path / "out"
    corpus(folder, mine, monkeypatch=monkeypatch)
    assert "100 documents became" in capsys.readouterr().out
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for files in ([], [mine]):
        corpus(folder, *files, monkeypatch=monkeypatch)
        assert f"corpus: that of {folder}" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match="has a corpus of other text, and a model that was trained on it: leave out --data"
    ):
        corpus(folder, other, monkeypatch=monkeypatch)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_text_without_anything_to_fill_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for text, message in (
        ("1 2 3\n" * 3, "two are needed"),
        ("\n".join(str(n) * 90 for n in range(100)), "no blank to fill"),
    ):
        (tmp_path / "t.txt").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            corpus(tmp_path / "out", tmp_path / "t.txt", monkeypatch=monkeypatch)
    assert not (tmp_path / "out").exists()


def test_the_examples_of_the_dispatcher_are_grids():
    for command in re.findall(r"^    python ((?:.*\\\n)?.*)", dispatcher.__doc__ or "", re.MULTILINE):
        words = [sys.executable, *shlex.split(command.replace("\\\n", " ")), "--debug"]
        printed = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
        assert printed.count("--finetune ") in (24, 3)


def test_the_dispatcher_says_what_is_missing_before_it_starts(tmp_path: Path):
    words = ["--gpu", "cpu", "--model", "config_tasks/model_blocklm_tiny.sh", "--task", "config_tasks/task_cb.sh"]
    command = [sys.executable, "scripts/dispatcher.py", *words]
    (tmp_path / "CB").mkdir()
    for variables, message in (
        ({"DATA_ROOT": "/nowhere"}, "error: --data-dir /nowhere/CB: no such file or folder; set DATA_PATH"),
        (
            {"DATA_ROOT": str(tmp_path), "CHECKPOINT_PATH": "/nowhere"},
            "error: --load-pretrained /nowhere/blocklm-tiny-en",
        ),
    ):
        run = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **variables}, capture_output=True, text=True)
        assert run.returncode == 2 and run.stderr.startswith(message) and run.stdout == ""


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGINT])
def test_the_dispatcher_shows_why_a_run_failed_and_ends_at_a_signal(number: signal.Signals | None, tmp_path: Path):
    (tmp_path / "CB").mkdir()  # without files: every run fails
    (tmp_path / "blocklm-tiny-en").mkdir()
    grid = json.dumps({"seed": [1] if number is None else list(range(99)), "lr": [1e-4], "batch-size": [4]})
    words = ["--model", "config_tasks/model_blocklm_tiny.sh", "--task", "config_tasks/task_cb.sh", "--grid", grid]
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "scripts" / "dispatcher.py"), "--gpu", "cpu",
         *(str(REPOSITORY / word) if word.startswith("config") else word for word in words)],
        cwd=tmp_path, env={**os.environ, "DATA_ROOT": str(tmp_path), "CHECKPOINT_PATH": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if number is not None:
        while not list(tmp_path.glob("logs/log-*.txt")):
            time.sleep(0.05)
        process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    failed = [line for line in output.splitlines() if " failed on cpu: " in line]
    if number is None:
        assert len(failed) == 1 and re.search(r"failed on cpu: error: .*(all of it: logs/log-.*txt)", failed[0])
        assert process.returncode == 2 and errors == "error: no run has results; see logs/\n"
    else:
        assert output.splitlines()[-1] == "stopped at 0 of 99 runs; run the same command to go on"
        assert process.returncode == 128 + number and len(failed) < 99


@pytest.mark.slow
def test_the_quickstart_stops_at_a_signal_and_goes_on_with_what_is_there(tmp_path: Path):
    """Typed with Chinese text, stopped in its training, typed again without the text."""
    lines = [f"{number}：{sentence}" for number in range(100) for sentence in CHINESE]
    (tmp_path / "my text.txt").write_text("\n".join(lines), encoding="utf-8")
    command = ["bash", str(REPOSITORY / "scripts" / "quickstart.sh"), "--output", "my glm", "--steps", "100000"]
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}
    for words, number in ((["--data", "my text.txt"], signal.SIGINT), ([], signal.SIGTERM)):
        process = subprocess.Popen(
            [*command, *words], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        before = ""
        while not re.search(r"^ iteration +\d+/", before, re.MULTILINE):
            line = process.stdout.readline()
            assert line, before
            before += line
        if number == signal.SIGINT:  # as a terminal sends it, to all
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        after, _ = process.communicate(timeout=120)
        assert process.returncode not in (0, None), after
        assert "4/4" not in after and "Done" not in after
        last = after.splitlines()[-1]
        assert re.fullmatch(r"stopped at \d+ of 100000; run the same command to go on", last), after
        assert ("corpus: that of my glm as it is" in before) == (not words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my glm", "my text.txt"]
