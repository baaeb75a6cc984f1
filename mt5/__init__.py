"""The mT5 baseline: an encoder-decoder of transformers, finetuned on cross-lingual summaries."""
