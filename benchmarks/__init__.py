"""Measurements: ``python -m benchmarks.NAME``; the figures are in README.md."""
