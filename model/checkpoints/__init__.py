"""Checkpoint folders: the table of parameter names, reading, writing, cutting for another size, safe loading."""
