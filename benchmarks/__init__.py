"""Measurements: ``python -m benchmarks.NAME``; the figures are in README.md."""

from files.errors import check_interpreter

check_interpreter()
