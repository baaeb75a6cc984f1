"""What an installation adds to the path: the commands glm-pretrain, glm-finetune, glm-generate and their like.

A wheel holds the rooms of the repository (``model``, ``tasks`` ...) below this folder and nothing beside it, so that
they are in nobody's way: only a process that starts with one of the commands, or calls ``add_to_path``, sees them under
their own names. An editable installation has the repository itself on the path.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOMS = FOLDER if (FOLDER / "pretrain_glm.py").is_file() else FOLDER.parent


def add_to_path() -> None:
    """Let this process import the rooms: ``from generation.api import load_model`` and so on."""
    if str(ROOMS) not in sys.path:
        sys.path.insert(0, str(ROOMS))


def _run(module: str) -> None:
    add_to_path()
    from files.errors import run_main

    run_main(import_module(module).main)


def pretrain() -> None:
    _run("pretrain_glm")


def finetune() -> None:
    _run("finetune_glm")


def generate() -> None:
    _run("generate_samples")


def change_mp() -> None:
    _run("change_mp")


def export() -> None:
    _run("scripts.convert_glm_checkpoint_to_transformers")


def serve() -> None:
    _run("generation.web.__main__")
