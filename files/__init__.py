"""What every room does with files: read text and JSON that people wrote, write whole files, notice damaged ones."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  # an old one says so instead of a traceback
    sys.exit(f"error: Python {sys.version.split()[0]} is too old; 3.10 or later is needed: {sys.executable}")
