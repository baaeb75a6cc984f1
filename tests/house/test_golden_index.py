"""Every golden file is read by a test."""

from __future__ import annotations

from tests.helpers.golden_index import READ_BY, REPOSITORY, GoldenFolder


def owner(name: str) -> str | None:
    """Return the module that reads file ``name``; a key that ends in ``/`` stands for a whole folder."""
    if name in READ_BY:
        return READ_BY[name]
    return next((module for key, module in READ_BY.items() if key.endswith("/") and name.startswith(key)), None)


def test_every_golden_file_is_accounted_for(golden: GoldenFolder):
    left_out = [name for name in golden.files() if owner(name) is None]
    assert not left_out, f"golden files that no test reads: {left_out}"


def test_the_named_test_modules_name_their_files():
    for name, module in READ_BY.items():
        path = REPOSITORY / "tests" / module
        assert path.is_file(), f"{name}: {module} does not exist"
        mentioned = name.rstrip("/").split("/")[-1].split(".")[0]
        assert mentioned in path.read_text(encoding="utf-8"), f"{module} never mentions {mentioned}"
