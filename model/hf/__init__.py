"""GLM for Hugging Face transformers: the files that are copied beside exported weights."""
