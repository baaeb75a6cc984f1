"""A plugin of pytest: the tests that fail have to be those of ``not_applicable.txt``.

A line there is a pattern of test names, for which versions of transformers, and why the test cannot apply:

    TestModelAlone::test_training_* | >=4.40 | GLMModel has no loss
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest
import transformers
from packaging.specifiers import SpecifierSet

LIST = Path(__file__).with_name("not_applicable.txt")
failed: set[str] = set()
ran: set[str] = set()
lines: list[str] = []


def listed_patterns() -> list[str]:
    """Return the patterns for the version of transformers that is installed."""
    patterns = []
    for number, line in enumerate(LIST.read_text(encoding="utf-8").splitlines(), start=1):
        if not line or line.startswith("#"):
            continue
        parts = [part.strip() for part in line.split(" | ")]
        if len(parts) != 3 or not all(parts):
            raise pytest.UsageError(f"{LIST}, line {number}: not 'TESTS | VERSIONS | REASON': {line[:80]!r}")
        if SpecifierSet(parts[1], prereleases=True).contains(transformers.__version__):
            patterns.append(parts[0])
    return patterns


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the tests that ran, and those of which anything failed."""
    name = "::".join(report.nodeid.split("::")[1:])
    if report.failed:
        failed.add(name)
    elif report.when == "call" and not report.skipped:
        ran.add(name)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Compare with the list; the exit status says whether anything differs."""
    patterns = listed_patterns()
    unlisted = sorted(name for name in failed if not any(fnmatch(name, pattern) for pattern in patterns))
    without = sorted(
        pattern
        for pattern in patterns
        if any(fnmatch(name, pattern) for name in ran | failed) and not any(fnmatch(name, pattern) for name in failed)
    )
    lines.append(
        f"transformers {transformers.__version__}: {len(ran - failed)} tests passed, {len(failed)} failed, "
        f"{len(failed) - len(unlisted)} of them listed as not applicable"
    )
    lines.extend(f"not listed in {LIST.name}, but it fails: {name}" for name in unlisted)
    lines.extend(f"listed in {LIST.name}, but nothing fails: {pattern}" for pattern in without)
    if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED if unlisted or without else pytest.ExitCode.OK


def pytest_unconfigure() -> None:
    """Print the comparison as the last thing."""
    print("", *lines, sep="\n")
