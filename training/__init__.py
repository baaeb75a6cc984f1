"""Training: arguments, engine, loop, optimizer, schedules, checkpoints, metrics."""

from files.errors import check_interpreter

check_interpreter()
