"""Whatever a comment, a docstring or a page cites exists: pages, sections, files, modules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY

PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), REPOSITORY / "benchmarks" / "README.md",
     REPOSITORY / "tasks" / "superglue" / "README.md"]
)  # fmt: skip
ROOMS = ("files", "mpu", "model", "data_utils", "training", "generation", "tasks", "mt5", "scripts", "benchmarks",
         "tests", "config", "config_tasks", ".ci")  # fmt: skip
SOURCES = sorted(
    [*REPOSITORY.glob("*.py"), *REPOSITORY.glob("*.toml"), *REPOSITORY.glob("*.txt")]
    + [path for room in ROOMS for kind in ("*.py", "*.sh") for path in (REPOSITORY / room).rglob(kind)]
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
TOP_PAGES = r"(?:README|README\.zh-CN|CONTRIBUTING|CHANGELOG)\.md"
PAGE = re.compile(rf"(?<![\w/])((?:docs|tasks|benchmarks)/[\w/]*\w+\.md|{TOP_PAGES})(#[\w-]+)?")
PATH = re.compile(rf"(?<![\w/.-])((?:{'|'.join(ROOMS[:-1])})/[\w/.-]*\w\.(?:py|sh))(?![\w/])")
MODULE = re.compile(rf"python -m ((?:{'|'.join(ROOMS[:8])})(?:\.\w+)+)")
BARE = re.compile(r"`(\w+\.(?:py|sh))`")
# Names that a user gives, and those of tests for files that are not there.
EXAMPLES = {"tool_reviews.py", "model.sh", "report.py", "config/none.sh", "config_tasks/seq_none.sh"}


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    outside = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", outside, flags=re.MULTILINE)
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


def missing(text: str) -> Iterator[str]:
    """Yield the pages, sections, files and modules of ours that a text names and that are not there."""
    for page, section in PAGE.findall(text):
        file = REPOSITORY / page
        if not file.is_file():
            yield page
        elif section and section[1:] not in anchors(file):
            yield page + section
    for path in PATH.findall(text):
        places = (REPOSITORY / path, REPOSITORY / "tests" / path)
        if not any(place.exists() for place in places) and path not in EXAMPLES and "NAME" not in path:
            yield path
    yield from set(BARE.findall(text)) - {path.name for path in SOURCES} - EXAMPLES
    for module in MODULE.findall(text):
        if module.endswith(".NAME"):
            continue
        path = REPOSITORY.joinpath(*module.split("."))
        if not path.with_suffix(".py").is_file() and not (path / "__main__.py").is_file():
            yield module


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path):
    for target in LINK.findall(re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)):
        if re.match(r"\w+:", target):
            continue
        path, _, section = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not section or section in anchors(file), target


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_what_pages_name_exists(page: Path):
    assert not list(missing(page.read_text(encoding="utf-8")))


def test_what_the_code_cites_exists():
    wrong = {name_of(path): list(missing(path.read_text(encoding="utf-8"))) for path in SOURCES}
    assert not {name: cited for name, cited in wrong.items() if cited}


def defined_in(file: Path) -> set[str]:
    """Return the functions and classes of a file, and the methods of its classes as ``Class.method``."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{method.name}" for method in node.body if isinstance(method, ast.FunctionDef)}
    return found


def test_the_call_paths_name_functions_that_are_there():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.search(r"^## Four call paths\n(.*?)^## ", text, flags=re.MULTILINE | re.DOTALL)[1]
    steps = re.findall(r"^\d+\. \[([^\]]+)\]\(\1\): ([^-\n]+)", paths, flags=re.MULTILINE)
    assert len(steps) == len(re.findall(r"^\d+\. ", paths, flags=re.MULTILINE)) > 40
    for file, names in steps:
        lacking = set(re.findall(r"`([^`]+)`", names)) - defined_in(REPOSITORY / file)
        assert not lacking, (file, lacking)


def test_nothing_outside_of_the_repository_is_cited():
    """No private documents: the paper, public formats and our pages are what a reader can open."""
    private = re.compile(r"\b[Ss]" + r"pec:|\btrap " + r"T\d|\bWART" + r"\b")
    wrong = {name_of(path): private.findall(path.read_text(encoding="utf-8")) for path in [*PAGES, *SOURCES]}
    assert not {name: cited for name, cited in wrong.items() if cited}


def test_a_wrong_citation_is_seen():
    for citation in ("docs/{}.md", "docs/formats.md#{}", "mpu/{}.py", "`{}.py`", "python -m model.{}"):
        assert list(missing(f"see {citation.format('nothing')}!")), citation
