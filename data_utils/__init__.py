"""Text to batches: tokenizers, corpora, token stores, packing, blank infilling, loaders."""
