"""docs/environment.md: every environment variable that scripts and programs read, and no other."""

from __future__ import annotations

import re
from pathlib import Path

PYTHON_ROOMS = ("files", "mpu", "data_utils", "model", "training", "generation", "tasks", "mt5", "scripts")
# Set by what starts processes, by shells and by other programs: nobody gives them by hand.
FROM_OTHERS = re.compile(
    r"SLURM_\w+|OMPI_\w+|HF_\w+|DS_\w+|ONEDNN_\w+|\w+_PROXY|VIRTUAL_ENV|PYTHONPATH|(LOCAL_)?WORLD_SIZE|(LOCAL_)?RANK|"
    r"CUDA_VISIBLE_DEVICES|TOKENIZERS_PARALLELISM"
)
# What model files and task files say to the scripts.
OF_FILES = {"MODEL_LANGUAGES", "PROMPT_CONFIG", "SEQ2SEQ_CONFIG", "UNDERSTANDING_CONFIG"}
OF_FILES |= {"BATCH_SINGLE", "EPOCH_SINGLE", "LR_SINGLE", "PROMPT_EPOCH"}
WORDS = {
    "CHECKPOINT",
    "FILES",
    "HYPS",
    "REFS",
    "MODEL_FILE",
    "TASK_FILE",
    "PROMPT",
    "GLM_TOP",
}  # of the command line; of launch.sh


def shell_files(repository: Path) -> list[Path]:
    return [file for folder in ("scripts", "config", "config_tasks", "benchmarks")
            for file in sorted((repository / folder).rglob("*.sh"))]  # fmt: skip


def read_by_scripts(repository: Path) -> set[str]:
    """Return what has a default in a script, or is in the list at its top."""
    found: set[str] = set()
    for file in shell_files(repository):
        text = file.read_text(encoding="utf-8")
        found |= set(re.findall(r"\$\{([A-Z][A-Z_0-9]{2,})(?::?[-+])", text))
        for names in re.findall(r"^#\s{1,4}((?:[A-Z][A-Z_0-9]{2,}(?:, )?)+)(?: \.\.\.)?\s{2,}", text, re.MULTILINE):
            found |= set(names.split(", "))
    return found


def read_by_programs(repository: Path) -> set[str]:
    found: set[str] = set()
    for room in PYTHON_ROOMS:
        for file in (repository / room).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            read = r"""(?:environ(?:ment)?(?:\.get|\.setdefault)?[(\[]\s*|number\(environment, )["']([A-Z_]+)["']"""
            found |= set(re.findall(read, text))
    return found


def in_table(repository: Path) -> set[str]:
    text = (repository / "docs" / "environment.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[A-Z][^|]*) \|", text, re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`([A-Z_]+)`", cell)]
    assert len(names) == len(set(names))
    return set(names)


def test_every_variable_is_in_the_table(repository: Path):
    read = {n for n in read_by_scripts(repository) | read_by_programs(repository) if not FROM_OTHERS.fullmatch(n)}
    assert len(read) > 50
    assert not read - in_table(repository) - OF_FILES - WORDS


def test_the_table_has_no_other(repository: Path):
    files = [*shell_files(repository), *(repository / "tests" / "lm_eval_tasks").glob("*.*")]
    files += [file for room in (*PYTHON_ROOMS, "tests") for file in (repository / room).rglob("*.py")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    missing = {name for name in in_table(repository) if not re.search(rf"\b{name}\b", text)}
    assert missing <= {"GLM_CORPUS_NAME"}  # one for each name
