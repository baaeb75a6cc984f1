"""A page and an HTTP interface that fill blanks: ``python -m generation.web CHECKPOINT`` (docs/web.md)."""
