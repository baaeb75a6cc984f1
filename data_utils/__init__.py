"""Text to batches: tokenizers, corpora, token stores, packing, blank infilling, loaders."""

from files.errors import check_interpreter

check_interpreter()
