#!/usr/bin/env bash
# Fine-tune on summaries under DeepSpeed, on at most four GPUs: runs/<experiment>/test.jsonl.hyps and .refs.
#
#   bash scripts/ds_finetune_summary.sh MODEL_FILE TASK_FILE [any flag of finetune_glm.py]
#   DEEPSPEED_CONFIG   its batch size, rate and weight decay count
#                      (default: config_tasks/config_blocklm_large_summary.json)
#   and the variables of scripts/finetune.sh
set -euo pipefail
source "$(dirname -- "$0")/finetune.sh"
export NUM_GPUS_PER_WORKER="${NUM_GPUS_PER_WORKER:-$(count_gpus 4)}"
EXPERIMENT_NAME="${EXPERIMENT_NAME}_${DATESTR}"

finetune --deepspeed --deepspeed_config "${DEEPSPEED_CONFIG:-${GLM_TOP}config_tasks/config_blocklm_large_summary.json}" \
    --checkpoint-activations --save-epoch 100000 --no-load-optim --no-load-lr-scheduler \
    "${MODEL_ARGS[@]}" ${EPOCH_SINGLE:+--epochs "$EPOCH_SINGLE"} "${TRAIN_ARGS[@]}" "${COMMON_ARGS[@]}" "${TASK_ARGS[@]}" \
    --fp16 ${EPOCHS:+--epochs "$EPOCHS"} "$@"
