#!/usr/bin/env bash
# Fine-tune on a sequence-to-sequence task under DeepSpeed, then write what it makes of the
# test split: runs/<experiment>/test.jsonl.hyps, references in .refs.
#
#   bash scripts/ds_finetune_seq2seq.sh MODEL_FILE TASK_FILE [any flag of finetune_glm.py]
#   DEEPSPEED_CONFIG   its batch size, rate and weight decay count
#                      (default: that of the model file, else config_tasks/config_blocklm_10B_cnndm.json)
#   and the variables of scripts/finetune.sh
set -euo pipefail
source "$(dirname -- "$0")/finetune.sh"
EXPERIMENT_NAME="${EXPERIMENT_NAME}_${DATESTR}"

finetune --deepspeed --deepspeed_config "${DEEPSPEED_CONFIG:-${SEQ2SEQ_CONFIG:-${GLM_TOP}config_tasks/config_blocklm_10B_cnndm.json}}" \
    --checkpoint-activations --save-epoch 100000 --no-load-optim --no-load-lr-scheduler \
    "${MODEL_ARGS[@]}" ${EPOCH_SINGLE:+--epochs "$EPOCH_SINGLE"} "${TRAIN_ARGS[@]}" "${COMMON_ARGS[@]}" "${TASK_ARGS[@]}" \
    --fp16 ${EPOCHS:+--epochs "$EPOCHS"} "$@"
