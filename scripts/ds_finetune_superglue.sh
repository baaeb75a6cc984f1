#!/usr/bin/env bash
# Fine-tune on a task under DeepSpeed: questions become blanks, all parameters are trained.
#
#   bash scripts/ds_finetune_superglue.sh MODEL_FILE TASK_FILE [any flag of finetune_glm.py]
#   DEEPSPEED_CONFIG   its batch size, rate and weight decay count  (default: that of the model file, else
#                      config_tasks/config_blocklm_10B.json)
#   PATTERN_ID         the pattern                                  (default: that of the task file, else 0)
#   and the variables of scripts/finetune.sh
set -euo pipefail
source "$(dirname -- "$0")/finetune.sh"
EXPERIMENT_NAME="${EXPERIMENT_NAME}_${DATESTR}"

finetune --deepspeed --deepspeed_config "${DEEPSPEED_CONFIG:-${UNDERSTANDING_CONFIG:-${GLM_TOP}config_tasks/config_blocklm_10B.json}}" \
    --cloze-eval --seq-length "$MAX_SEQ_LEN" --checkpoint-activations --eval-batch-size 16 --save-epoch 100000 \
    --no-load-optim --no-load-lr-scheduler "${MODEL_ARGS[@]}" "${TRAIN_ARGS[@]}" "${COMMON_ARGS[@]}" --pattern-id "${PATTERN_ID:-0}" \
    --fp16 --epochs "${EPOCHS:-$XXLARGE_EPOCH}" "$@"
