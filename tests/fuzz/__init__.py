"""Damaged input to everything that reads a file gives the intact result or one line: ``python -m tests.fuzz``."""
