"""Corpora: their files and rows, and the store of tokens."""

from data_utils.corpora.named import NAMED_CORPORA

__all__ = ["NAMED_CORPORA"]
