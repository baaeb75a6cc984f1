#!/usr/bin/env bash
# Fine-tune on a sequence-to-sequence task with plain torch, then write what it makes of the
# test split: runs/<experiment>/test.jsonl.hyps, references in .refs.
#
#   bash scripts/finetune_seq2seq.sh MODEL_FILE TASK_FILE [any flag of finetune_glm.py]
#   N_GPU   processes; the batch size is that of each  (default: NUM_GPUS_PER_WORKER, else the GPUs of this machine, at most 4)
#   and the variables of scripts/finetune.sh
set -euo pipefail
source "$(dirname -- "$0")/finetune.sh"
export NUM_GPUS_PER_WORKER="${N_GPU:-${NUM_GPUS_PER_WORKER:-$(count_gpus 4)}}"
EXPERIMENT_NAME="${EXPERIMENT_NAME}-${DATESTR}"

finetune --checkpoint-activations --save-epoch 100000 \
    "${MODEL_ARGS[@]}" ${EPOCH_SINGLE:+--epochs "$EPOCH_SINGLE"} ${BATCH_SINGLE:+--batch-size "$BATCH_SINGLE"} \
    ${LR_SINGLE:+--lr "$LR_SINGLE"} "${TRAIN_ARGS[@]}" "${COMMON_ARGS[@]}" "${TASK_ARGS[@]}" --fp16 ${EPOCHS:+--epochs "$EPOCHS"} "$@"
