"""How far a long loop is: a line when nothing was said for ten seconds, on terminals and in logs alike."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

logger = logging.getLogger("glm")

QUIET_SECONDS = 10.0

Item = TypeVar("Item")


def duration(seconds: float) -> str:
    """Write a time as h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def with_progress(items: Iterable[Item], *, total: int, what: str = "batch") -> Iterator[Item]:
    """Yield ``items``, of which there are ``total``, and say which one is next and how long the rest will take."""
    began = said = time.monotonic()
    for number, item in enumerate(items):
        now = time.monotonic()
        if number and now - said > QUIET_SECONDS:
            said = now
            logger.info(f"{what} {number}/{total} | ETA {duration((total - number) * (now - began) / number)}")
        yield item
