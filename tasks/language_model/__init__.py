"""Evaluation as a language model: LAMBADA and perplexity."""
