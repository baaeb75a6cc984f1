"""Give transformers a folder of the tests' own for the code of loaded models; to be imported before transformers."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

if "HF_MODULES_CACHE" not in os.environ:
    os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="hf-modules-")
    atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
