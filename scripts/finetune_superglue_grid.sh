#!/usr/bin/env bash
# Fine-tune on a task for every rate and seed of a grid, and summarize. Runs that are done are skipped.
#
#   bash scripts/finetune_superglue_grid.sh MODEL_FILE TASK_FILE [any flag of finetune_glm.py]
#   LRS     learning rates         (default: 6e-6 1e-5 2e-5)
#   SEEDS   seeds                  (default: 1234 5678 3456)
#   N_GPU   processes of each run  (default: NUM_GPUS_PER_WORKER, else the GPUs of this machine, at most 2)
#   and the variables of scripts/finetune.sh
set -euo pipefail
source "$(dirname -- "$0")/finetune.sh"
N_GPU="${N_GPU:-${NUM_GPUS_PER_WORKER:-$(count_gpus 2)}}"
export NUM_GPUS_PER_WORKER="$N_GPU"
check_numbers N_GPU BATCH_SIZE
GRID="$EXPERIMENT_NAME"

for lr in ${LRS:-6e-6 1e-5 2e-5}; do
    for seed in ${SEEDS:-1234 5678 3456}; do
        EXPERIMENT_NAME="$GRID/$lr-$seed"
        if [ -f "runs/$EXPERIMENT_NAME/test_results.json" ]; then
            echo "runs/$EXPERIMENT_NAME is done"
            continue
        fi
        LOG_NAME="$GRID-$lr-$seed" as_step finetune --cloze-eval --seq-length "$MAX_SEQ_LEN" --eval-batch-size 16 \
            --save-epoch 100000 "${MODEL_ARGS[@]}" "${TRAIN_ARGS[@]}" "${COMMON_ARGS[@]}" --fp16 --attention-scale 8.0 \
            --lr "$lr" --seed "$seed" --batch-size $((BATCH_SIZE / N_GPU)) --epochs "${EPOCHS:-$EPOCH_SINGLE}" "$@"
    done
done
launch_single scripts/process_grid.py "runs/$GRID/*" table
