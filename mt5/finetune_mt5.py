"""The program of the same name in the folder above, for those who are in this one: cd mt5; python3 finetune_mt5.py."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    program = Path(__file__).resolve().parent.parent / "finetune_mt5.py"
    sys.path[0] = str(program.parent)
    runpy.run_path(str(program), run_name="__main__")
