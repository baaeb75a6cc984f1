#!/usr/bin/env bash
# Fine-tune on a task with answers of several tokens; the context is encoded once for all of them.
#
#   bash scripts/finetune_superglue_fast.sh MODEL_FILE TASK_FILE [any flag of finetune_glm.py]
#   N_GPU   processes  (default: the GPUs of this machine, at most 4)
#   and the variables of scripts/finetune.sh
set -euo pipefail
MODEL_FILE="$(realpath -m -- "${1:-.}")" TASK_FILE="$(realpath -m -- "${2:-.}")"
source "$(dirname "$0")/launch.sh"
source scripts/finetune.sh
read_task ${1:+"$MODEL_FILE"} ${2:+"$TASK_FILE"}
shift 2
export NUM_GPUS_PER_WORKER="${N_GPU:-$(count_gpus 4)}"
EXPERIMENT_NAME="${EXPERIMENT_NAME}-fast-${DATESTR}"

# shellcheck disable=SC2086  # the variables of the files are lists of words
LOG_NAME="$EXPERIMENT_NAME" launch_distributed finetune_glm.py \
    --finetune --cloze-eval --fast-decode --experiment-name "$EXPERIMENT_NAME" --task "$TASK_NAME" --data-dir "$DATA_PATH" \
    --save "$SAVE_PATH" --seq-length "$MAX_SEQ_LEN" --eval-batch-size 16 --save-epoch 5 \
    $MODEL_ARGS $TRAIN_ARGS $COMMON_ARGS --fp16 --lr "$LR_SINGLE" --batch-size 8 \
    --model-parallel-size "$MP_SIZE" --epochs "${EPOCHS:-$EPOCH_SINGLE}" --overwrite "${SHORTENED[@]}" "$@"
