#!/usr/bin/env bash
# Run every benchmark and write the table of benchmarks/README.md anew. Leave the machine alone meanwhile.
#
#   bash benchmarks/run.sh [NAME ...]     (default: all but checkpoint, which needs 12 GB of disk, and ablation)
#   GLM_VOCAB_DIR   folder of the vocabularies   (default: ${DATA_ROOT:-../shared/data}/vocab)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup_environment.sh
setup_environment
export GLM_VOCAB_DIR="${GLM_VOCAB_DIR:-${DATA_ROOT:-../shared/data}/vocab}"
if [ $# -eq 0 ]; then
    set -- train_step finetune_step shared_rows generate generate_memory scaling collator packing tokenize choices evaluate evaluate_lm startup
fi
RESULTS="$(mktemp -d)"
trap 'rm -rf "$RESULTS"' EXIT
for name in "$@"; do
    start=$SECONDS
    "$PYTHON" -m "benchmarks.$name" --json > "$RESULTS/$name.json"
    echo "$name: $((SECONDS - start)) s"
done
"$PYTHON" -m benchmarks.table "$RESULTS"/*.json
