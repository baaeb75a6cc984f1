#!/usr/bin/env bash
# Pre-train with one of the configurations of config/, on this machine or on several (docs/launching.md).
#
#   bash scripts/ds_pretrain_nvidia.sh config/ds_block_large.sh [any flag of pretrain_glm.py]
#
#   NUM_WORKERS, NUM_GPUS_PER_WORKER, HOST_FILE_PATH, MASTER_PORT ...   machines and processes: scripts/launch.py
#   MP_SIZE                        tensor-parallel size                              (default: 1)
#   CHECKPOINT_PATH                folder of checkpoints                             (default: checkpoints)
#   GLM_CORPORA_DIR                folder with a file or folder for each named corpus  (default: data)
#   DRY_RUN=1, or --dry-run        print the commands and the plan, start nothing
#
# A flag after the configuration wins over the configuration: --load FOLDER resumes, --train-iters 10 is a short trial.
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
check_file pre-training "${1:-}"
CONFIG="$1"
shift
if [ -z "${PYTHON:-}" ] && ! has_requirements; then
    source "${GLM_TOP}scripts/setup_environment.sh"
    setup_environment
fi
export GLM_CORPORA_DIR="${GLM_CORPORA_DIR:-data}"
export NCCL_DEBUG="${NCCL_DEBUG:-info}" NCCL_IB_DISABLE="${NCCL_IB_DISABLE:-0}" NCCL_NET_GDR_LEVEL="${NCCL_NET_GDR_LEVEL:-2}"
MP_SIZE="${MP_SIZE:-1}"

source "$(realpath -- "$CONFIG")"
if declare -F prepare > /dev/null && [ "${DRY_RUN:-}" != 1 ] && [[ " $* " != *" --dry-run "* ]]; then
    prepare # what a configuration needs before it can run
fi
LOG_NAME="${LOG_NAME:-$(basename "$CONFIG" .sh)}"
as_lists gpt_options
# shellcheck disable=SC2154  # the configuration sets it
launch_distributed pretrain_glm.py "${gpt_options[@]}" "$@"
