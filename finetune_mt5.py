"""Finetune the mT5 baseline: python3 finetune_mt5.py TASK SUBTASK (--help names them).

From here: ``mt5/settings.py`` (tasks, options), ``mt5/run.py`` (training, evaluation), ``mt5/data.py`` (rows, batches).
"""

from __future__ import annotations

from collections.abc import Sequence

from files.errors import run_main
from mt5.settings import parse_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, train and evaluate."""
    settings = parse_settings(argv)
    from mt5.run import finetune

    return finetune(settings)


if __name__ == "__main__":
    run_main(main)
