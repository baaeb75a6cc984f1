"""Signals that end a run: a line before the loop, a checkpoint within it, a watch over ranks that wait for ever.

The standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from files.errors import error_line

# What terminals and batch systems send. SIGHUP is a closed terminal.
STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
# Seconds that an update may still take after a signal, at least; launchers kill thirty after theirs.
PATIENCE = 10.0
POLL_SECONDS = 0.25
REPEATED = 1.0  # seconds in which a second Ctrl-C counts as the first


def living_siblings() -> set[str]:
    """Return the processes that the parent of this one has started, the other ranks of a launcher; empty off Linux."""
    living = set()
    for children in Path(f"/proc/{os.getppid()}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for process in children.read_text(encoding="ascii").split():
                state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
                if state.split()[0] not in "ZX":
                    living.add(process)
    return living


_open: list[StopRequest] = []


def _after_fork() -> None:
    for request in reversed(_open):
        request._after_fork()


os.register_at_fork(after_in_child=_after_fork)


class StoppedError(SystemExit):
    """A signal came where there is nothing to save; ``line`` says so, and the code is that of shells."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(128 + number)
        self.number = number
        self.line = f"stopped by {signal.Signals(number).name} {where}".rstrip()


class StopRequest:
    """Take SIGTERM, SIGHUP, SIGUSR1 and SIGINT from the beginning of a program to its end.

    While they are remembered, ``requested`` tells the loop to save and leave; elsewhere they end the program, with
    ``StoppedError`` (SIGINT: KeyboardInterrupt). A second SIGINT interrupts at once, unless it follows the first within
    ``REPEATED`` seconds: a terminal sends one to all processes, and launchers hand theirs on. Collectives of gloo now
    and then wait for ever for a rank that was lost, and the signal by which a launcher ends the others is handled by
    Python only after them: a thread watches, says ``hangs`` and ends the process when the update at hand does not end.
    """

    def __init__(self, *, hangs: Callable[[], str | None] = lambda: None, remembering: bool = True) -> None:
        """Remember from the beginning, or end the program until ``remember``.

        ``hangs`` returns the line about a rank that waits for ever; None when there is no other rank.
        """
        self.requested = False
        self.number = int(signal.SIGTERM)  # what came; on another rank than the one that it came to, this
        self._came = 0.0
        self.where = ""  # for the line of a program that ends: where it was stopped
        self._hangs = hangs
        self._remembering = remembering
        self._leaving = False
        self._update_began: float | None = None
        self._longest = 0.0  # update so far, seconds
        self._siblings: set[str] = set()
        self._previous: dict[int, Any] = {}
        self._said = threading.Lock()

    def __enter__(self) -> StopRequest:
        self._numbers, numbers = socket.socketpair()
        numbers.setblocking(False)
        self._written = numbers
        # The number of a signal is written at once, also while the main thread is within a collective.
        self._previous_descriptor = signal.set_wakeup_fd(numbers.fileno(), warn_on_full_buffer=False)
        for number in STOPPING:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # started by nohup
            self._previous[number] = signal.signal(number, self._handle)
        _open.append(self)
        self._watch = threading.Thread(target=self._wait_for_signals, name="signals", daemon=True)
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _open.remove(self)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_descriptor)
        self._leaving = True
        self._written.shutdown(socket.SHUT_WR)  # closing is not enough: forked workers have it, too
        self._written.close()
        self._watch.join()
        self._numbers.close()

    @contextmanager
    def remember(self) -> Iterator[None]:
        """Remember signals in the body, and on when it fails: nothing may come between an error and its line."""
        before, self._remembering, self._siblings = self._remembering, True, living_siblings()
        yield
        self._remembering = before

    @contextmanager
    def update(self) -> Iterator[None]:
        """Watch over the body, an update: after a signal it may take the seconds that the longest took twice."""
        began = self._update_began = time.monotonic()
        try:
            yield
        finally:
            self._update_began = None
        self._longest = max(self._longest, time.monotonic() - began)

    def leave(self) -> None:
        """Ignore signals from now on: the process is about to say why it ends."""
        self._leaving = True

    def say(self, line: str) -> None:
        """Write an error's line in one piece, and nothing after it."""
        self._said.acquire()
        with contextlib.suppress(OSError):
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        with contextlib.suppress(OSError):
            sys.stdout.flush()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._leaving:
            return
        if self._remembering:
            now = time.monotonic()
            if not self.requested:
                self.requested, self.number, self._came = True, number, now
            elif number == signal.SIGINT and now - self._came > REPEATED:
                raise KeyboardInterrupt
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        self._leaving = True
        raise StoppedError(number, self.where)

    def _wait_for_signals(self) -> None:
        """Wait for the first signal, then until the process ends by itself or waits for ever."""
        while (data := self._numbers.recv(1)) and data[0] not in STOPPING[:3]:
            pass
        if not data:
            return
        number, came = data[0], time.monotonic()
        remembered = self._remembering
        self._numbers.settimeout(POLL_SECONDS)
        while True:
            with contextlib.suppress(TimeoutError):
                if not self._numbers.recv(64):
                    return
            now, began = time.monotonic(), self._update_began
            if not remembered and now - came > PATIENCE:
                self._end(error_line(StoppedError(number, self.where).line), code=128 + number)
            if not (remembered and self._remembering) or self._leaving:
                continue
            # A save and an evaluation may take long, but not when a rank is gone.
            too_long = began is not None and now - max(came, began) > max(PATIENCE, 2.0 * self._longest)
            if (too_long or (now - came > PATIENCE and self._siblings - living_siblings())) and (line := self._hangs()):
                self._end(line, code=2)

    def _after_fork(self) -> None:
        """Let a forked process, which tokenizes or builds batches, end as if nobody listened, in the loop with the run.

        What it is sent must not be taken for a signal to the program.
        """
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)
            for number, handler in self._previous.items():
                signal.signal(number, signal.SIG_IGN if self._remembering else handler)

    def _end(self, line: str, *, code: int) -> None:
        if not self._said.locked():
            self.say(line)
        os._exit(code)
