#!/usr/bin/env bash
# Set up and pass the tests: bash scripts/test.sh [pytest arguments, e.g. -m "not slow" or -k tokenizer]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup_environment.sh
setup_environment
export TOKENIZERS_PARALLELISM=false
"$PYTHON" -m pytest "$@"
