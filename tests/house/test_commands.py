"""Every command of the READMEs and of docs/ goes through its script, and the program takes the flags that come out.

The programs themselves are not started here: ``python -m tests.helpers.typed`` types every command as it stands.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from generate_samples import SampleSettings
from tasks.settings import FinetuningSettings
from tests.helpers import REPOSITORY
from tests.helpers.typed import Command, commands
from training.arguments import parse_settings
from training.settings import PretrainingSettings, Settings

PROGRAMS: dict[str, type[Settings]] = {
    "pretrain_glm.py": PretrainingSettings,
    "finetune_glm.py": FinetuningSettings,
    "generate_samples.py": SampleSettings,
}
# Stands where a program would be and says what it was given.
REPORT = "import json, sys\nprint(json.dumps(sys.argv))\n"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that looks like the repository, but for the programs."""
    folder = tmp_path_factory.mktemp("glm")
    for path in REPOSITORY.iterdir():
        if path.name[0] != "." and path.name not in {*PROGRAMS, "checkpoints", "runs", "logs", "data"}:
            (folder / path.name).symlink_to(path)
    for name in PROGRAMS:
        (folder / name).write_text(REPORT, encoding="utf-8")
    (folder / "given").mkdir()
    (folder / "data").symlink_to("given")
    for name in ("hosts", "hostfile"):
        (folder / name).write_text("".join(f"worker-{n} slots=8\n" for n in range(32)), encoding="utf-8")
    return folder


def started(command: Command, workplace: Path) -> list[list[str]]:
    """Type a command in the workplace and return what every program that it starts was given."""
    variables = {"PYTHON": sys.executable, "DRY_RUN": "1", "CUDA_VISIBLE_DEVICES": "", "DATA_PATH": "given"}
    run = subprocess.run(
        ["bash", "-c", command.text], cwd=workplace, env={**os.environ, **variables}, capture_output=True, text=True
    )
    lines = [line for line in run.stdout.splitlines() if line.startswith('["')]
    shown = [shlex.split(line[2:]) for line in run.stderr.splitlines() if line.startswith("+ ")]
    assert run.returncode == 0, f"{command.page}: {command.text}\n{run.stdout}{run.stderr}"
    return [json.loads(line) for line in lines] or [words[1:] for words in shown]


@pytest.mark.slow
def test_programs_take_what_the_scripts_give_them(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    scripts = [one for one in commands() if re.search(r"(^| )bash scripts/", one.text)]
    own = re.compile(r"/(quickstart|pretrain_tiny|test|check)\.sh|cloze_benchmark")  # what does more than start one
    typed = {one.text: one for one in scripts if not own.search(one.text)}
    usable = [Command(one.page, re.sub(r"DATA_PATH=\S+", "", one.text)) for one in typed.values()
              if not re.search(r"checkpoints/glm-tiny/model.sh|\$MODEL", one.text)]  # fmt: skip
    assert len(usable) > 40
    with ThreadPoolExecutor(3) as pool:
        given = list(pool.map(lambda one: started(one, workplace), usable))
    monkeypatch.chdir(workplace)
    for one, programs in zip(usable, given, strict=True):
        assert programs, one.text
        for program, *words in programs:
            if settings := PROGRAMS.get(Path(program).name):
                parse_settings(settings, [word for word in words if word != "--dry-run"], environment={})


def test_programs_take_what_is_typed(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(workplace)
    (workplace / "RTE").mkdir()
    seen = set()
    for one in commands():
        words = shlex.split(one.text, comments=True)
        if words[0] in ("python", "python3") and words[1] in PROGRAMS and "..." not in words:
            seen.add(words[1])
            parse_settings(PROGRAMS[words[1]], words[2:], environment={})
        elif words[0] in ("python", "python3"):
            place = words[2].replace(".", "/") if words[1] == "-m" else words[1].removesuffix(".py")
            assert words[1:3] == ["-m", "torch.utils.collect_env"] or words[1:3] == ["-m", "build"] or (
                (REPOSITORY / f"{place}.py").is_file() or (REPOSITORY / place / "__main__.py").is_file()
            ), one.text  # fmt: skip
    assert seen == {"pretrain_glm.py", "generate_samples.py"}
