"""Folders of the Hugging Face layout: export, import, verification, adapters."""
