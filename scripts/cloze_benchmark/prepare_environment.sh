#!/usr/bin/env bash
# Install what the cloze benchmark needs, once: bash scripts/cloze_benchmark/prepare_environment.sh
#
# Python packages alone, on any system, into the active environment or .venv of the repository; the variables are those
# of scripts/setup_environment.sh. numactl, by which the original binds its processes, and h5sparse are not needed.
set -euo pipefail
source "$(dirname -- "$0")/../launch.sh"
source "${GLM_TOP}scripts/setup_environment.sh"
setup_environment
"$PYTHON" - <<'END'
import h5py, scipy, torch

print(f"ready: torch {torch.__version__}, h5py {h5py.__version__}, scipy {scipy.__version__}, {torch.cuda.device_count()} GPUs")
END
