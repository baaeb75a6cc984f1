"""Lines of progress."""

from __future__ import annotations

import pytest

from files import progress
from tests.helpers.logs import logged_lines


def test_a_line_is_said_where_none_was_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with logged_lines() as lines:
        assert list(progress.with_progress("abc", total=3, what="text")) == ["a", "b", "c"]
    assert lines == ["text 1/3 | ETA 0:00:00", "text 2/3 | ETA 0:00:00"]


def test_a_short_loop_says_nothing() -> None:
    with logged_lines() as lines:
        assert list(progress.with_progress(range(3), total=3)) == [0, 1, 2]
    assert lines == []


def test_times_are_hours_minutes_and_seconds() -> None:
    assert [progress.duration(seconds) for seconds in (59.9, 3661)] == ["0:00:59", "1:01:01"]
