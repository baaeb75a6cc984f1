"""Turn a user's mistake into one line instead of a traceback (used by every command)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

USER_ERROR_EXIT_CODE = 2


def error_line(message: str, *, rank: int | None = None) -> str:
    """Return what a user sees of an error: one line, with the ``rank`` it happened on where there are several."""
    return ("error: " if rank is None else f"error on rank {rank}: ") + " ".join(message.split())


def run_main(main: Callable[[], int | None]) -> None:
    """Run an entry point and exit with its code.

    ``ValueError`` and ``OSError`` are what the rooms below raise for a user's mistake (a missing file, a wrong
    vocabulary, a malformed line): they end as ``error: ...`` on standard error with exit code 2. Set
    ``GLM_TRACEBACK=1`` to see where they came from. A broken output pipe and an interrupt end quietly.
    """
    try:
        code = main()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError) as error:
        if os.environ.get("GLM_TRACEBACK") == "1":
            raise
        print(error_line(str(error)), file=sys.stderr)
        sys.exit(USER_ERROR_EXIT_CODE)
    sys.exit(code or 0)
