"""Tensor (model) parallelism and the transformer stack built on it; knows nothing of GLM."""
