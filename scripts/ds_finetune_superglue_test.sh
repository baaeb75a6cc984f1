#!/usr/bin/env bash
# Evaluate a model on a task as ds_finetune_superglue.sh does, without training.
#
#   bash scripts/ds_finetune_superglue_test.sh MODEL_FILE TASK_FILE [any flag of finetune_glm.py]
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
export EPOCHS=0
exec bash "${GLM_TOP}scripts/ds_finetune_superglue.sh" "$@"
