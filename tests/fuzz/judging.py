"""Read damaged files and say what came of it: the intact result, another one, one line, or a finding."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import shutil
import signal
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from files.errors import error_line
from tests.fuzz.damage import Files, damaged
from tests.fuzz.surfaces import Case, contents, write_files

SECONDS = 10.0
CHECKSUMS = ("SHA256SUMS", ".json")  # ends of the names of files that hold checksums


class Verdict(NamedTuple):
    """``kind`` is equal, other, refused or finding; ``what`` was done to the files; ``detail`` says what came of it."""

    kind: str
    what: str
    detail: str = ""


class Hang(BaseException):
    """A reader takes longer than it may. No Exception: nobody is to catch it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise Hang after ``seconds``."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, seconds)  # of pytest-timeout, where that runs
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, outer)
        signal.signal(signal.SIGALRM, before)


def digest(value: Any) -> str:
    """Return a digest of nested values, arrays, tensors and records."""
    found = hashlib.sha256()

    def feed(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(f"{value.dtype} {value.layout} {value.device} {tuple(value.shape)}".encode())
            if value.layout != torch.strided or value.is_quantized or value.is_meta:
                return  # what such a tensor holds is not compared
            found.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, np.ndarray):
            found.update(f"{value.dtype} {value.shape}".encode())
            found.update(np.ascontiguousarray(value).tobytes())
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            feed({entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)})
        elif isinstance(value, Mapping):
            found.update(f"{{{len(value)}".encode())
            for key, item in value.items():
                feed(key)
                feed(item)
        elif isinstance(value, list | tuple):
            found.update(f"[{len(value)}".encode())
            for item in value:
                feed(item)
        else:
            found.update(f"{type(value).__name__} {value!r}".encode("utf-8", "surrogatepass"))

    feed(value)
    return found.hexdigest()


class Judge:
    """Judges damage of one case; knows what the intact files give."""

    def __init__(self, case: Case, folder: Path) -> None:
        """``folder`` is emptied for every input. Raises what the reader raises for the intact files."""
        self.case, self.folder = case, folder
        self.accepted = {self._result(files) for files in (case.files, *case.also)}

    def _fresh(self, files: Files) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        write_files(self.folder, files)

    def _result(self, files: Files) -> str:
        self._fresh(files)
        return digest(self.case.read(self.folder))

    def damage(self, generator: random.Random) -> tuple[Files, str]:
        """Return damaged files, and what was done."""
        case = self.case
        if case.change is not None:
            self._fresh(case.files)
            what = case.change(self.folder, generator)
            return contents(self.folder), what
        targets = {name: data for name, data in case.files.items() if not case.targets or name in case.targets}
        rest = {name: data for name, data in case.files.items() if name not in targets}
        files, what = damaged(targets, generator, other=case.other)
        return {**rest, **files}, what

    def verdict(self, files: Files, what: str) -> Verdict:
        """Return what the reader makes of ``files``."""
        self._fresh(files)
        try:
            with time_limit(SECONDS):
                found = digest(self.case.read(self.folder))
        except (ValueError, OSError) as error:
            return self._refusal(error, what)
        except Hang:
            return Verdict("finding", what, f"more than {SECONDS:.0f} s: {last_lines()}")
        except MemoryError:
            return Verdict("finding", what, f"memory: {last_lines()}")
        except BaseException:
            return Verdict("finding", what, last_lines())
        if found in self.accepted:
            return Verdict("equal", what)
        # Damage to data and to its checksums at once can make a store or checkpoint that somebody else wrote.
        changed = [name for name, data in self.case.files.items() if files.get(name) != data]
        kept_checksums = not any(name.endswith(CHECKSUMS) for name in changed)
        only_checksums = all(name.endswith(CHECKSUMS) for name in changed)
        kind = "finding" if self.case.strict and (kept_checksums or only_checksums) else "other"
        return Verdict(kind, what, "another result, without a word")

    def _refusal(self, error: Exception, what: str) -> Verdict:
        line = error_line(str(error)).removeprefix("error: ")
        if isinstance(error, UnicodeError):
            return Verdict("finding", what, f"a codec's message: {last_lines()}")
        if not line:
            return Verdict("finding", what, f"no message: {last_lines()}")
        named = {Path(name).name for name in self.case.files} | {self.folder.name, *self.case.named}
        if not any(name in line for name in named):
            return Verdict("finding", what, f"no file in the message: {last_lines()}")
        return Verdict("refused", what, line)


def last_lines() -> str:
    """Return the end of the traceback of the exception that is being handled, in one line."""
    lines = traceback.format_exc(limit=-3, chain=False).strip().split("\n")
    return " | ".join(line.strip()[:300] for line in lines[1:] if line.strip("^ ~"))[-900:]
