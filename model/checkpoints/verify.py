"""Verify the files of checkpoints, adapters and exported models against their SHA256SUMS.

    python -m model.checkpoints.verify checkpoints/blocklm-10b             the sizes and inner sums of files, CRC-32
    python -m model.checkpoints.verify checkpoints/blocklm-10b --full      every byte, SHA-256; values that are finite

A run's folder stands for all checkpoints in it. Files of one save have to belong together; a folder without the list is
checked as far as its files allow. ``sha256sum --check SHA256SUMS`` in a folder compares the same sums.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from files.checksums import CHECKSUMS_FILE
from files.errors import USER_ERROR_EXIT_CODE, error_line, run_main
from model.checkpoints.checks import check_bytes, check_finite, check_record_sums, listed_checksums
from model.checkpoints.reading import SHARD_NAME, CheckpointLocation, read_all_shards, resolve_checkpoint, weights_in
from model.hub.weight_files import SAFETENSORS, read_safetensors

SMALL_BYTES = 1 << 20  # files up to this are compared byte by byte in any case
WEIGHT_SUFFIXES = (".pt", ".bin", SAFETENSORS)


def verify_folder(folder: Path, *, full: bool) -> str:
    """Return a line on the files in ``folder``; raise ValueError with one on what is wrong."""
    listed = listed_checksums(folder)
    names = sorted({*listed, *(file.name for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES)})
    total = 0
    for name in names:
        file = folder / name
        if file.parent != folder or not file.is_file():
            raise ValueError(f"{folder} lacks {name}, which its {CHECKSUMS_FILE} lists; copy all files into it")
        size = file.stat().st_size
        total += size
        if full or (name in listed and size <= SMALL_BYTES):
            check_bytes(file)
        else:
            check_record_sums(file)
        if name.endswith(SAFETENSORS):
            tensors = read_safetensors(file)  # compares the header's offsets with the size
            if full:
                check_finite(tensors, file=file)
    if any(map(SHARD_NAME.fullmatch, names)):
        location = CheckpointLocation(folder, folder.name, None, None)
        contents = read_all_shards(location, check=False)
        for file, content in zip(location.shard_files() if full else (), contents):
            check_finite(weights_in(content, file=file), file=file)
    what = "every byte as written" if full else "sizes and inner sums as written"
    missing = "" if listed else f"; no {CHECKSUMS_FILE}, so only what the files say themselves"
    return f"{folder}: {len(names)} files, {total / 1e9:.2f} GB, {what}{missing}"


def folders_of(path: Path) -> list[Path]:
    """Return the folder at ``path``, or those of all checkpoints of a run. Raises ValueError for none."""
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; give that of a run, a checkpoint, an adapter or an exported model")
    inside = sorted(
        (folder for folder in path.iterdir() if folder.is_dir() and any(folder.glob("mp_rank_*_model_states.pt"))),
        key=lambda folder: (len(folder.name), folder.name),
    )
    own = (path / CHECKSUMS_FILE).is_file() or any(file.suffix in WEIGHT_SUFFIXES for file in path.iterdir())
    folders = [path] * own + [folder for folder in inside if not folder.name.startswith(".")]
    return folders or [resolve_checkpoint(path).folder]


def main(argv: list[str] | None = None) -> int:
    """Print a line for each folder; return 0 when all are intact, else 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="model.checkpoints.verify"
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true", help="read every byte and compare SHA-256")
    options = parser.parse_args(argv)
    code = 0
    for folder in folders_of(options.folder):
        try:
            print(verify_folder(folder, full=options.full), flush=True)
        except (ValueError, OSError) as error:  # the other folders are looked at all the same
            print(error_line(str(error)), file=sys.stderr)
            code = USER_ERROR_EXIT_CODE
    return code


if __name__ == "__main__":
    run_main(main)
