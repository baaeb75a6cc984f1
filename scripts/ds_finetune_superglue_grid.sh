#!/usr/bin/env bash
# Prefix prompts (ds_finetune_superglue_prompt.sh) for every seed of a list.
#
#   bash scripts/ds_finetune_superglue_grid.sh MODEL_FILE TASK_FILE [any flag of finetune_glm.py]
#   SEEDS   (default: 1234 5678 3456)
set -euo pipefail
source "$(dirname -- "$0")/launch.sh"
for seed in ${SEEDS:-1234 5678 3456}; do
    as_step bash "${GLM_TOP}scripts/ds_finetune_superglue_prompt.sh" "$@" --seed "$seed"
done
