#!/usr/bin/env bash
# Run every benchmark and write the table of benchmarks/README.md anew. Leave the machine alone meanwhile.
#
#   bash benchmarks/run.sh             all but checkpoint (12 GB of disk), ablation (an hour) and those for GPUs: 12 minutes on 2 cores
#   bash benchmarks/run.sh NAME ...    these; the other rows of the table stay
#   GLM_VOCAB_DIR   folder of the vocabularies   (needed by some)
set -euo pipefail
source "$(dirname -- "$0")/../scripts/launch.sh"
cd -- "${GLM_TOP:-.}"
source "${GLM_TOP}scripts/setup_environment.sh"
setup_environment
OPTIONS=()
if [ $# -eq 0 ]; then
    OPTIONS=(--afresh)
    set -- train_step finetune_step shared_rows generate generate_memory scaling collator packing tokenize choices evaluate evaluate_lm startup
fi
RESULTS="$(mktemp -d)"
trap 'rm -rf "$RESULTS"' EXIT
FILES=()
for name in "$@"; do
    start=$SECONDS
    unset GLIBC_TUNABLES
    if [ "$name" = generate ]; then
        export GLIBC_TUNABLES=glibc.malloc.hugetlb=1 # for both sides, as scripts/generate_block.sh has it
    fi
    FILES+=("$RESULTS/$name.json")
    as_step "$PYTHON" -m benchmarks "$name" --json > "$RESULTS/$name.json"
    echo "$name: $((SECONDS - start)) s"
done
"$PYTHON" -m benchmarks table "${FILES[@]}" "${OPTIONS[@]}"
