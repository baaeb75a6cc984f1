"""What every command does with lines for the user: notes on the first rank, one line for a mistake."""

from __future__ import annotations

import argparse
import io
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec

from files.cores import set_threads

USER_ERROR_EXIT_CODE = 2
LONGEST_LINE = 1000  # characters of an error
SCRIPTS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scripts")
REQUIRED_PACKAGES = ("torch", "numpy", "tokenizers", "sentencepiece", "tqdm")  # what no program does without


class _StandardOutput(logging.Handler):
    """Print records of the logger "glm" to whatever standard output is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno == logging.WARNING else ""
        print(f"{prefix}{record.getMessage()}", flush=True)


def start_logging(*, first_rank: bool = True) -> None:
    """Let the logger "glm", which all our modules use, print on the first rank and be silent on the others."""
    logger = logging.getLogger("glm")
    if not any(isinstance(handler, _StandardOutput) for handler in logger.handlers):
        logger.addHandler(_StandardOutput())
    logger.setLevel(logging.INFO if first_rank else logging.CRITICAL)


def check_bounds(
    values: argparse.Namespace, names: Iterable[str], *, at_least: float, at_most: float = math.inf
) -> None:
    """Raise ValueError for the first of the flags called ``names`` whose number is out of bounds."""
    for name in names:
        value = getattr(values, name)
        if not at_least <= value <= at_most:
            bounds = f"at least {at_least}" + (f" and at most {at_most}" if at_most < math.inf else "")
            raise ValueError(f"--{name.replace('_', '-')} is {value}; {bounds} is needed")


def error_line(message: str, *, rank: int | None = None) -> str:
    """Return what a user sees of an error: one line, with the ``rank`` it happened on where there are several.

    The middle of a very long one is left out: a value that was given may be a whole file.
    """
    line = " ".join(message.split())
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 + 5 :]}"
    return ("error: " if rank is None else f"error on rank {rank}: ") + line


def check_interpreter(error: ModuleNotFoundError | None = None) -> None:
    """End in one line where this Python lacks what the project is installed with, as a plain ``python3`` does.

    Rooms call it, without an ``error``, when they are imported: ``python -m`` and our scripts import everything before
    they run anything. Programs of other people get the traceback.
    """
    program = sys.argv[0] if sys.argv else ""
    if error is None and program != "-m" and os.path.dirname(os.path.abspath(program)) != SCRIPTS:
        return
    missing = error.name if error else next((name for name in REQUIRED_PACKAGES if find_spec(name) is None), None)
    if missing in REQUIRED_PACKAGES:
        where = (
            "source .venv/bin/activate" if os.path.exists(".venv/bin/activate") else "pip install -r requirements.txt"
        )
        print(error_line(f"{sys.executable} has no {missing}: first {where} (README.md)"), file=sys.stderr)
        sys.exit(USER_ERROR_EXIT_CODE)


def run_main(main: Callable[[], int | None], *, computes: bool = True) -> None:
    """Run an entry point and exit with its code.

    ``ValueError`` and ``OSError`` are what our modules raise for a user's mistake (a missing file, a wrong
    vocabulary, a malformed line): they end as ``error: ...`` on standard error with exit code 2. Set
    ``GLM_TRACEBACK=1`` to see where they came from. A broken output pipe and an interrupt end quietly. Characters
    that standard output cannot show are printed as their numbers. A program that ``computes`` chooses its threads; one
    that only starts others leaves it to them.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as Python does for standard error
    start_logging()
    if computes:
        set_threads(os.environ)
    try:
        code = main()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        check_interpreter(error)
        raise
    except (ValueError, OSError) as error:
        if os.environ.get("GLM_TRACEBACK") == "1":
            raise
        print(error_line(str(error)), file=sys.stderr)
        sys.exit(USER_ERROR_EXIT_CODE)
    sys.exit(code or 0)
