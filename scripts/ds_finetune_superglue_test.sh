#!/usr/bin/env bash
# Evaluate a model on a task as ds_finetune_superglue.sh does, without training.
#
#   bash scripts/ds_finetune_superglue_test.sh MODEL_FILE TASK_FILE [any flag of finetune_glm.py]
set -euo pipefail
export EPOCHS=0
exec bash "$(dirname -- "$0")/ds_finetune_superglue.sh" "$@"
