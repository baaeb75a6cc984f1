#!/usr/bin/env bash
# Lint, format and types, as .ci/run asks for them: bash scripts/check.sh [--fix]
# --fix    correct what ruff can, instead of reporting it
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
cd -- "${GLM_TOP:-.}"
if [ $# -gt 0 ] && [ "$*" != --fix ]; then
    echo "error: unknown option '$*'; known is --fix" >&2
    exit 2
fi
source "${GLM_TOP}scripts/setup_environment.sh"
setup_environment
status=0
if [ "${1:-}" = --fix ]; then
    as_step "$PYTHON" -m ruff check --fix . || status=1
    as_step "$PYTHON" -m ruff format .
else
    as_step "$PYTHON" -m ruff check . || status=1
    as_step "$PYTHON" -m ruff format --check . || status=1
fi
as_step "$PYTHON" -m mypy || status=1
exit "$status"
