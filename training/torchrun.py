"""torchrun whose end is one line: ``python -m training.torchrun`` with torchrun's arguments.

The ranks say why they end. torchrun adds thirty lines of its own to it, also after Ctrl-C; here they stand for its exit
code: that of the first rank which failed, 128 + N after signal N. ``LOGLEVEL=WARNING`` shows what torchrun has to say.
"""

from __future__ import annotations

import os
import signal
import sys

from files.errors import error_line


def main() -> int:
    """Run torchrun; return the exit code."""
    os.environ.setdefault("LOGLEVEL", "CRITICAL")  # read when torchrun is imported
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main()
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:  # it could not say so itself
            name = signal.Signals(-failure.exitcode).name
            print(error_line(f"ended by {name}", rank=rank), file=sys.stderr)
            return 128 - failure.exitcode
        return failure.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main())
