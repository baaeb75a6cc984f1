#!/usr/bin/env bash
# Pre-train with one of the configurations of config/, on this machine or on several.
#
#   bash scripts/ds_pretrain_nvidia.sh config/ds_block_large.sh [any flag of pretrain_glm.py]
#
#   NUM_WORKERS, NUM_GPUS_PER_WORKER, HOST_FILE_PATH, MASTER_PORT ...   machines and processes: scripts/launch_ranks.py
#   MP_SIZE                                                            tensor-parallel size (default: 1)
#   DRY_RUN=1, or the flag --dry-run                                   print the commands and the plan, start nothing
set -euo pipefail
if [ $# -lt 1 ] || [ ! -f "$1" ]; then
    echo "error: name a configuration: bash scripts/ds_pretrain_nvidia.sh config/ds_*.sh (given: '${1:-}')" >&2
    exit 2
fi
CONFIG="$(realpath -- "$1")"
shift
source "$(dirname "$0")/launch.sh"
source "$CONFIG"
if declare -F prepare > /dev/null; then
    prepare  # what a configuration needs before it can run
fi

export LOG_NAME="${LOG_NAME:-$(basename "$CONFIG" .sh)}"
# shellcheck disable=SC2086  # gpt_options is a list of words
launch_distributed pretrain_glm.py $gpt_options "$@"
