"""Corpora: their files and rows, and the store of tokens."""
