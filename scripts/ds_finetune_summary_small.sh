#!/usr/bin/env bash
# As ds_finetune_summary.sh with larger batches and a higher rate, for short texts.
#
#   bash scripts/ds_finetune_summary_small.sh MODEL_FILE TASK_FILE [any flag of finetune_glm.py]
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
export DEEPSPEED_CONFIG="${DEEPSPEED_CONFIG:-${GLM_TOP}config_tasks/config_blocklm_large_summary_small.json}"
exec bash "${GLM_TOP}scripts/ds_finetune_summary.sh" "$@"
