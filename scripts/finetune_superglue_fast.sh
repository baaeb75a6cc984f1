#!/usr/bin/env bash
# Fine-tune on a task with answers of several tokens; the context is encoded once for all of them.
#
#   bash scripts/finetune_superglue_fast.sh MODEL_FILE TASK_FILE [any flag of finetune_glm.py]
#   N_GPU   processes  (default: NUM_GPUS_PER_WORKER, else the GPUs of this machine, at most 4)
#   and the variables of scripts/finetune.sh
set -euo pipefail
source "$(dirname -- "$0")/finetune.sh"
export NUM_GPUS_PER_WORKER="${N_GPU:-${NUM_GPUS_PER_WORKER:-$(count_gpus 4)}}"
EXPERIMENT_NAME="${EXPERIMENT_NAME}-fast-${DATESTR}"

finetune --cloze-eval --fast-decode --seq-length "$MAX_SEQ_LEN" --eval-batch-size 16 --save-epoch 5 \
    "${MODEL_ARGS[@]}" "${TRAIN_ARGS[@]}" "${COMMON_ARGS[@]}" --fp16 --lr "$LR_SINGLE" --batch-size 8 --epochs "${EPOCHS:-$EPOCH_SINGLE}" "$@"
