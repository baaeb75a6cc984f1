#!/usr/bin/env bash
# Fine-tune on a task with plain torch.
#
#   bash scripts/finetune_superglue.sh MODEL_FILE TASK_FILE [any flag of finetune_glm.py]
#   N_GPU   processes; each takes its share of the task's batch size  (default: NUM_GPUS_PER_WORKER, else 1)
#   and the variables of scripts/finetune.sh
set -euo pipefail
source "$(dirname -- "$0")/finetune.sh"
N_GPU="${N_GPU:-${NUM_GPUS_PER_WORKER:-1}}"
export NUM_GPUS_PER_WORKER="$N_GPU"
check_numbers N_GPU BATCH_SIZE
EXPERIMENT_NAME="${EXPERIMENT_NAME}-${DATESTR}"

finetune --cloze-eval --seq-length "$MAX_SEQ_LEN" --checkpoint-activations --eval-batch-size 16 --save-epoch 100000 \
    "${MODEL_ARGS[@]}" "${TRAIN_ARGS[@]}" "${COMMON_ARGS[@]}" --fp16 --lr "$LR_SINGLE" --batch-size $((BATCH_SIZE / N_GPU)) \
    --epochs "${EPOCHS:-$EPOCH_SINGLE}" "$@"
