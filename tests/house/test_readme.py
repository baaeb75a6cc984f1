"""The two READMEs: the same headings and commands, every command in their table, nothing named that is not there."""

from __future__ import annotations

import re
from pathlib import Path

READMES = ("README.md", "README.zh-CN.md")
ROOMS = (
    "files",
    "mpu",
    "model",
    "data_utils",
    "training",
    "generation",
    "tasks",
    "scripts",
    "benchmarks",
    "tests/fuzz",
)
COMMENT = re.compile(r"\s+#.*")


def blocks(text: str) -> list[str]:
    """Return the shell blocks without comments."""
    return [COMMENT.sub("", block) for block in re.findall(r"```shell\n(.*?)```", text, flags=re.DOTALL)]


def test_command_blocks_are_identical(repository: Path):
    for names in (READMES, ("docs/multilingual.md", "docs/multilingual.zh-CN.md")):
        english, chinese = (blocks((repository / name).read_text(encoding="utf-8")) for name in names)
        assert english and english == chinese


def headings(text: str) -> list[int]:
    """Return the levels of the headings outside code blocks."""
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [len(marks) for marks in re.findall(r"^(#+) ", outside, flags=re.MULTILINE)]


def listed_commands(text: str) -> list[str]:
    """Return the commands of the table of all commands."""
    return re.findall(r"^\|[^|`]*\| `((?:bash|python) [^`]+)` \|", text, flags=re.MULTILINE)


def commands(repository: Path) -> set[str]:
    """Return what can be typed: scripts with an interpreter line (others are sourced), and modules that run."""
    scripts = [*repository.glob("scripts/*.sh"), *repository.glob("benchmarks/*.sh")]
    found = {f"bash {path.relative_to(repository)}" for path in scripts if path.read_text(encoding="utf-8")[:2] == "#!"}
    for path in [*repository.glob("*.py"), *(file for room in ROOMS for file in (repository / room).rglob("*.py"))]:
        name = path.relative_to(repository)
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"):
            is_file = len(name.parts) == 1 or name.parts[0] == "scripts"
            module = ".".join(name.with_suffix("").parts).removesuffix(".__main__")
            found.add(f"python {name}" if is_file else f"python -m {module}")
    return found


def test_headings_are_in_step(repository: Path):
    english, chinese = (headings((repository / name).read_text(encoding="utf-8")) for name in READMES)
    assert english == chinese


def test_every_command_is_in_the_table(repository: Path):
    for name in READMES:
        listed = listed_commands((repository / name).read_text(encoding="utf-8"))
        assert len(listed) == len(set(listed))
        assert set(listed) == commands(repository), name


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


def test_the_torch_that_is_named_is_the_tested_one(repository: Path):
    (tested,) = re.findall(r"^(torch==\S+)", (repository / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    for name in READMES:
        assert set(re.findall(r"torch==[\w.]+", (repository / name).read_text(encoding="utf-8"))) == {tested}


def test_every_requirement_has_a_tested_version(repository: Path):
    """Optional extras of one program apart, what pyproject.toml asks for has an exact version in constraints.txt."""
    project = (repository / "pyproject.toml").read_text(encoding="utf-8").split("[tool.")[0]
    lists = re.findall(r"^([\w-]+) = \[(.*)\]$", project.partition("dependencies")[2], re.MULTILINE)
    lists.append(("dependencies", re.search(r"^dependencies = \[(.*)\]$", project, re.MULTILINE)[1]))
    extras = re.search(r"\[(.*)\]", (repository / "requirements.txt").read_text(encoding="utf-8"))[1].split(",")
    required = {name for extra, text in lists if extra in (*extras, "dependencies")
              for name in re.findall(r'"([\w-]+)', text)}  # fmt: skip
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line and line[0] != "#"}
    assert "transformers" in required
    assert {name.lower() for name in required} <= pinned
