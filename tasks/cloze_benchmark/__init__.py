"""The multi-token cloze benchmark on ReCoRD: its questions and its files, made of what the task ``record`` has."""
