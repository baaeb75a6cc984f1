"""Signals: what ends at once, what is remembered, and the watch over ranks that wait for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.helpers import REPOSITORY
from training.signals import StoppedError, StopRequest

# Waits in foreign code that signals do not interrupt, as a collective does: they reach another thread.
WAITING = """
import contextlib, ctypes, signal, sys
from training import signals
signals.PATIENCE = 0.5
try:
    with contextlib.ExitStack() as places:
        stop = places.enter_context(signals.StopRequest(hangs=lambda: "another rank was lost", remembering=False))
        stop.where = "before the first update"
        for name in sys.argv[1:]:
            places.enter_context(getattr(stop, name)())
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        print("waiting", flush=True)
        ctypes.CDLL(None).sleep(600)
except signals.StoppedError as error:  # the signal came before the wait had begun
    sys.exit(f"error: {error.line}")
"""


@pytest.fixture
def sibling() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("places", "lost", "line"),
    [
        ([], False, "error: stopped by SIGTERM before the first update"),
        (["remember", "update"], False, "another rank was lost"),
        (["remember"], True, "another rank was lost"),
    ],
    ids=["start", "update", "save"],
)
def test_a_process_that_waits_for_ever_ends_with_a_line(
    places: list[str], lost: bool, line: str, sibling: subprocess.Popen[bytes]
) -> None:
    waiting = subprocess.Popen(
        [sys.executable, "-c", WAITING, *places],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    assert waiting.stdout is not None and waiting.stdout.readline() == "waiting\n"
    if lost:
        sibling.kill()
    waiting.send_signal(signal.SIGTERM)
    _, errors = waiting.communicate(timeout=30)
    assert errors == line + "\n" and waiting.returncode != 0


def test_a_save_that_takes_long_is_let_alone(sibling: subprocess.Popen[bytes]) -> None:
    waiting = subprocess.Popen([sys.executable, "-c", WAITING, "remember"], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert waiting.stdout is not None and waiting.stdout.readline() == b"waiting\n"
    waiting.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=2)
    waiting.kill()
    waiting.communicate()


def test_signals_end_what_does_not_remember_them() -> None:
    with StopRequest(remembering=False) as stop:
        stop.where = "here"
        with pytest.raises(StoppedError) as caught:
            os.kill(os.getpid(), signal.SIGHUP)
        assert (caught.value.line, caught.value.code) == ("stopped by SIGHUP here", 129)
        os.kill(os.getpid(), signal.SIGTERM)  # what ends is not interrupted again
        assert not stop.requested


def test_nothing_comes_between_an_error_and_its_line() -> None:
    with StopRequest(remembering=False) as stop:
        with pytest.raises(KeyError), stop.remember():
            raise KeyError
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested


def test_processes_that_were_forked_do_not_stop_the_run() -> None:
    with StopRequest() as stop:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert not stop.requested


def test_a_living_worker_does_not_keep_a_failed_run_waiting() -> None:
    with pytest.raises(KeyError), StopRequest():
        child = os.fork()  # as a loader's worker: it has all that was open
        if child == 0:
            signal.pause()
            os._exit(1)
        raise KeyError
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
