"""Compare token stores, and caches of the original, with their checksums.

    python -m data_utils.corpora.verify STORES [--full]

STORES are prefixes of stores, .lazy folders, or folders in which they lie. Without ``--full`` the structure and the
sizes are checked, and the checksums of what is small (64 MB).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_utils.corpora.lazy_format import LazyDocuments, is_lazy_folder
from data_utils.corpora.store import is_store, store_prefix, verify_store
from files.errors import USER_ERROR_EXIT_CODE, error_line, run_main


def stores_at(place: Path) -> Iterator[Path]:
    """Yield the prefixes of stores and the ``.lazy`` folders that a path means; ValueError where there are none."""
    if is_lazy_folder(place):
        yield place
    elif place.is_dir():
        indices = (path for suffix in ("json", "idx") for path in place.rglob(f"*.{suffix}") if is_part_of_store(path))
        found = {store_prefix(path) for path in indices}
        found |= {path for path in place.rglob("*.lazy") if is_lazy_folder(path)}
        if not found:
            raise ValueError(f"folder {place} holds no token store")
        yield from sorted(found)
    elif is_store(place) or is_part_of_store(place):
        yield store_prefix(place)
    else:
        raise ValueError(f"{place}: no token store, and no folder of some")


def is_part_of_store(path: Path) -> bool:
    """Tell whether a file lies beside the index or the ids of a store, one of which may be lost."""
    prefix = store_prefix(path)
    return any(prefix.with_name(prefix.name + suffix).is_file() for suffix in (".idx", ".bin"))


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each store; return 0 when all are intact, else 2."""
    parser = argparse.ArgumentParser(
        prog="python -m data_utils.corpora.verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stores", nargs="+", type=Path)
    parser.add_argument("--full", action="store_true", help="compare all checksums: reads every byte")
    values = parser.parse_args(argv)
    code = 0
    for place in values.stores:
        for store in stores_at(place):
            try:
                documents = (
                    LazyDocuments(store, full=values.full) if store.is_dir() else verify_store(store, full=values.full)
                )
                print(f"{store}: {len(documents)} documents, nothing is wrong with it")
            except (ValueError, OSError) as error:
                code = USER_ERROR_EXIT_CODE
                print(error_line(str(error)), file=sys.stderr)
    return code


if __name__ == "__main__":
    run_main(main)
