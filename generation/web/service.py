"""The thread that fills what all clients ask for, in common batches, and the queue before it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from generation.infill import BlankFiller
from generation.requests import Event, FillRequest, RequestDone, RequestFiller
from generation.web.limits import Limits

logger = logging.getLogger("glm")


class QueueFullError(Exception):
    """As many requests wait as may wait."""


@dataclass(frozen=True)
class Ended:
    """A request is over before it was done: its time is up, or ``fault`` says what went wrong."""

    fault: str | None = None


@dataclass(eq=False)
class Work:
    """A request of a client.

    Attributes:
        request: what is to be filled.
        listen: is called with all that happens, in the thread that fills.
        deadline: when it is stopped, by ``time.monotonic``.
    """

    request: FillRequest
    listen: Callable[[Event | Ended], None]
    deadline: float


class FillService:
    """Fill requests of several clients, in the order of their coming, as many at a time as there is room for."""

    def __init__(self, filler: BlankFiller, limits: Limits) -> None:
        """Start the thread."""
        self.filler = RequestFiller(filler)
        self.limits = limits
        self.waiting: deque[Work] = deque()
        self.working: dict[FillRequest, Work] = {}
        self.abandoned: list[Work] = []
        self.is_closing = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="filling", daemon=True)
        self.thread.start()

    def submit(self, request: FillRequest, listen: Callable[[Event | Ended], None]) -> Work:
        """Let a request be filled. Raises QueueFullError."""
        work = Work(request, listen, time.monotonic() + self.limits.seconds)
        with self.changed:
            if len(self.waiting) >= self.limits.queue:
                raise QueueFullError
            self.waiting.append(work)
            self.changed.notify()
        return work

    def abandon(self, work: Work) -> None:
        """Compute no more for a request, and tell nothing more of it."""
        with self.changed:
            if work in self.waiting:
                self.waiting.remove(work)
            elif work.request in self.working:
                self.abandoned.append(work)
                self.changed.notify()

    def close(self) -> None:
        """End the thread after its present step."""
        with self.changed:
            self.is_closing = True
            self.changed.notify()
        self.thread.join()

    def _run(self) -> None:
        while True:
            with self.changed:
                while not (self.waiting or self.working or self.is_closing):
                    self.changed.wait()
                if self.is_closing:
                    return
                dropped, late = self._take_leave()
                admitted = self._admit()
            self.filler.drop(dropped)
            for work in late:
                work.listen(Ended())
            try:
                self.filler.add(admitted)
                events = self.filler.step()
            except Exception as error:  # whatever it is, clients are told, and the next ones are served
                if not isinstance(error, ValueError):
                    logger.exception("filling failed")
                self._fail(str(error) if isinstance(error, ValueError) else "filling failed; the server's log says why")
                continue
            for event in events:
                work = self.working[event.request]
                if isinstance(event, RequestDone):
                    with self.changed:
                        del self.working[event.request]
                work.listen(event)

    def _take_leave(self) -> tuple[list[FillRequest], list[Work]]:
        """Forget what was abandoned or has no time left; return what is to be dropped, and whom to tell."""
        now = time.monotonic()
        late = [work for work in (*self.waiting, *self.working.values()) if work.deadline < now]
        gone = [*self.abandoned, *late]
        self.abandoned = []
        self.waiting = deque(work for work in self.waiting if work not in late)
        dropped = [work.request for work in gone if self.working.pop(work.request, None)]
        return dropped, late

    def _admit(self) -> list[FillRequest]:
        """Return the waiting requests that there is room for, first come, first served."""
        admitted = []
        rows = sum(request.num_rows for request in self.working)
        columns = max((request.num_columns for request in self.working), default=0)
        while self.waiting:
            request = self.waiting[0].request
            rows, columns = rows + request.num_rows, max(columns, request.num_columns)
            if rows * columns > self.limits.cache_tokens and self.working:
                break
            self.working[request] = self.waiting.popleft()
            admitted.append(request)
        return admitted

    def _fail(self, message: str) -> None:
        self.filler = RequestFiller(self.filler.filler)
        with self.changed:
            failed, self.working, self.abandoned = list(self.working.values()), {}, []
        for work in failed:
            work.listen(Ended(message))
