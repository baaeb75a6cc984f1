#!/usr/bin/env bash
# Fine-tune on a task with plain torch.
#
#   bash scripts/finetune_superglue.sh MODEL_FILE TASK_FILE [any flag of finetune_glm.py]
#   N_GPU   processes; each takes its share of the task's batch size  (default: 1)
#   and the variables of scripts/finetune.sh
set -euo pipefail
MODEL_FILE="$(realpath -m -- "${1:-.}")" TASK_FILE="$(realpath -m -- "${2:-.}")"
source "$(dirname "$0")/launch.sh"
source scripts/finetune.sh
read_task ${1:+"$MODEL_FILE"} ${2:+"$TASK_FILE"}
shift 2
N_GPU="${N_GPU:-1}"
export NUM_GPUS_PER_WORKER="$N_GPU"
EXPERIMENT_NAME="${EXPERIMENT_NAME}-${DATESTR}"

# shellcheck disable=SC2086  # the variables of the files are lists of words
LOG_NAME="$EXPERIMENT_NAME" launch_distributed finetune_glm.py \
    --finetune --cloze-eval --experiment-name "$EXPERIMENT_NAME" --task "$TASK_NAME" --data-dir "$DATA_PATH" \
    --save "$SAVE_PATH" --seq-length "$MAX_SEQ_LEN" --checkpoint-activations --eval-batch-size 16 --save-epoch 100000 \
    $MODEL_ARGS $TRAIN_ARGS $COMMON_ARGS --fp16 --lr "$LR_SINGLE" --batch-size $((BATCH_SIZE / N_GPU)) \
    --model-parallel-size "$MP_SIZE" --epochs "${EPOCHS:-$EPOCH_SINGLE}" --overwrite "${SHORTENED[@]}" "$@"
