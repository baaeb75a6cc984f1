#!/usr/bin/env bash
# Fine-tune on ReCoRD, or another task of many candidates, under DeepSpeed.
#
#   bash scripts/ds_finetune_record.sh MODEL_FILE TASK_FILE [any flag of finetune_glm.py]
#   DEEPSPEED_CONFIG   its batch size, rate and weight decay count  (default: config_tasks/config_blocklm_10B_record.json)
#   and the variables of scripts/finetune.sh
set -euo pipefail
source "$(dirname -- "$0")/finetune.sh"
export NUM_GPUS_PER_WORKER="${NUM_GPUS_PER_WORKER:-$(count_gpus 4)}"
EXPERIMENT_NAME="${EXPERIMENT_NAME}_${DATESTR}"

finetune --deepspeed --deepspeed_config "${DEEPSPEED_CONFIG:-${GLM_TOP}config_tasks/config_blocklm_10B_record.json}" \
    --cloze-eval --seq-length "$MAX_SEQ_LEN" --checkpoint-activations --eval-batch-size 2 --save-epoch 100 \
    --no-load-optim --no-load-lr-scheduler "${MODEL_ARGS[@]}" "${TRAIN_ARGS[@]}" "${COMMON_ARGS[@]}" \
    --fp16 --epochs "${EPOCHS:-$EPOCH_SINGLE}" "$@"
