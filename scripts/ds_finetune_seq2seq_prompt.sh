#!/usr/bin/env bash
# Prefix prompts under DeepSpeed: vectors before the keys of every layer write texts; all other weights are frozen.
#
#   bash scripts/ds_finetune_seq2seq_prompt.sh MODEL_FILE TASK_FILE [any flag of finetune_glm.py]
#   DEEPSPEED_CONFIG   its batch size, rate and weight decay count
#                      (default: config_tasks/config_blocklm_large_prompt.json)
#   and the variables of scripts/finetune.sh
set -euo pipefail
source "$(dirname -- "$0")/finetune.sh"
EXPERIMENT_NAME="${EXPERIMENT_NAME}_prompt_${DATESTR}"

finetune --deepspeed --deepspeed_config "${DEEPSPEED_CONFIG:-${GLM_TOP}config_tasks/config_blocklm_large_prompt.json}" \
    --checkpoint-activations --save-epoch 100000 --no-load-optim --no-load-lr-scheduler \
    "${MODEL_ARGS[@]}" ${EPOCH_SINGLE:+--epochs "$EPOCH_SINGLE"} "${TRAIN_ARGS[@]}" "${COMMON_ARGS[@]}" "${TASK_ARGS[@]}" \
    --prefix-prompt 100 --prompt-func none --freeze-transformer --warmup 0.01 \
    --fp16 ${EPOCHS:+--epochs "$EPOCHS"} "$@"
