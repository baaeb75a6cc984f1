"""Tokenizers of the GLM models and the one table of command tokens."""
