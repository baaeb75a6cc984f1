"""Make scisummnet.csv, which the mT5 baseline reads, of ScisummNet's papers and their Chinese summaries.

    python scripts/prepare_scisummnet.py FOLDER

FOLDER holds top1000_complete/ID/Documents_xml/ID.xml and scisummnet-zh.txt; FOLDER/scisummnet.csv gets the columns
text, zh_sum and pid.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from files.errors import run_main
from files.writing import check_can_write, write_whole
from mt5.data import CHINESE_SUMMARIES, read_papers


def prepare(folder: Path, output: Path) -> int:
    """Write the table and return its number of rows. Raises ValueError for files that are missing or damaged."""
    if not (folder / CHINESE_SUMMARIES).is_file():
        raise ValueError(f"{folder} has no {CHINESE_SUMMARIES}; give the folder that also holds top1000_complete/")
    check_can_write(output)
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(("text", "zh_sum", "pid"))
    rows = [(text, summary, paper) for paper, text, summary in read_papers(folder)]
    writer.writerows(rows)
    write_whole(output, content.getvalue())
    return len(rows)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, help="the table (default: scisummnet.csv in the folder)")
    arguments = parser.parse_args()
    output = arguments.output or arguments.folder / "scisummnet.csv"
    print(f"wrote {output}: {prepare(arguments.folder, output)} papers")
    return 0


if __name__ == "__main__":
    run_main(main)
