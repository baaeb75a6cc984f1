#!/usr/bin/env bash
# Set up and pass the tests: bash scripts/test.sh [pytest arguments, e.g. -m "not slow" or -k tokenizer]
#   TEST_PROCESSES    how many files are tested at a time (default: 2)
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
cd -- "${GLM_TOP:-.}"
source "${GLM_TOP}scripts/setup_environment.sh"
setup_environment
export TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" -m pytest --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile "$@"
