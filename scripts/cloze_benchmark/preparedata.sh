#!/usr/bin/env bash
# Make the data of the cloze benchmark on ReCoRD: bash scripts/cloze_benchmark/preparedata.sh [FOLDER] [flags of tasks.cloze_benchmark.prepare]
#
# FOLDER gets ReCoRD.zip (downloaded unless it is there), ReCoRD/{train,val,test}.jsonl and the two HDF5 files below ReCoRD/
# (default: GLM_DATA_DIR, else /home/data/perf/glm).
set -euo pipefail
source "$(dirname -- "$0")/../launch.sh"
folder="${GLM_DATA_DIR:-/home/data/perf/glm}"
if [[ $# -gt 0 && "$1" != -* ]]; then
    folder="$1"
    shift
fi
launch_single -m tasks.cloze_benchmark.prepare "$folder" "$@"
