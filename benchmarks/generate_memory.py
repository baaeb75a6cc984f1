"""Resident memory of generate_samples.py with a 2 GB bf16 checkpoint, as a multiple of its weights.

    GLM_VOCAB_DIR=... python -m benchmarks.generate_memory [--json]

24 layers, hidden 1792, 28 heads, random weights. The program runs in a fresh process and fills one blank; its peak
(VmHWM: mapped pages of the file count) is taken above what the imports alone take. The time is that of loading and
filling. 3 GB of disk are needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.checkpoint import write_random_checkpoint
from benchmarks.corpus import REPOSITORY
from benchmarks.measuring import Row, report
from data_utils.errors import run_main
from model.config import GLMConfig

CONFIG = GLMConfig(24, 1792, 28, 30592, max_position_embeddings=512)
GOAL = 1.15
FREE_DISK = 3 << 30
NEW_TOKENS = 8
FLAGS = (
    "--block-lm --bf16 --tokenizer-type BertWordPieceTokenizer --tokenizer-model-type bert-base-uncased "
    f"--num-layers {CONFIG.num_layers} --hidden-size {CONFIG.hidden_size} "
    f"--num-attention-heads {CONFIG.num_attention_heads} "
    f"--max-position-embeddings {CONFIG.max_position_embeddings} --top-k 1 --out-seq-length {8 + NEW_TOKENS}"
).split()
# Runs generate_samples.py and prints the growth of its resident memory in bytes, and its seconds.
CHILD = """
import sys, time
from pathlib import Path
import generate_samples
import generation.api, generation.interactive, training.build, training.data
import training.distributed, training.engine
from benchmarks.measuring import status
empty = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of importing
start = time.perf_counter()
assert generate_samples.main(sys.argv[1:]) == 0
print("measured", status("VmHWM") - empty, time.perf_counter() - start)
"""


def fill_one_blank(checkpoint: Path) -> tuple[int, float]:
    """Return the bytes by which generate_samples.py grows at most, and the seconds that it takes."""
    prompt = ["--prompt", "The capital of France is [MASK].", "--load-pretrained", str(checkpoint)]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *FLAGS, *prompt], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if child.returncode:
        raise ValueError(f"generate_samples.py failed: {child.stderr.strip().splitlines()[-1]}")
    _, num_bytes, seconds = child.stdout.splitlines()[-1].split()
    return int(num_bytes), float(seconds)


def measure() -> Sequence[Row]:
    """Return one row."""
    if not os.environ.get("GLM_VOCAB_DIR"):
        raise ValueError("GLM_VOCAB_DIR is not set: name the folder of the vocabularies")
    with tempfile.TemporaryDirectory() as folder:
        if shutil.disk_usage(folder).free < FREE_DISK:
            print(f"skipped: {folder} has less than 3 GB free; name another folder with TMPDIR", file=sys.stderr)
            return []
        weights = write_random_checkpoint(Path(folder), CONFIG)
        grown, seconds = fill_one_blank(Path(folder))
    name = f"generate_samples.py, {weights / 1e9:.1f} GB of weights in bf16: memory above the imports"
    return [Row(name, seconds, 0.0, memory_ratio=grown / weights, memory_goal=GOAL)]


if __name__ == "__main__":
    run_main(lambda: report(measure, description=__doc__))
