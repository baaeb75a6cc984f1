"""The two READMEs: the same commands, and nothing named that is not there."""

from __future__ import annotations

import re
from pathlib import Path

READMES = ("README.md", "README.zh-CN.md")
COMMENT = re.compile(r"\s+#.*")


def blocks(text: str) -> list[str]:
    """Return the shell blocks without comments."""
    return [COMMENT.sub("", block) for block in re.findall(r"```shell\n(.*?)```", text, flags=re.DOTALL)]


def test_command_blocks_are_identical(repository: Path):
    english, chinese = (blocks((repository / name).read_text(encoding="utf-8")) for name in READMES)
    assert english and english == chinese


def test_named_files_exist(repository: Path):
    for name in READMES:
        text = (repository / name).read_text(encoding="utf-8")
        files = re.findall(r"\]\(((?!https?:)[^)#]+)\)", text)
        files += [word for block in blocks(text) for word in re.findall(r"(?:scripts|config_tasks)/[\w.-]+", block)]
        files += re.findall(r"`((?:scripts|training|model|mpu|data_utils|generation|tasks)/[\w/.-]+\.(?:py|sh))`", text)
        assert files
        assert not [file for file in files if not (repository / file).exists()], name


def test_released_model_files_are_in_the_table(repository: Path):
    table = (repository / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"model_blocklm_[\w.]+\.sh", table))
    assert all((repository / "config_tasks" / file).is_file() for file in named)
    assert len(named) >= 10
