"""Fixtures that every test shares: where the golden vectors, the vocabularies and the real data are."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from tests.helpers import REPOSITORY
from tests.helpers.golden_index import GoldenFolder

SHARED_DATA = REPOSITORY.parent / "shared" / "data"

# Files are tested beside each other, and start processes of their own: one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The code of loaded models goes into a folder of each test process; transformers reads this when it is imported.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="hf-modules-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
# What nohup, or a shell's background, lets this process and so its children ignore: tests send it.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number is signal.SIGINT else signal.SIG_DFL)
settings.register_profile("glm", deadline=None)  # no test asserts a time
settings.load_profile("glm")


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the top folder of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def golden() -> GoldenFolder:
    """Return the folder of recorded vectors: ``GLM_GOLDEN_DIR``, else ``tests/golden``."""
    return GoldenFolder.from_environment()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of real data sets (``GLM_TEST_DATA_DIR``), or skip where there is none."""
    folder = Path(os.environ.get("GLM_TEST_DATA_DIR", SHARED_DATA))
    if not folder.is_dir():
        pytest.skip("no real data here: set GLM_TEST_DATA_DIR to a folder of data sets")
    return folder


@pytest.fixture(scope="session")
def vocab_dir() -> Path:
    """Return the folder of released vocabularies (``GLM_VOCAB_DIR``), or skip where there is none."""
    folder = Path(os.environ.get("GLM_VOCAB_DIR", SHARED_DATA / "vocab"))
    if not folder.is_dir():
        pytest.skip("no released vocabularies here: set GLM_VOCAB_DIR (bert-uncased/, gpt2/, roberta/, chinese-sp/)")
    return folder
