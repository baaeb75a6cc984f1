"""Every golden file is read by a test or waits, with its reason, for a later issue."""

from __future__ import annotations

from tests.helpers.golden_index import DEFERRED, READ_BY, REPOSITORY, GoldenFolder


def owner(name: str, table: dict[str, str]) -> str | None:
    """Return the entry of ``table`` for file ``name``; a key that ends in ``/`` stands for a whole folder."""
    if name in table:
        return table[name]
    return next((value for key, value in table.items() if key.endswith("/") and name.startswith(key)), None)


def test_every_golden_file_is_accounted_for(golden: GoldenFolder):
    left_out = [n for n in golden.files() if owner(n, READ_BY) is None and owner(n, DEFERRED) is None]
    assert not left_out, f"golden files that no test reads and no reason defers: {left_out}"


def test_no_file_is_both_read_and_deferred():
    assert not set(READ_BY) & set(DEFERRED)


def test_the_named_test_modules_name_their_files():
    for name, module in READ_BY.items():
        path = REPOSITORY / "tests" / module
        assert path.is_file(), f"{name}: {module} does not exist"
        mentioned = name.rstrip("/").split("/")[-1].split(".")[0]
        assert mentioned in path.read_text(encoding="utf-8"), f"{module} never mentions {mentioned}"
